"""``fiat-ray data validate``: are a task's rows fit for a campaign? Read by the task's own loader, every finding with file and row number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from babel import Locale

from fiat_ray.errors import UserError
from fiat_ray.leakage import without_overlap
from fiat_ray.metrics import FULL, shown_metrics
from fiat_ray.report import published
from fiat_ray.task import SPLITS, Row, Task, check_splits, count_by_language
from fiat_ray.task_folder import read_task
from fiat_ray.text import count, line

FIRST = 3
"""Places that are named of each kind of finding; the count is of all."""


def validate(name: str | Path, data: str | Path | None = None) -> dict[str, Any]:
    """What a task's rows are and what is odd about them, JSON-able; ``data`` as in ``Task.load``.

    ``unfit`` says why a campaign would refuse the rows; it is empty where it would not. Places are relative to ``data``. Raises ``UserError`` for the
    first row, file or field that can't be read.
    """
    task = read_task(name, data, {})
    source = Path(data) if data is not None else None if task.built_in else Path(name)
    task = replace(task, rows=tuple(replace(row, place=_relative(row.place, source)) for row in task.rows))
    removed, unfit = _guard(task)
    return {
        "task": task.name,
        "data": str(source) if source else None,
        "rows": {split: count_by_language(task.split(split)) for split in SPLITS},
        "paper_rows": published.ROWS.get(task.name) if task.built_in else None,
        "splits": {split: _split(task.split(split)) for split in SPLITS},
        "labels": {split: {label: count_by_language(rows) for label, rows in _by_label(task, split)} for split in SPLITS} if task.labels else None,
        "overlaps": [_overlap(task, early, late) for early, late in combinations(SPLITS, 2)],
        "removed": {split: count_by_language(row for row in task.rows if row.id in removed and row.split == split) for split in SPLITS},
        "empty": list(_empty(task)),
        "notes": list(_notes(task)),
        "unfit": unfit,
    }


def _relative(place: str, source: Path | None) -> str:
    return place.removeprefix(str(source)).lstrip("/:") if source else place


def _guard(task: Task) -> tuple[set[str], str]:
    """(ids of rows that the leakage guard removes, why a campaign would refuse the task)."""
    removed: set[str] = set()
    try:
        guarded = without_overlap(task)
        removed = {row["id"] for row in guarded.removed}
        check_splits(guarded)
    except UserError as error:
        return removed, str(error)
    return removed, ""


def _by_label(task: Task, split: str) -> Iterator[tuple[str, list[Row]]]:
    for label in task.labels:
        yield label, [row for row in task.split(split) if row.targets[0] == label]


def _split(rows: tuple[Row, ...]) -> dict[str, Any]:
    """``duplicates`` and ``contradictions`` are rows with the language and input of an earlier one of the split, and with its target or another."""
    first: dict[tuple[str, ...], Row] = {}
    same: list[tuple[Row, Row]] = []
    other: list[tuple[Row, Row]] = []
    for row in rows:
        earlier = first.setdefault((row.language, *row.fields.values()), row)
        if earlier is not row:
            (same if row.targets == earlier.targets else other).append((row, earlier))
    most = Counter(row.targets[0] for row in rows).most_common(1)
    return {
        "rows": len(rows),
        "groups": len({row.group for row in rows}),
        "examples": len({row.example for row in rows}),
        "duplicates": _pairs(same),
        "contradictions": _pairs(other),
        "most_frequent_target": dict(most),
    }


def _pairs(pairs: list[tuple[Row, Row]]) -> dict[str, Any]:
    return {"rows": len(pairs), "first": [[row.place, other.place] for row, other in pairs[:FIRST]]}


def _overlap(task: Task, early: str, late: str) -> dict[str, Any]:
    """Rows of one split whose example stands in a later one, and the groups that both hold: dependent, but not the same."""
    examples = {row.example: row for row in reversed(task.split(late))}
    same = [(row, examples[row.example]) for row in task.split(early) if row.example in examples]
    groups = {row.group for row in task.split(early)} & {row.group for row in task.split(late)}
    return {"of": early, "in": late, **_pairs(same), "groups": len(groups)}


def _empty(task: Task) -> Iterator[dict[str, Any]]:
    for split in SPLITS:
        rows = task.split(split)
        for field in rows[0].fields if rows else ():
            empty = [row.place for row in rows if not row.fields[field].strip()]
            if empty:
                yield {"split": split, "field": field, "rows": len(empty), "first": empty[:FIRST]}


def _notes(task: Task) -> Iterator[str]:
    of = {split: {row.language for row in task.split(split)} for split in SPLITS}
    codes = {*Locale("en").languages, *FULL, *(exemplar.language for exemplar in task.exemplars)}
    for language in task.languages:
        absent = [split for split in SPLITS if language not in of[split]]
        if absent:
            yield f"language {language}: no rows in {' and '.join(absent)}"
        if not {language, re.split("[-_]", language)[0].lower()} & codes:
            first = next(row.place for row in task.rows if row.language == language)
            yield f"language {language}: no code that CLDR knows, and no exemplar's language (first: {first})"
        if "auc_pr" in shown_metrics(task.metric, task.labels) and language in of["test"]:
            test = [row for row in task.split("test") if row.language == language]
            if all(row.targets[0] != task.labels[-1] for row in test):
                yield f"language {language}: no test row is '{task.labels[-1]}', so its AUC-PR is not defined"
    if task.cut is not None and not task.built_in:
        train = {row.fields[task.cut] for row in task.split("train") if row.fields[task.cut].strip()}
        if sharing := [row for row in task.split("test") if row.fields[task.cut] in train]:
            yield (
                f"{len(sharing)} of {len(task.split('test'))} test rows share their {task.cut} with a train row, which may help to score them "
                f"(first: {sharing[0].place}); `fiat-ray init --group {task.cut}` keeps such rows in one split"
            )
    paper = published.ROWS[task.name]["test"] if task.built_in and task.name in published.ROWS else {}
    if lacking := sorted(set(paper) - set(task.languages)):
        yield f"{len(lacking)} of the paper's {len(paper)} languages are not there: {' '.join(lacking)}"


# For the terminal


def describe(found: Mapping[str, Any]) -> str:
    """What ``validate`` found as text, at most ``text.WIDTH`` columns wide but for long paths."""
    languages = sorted(set().union(*found["rows"].values()))
    where = f" in {found['data']}" if found["data"] else ""
    rows = sum(split["rows"] for split in found["splits"].values())
    lines = [f"{found['task']}: {count(rows, 'row')} in {count(len(languages), 'language')}{where}", "", *_sizes(found, languages), ""]
    for split in SPLITS:
        lines.append(line(split, _describe_split(found, split)))
    for split, of in found["splits"].items():
        lines += _counted("twice", f"rows of {split} that equal an earlier one", of["duplicates"])
        lines += _counted("contrary", f"rows of {split} with the input of an earlier one and another target", of["contradictions"])
    for overlap in found["overlaps"]:
        lines += _counted("overlap", f"rows of {overlap['of']} that are examples of {overlap['in']} too", overlap)
        if overlap["groups"]:
            lines.append(line("groups", f"that {overlap['of']} and {overlap['in']} share: {overlap['groups']:,}"))
    for empty in found["empty"]:
        lines += _counted("empty", f"rows of {empty['split']} without {empty['field']}", empty)
    lines += [line("note", note) for note in found["notes"]]
    return "\n".join([*lines, line("guard", _describe_guard(found)), line("verdict", "unfit" if found["unfit"] else "fit for a campaign")])


def _counted(label: str, what: str, found: Mapping[str, Any]) -> Iterator[str]:
    if found["rows"]:
        places = [" = ".join(place) if isinstance(place, list) else place for place in found["first"]]
        yield line(label, f"{what}: {found['rows']:,} ({'; '.join(places)}{'; …' if found['rows'] > len(places) else ''})")


def _sizes(found: Mapping[str, Any], languages: list[str]) -> Iterator[str]:
    """The table of rows by language and split; beside them the paper's (its Tables 4 and 5), and how many have the positive label of two."""
    columns = {split: found["rows"][split] for split in SPLITS}
    if found["paper_rows"]:
        columns |= {f"paper's {split}": found["paper_rows"][split] for split in SPLITS}
    if found["labels"] and len(found["labels"]["test"]) == 2:
        positive = list(found["labels"]["test"])[-1]
        columns[f"'{positive}' in test"] = found["labels"]["test"][positive]
    wide = max(map(len, ["language", *languages]))
    yield f"  {'language':<{wide}}  " + "  ".join(f"{name:>10}" for name in columns)
    for language in languages:
        yield f"  {language:<{wide}}  " + "  ".join(f"{counts.get(language, 0):>{max(10, len(name))},}" for name, counts in columns.items())
    yield f"  {'all':<{wide}}  " + "  ".join(f"{sum(counts.values()):>{max(10, len(name))},}" for name, counts in columns.items())


def _describe_split(found: Mapping[str, Any], split: str) -> str:
    of = found["splits"][split]
    if found["labels"]:
        shares = {f"'{label}'": sum(counts.values()) for label, counts in found["labels"][split].items()}
    else:
        shares = {f"most frequent answer '{answer[:40]}'": count for answer, count in of["most_frequent_target"].items()}
    text = ", ".join(f"{what} {count:,} ({count / of['rows']:.0%})" for what, count in shares.items()) if of["rows"] else "nothing"
    return f"{count(of['rows'], 'row')}, {count(of['groups'], 'group')}, {count(of['examples'], 'different example')}; {text}"


def _describe_guard(found: Mapping[str, Any]) -> str:
    if found["unfit"]:
        return "removes nothing here: the campaign is refused"
    removed = {split: counts for split, counts in found["removed"].items() if counts}
    if not removed:
        return "nothing to remove: no example stands in two splits"
    parts = [
        f"{sum(counts.values()):,} rows of {split} ({', '.join(f'{language} {count:,}' for language, count in counts.items())})"
        for split, counts in removed.items()
    ]
    return f"every campaign leaves out {' and '.join(parts)}, because they stand in a later split too; test rows are never removed"
