"""The layout of a run directory: where everything lies, and how the task as used is kept there. A run is self-contained."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiat_ray import artifact, augmented
from fiat_ray.augmented import Example
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.length import Lengths
from fiat_ray.rows import Place, jsonl, text_field
from fiat_ray.task import SPLITS, Row, Task, make_rows
from fiat_ray.task_folder import definition_files, read_definition, split_files

ADAPTER, CHECKPOINT = "adapter", "checkpoint"
"""What was tuned, in a trial's folder: θ_τ^PEFT, or all of θ_τ."""

DRAWN = "drawn.json"
"""Completion record of a task's folder in a run."""

ID, GROUP, EXAMPLE = "@id", "@group", "@example"
"""Fields that a row has in a run's task folder beside its own. No template can name them: they are no identifiers."""

KEPT = 16
"""Bytes of a number that is tuned, in the state that a tuning goes on from: the weight, AdamW's moments, and the best weight so far; the same in
bfloat16, where a float32 master comes on top, and in float32."""
KEPT_OF_ZERO_2 = 20
"""It keeps masters of float32 weights too."""

ABANDONED = 6 * 3600.0
"""Seconds after which nobody is writing a part of the store any more; it takes one."""


def no_run(path: str | Path) -> UserError:
    """What is said of a folder without a manifest."""
    return UserError(f"{path}: no manifest.json in it, so it is no run directory; give the folder that --out named")


class RunFolder:
    def __init__(self, path: str | Path) -> None:
        if re.match(r"\w{2,}:/", str(path)):
            raise UserError(f"{path}: a run directory lies on a file system that all nodes share; object stores are not supported yet")
        if str(path) in ("", "."):
            raise UserError("a run directory needs a name; the working folder is none")
        self.path = place_for(path, "a run directory")

    def sweep(self) -> None:
        """Remove what a killed run left half-written. Only under the run's lock: nobody else writes here, but ``infer`` and who shares the store."""
        for path in [*self.path.glob(".ray-train-*"), self.stop, *self.path.glob("trials/*/.*"), *self._half_written()]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _half_written(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]  # one may be an ``infer``'s, whose output lies here
            found = (Path(folder, name) for name in names if name.startswith(".") and name.endswith(".tmp"))
            yield from (path for path in found if not self._is_in_use(path))

    def _is_in_use(self, path: Path) -> bool:
        """Whether another process may be writing a part of the store, or holds a file for its reasoners to read."""
        try:
            young = path.parent == self.rationales and time.time() - path.stat().st_mtime < ABANDONED
            return young or _is_locked(path)
        except OSError:  # it has its final name by now, or is another user's
            return True

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Two drivers in one run directory would do the same work twice."""
        if self.path.is_dir() and any(self.path.iterdir()) and not any(path.exists() for path in (self.manifest, self.path / ".lock")):
            raise UserError(f"{self.path}: is not empty, and no run directory; give another --out")
        make(self.path, "a run directory")
        with locked(self.path, f"{self.path}: another fiat-ray is at work in this run directory"):
            yield

    @property
    def stop(self) -> Path:
        """While this file is there, reasoners on all nodes finish the rows they are at and take no others."""
        return self.path / ".stop"

    @property
    def plan(self) -> Path:
        """What ``planning.of`` said before the campaign's first part ran."""
        return self.path / "plan.json"

    @property
    def sample(self) -> Path:
        """See ``sample.py``."""
        return self.path / "sample.json"

    @property
    def progress(self) -> Path:
        """Progress through the reasoning, a JSON line a minute."""
        return self.path / "progress.jsonl"

    @property
    def spent(self) -> Path:
        """See ``schedule.spending``."""
        return self.path / "spent.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    def read_manifest(self) -> Any:
        """What ``manifest.json`` holds; None where there is none."""
        return artifact.read_json(self.manifest, tasks=dict, trials=list, models=dict)

    @property
    def scores(self) -> Path:
        return self.path / "scores.parquet"

    @property
    def rationales(self) -> Path:
        return self.path / "rationales"

    def augmented(self, task: str) -> Path:
        return self.path / "augmented" / f"task={task}"

    def trial(self, name: str) -> Path:
        return self.path / "trials" / name

    def weights(self, trial: str) -> Path | None:
        """The folder with what a trial tuned. None where that was not kept, or is not there yet."""
        return next((path for name in (ADAPTER, CHECKPOINT) if (path := self.trial(trial) / name).is_dir()), None)

    def untuned(self, task: str, method: str) -> Path:
        """Predictions of ``icl`` and ``majority``."""
        return self.path / "untuned" / f"{task}-{method}.parquet"

    def task(self, name: str) -> Path:
        return self.path / "task" / name

    def keep_script(self, config: Config) -> Config:
        """Copies a scripted reasoner into the run, which needs it to be run again. Returns the config that names the copy."""
        script = config.reasoner.script
        if script is None:
            return config
        kept = self.path / "reasoner.py"
        if Path(script).resolve() != kept:
            with artifact.replacing(kept) as temporary:
                shutil.copyfile(script, temporary)
        return replace(config, reasoner=replace(config.reasoner, script=str(kept)))

    def save_task(self, task: Task, lengths: Lengths, drawn: Mapping[str, Any]) -> None:
        """A task folder with prompts, exemplars, labels and rows as used; beside it ``rows.parquet``, the rows as rendered, and last ``drawn.json``.

        ``drawn``: what of the config decides which rows there are (see ``prepare.drawn``). A folder that holds just this is left as it is.
        """
        folder = self.task(task.name)
        rows = {f"{split}.jsonl": jsonl(_raw(task, row) for row in task.split(split)) for split in SPLITS}
        files = definition_files({"name": task.name}, task, {"group": GROUP, "example": EXAMPLE}) | rows
        content = artifact.fingerprint(files, [[lengths.texts[row.id], lengths.cut_characters[row.id]] for row in task.rows])
        record = {"drawn": drawn, "removed": list(task.removed), "exemplars_shown": lengths.exemplars, "content": content}
        if artifact.read_json(folder / DRAWN) == record and all((folder / name).is_file() for name in (*files, "rows.parquet")):
            return
        (folder / DRAWN).unlink(missing_ok=True)
        for name, text in files.items():
            artifact.write_text(folder / name, text)
        augmented.write_rows_of_task(folder / "rows.parquet", task.rows, lengths)
        artifact.write_json(folder / DRAWN, record)

    def load_task(self, name: str) -> Task:
        """The task as this run used it, without rows (see ``examples`` and ``drawn_task``)."""
        folder = self.task(name)
        if not (folder / DRAWN).is_file():
            raise UserError(f"{folder}: no task '{name}' in this run, or one that an older version wrote; run its config again")
        return read_definition(folder)

    def drawn_task(self, drawn: Mapping[str, Any]) -> Task | None:
        """The task whose rows were drawn so, with its rows: the same ids, groups and order as in the run. None where the run holds no such rows."""
        for name in self.read_manifest()["tasks"]:
            record = artifact.read_json(self.task(name) / DRAWN, drawn=dict, removed=list)
            if record is not None and record["drawn"] == drawn:
                task = self.load_task(name)
                return replace(task, rows=tuple(_row(task, *found) for found in split_files(self.task(name))), removed=tuple(record["removed"]))
        return None

    def exemplars_shown(self, name: str) -> dict[str, int]:
        """Language → how many exemplars its reasoner prompts hold."""
        return dict(artifact.read_json(self.task(name) / DRAWN, exemplars_shown=dict)["exemplars_shown"])

    def examples(self, task: str, with_rationales: bool) -> list[Example]:
        """Rows of all splits, by id, so that all recipes see them in one order: from the augmented set, or without rationales from the task alone."""
        found = augmented.read(self.augmented(task)) if with_rationales else augmented.read_rows_of_task(self.task(task) / "rows.parquet")
        return sorted(found, key=lambda example: example.id)


