"""Scores of a run: untuned methods from the rationales, trials from their folders, all as one long table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fiat_ray import artifact, augmented, predict
from fiat_ray.prepare import Prepared
from fiat_ray.run_folder import RunFolder
from fiat_ray.schema import PREDICTIONS, SCORES
from fiat_ray.scoring import majority_predictions, score_predictions
from fiat_ray.task import Task


def collect(prepared: Prepared, run: RunFolder) -> list[dict[str, Any]]:
    """Write ``untuned/*.parquet`` and ``scores.parquet``: current trials only, and only those that are whole. Returns the rows."""
    rows: list[dict[str, Any]] = []
    for task in prepared.tasks.values():
        for method, predictions in _untuned(prepared, run, task).items():
            artifact.write_rows(run.untuned(task.name, method), predictions, PREDICTIONS)
            scores = score_predictions(task.name, task.labels, predictions, icl=method == "icl")
            rows += _scored(scores, task=task.name, method=method, tunable=None, seed=None, train_size=len(task.split("train")))
    for trial in prepared.trials:
        folder = run.trial(trial.name)
        scores = artifact.read_json(folder / "scores.json")
        if scores is not None:
            rows += _scored(scores, **{key: getattr(trial, key) for key in ("task", "method", "tunable", "seed", "train_size")})
            rows += _validation(artifact.read_json(folder / "trial.json"))
    artifact.write_rows(run.scores, rows, SCORES)
    return rows


def _untuned(prepared: Prepared, run: RunFolder, task: Task) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    if "majority" in prepared.config.methods:
        found["majority"] = majority_predictions(task.split("train"), task.split("test"), task.labels)
    if "icl" in prepared.config.methods and (run.augmented(task.name) / augmented.SEAL).is_file():
        test = [e for e in run.examples(task.name, with_rationales=True) if e.split == "test"]
        found["icl"] = predict.icl(task, test)
    return found


def _scored(scores: Sequence[Mapping[str, Any]], **who: Any) -> list[dict[str, Any]]:
    return [{**who, "split": "test", **score} for score in scores]


def _validation(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The score that chose the step, so that methods can be chosen on validation too."""
    who = {key: record[key] for key in ("task", "method", "tunable", "seed", "train_size")}
    score = {"language": "mean", "split": "validation", "metric": record["selection_metric"], "value": record["selection_value"]}
    return [{**who, **score, "n": record["validation_rows"]}]
