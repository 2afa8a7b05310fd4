"""A run directory → MLflow: one parent run a campaign, one child a trial, or a method that tunes nothing. Only this and ``tracking_store`` import
MLflow, and only inside functions.

The driver replays what is on disk, so nothing is lost when the server was away: a later call sends what is missing, and nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fiat_ray.campaign import on_validation
from fiat_ray.metrics import shown_metrics
from fiat_ray.progress import read_log
from fiat_ray.recipe import UNTUNED
from fiat_ray.report.read import Run, read, records
from fiat_ray.run_folder import ADAPTER, CHECKPOINT, RunFolder
from fiat_ray.tracking_store import EXPERIMENT, VIEW, artifact_root, default_store, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

Values = dict[str, Any]

log = logging.getLogger(__name__)

TABLES = {"mlflow.loggedArtifacts": json.dumps([{"path": "report/examples.json", "type": "table"}])}
"""What MLflow shows as a table, rows beside each other with each method's answers."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What MLflow takes it for: tuning, not traces of chats."""
RUN_TAG, TRIAL_TAG, CURRENT_TAG, DONE_TAG, LINES_TAG = "fiat_ray.run", "fiat_ray.trial", "fiat_ray.current", "fiat_ray.sent", "fiat_ray.lines"
"""Identity of a campaign, of a trial; whether a trial belongs to the campaign's present config; a digest of what was sent: while it holds,
nothing is missing; how many lines of progress were sent."""
DIGEST = 32
"""Characters: MLflow keeps 36."""
ALIAS = "best"
"""Of a registered model's version: the trial that is best on validation."""
LARGEST_CHECKPOINT = 100 * 2**20
"""Bytes. Adapters are always sent, full checkpoints only below this."""


def track(run_dir: str | Path, tracking_uri: str | None = None) -> str | None:
    """Sends a run directory and returns the parent's MLflow run id; None, after one warning, where the store cannot be reached."""
    run = read(run_dir)
    uri = tracking_uri or default_store()
    try:
        client = open_store(uri)
        experiment = _experiment(client, uri)
        parent = _parent(client, run, experiment)
        for trial in run.trials:
            if trial["tuned"]:
                _send_trial(client, run, trial, parent, experiment)
        for (task, method), file in _untuned(run).items():
            _send_untuned(client, run, task, method, file, parent, experiment)
        _mark_current(client, run, parent, experiment)
        _show_scores(client, run, experiment)
        _register_best(client, run, parent, experiment)
        _send_campaign(client, run, parent)
        _send_progress(client, run, parent)
    except Exception as error:  # MLflow raises its own, SQLAlchemy's, requests' and OSError; none may cost a campaign its results
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("MLflow at %s: %s. Nothing is lost: the next `fiat-ray run` or `report` of %s sends it again.", uri, reason[:200], run_dir)
        return None
    return str(parent)


def track_progress(run_dir: str | Path, tracking_uri: str | None = None) -> None:
    """Sends the lines of ``progress.jsonl`` that are new, while a campaign runs."""
    run = read(run_dir)
    uri = tracking_uri or default_store()
    with suppress(Exception):  # whatever it is, ``track`` meets it at the end, says it, and sends what is missing
        client = open_store(uri)
        _send_progress(client, run, _parent(client, run, _experiment(client, uri)))


def _experiment(client: MlflowClient, uri: str) -> str:
    known = client.get_experiment_by_name(EXPERIMENT)
    if known is None:
        return str(client.create_experiment(EXPERIMENT, artifact_location=artifact_root(uri), tags=KIND))
    if KIND.items() - known.tags.items():
        for name, value in KIND.items():
            client.set_experiment_tag(known.experiment_id, name, value)
    return str(known.experiment_id)


def _show_scores(client: MlflowClient, run: Run, experiment: str) -> None:
    """The view of the table of runs that ``ui`` opens: settings, and average scores by all metrics of the campaigns that the store holds."""
    there = json.loads(client.get_experiment(experiment).tags.get(VIEW, "{}")).get("selectedColumns", [])
    settings = [f"params.`{name}`" for name in ("task", "method", "tunable", "seed", "train_size")]
    tasks = [run.manifest["tasks"][task] for task in run.tasks]
    metrics = [metric for task in tasks for metric in shown_metrics(task["metric"], task["labels"])]
    scores = [f"metrics.`{_metric_name({'split': 'test', 'metric': metric, 'language': 'mean'})}`" for metric in metrics]
    columns = list(dict.fromkeys([*there, "attributes.`Created`", *settings, *scores]))
    if columns != there:
        client.set_experiment_tag(experiment, VIEW, json.dumps({"selectedColumns": columns}))


