"""A task from someone's own rows: template, instructions, exemplars and splits are drafted where they are not given.

Drafts are drafts. They let a first campaign run; instructions and exemplars that somebody wrote who knows the task are worth more than any setting.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from fiat_ray.errors import UserError
from fiat_ray.leakage import shows, without_overlap
from fiat_ray.metrics import check_metric
from fiat_ray.rows import Place, placed_rows, text_field
from fiat_ray.task import Exemplar, Row, Task, check_splits, digest, joined, make_rows, template_fields
from fiat_ray.task_folder import check_fields, check_labels, exemplar_language, group_fields, task_name, with_positive_last

FEWEST = 12
"""Fewer rows leave nothing to tune on once validation, test and exemplars are taken."""
DRAFTED_EXEMPLARS = 4
"""As many as the paper's authors wrote by hand for a language."""

MOST_OF_ROWS = 0.1
"""Share of all rows that may ask about one passage, for it to be kept in one split."""

NO_INPUT = ("id", "split", "language", "lang")
SPLIT_NAMES = {"dev": "validation", "val": "validation", "valid": "validation"}
PASSAGES = ("passage", "context", "text")

_SENTENCE_END = re.compile(r"(?<=[.!?।])\s+|(?<=[。？！])")

Placed = list[tuple[Place, dict[str, Any]]]


def from_rows(
    rows: Any,
    *,
    target: str = "target",
    language: str | None = None,
    input: str | None = None,
    cut: str | None = None,
    labels: Sequence[str | int] | None = None,
    positive: str | int | None = None,
    metric: str | None = None,
    group: str | Sequence[str] | None = None,
    i_beta: str | None = None,
    i_tau: str | None = None,
    exemplars: Iterable[Any] | str | Path | None = None,
    name: str = "own_task",
    split: str | None = None,
    seed: int = 0,
    validation_share: float = 0.2,
    test_share: float = 0.2,
) -> Task:
    """A task from a DataFrame, a ``datasets.Dataset``, dicts, or a ``.jsonl``, ``.csv`` or ``.parquet`` file.

    ``input``: the template (default: every text field as ``name: {name}``, the passage last); ``cut``: the field that gives way when a prompt is too
    long (default: the longest of passage, context and text, or of all). ``labels``: makes it a classification, the positive label last, unless
    ``positive`` names it. ``metric``: one of ``metrics.TEXT_METRICS`` or ``LABEL_METRICS``, or a function of yours, ``module:function``. ``group``:
    fields that dependent rows share (default: the passage where there are several questions about one, else the input's).
    ``split``: the field that says train, validation or test (default: ``split`` where there is one); rows for splits that it does not name, or
    without it for all, are shared out of train, seeded, each language (and label) alike, rows of one group or with the same input together.
    ``exemplars``: dicts with the template's fields, ``rationale``, the target and, optionally, the language. Without them a few train rows become
    exemplars with a drafted rationale; they, and rows that share an input, passage or group with one, are left out of every split.

    Raises ``UserError`` naming row and field for what is missing or no text, for too few rows, and for rows that stand in two splits.
    """
    placed = placed_rows(rows)
    split = split or ("split" if any("split" in raw for _, raw in placed) else None)
    placed = tidied(placed, target, split)
    _check(placed, name, validation_share, test_share)
    classes, metric = _scored(labels, positive, metric, name)
    template = input if input is not None else _template(placed, {target, language, split})
    cut = cut if cut is not None else _longest(template_fields(template), placed)
    i_beta, i_tau = (i_beta or _i_beta(template, classes)).strip(), (i_tau or _i_tau(classes)).strip()
    task = Task(name, template, cut, metric, classes, i_beta, i_tau, (), (), target, language, built_in=False)
    _check_definition(task)
    same = row_keys(placed, template, cut, group, split)
    task = replace(task, rows=tuple(_rows(task, placed, split, same, seed, (validation_share, test_share))))
    if exemplars is not None:
        task = without_overlap(replace(task, exemplars=_given(task, exemplars)))
    else:
        task = _with_drafted_exemplars(without_overlap(task), seed)
    check_splits(task)
    return task


