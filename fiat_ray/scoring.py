"""Predictions → scores per language and averaged: the rows of ``schema.SCORES``, the majority baseline, and ``fiat-ray score``. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from fiat_ray.errors import UserError
from fiat_ray.metrics import averaged_languages, label_scores, macro_f1, named_averages, scores_positive, shown_metrics, text_scores
from fiat_ray.rows import Place, no_field, read_rows, text_field
from fiat_ray.task import Row, by_language
from fiat_ray.task_folder import BUILT_IN, read_task_yaml

Frame = Sequence[Mapping[str, Any]]
"""Rows with the columns of ``schema.PREDICTIONS``."""

TEXT_FIELDS = ("target", "prediction")
LABEL_FIELDS = ("label", "score")
LABELS = {"0": "no", "false": "no", "no": "no", "1": "yes", "true": "yes", "yes": "yes"}
"""How a file may write its labels, besides the labels of its task."""


class Score(TypedDict):
    language: str
    """A language, or an average: ``mean``, ``mean_21``, ``mean_22``, ``mean_27``."""
    metric: str
    value: float | None
    """0 to 100; None where not defined."""
    n: int
    """Rows behind the value."""


def score_predictions(task: str, metric: str, labels: Sequence[str], frame: Frame, *, icl: bool = False) -> list[Score]:
    """Scores of one method on one split of a task, for each language and average.

    With ``labels`` (the positive one last) ``accuracy``, ``auc_pr`` where there are two, or it is the ``metric``, and rows have a P(positive), and
    ``macro_f1`` where there are more, or it is the ``metric``; for free text ``f1``, ``exact_match`` and ``metric``. ``icl`` adds the shares
    ``unparsed`` and ``length``. An empty prediction counts as wrong.
    """
    sizes = {language: len(rows) for language, rows in by_language(frame).items()}
    metrics = _scores(metric, labels, frame)
    if icl:
        metrics |= {"unparsed": dict(unparsed_share(frame)), "length": dict(length_share(frame))}
    result = []
    for metric, values in metrics.items():
        result += [Score(language=language, metric=metric, value=value, n=sizes[language]) for language, value in values.items()]
        for name, (value, missing) in named_averages(task, values).items():
            averaged = set(averaged_languages(task, values)[name]) - set(missing)
            result.append(Score(language=name, metric=metric, value=value, n=sum(sizes[language] for language in averaged)))
    return result


def unparsed_share(frame: Frame) -> dict[str, float]:
    """Percent of rows with an empty prediction, a language each: ICL's rationales without a parsable answer."""
    return _share(frame, lambda row: not row["prediction"].strip())


def length_share(frame: Frame) -> dict[str, float]:
    """Percent of rows whose rationale ended at the token limit, a language each."""
    return _share(frame, lambda row: row["status"] == "length")


