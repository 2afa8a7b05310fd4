"""A campaign in a folder of its own, to be struck: started, watched, gone on with, and compared with one that nothing disturbed.

``python -m benchmarks.fault_run CONFIG PLACE`` is one sitting: ``fiat-ray run``. It notes when stages begin and end and when rows
are answered, and has what the file ``told`` in PLACE says: a wrong clock, a slow disk, little patience, swaps that do not take.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.interruption import FLUSHED_AFTER
from fiat_ray.reason.store import Store, is_final

STAGES = ("reason", "seal", "tune", "evaluate", "report")
COLUMNS = ["status", "text", "finish_reason"]
"""Of a stored row, beside its key: what any two runs with a scripted reasoner have in common."""


class Ended(Exception):
    """A sitting ended before it was struck."""


class Run:
    """A run of ``config`` in ``place``/disk/run; what a sitting notes lies in ``place``. ``overrides``: as on the command line."""

    def __init__(self, config: Path, place: Path, overrides: Sequence[str] = ()) -> None:
        self.config, self.place, self.overrides = config, place, overrides
        self.out = out_of(place)
        self._struck: list[list[float]] = []
        """From when to when a fault was there, in seconds since the epoch."""
        self._kept: dict[str, dict[str, Any]] = {}
        self._finished: dict[Path, bytes] = {}

    def start(self, **told: Any) -> Sitting:
        return Sitting(self, told)

    def finish(self, tries: int = 2) -> None:
        """Rerun without a fault, until it ends well. Raises ``AssertionError`` with what it said where it does not."""
        for _ in range(tries):
            if (sitting := self.start()).wait() == 0:
                return
        raise AssertionError(f"{self.out}: does not end well: {sitting.said()[-2000:]}")

    @contextmanager
    def struck(self) -> Iterator[None]:
        """Around a fault. What is finished when it strikes must be there at the end, unchanged and not done again."""
        self._kept |= self.rows()
        done = [*self.out.glob("trials/*/trial.json"), *self.out.glob("trials/*/scores.json")]
        self._finished |= {path: _identity(path) for path in done}
        self._struck.append([time.time(), time.time()])
        try:
            yield
        finally:
            self._struck[-1][1] = time.time()

    def rows(self) -> dict[str, dict[str, Any]]:
        """Key → what is stored."""
        return {row["key"]: row for row in Store(self.out / "rationales").table().to_pylist()}

    def repeated_over(self) -> int:
        """Rows that were answered, trained on or predicted again although that was finished and had been time to store it."""
        answered: dict[str, list[float]] = {}
        for line in (self.place / "answered").read_text().splitlines() if (self.place / "answered").is_file() else []:
            row, at = line.split()
            answered.setdefault(row, []).append(float(at))
        again = [pair for times in answered.values() for pair in zip(times, times[1:], strict=False)]
        struck = [(start - FLUSHED_AFTER, end + FLUSHED_AFTER) for start, end in self._struck]
        over = sum(not any(start < first < end and start < second for start, end in struck) for first, second in again)
        trials = [path for path, identity in self._finished.items() if path.is_file() and _identity(path) != identity]
        stored = self._answers_stored()
        rows = sum(len(pd.read_parquet(path.with_name("predictions.parquet"))) for path in trials)
        return over + len(stored) - len(set(stored)) + rows

    def _answers_stored(self) -> list[str]:
        """The keys of all parts, without tries that failed: what they asked is asked again."""
        parts = [pq.read_table(part, columns=["key", "status", "tries"]) for part in Store(self.out / "rationales").parts()]
        return [key for part in parts for key in part["key"].filter(pa.array(is_final(part))).to_pylist()]

    def lost(self, undisturbed: Run, exact: bool = True) -> int:
        """Rows of the undisturbed run that are not there, or are others; and rows that were there and changed. Not ``exact``: texts may differ."""
        mine, theirs = self.rows(), undisturbed.rows()
        changed = {key for key, row in self._kept.items() if mine.get(key) != row}
        if not exact:
            return len(changed | (theirs.keys() - mine.keys()))
        differ = {key for key in theirs if _told(mine.get(key)) != _told(theirs[key])}
        kinds = ("augmented/**/*.parquet", "trials/*/predictions.parquet", "untuned/*.parquet")
        files = [path.relative_to(undisturbed.out) for kind in kinds for path in undisturbed.out.glob(kind)]
        others = [file for file in files if not _same(self.out / file, undisturbed.out / file)]
        return len(changed | differ) + sum(len(pd.read_parquet(undisturbed.out / file)) for file in others)

    def scores_differ(self, undisturbed: Run) -> bool:
        files = [Path("scores.parquet"), *(path.relative_to(undisturbed.out) for path in undisturbed.out.glob("trials/*/scores.json"))]
        return not all(_same(self.out / file, undisturbed.out / file) for file in files)

    def begin_at(self, undisturbed: Run, stage: str) -> None:
        """All that comes before ``stage`` is an undisturbed run's, and nothing else is there."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        (self.place / "answered").unlink(missing_ok=True)
        self._struck, self._kept, self._finished = [], {}, {}
        shutil.copytree(undisturbed.out, self.out)
        shutil.rmtree(self.out / "report")
        (self.out / "scores.parquet").unlink()
        # Trials of an undisturbed run stay valid where the rationales become its own, to the byte.
        for name in {"reason": ("rationales", "augmented", "untuned"), "seal": ("augmented", "untuned"), "tune": ("trials",)}.get(stage, ()):
            shutil.rmtree(self.out / name, ignore_errors=True)
        if stage == "evaluate":
            for name in ("scores.json", "predictions.parquet", "evaluation.json"):
                for path in self.out.glob(f"trials/*/{name}"):
                    path.unlink()