def _find(client: MlflowClient, experiment: str, tags: dict[str, str]) -> Any:
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = client.search_runs([experiment], condition, max_results=1)
    return found[0] if found else None


def _parent(client: MlflowClient, run: Run, experiment: str) -> str:
    identity = _digest(str(run.path))
    found = _find(client, experiment, {RUN_TAG: identity})
    if found:
        return str(found.info.run_id)
    tags = {RUN_TAG: identity, "fiat_ray.path": str(run.path), "mlflow.source.name": run.manifest["command"]}
    begun = datetime.fromisoformat(run.manifest["created"]).timestamp()
    created = client.create_run(experiment, start_time=int(begun * 1000), run_name=run.path.name, tags=tags)
    return str(created.info.run_id)


def _send_campaign(client: MlflowClient, run: Run, parent: str) -> None:
    """Tasks and models, config, manifest and report.

    Tasks and models are tags: an edited config in the same folder may change them, and parameters cannot be changed.
    """
    tags = {
        "tasks": " ".join(run.tasks),
        "fiat_ray": run.manifest["fiat_ray"],
        "mlflow.note.content": _description(run),
        **TABLES,
        **{f"model.{name}": model["name"] for name, model in run.models.items()},
    }
    files = [run.path / name for name in ("config.yaml", "manifest.json", "scores.parquet", "report")]
    _send_rows(client, run, run.tasks, parent)
    _send(client, parent, {}, tags, [], files)


def _description(run: Run) -> str:
    """Each task's scores in a line, and where the rest is: what MLflow shows above everything."""
    lines = []
    for task in run.tasks:
        metric = run.manifest["tasks"][task]["metric"]
        values: dict[str, list[float]] = {}
        for score in records(run.scores):
            value, method = score["value"], score["method"]
            if (score["task"], score["metric"], score["language"], score["split"]) == (
                task,
                metric,
                "mean",
                "test",
            ) and value == value:  # NaN: not defined
                who = method if method in UNTUNED else f"{method} {score['tunable']}"
                values.setdefault(who, []).append(value)
        means = ", ".join(f"{who} {fmean(of):.1f}" for who, of in sorted(values.items(), key=lambda item: -fmean(item[1])))
        lines.append(f"{task}, {metric} on test, mean over languages: {means or 'no scores yet'}.")
    return "\n\n".join([*lines, "What holds of it, with intervals: the artifact `report/index.html`."])