def drafts(task: Task) -> list[str]:
    """Files of a task folder that hold what was drafted here, and not what somebody wrote."""
    found = {
        "i_beta.txt": task.i_beta == _i_beta(task.input, task.labels),
        "i_tau.txt": task.i_tau == _i_tau(task.labels),
        "exemplars.jsonl": any(exemplar.rationale == _drafted_rationale(task, exemplar.fields, exemplar.target) for exemplar in task.exemplars),
    }
    return [name for name, drafted in found.items() if drafted]


def tidied(placed: Placed, target: str, split: str | None) -> Placed:
    """Rows as tasks take them: labels that are numbers, or true and false, as text; usual names of splits; no halves of characters."""
    return [(place, _tidy(raw, target, split)) for place, raw in placed]


def _tidy(raw: dict[str, Any], target: str, split: str | None) -> dict[str, Any]:
    tidy = {name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for name, value in raw.items()}
    tidy |= {name: _label(tidy[name]) for name in (target, "target") if name in tidy}
    if split is not None and isinstance(raw.get(split), str):
        tidy[split] = SPLIT_NAMES.get(raw[split], raw[split])
    return tidy


def _label(value: Any) -> Any:
    """A number, or true or false, as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return json.dumps(value) if isinstance(value, (bool, int)) else value


def _scored(labels: Iterable[Any] | None, positive: Any, metric: str | None, name: str) -> tuple[tuple[str, ...], str]:
    """Labels as rows have them, the positive one last, and the metric."""
    classes, positive = [_label(label) for label in (labels if labels is not None else ())], _label(positive)
    if labels is not None:
        check_labels(classes, name)
    metric = metric or ("accuracy" if classes else "f1")
    check_metric(metric, classes, positive, name)
    return tuple(with_positive_last(classes, positive) if positive is not None else classes), metric


def _check(placed: Placed, name: str, validation_share: float, test_share: float) -> None:
    task_name(name, "Task.from_rows")
    if len(placed) < FEWEST:
        raise UserError(f"{name}: {len(placed)} rows are too few: at least {FEWEST} are needed to tune, to validate and to test")
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        raise UserError(f"{name}: validation_share {validation_share} and test_share {test_share} must be above 0 and leave something to train on")


def _check_definition(task: Task) -> None:
    check_fields(task, task.name)
    if taken := sorted({"language", "rationale", "target"}.intersection(template_fields(task.input))):
        raise UserError(f"{task.name}: field '{taken[0]}' can't stand in the input: exemplars have another of that name; rename it, or give `input`")


# Template


def _template(placed: Placed, left_out: set[str | None]) -> str:
    texts = dict.fromkeys(str(name) for _, raw in placed for name, value in raw.items() if isinstance(value, str))
    names = [name for name in texts if name not in left_out and name.lower() not in NO_INPUT and not name.lower().endswith("_id")]
    if not names:
        raise UserError(f"the rows have no text fields to make an input of; their fields are {', '.join(map(str, placed[0][1]))}")
    for name in names:
        if not name.isidentifier():
            raise UserError(f"field '{name}' can't stand in a template; rename it to letters, digits and underscores, or give `input`")
    names.sort(key=lambda name: name.lower() in PASSAGES)  # the question first, and next to the answer what is cut at its end
    return " ".join(f"{name}: {{{name}}}" for name in names)


def _longest(names: Sequence[str], placed: Placed) -> str | None:
    def characters(name: str) -> int:
        return sum(len(text_field(raw, name, place)) for place, raw in placed)

    return max([name for name in names if name.lower() in PASSAGES] or names, key=characters, default=None)


# Splits


def row_keys(placed: Placed, template: str, cut: str | None, group: str | Sequence[str] | None, split: str | None) -> dict[str, list[str]]:
    """``group`` and ``example`` of ``task.yaml``, where they are not the input's fields. ``group``: somebody's own.

    Where there are several questions about one passage it is their group: in two splits it would help to score itself, and they are no independent
    evidence. A passage that so many share that it would upset the splits may stand in two, and so may any in splits that are given: then rows are
    the same only where their inputs are.
    """
    if group:
        return {"group": [group] if isinstance(group, str) else list(group)}
    fields = template_fields(template)
    if cut is None or cut.lower() not in PASSAGES or cut not in fields:
        return {}
    common = common_passages(placed, cut)
    inputs = {tuple(text_field(raw, name, place) for name in fields) for place, raw in placed}
    asked = Counter(passage for texts in inputs if (passage := texts[fields.index(cut)]).strip() and passage not in common)
    if max(asked.values(), default=0) < 2:
        return {}
    return {"group": [cut]} | ({"example": fields} if split is not None or common else {})


def common_passages(placed: Placed, cut: str) -> set[str]:
    """Passages that are too many rows' to be kept in one split; none where ``cut`` is no passage."""
    if cut.lower() not in PASSAGES:
        return set()
    rows = Counter(text_field(raw, cut, place) for place, raw in placed)
    return {passage for passage, number in rows.items() if passage.strip() and number > MOST_OF_ROWS * len(placed)}