class Sitting:
    """A driver at work."""

    def __init__(self, run: Run, told: dict[str, Any]) -> None:
        self.run, self.told = run, told
        (run.place / "told").write_text(json.dumps(told))
        self._marks, self._log = run.place / "stages", run.place / "said"
        self._before = len(self._marks.read_text()) if self._marks.is_file() else 0
        command = [sys.executable, "-m", "benchmarks.fault_run", str(run.config), str(run.place), *run.overrides]
        with self._log.open("ab") as log:
            environment = {"RAY_ADDRESS": "local", **os.environ, **told.get("environment", {})}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float = 900) -> int:
        return self.process.wait(seconds)

    def until(self, there: Callable[[], Any], stage: str = "", seconds: float = 900, every: float = 0.003) -> Any:
        """What ``there`` gives as soon as that is something. Raises ``Ended`` where the driver ends before, or a stage after ``stage`` begins."""
        deadline = time.monotonic() + seconds
        while not (found := there()):
            if not self.alive() or (stage and any(self._marked(later) for later in STAGES[STAGES.index(stage) + 1 :])):
                raise Ended
            assert time.monotonic() < deadline, f"it never came: {self.said()[-2000:]}"
            time.sleep(every)
        return found

    def begun(self, stage: str) -> bool:
        """Whether ``stage`` is at work."""
        return self._marked(stage).count("begins") > self._marked(stage).count("ends")

    def _marked(self, stage: str) -> list[str]:
        """What this sitting noted of a stage."""
        lines = self._marks.read_text()[self._before :].splitlines() if self._marks.is_file() else []
        return [line.split()[1] for line in lines if line.split()[0] == stage]

    def answered(self) -> int:
        return _lines(self.run.place / "answered")


def seconds(run: Run) -> dict[str, float]:
    """Stage → how long it took in the only sitting of a run."""
    found: dict[str, float] = {}
    for line in (run.place / "stages").read_text().splitlines():
        stage, what, at = line.split()
        found[stage] = found.get(stage, 0.0) + (float(at) if what == "ends" else -float(at))
    return found


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.is_file() else 0


def out_of(place: Path) -> Path:
    return place / "disk" / "run"


def _told(row: dict[str, Any] | None) -> Any:
    return row and [row[name] for name in COLUMNS]


