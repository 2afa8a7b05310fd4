"""Scores of a run: untuned methods from the rationales, trials from their folders, all as one long table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fiat_ray import artifact, augmented, predict
from fiat_ray.draw import validation_subset
from fiat_ray.metrics import NAMED_AVERAGES
from fiat_ray.prepare import Prepared
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.trials import evaluated
from fiat_ray.schema import PREDICTIONS, SCORES, TRIAL
from fiat_ray.scoring import majority_predictions, score_predictions
from fiat_ray.task import Task


def collect(prepared: Prepared, run: RunFolder) -> list[dict[str, Any]]:
    """Write ``untuned/*.parquet`` and ``scores.parquet``: current trials only, of those the ones evaluated on the rationales that are there now.

    Returns the rows.
    """
    rows: list[dict[str, Any]] = []
    for task in prepared.tasks.values():
        who = {"task": task.name, "tunable": None, "seed": None, "train_size": len(task.split("train"))}
        for method, predictions in _untuned(prepared, run, task, "test").items():
            artifact.write_rows(run.untuned(task.name, method), predictions, PREDICTIONS)
            rows += _scored(score_predictions(task.name, task.metric, task.labels, predictions, icl=method == "icl"), method=method, **who)
        chosen = {row.id for row in validation_subset(task.split("validation"), prepared.config.validation.rows)}
        for method, predictions in _untuned(prepared, run, task, "validation").items():
            scores = score_predictions(task.name, task.metric, task.labels, [row for row in predictions if row["id"] in chosen])
            averages = [score for score in scores if score["language"] in ("mean", *NAMED_AVERAGES)]
            rows += [{**who, "method": method, "split": "validation", **score} for score in averages]
    for trial in [trial for trial in prepared.trials if evaluated(run, trial)]:
        folder = run.trial(trial.name)
        scores = artifact.read_json(folder / "scores.json")
        rows += _scored(scores, **{key: getattr(trial, key) for key in ("task", "method", "tunable", "seed", "train_size")})
        rows += _validation(artifact.read_json(folder / "trial.json", **TRIAL))
    artifact.write_rows(run.scores, rows, SCORES)
    return rows


def _untuned(prepared: Prepared, run: RunFolder, task: Task, split: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    if "majority" in prepared.config.methods or task.labels:  # beside labels' scores it always stands: one label may be nearly all
        found["majority"] = majority_predictions(task.split("train"), task.split(split), task.metric, task.labels)
    if "icl" in prepared.config.methods and augmented.read_seal(run.augmented(task.name), prepared.asked(task.name)):
        found["icl"] = predict.icl(task, [e for e in run.examples(task.name, with_rationales=True) if e.split == split])
    return found


def _scored(scores: Sequence[Mapping[str, Any]], **who: Any) -> list[dict[str, Any]]:
    return [{**who, "split": "test", **score} for score in scores]


def _validation(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores of the chosen step, so that methods can be chosen on validation too."""
    who = {key: record[key] for key in ("task", "method", "tunable", "seed", "train_size")}
    where = {"split": "validation", "n": record["validation_rows"]}
    named = [(*name.partition("/"), value) for name, value in record["validation"].items()]
    return [{**who, **where, "metric": metric, "language": average or "mean", "value": value} for metric, _, average, value in named]