def _rows(task: Task, placed: Placed, split: str | None, same: Mapping[str, list[str]], seed: int, shares: tuple[float, float]) -> list[Row]:
    """``same``: see ``row_keys``."""
    group, example = group_fields({"input": task.input, **same})
    names = ["train"] * len(placed) if split is None else [text_field(raw, split, place) for place, raw in placed]
    lacking = {name: share for name, share in (("test", shares[1]), ("validation", shares[0])) if name not in names}
    if lacking:
        at = [number for number, name in enumerate(names) if name == "train"]
        train: Iterable[Row] = make_rows(task, ((placed[number][0], "train", placed[number][1]) for number in at), group, group)
        if "example" in same and task.cut is not None:
            common = common_passages(placed, task.cut)
            train = (replace(row, example=row.id) if row.fields[task.cut] in common else row for row in train)
        for number, name in zip(at, _shared_out(joined(train), bool(task.labels), seed, lacking), strict=True):
            names[number] = name
    return joined(make_rows(task, ((place, name, raw) for (place, raw), name in zip(placed, names, strict=True)), group, example))


def _shared_out(rows: Sequence[Row], by_label: bool, seed: int, shares: Mapping[str, float]) -> list[str]:
    """A split for each row. Examples stay whole; each goes where most is lacking, language by language, so that all get their share of each."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.example].append(row)
    wanted = {**shares, "train": 1 - sum(shares.values())}
    taken: Counter[str] = Counter()
    chosen: dict[str, str] = {}

    def order(group: tuple[str, list[Row]]) -> tuple[Any, ...]:
        example, members = group
        return *min((row.language, row.targets if by_label else ()) for row in members), digest(str(seed), example)

    for example, members in sorted(groups.items(), key=order):
        seen = taken.total() + len(members)
        chosen[example] = max(wanted, key=lambda name: wanted[name] * seen - taken[name])
        taken[chosen[example]] += len(members)
    return [chosen[row.example] for row in rows]


# Instructions


def _i_beta(template: str, labels: Sequence[str]) -> str:
    *others, last = template_fields(template)
    given = f"{', '.join(others)} and {last}" if others else last
    what = f"exactly one of these labels: {', '.join(labels)}" if labels else "the answer, as short as possible"
    return (
        f"You are given {given}, which may be in any language.\n"
        f"Reason step by step in English, in two to four sentences: say what is asked, then what in the text decides it.\n"
        f'Then finish with one line: "Answer: " followed by {what}.'
    )


def _i_tau(labels: Sequence[str]) -> str:
    if labels:
        return f"Reply with exactly one of these labels, and give no explanation: {', '.join(labels)}."
    return "Reply with the answer alone, as short as possible, and give no explanation."


# Exemplars


def _given(task: Task, exemplars: Iterable[Any] | str | Path) -> tuple[Exemplar, ...]:
    placed = tidied(placed_rows(exemplars), task.target, None)
    return tuple(_exemplar(task, Place(f"exemplars: {place}"), raw) for place, raw in placed)


def _exemplar(task: Task, place: Place, raw: dict[str, Any]) -> Exemplar:
    fields = {name: text_field(raw, name, place) for name in template_fields(task.input)}
    target = text_field(raw, task.target if task.target in raw else "target", place)
    if task.labels and target not in task.labels:
        raise UserError(f"{place}: target {target!r} is none of the labels {', '.join(task.labels)}")
    return Exemplar(exemplar_language(task, place, raw), fields, text_field(raw, "rationale", place), target)


def _with_drafted_exemplars(task: Task, seed: int) -> Task:
    """Some train rows as exemplars, as different in label (or language) as can be; they and their like leave train.

    They belong to no language, so every row is shown all of them. Train keeps rows of every label and language, unless none could be drawn then.
    """
    distinct = {row.example: row for row in sorted(task.split("train"), key=lambda row: row.id)}  # the order of rows decides nothing
    strata: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(distinct.values(), key=lambda r: digest(str(seed), "exemplar", r.example)):
        strata[row.targets[0] if task.labels else row.language].append(row)
    in_turn = [row for row in chain.from_iterable(zip_longest(*(rows for _, rows in sorted(strata.items())))) if row is not None]
    most = min(DRAFTED_EXEMPLARS, len(distinct) // 2)
    drafted = _drafted(task, in_turn, most, _kinds(task))
    return drafted if drafted.exemplars else _drafted(task, in_turn, most, set())


def _drafted(task: Task, rows: Iterable[Row], most: int, kept: set[tuple[str, str]]) -> Task:
    """``kept``: what of train's ``_kinds`` may not be lost."""
    elsewhere = [row for row in task.rows if row.split != "train"]
    for row in rows:
        if len(task.exemplars) == most:
            break
        exemplar = _draft(task, row)
        if any(shows(task, exemplar, other) for other in elsewhere):
            continue
        others = tuple(other for other in task.rows if other.example != row.example and not shows(task, exemplar, other))
        less = replace(task, rows=others, exemplars=(*task.exemplars, exemplar))
        task = less if kept <= _kinds(less) else task
    return task