def _identity(path: Path) -> bytes:
    return f"{path.stat().st_mtime_ns} ".encode() + path.read_bytes()


def _same(a: Path, b: Path) -> bool:
    return a.is_file() and a.read_bytes() == b.read_bytes()


# What follows runs in a sitting.


class Noted:
    """A reasoner that notes which row it answered, and when."""

    def __init__(self, create: Callable[[], Any], file: Path, clock: float) -> None:
        set_clock(clock)
        self._reasoner, self._file = create(), file

    async def reason(self, prefix: Sequence[int], ids: Sequence[int], row: str) -> Any:
        answer = await self._reasoner.reason(prefix, ids, row)
        if answer.status != "engine_error":
            asked = hashlib.sha256(repr((list(prefix), list(ids), row)).encode()).hexdigest()
            note(self._file, f"{asked} {time.clock_gettime(time.CLOCK_REALTIME)}")
        return answer


def note(file: Path, line: str) -> None:
    with file.open("a") as lines:
        lines.write(f"{line}\n")


def set_clock(seconds: float) -> None:
    """This process's clock is ahead of the machine's by so much."""
    if seconds:
        time.time = lambda: time.clock_gettime(time.CLOCK_REALTIME) + seconds
        time.time_ns = lambda: time.clock_gettime_ns(time.CLOCK_REALTIME) + int(seconds * 1e9)


def slow_disk(seconds: float) -> None:
    """What a file or a folder takes to be durable, in this process."""
    fsync = os.fsync

    def slow(fd: Any) -> None:
        time.sleep(seconds)
        fsync(fd)

    os.fsync = slow


def evaluator(deaf: bool = False, patience: float | None = None) -> Any:
    """``deaf``: its engine keeps its weights, whatever is swapped in. ``patience``: in seconds, once it has started."""
    from fiat_ray.evaluate import Evaluator

    class ToldEvaluator(Evaluator):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if deaf:
                self.engine.swap = lambda weights, changed=None: None  # type: ignore[method-assign]
            if patience is not None:
                self._watch(patience)

    return ToldEvaluator


def _marked(work: Callable[..., Any], stage: str, file: Path) -> Callable[..., Any]:
    @wraps(work)
    def marked(*arguments: Any, **named: Any) -> Any:
        note(file, f"{stage} begins {time.clock_gettime(time.CLOCK_REALTIME)}")
        try:
            return work(*arguments, **named)
        finally:
            note(file, f"{stage} ends {time.clock_gettime(time.CLOCK_REALTIME)}")

    return marked


def sit(config: str, place: str, *overrides: str) -> int:
    folder = Path(place)
    told = json.loads((folder / "told").read_text())
    set_clock(told.get("clock", 0.0))
    slow_disk(told.get("fsync", 0.0))
    from fiat_ray import augmented, cli, prepare, runs
    from fiat_ray.schedule import evaluation, reasoning
    from fiat_ray.tune import lane

    marks: tuple[tuple[Any, str, str], ...] = (
        (reasoning.Reasoning, "_reason", "reason"),
        (augmented, "seal", "seal"),
        (lane, "run_lane", "tune"),
        (evaluation.Evaluation, "_evaluate", "evaluate"),
        (runs, "_show", "report"),
    )
    for owner, name, what in marks:
        setattr(owner, name, _marked(getattr(owner, name), what, folder / "stages"))
    make = prepare.make_reasoner
    noted = partial(Noted, file=folder / "answered", clock=told.get("clock", 0.0))
    reasoning.make_reasoner = lambda *arguments: partial(noted, make(*arguments))  # type: ignore[attr-defined,misc]
    if "patience" in told:
        reasoning.patience_for = lambda _: told["patience"]  # type: ignore[attr-defined,assignment]
    if "evaluator" in told:
        from fiat_ray import evaluate

        evaluate.Evaluator = evaluator(**told["evaluator"])  # type: ignore[misc]
    return cli.main(["run", config, "--out", str(out_of(folder)), *overrides])


if __name__ == "__main__":
    sys.exit(sit(*sys.argv[1:]))