@contextmanager
def locked(folder: Path, said: str) -> Iterator[None]:
    """Raises ``UserError`` where another process holds the folder's lock. It goes with the process, however that ends."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(said) from None
        yield


def forget_state(trial: Path, but: Collection[str] = ()) -> None:
    """Remove from a trial's folder what its tuning would go on from (see ``tune.resume``); ``but``: names that stay."""
    for path in trial.glob("resume*"):
        if path.name not in but:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file (see ``Requests.shared``)."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def place_for(path: str | Path, what: str) -> Path:
    """The absolute path of a folder that is there or can be made. Raises ``UserError`` where it can't."""
    try:
        found = Path(path).expanduser().resolve()
        str(found).encode()  # others than Python take no lone surrogates
        existing = next(p for p in (found, *found.parents) if p.exists())
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{str(path)[:200]!r}: {what} can't be made there ({' '.join(str(error).split())[:200]})") from None
    if not existing.is_dir():
        raise UserError(f"{existing}: is a file; {what} can't be made there")
    return found


def new_place(path: str | Path, what: str) -> Path:
    """``place_for`` of a folder that is written as a whole: one that is not there yet, or empty. Raises ``UserError`` for any other."""
    place = place_for(path, what)
    if place == Path.cwd():
        raise UserError(f"{path}: is the working folder, which would be replaced; give the name of a new one")
    if place.is_dir() and any(place.iterdir()):
        raise UserError(f"{place}: is not empty; give another folder for {what}")
    return place


def make(folder: Path, what: str) -> None:
    """Make a folder, and see that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: {what} can't be made there ({error.strerror})") from None


def _raw(task: Task, row: Row) -> dict[str, Any]:
    """A row as a task folder holds it, and beside its fields what it was called and grouped by."""
    target = row.targets[0] if len(row.targets) == 1 else list(row.targets)
    language = {task.language: row.language} if task.language else {}
    return {**row.fields, **language, task.target: target, ID: row.id, GROUP: row.group, EXAMPLE: row.example}


def _row(task: Task, place: Place, split: str, raw: dict[str, Any]) -> Row:
    """The row that ``_raw`` wrote. Read as any task folder's it would have another id and other names for the same groups."""
    [row] = make_rows(task, [(place, split, raw)], (), ())
    return replace(row, id=text_field(raw, ID, place), group=text_field(raw, GROUP, place), example=text_field(raw, EXAMPLE, place))