def _kinds(task: Task) -> set[tuple[str, str]]:
    """Languages and labels that train has rows of."""
    train = task.split("train")
    return {("language", row.language) for row in train} | {("label", row.targets[0]) for row in train if task.labels}


def _draft(task: Task, row: Row) -> Exemplar:
    """A row as an exemplar: of its passage two sentences at most, and a rationale that quotes what decides it."""
    target, fields = row.targets[0], dict(row.fields)
    if task.cut is not None:
        sentences = _sentences(fields[task.cut])
        at = next((n for n, sentence in enumerate(sentences) if target in sentence), 0)
        fields[task.cut] = " ".join(sentences[max(0, at - 1) : max(0, at - 1) + 2])
    return Exemplar("und", fields, _drafted_rationale(task, fields, target), target)


def _drafted_rationale(task: Task, fields: Mapping[str, str], target: str) -> str:
    passage = fields[task.cut] if task.cut is not None else ""
    if task.labels:
        return f'The {task.cut} to judge reads: "{passage}" Of the labels {", ".join(task.labels)}, "{target}" fits it.'
    quoted = next((sentence for sentence in _sentences(passage) if target in sentence), "")
    if quoted:
        return f'The {task.cut} says: "{quoted}" This gives the answer.'
    return f"No sentence of the {task.cut} holds the answer word for word; taken together, what is given leads to it."


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]