def _send_rows(client: MlflowClient, run: Run, tasks: Sequence[str], run_id: str) -> None:
    """Of each task the digest of its rows as used; where they are sent already nothing is added."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    there = client.get_run(run_id).inputs.dataset_inputs
    digests = {task: run.manifest["tasks"][task]["data"][:DIGEST] for task in tasks}
    new = {task: digest for task, digest in digests.items() if (task, digest) not in {(one.dataset.name, one.dataset.digest) for one in there}}
    source = json.dumps({"uri": str(run.path / "task")})
    rows = [DatasetInput(Dataset(task, digest, "local", source), [InputTag("mlflow.data.context", "campaign")]) for task, digest in new.items()]
    if rows:
        client.log_inputs(run_id, rows)


def _send_progress(client: MlflowClient, run: Run, parent: str) -> None:
    """Lines of the progress log as metrics over time, each line sent once: the tag counts those that were."""
    from mlflow.entities import Metric

    lines = read_log(run.path / "progress.jsonl")
    sent = int(client.get_run(parent).data.tags.get(LINES_TAG, 0))
    for number, line in enumerate(lines[sent:], sent):
        at = int(line["time"] * 1000)
        named = {f"reason/{line['task']}/{name}": value for name, value in line["numbers"].items()}
        client.log_batch(parent, metrics=[Metric(name, float(value), at, number) for name, value in named.items()])
    client.set_tag(parent, LINES_TAG, len(lines))


def _mark_current(client: MlflowClient, run: Run, parent: str, experiment: str) -> None:
    """Children that an edited config no longer has are kept, and tagged so."""
    current = {trial["name"] for trial in run.trials} | {file.stem for file in _untuned(run).values()}
    for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=10_000):
        is_current = "yes" if child.data.tags.get(TRIAL_TAG) in current else "no"
        if child.data.tags.get(CURRENT_TAG) != is_current:
            client.set_tag(child.info.run_id, CURRENT_TAG, is_current)


def _child(client: MlflowClient, name: str, start: float, parent: str, experiment: str) -> str:
    """The id of the child of that name, made where it is not there. ``start``: seconds since 1970."""
    tags = {TRIAL_TAG: name, "mlflow.parentRunId": parent}
    child = _find(client, experiment, tags) or client.create_run(experiment, start_time=int(start * 1000), run_name=name, tags=tags)
    return str(child.info.run_id)


def _untuned(run: Run) -> dict[tuple[str, str], Path]:
    """(Task, method) of what tunes nothing → its answers, where there are some."""
    files = {(task, method): RunFolder(run.path).untuned(task, method) for task in run.tasks for method in UNTUNED}
    return {of: file for of, file in files.items() if file.is_file()}


def _send_untuned(client: MlflowClient, run: Run, task: str, method: str, file: Path, parent: str, experiment: str) -> None:
    """One child, in whose columns the same stands as in those of trials: scores per language, and predictions."""
    child = _child(client, file.stem, file.stat().st_mtime, parent, experiment)
    scores = [score for score in records(run.scores) if (score["task"], score["method"]) == (task, method)]
    _send_rows(client, run, [task], child)
    _send(client, child, {"task": task, "method": method}, {}, [(_metric_name(score), score["value"], 0, file) for score in scores], [file])


def _send_trial(client: MlflowClient, run: Run, trial: Values, parent: str, experiment: str) -> None:
    """One child: its recipe and setting, scores per language, validation curve, predictions, and its weights where they are small."""
    begun = (run.path / "trials" / trial["name"] / "trial.json").stat().st_mtime - trial["seconds"]
    child = _child(client, trial["name"], begun, parent, experiment)
    params = {name: trial[name] for name in ("task", "method", "tunable", "seed", "train_size", "learning_rate", "step", "steps", "kept_step_0")}
    params |= {f"recipe.{name}": value for name, value in trial["recipe"].items()}
    params["model"] = run.models[trial["tunable"] + ("" if trial["recipe"]["instruction_tuned"] else ".pretrained")]["name"]
    keys = ("task", "method", "tunable", "seed", "train_size")
    scores = [score for score in records(run.scores) if all(score[key] == trial[key] for key in keys)]
    folder = run.path / "trials" / trial["name"]
    tuned, tested = folder / "trial.json", folder / "scores.json"
    metrics = [(_metric_name(score), score["value"], 0, tested if score["split"] == "test" else tuned) for score in scores]
    metrics += [(name, trial[name], 0, tuned) for name in ("selection_value", "supervised_tokens", "seconds")]
    metrics += [(name, value, step, tuned) for name, value, step in _curve(run, trial)]
    files = [folder / name for name in ("trial.json", "predictions.parquet", "history.parquet", "validation.parquet", "scores.json", ADAPTER)]
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_dir() and sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < LARGEST_CHECKPOINT:
        files.append(checkpoint)
    _send_rows(client, run, [trial["task"]], child)
    _send(client, child, params, {}, metrics, files)


def _register_best(client: MlflowClient, run: Run, parent: str, experiment: str) -> None:
    """Of each task the trial that is best on validation, as a version of a registered model, which has the alias ``best``.

    A version is there once for each trial that was the best at some time. Weights that stayed home (see ``LARGEST_CHECKPOINT``) are not registered.
    """
    for task in run.tasks:
        trials = [t for t in run.trials if t["tuned"] and t["task"] == task and t["selection_value"] is not None]
        if not trials:
            continue
        best = max(trials, key=on_validation)
        child = _find(client, experiment, {TRIAL_TAG: best["name"], "mlflow.parentRunId": parent})
        kind = ADAPTER if best["recipe"]["peft"] else CHECKPOINT
        if not any(file.path == kind for file in client.list_artifacts(child.info.run_id)):
            continue
        name = _registered_model(client, run, task)
        versions = [v for v in client.search_model_versions(f"name = '{name}'") if v.run_id == child.info.run_id]
        if not versions:
            tags = {TRIAL_TAG: best["name"], **{key: str(best[key]) for key in ("method", "tunable", "seed", "selection_metric")}}
            versions = [client.create_model_version(name, f"{child.info.artifact_uri}/{kind}", child.info.run_id, tags=tags)]
        if client.get_registered_model(name).aliases.get(ALIAS) != versions[0].version:
            client.set_registered_model_alias(name, ALIAS, versions[0].version)


def _registered_model(client: MlflowClient, run: Run, task: str) -> str:
    """The name of this run's model of a task, made where it is not there: with a part of its digest where another folder of that name has it."""
    identity = _digest(str(run.path))
    plain = re.sub(r"[/:'%]", "-", f"{run.path.name}-{task}")
    for name in (plain, f"{plain}-{identity[:8]}"):
        [*known] = client.search_registered_models(f"name = '{name}'")
        if not known:
            client.create_registered_model(name, {RUN_TAG: identity})
        if not known or known[0].tags.get(RUN_TAG) == identity:
            return name
    raise RuntimeError(f"registered models {plain} belong to other runs")