def majority_predictions(train: Sequence[Row], test: Sequence[Row], metric: str, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The baseline that looks at no input: the most frequent target of all train rows, in all languages alike; columns of ``schema.PREDICTIONS``.

    With ``labels``, each row's score is a share of train: of the positive label, or of this one (``metrics.scores_positive``). Of equally frequent
    targets the alphabetically first is taken.
    """
    if not train:
        raise UserError("no train rows: the majority baseline has nothing to count")
    counts = Counter(row.targets[0] for row in train)
    target = max(sorted(counts), key=counts.__getitem__)
    scored = labels[-1] if scores_positive(metric, labels) else target
    guess = {"prediction": target, "score": counts[scored] / len(train) if labels else None, "status": None}
    return [{"id": row.id, "language": row.language, "group": row.group, "targets": list(row.targets), **guess} for row in test]


def score_file(task: str | None, path: str | Path) -> dict[str, Any]:
    """Scores of any system's predictions, for ``fiat-ray score``: a JSON-able dict with each language and the averages.

    A row holds ``target, prediction`` (text; ``target`` may be a list) or ``label, score`` (P(positive); positive is predicted above 0.5), and
    ``language`` in all rows or in none. ``task`` is a built-in task or a task folder; with None the first row tells text from labels.
    For labels, ``majority_accuracy`` is that of the file's most frequent label, and ``no_positives`` names languages without AUC-PR.
    Raises ``UserError`` naming file, row and field.
    """
    definition = _definition(task) if task is not None else {}
    frame, is_text = _read_predictions(Path(path), task, [str(label) for label in definition.get("labels", ())])
    metrics = _scores(definition.get("metric", "f1"), () if is_text else ("no", "yes"), frame)
    if not is_text:
        [(majority, _)] = Counter(row["targets"][0] for row in frame).most_common(1)
        metrics["majority_accuracy"] = dict(_share(frame, lambda row: row["targets"][0] == majority))
    languages: dict[str, dict[str, Any]] = {}
    averages: dict[str, dict[str, Any]] = {}
    for metric, values in metrics.items():
        for language, value in values.items():
            languages.setdefault(language, {})[metric] = value
        for name, (value, missing) in named_averages(Path(task or "").name, values).items():
            averages.setdefault(name, {})[metric] = value
            if name != "mean":
                averages[name]["missing"] = missing
    for language, rows in by_language(frame).items():
        languages[language]["n"] = len(rows)
    result = {"task": task, "n": len(frame), "languages": languages, **averages}
    return result if is_text else {**result, "no_positives": [x for x, value in metrics["auc_pr"].items() if value is None]}


def _definition(task: str) -> dict[str, Any]:
    """``task.yaml`` of a built-in task or a task folder. Raises ``UserError`` for an unknown task."""
    definition = next((path for path in (BUILT_IN / task / "task.yaml", Path(task) / "task.yaml") if path.is_file()), None)
    if definition is None:
        known = ", ".join(sorted(path.parent.name for path in BUILT_IN.glob("*/task.yaml")))
        raise UserError(f"task '{task}': neither a built-in task ({known}) nor a folder with a task.yaml")
    return read_task_yaml(definition)


def _scores(metric: str, labels: Sequence[str], frame: Frame) -> dict[str, dict[str, float | None]]:
    """metric → language → value. AUC-PR only where it is asked for, or of two labels, and rows have scores.

    ``ValueError`` where some have and others have not.
    """
    without = [row for row in frame if row["score"] is None or math.isnan(row["score"])] if labels else []
    if 0 < len(without) < len(frame):
        raise ValueError(f"{len(without)} of {len(frame)} predictions have no score, row {without[0]['id']} first")
    shown = shown_metrics(metric, labels)
    is_ranked = not without and scores_positive(metric, labels)
    metrics: dict[str, dict[str, float | None]] = defaultdict(dict)
    for language, rows in by_language(frame).items():
        predictions = [row["prediction"] for row in rows]
        if labels:
            gold, scores = [row["targets"][0] for row in rows], [row["score"] for row in rows] if is_ranked else None
            values = label_scores(gold, predictions, scores, labels[-1])
            if "macro_f1" in shown:
                values["macro_f1"] = 100 * float(macro_f1(gold, predictions, np.ones((1, len(gold))))[0])
        else:
            values = {**text_scores([row["targets"] for row in rows], predictions, metric)}
        for name, value in values.items():
            metrics[name][language] = value
    return dict(metrics)


def _share(frame: Frame, holds: Callable[[Mapping[str, Any]], bool]) -> dict[str, float]:
    return {language: 100 * sum(map(holds, rows)) / len(rows) for language, rows in by_language(frame).items()}


def _read_predictions(path: Path, task: str | None, labels: Sequence[str]) -> tuple[list[dict[str, Any]], bool]:
    """(rows with the columns of PREDICTIONS that scoring reads, whether they are text). Labels become ``no`` and ``yes``."""
    if len(labels) > 2:
        raise UserError(f"task {task} has {len(labels)} labels; a file of scores is about two, where 'score' is the probability of one")
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{path}: no rows; a row holds {_named(TEXT_FIELDS)}, or {_named(LABEL_FIELDS)}")
    first = rows[0][1]
    is_text = not labels if task is not None else any(name in first for name in TEXT_FIELDS) or not any(name in first for name in LABEL_FIELDS)
    fields, others = (TEXT_FIELDS, LABEL_FIELDS) if is_text else (LABEL_FIELDS, TEXT_FIELDS)
    has_language = any("language" in row for _, row in rows)
    frame = []
    for place, row in rows:
        if all(name in row for name in others):
            whose = f"task {task} is scored" if task is not None else "this file's first row is scored"
            raise UserError(f"{place}: holds {_named(others)}, but {whose} from {_named(fields)}; leave the others out, in all rows")
        language = text_field(row, "language", place) if has_language else "all"
        frame.append({"id": place, "language": language, **(_text(row, place) if is_text else _label(row, place, labels))})
    return frame, is_text


def _text(row: dict[str, Any], place: Place) -> dict[str, Any]:
    target = row.get("target")
    if isinstance(target, list):
        if not target or not all(isinstance(text, str) for text in target):
            raise UserError(f"{place}: field 'target' must be text or a list of texts")
    else:
        target = [text_field(row, "target", place)]
    return {"targets": target, "prediction": text_field(row, "prediction", place), "score": None}


def _label(row: dict[str, Any], place: Place, labels: Sequence[str]) -> dict[str, Any]:
    for field in LABEL_FIELDS:
        if field not in row:
            raise no_field(row, field, place)
    label, score = row["label"], row["score"]
    known = LABELS | {text.casefold(): plain for text, plain in zip(labels, ("no", "yes"), strict=False)}
    gold = known.get(str(int(label) if label in (0.0, 1.0) else label).casefold())
    if gold is None:
        raise UserError(f"{place}: field 'label' is {label!r}; write one of {', '.join(known)}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UserError(f"{place}: field 'score' is {score!r}; it must be P(positive), a number from 0 to 1")
    return {"targets": [gold], "prediction": "yes" if score > 0.5 else "no", "score": float(score)}


def _named(fields: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in fields)