def _metric_name(score: Values) -> str:
    return "/".join(map(_accepted, (score["split"], score["metric"], score["language"])))


def _accepted(part: str) -> str:
    """A part of a metric's name as MLflow takes it, without brackets; a digest tells it from another language that is written so."""
    plain = re.sub(r"[^\w.\- :]", "-", part)
    return part if part == plain else f"{plain} {_digest(part)[:6]}"


def _curve(run: Run, trial: Values) -> list[tuple[str, float, int]]:
    """The chosen learning rate's validation, by optimizer step."""
    history = run.history(trial["name"])
    chosen = history[history["learning_rate"] == trial["learning_rate"]]
    named = {"value": f"validation/{trial['selection_metric']}", "validation_loss": "validation/loss", "train_loss": "train/loss"}
    return [(name, row[column], int(row["step"])) for row in records(chosen) for column, name in named.items()]


def _send(client: MlflowClient, run_id: str, params: Values, tags: Values, metrics: list[tuple[str, Any, int, Path]], files: list[Path]) -> None:
    """Everything of one MLflow run, unless just this was sent before. The digest is set last: what was broken off is sent again.

    ``metrics``: name, value, step, and a file that was written when it was known."""
    from mlflow.entities import Metric, Param, RunTag

    known = {(name, float(value), step): of for name, value, step, of in metrics if value is not None and value == value}
    there = [path for path in files if path.exists()]
    state = _digest(repr(sorted(params.items())), repr(sorted(tags.items())), repr(list(known)), *map(_content, there))
    before = client.get_run(run_id)
    if before.data.tags.get(DONE_TAG) == state:
        return
    # A metric of equal step, time and value is stored once, so a time that is on disk makes sending it again harmless.
    entities = [Metric(name, value, _made(of), step) for (name, value, step), of in known.items()]
    new = [Param(name, str(value)) for name, value in params.items() if name not in before.data.params]
    client.log_batch(run_id, params=new, tags=[RunTag(name, str(value)) for name, value in tags.items()])
    for start in range(0, len(entities), 500):
        client.log_batch(run_id, metrics=entities[start : start + 500])
    for path in there:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))
    client.set_tag(run_id, DONE_TAG, state)
    client.set_terminated(run_id, end_time=max(before.info.start_time, *map(_made, there)))


def _made(path: Path) -> int:
    """When it was written, in milliseconds since 1970."""
    return int(path.stat().st_mtime * 1000)


def _content(path: Path) -> str:
    """Digest of a file or folder: small files by content, weights by size and time."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    parts = []
    for file in files:
        stat = file.stat()
        content = hashlib.sha256(file.read_bytes()).hexdigest() if stat.st_size < 2**24 else f"{stat.st_size}-{stat.st_mtime_ns}"
        parts.append(f"{file.relative_to(path.parent)} {content}")
    return "\n".join(parts)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
