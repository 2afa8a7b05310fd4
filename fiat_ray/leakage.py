"""The leakage guard: no example stands in two splits, and no exemplar is anybody's row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fiat_ray.errors import UserError
from fiat_ray.task import SPLITS, Exemplar, Row, Task

SHORTEST_PART = 30
"""Characters of a passage that are enough to know it by, where a row has nothing else."""


def without_overlap(task: Task) -> Task:
    """The task less train and validation rows that overlap with test, and train rows that overlap with validation.

    Test rows are never removed. What was removed stands in ``task.removed``. For people's own tasks an overlap is an error: they should know.
    An exemplar that is somebody's row is an error in every task.
    """
    _check_exemplars(task)
    last: dict[str, Row] = {}
    """Example → a row of the latest split that holds it."""
    for row in task.rows:
        if _later(row, last.setdefault(row.example, row)):
            last[row.example] = row
    overlapping = [(row, last[row.example]) for row in task.rows if _later(last[row.example], row)]
    if overlapping and not task.built_in:
        first, same = overlapping[0]
        number = len(overlapping)
        found = "row of train or validation is also in a later split" if number == 1 else "rows of train or validation are also in a later split"
        same_as = f"first: {first} is the same example as {same}"
        raise UserError(f"{task.name}: {number} {found} ({same_as}); remove them, or split the rows anew")
    gone = {row.id for row, _ in overlapping}
    removed = [{"id": row.id, "split": row.split, "language": row.language, "overlaps": same.split} for row, same in overlapping]
    return replace(task, rows=tuple(row for row in task.rows if row.id not in gone), removed=tuple(removed))


def _later(row: Row, other: Row) -> bool:
    return SPLITS.index(row.split) > SPLITS.index(other.split)


def _check_exemplars(task: Task) -> None:
    exemplars = [_apart(task, exemplar.fields) for exemplar in task.exemplars]
    others = {fields for fields, _ in exemplars}
    for row in task.rows:
        own = _apart(task, row.fields)
        if own[0] not in others:
            continue
        if number := next((at for at, exemplar in enumerate(exemplars, 1) if _same(exemplar, own)), 0):
            raise UserError(f"{task.name}: {row} is also an exemplar, number {number}; write another exemplar")


def shows(task: Task, exemplar: Exemplar, row: Row) -> bool:
    """Whether an exemplar is a row. The field that gives way, the passage, is short in exemplars: a part of the row's is enough there.

    Where there is no other field, a few words that stand in a longer text are no part of it yet.
    """
    return _same(_apart(task, exemplar.fields), _apart(task, row.fields))


Apart = tuple[tuple[tuple[str, str], ...], str]


def _apart(task: Task, fields: Mapping[str, str]) -> Apart:
    """All fields but the one that gives way, and that one with its white space made even."""
    return tuple((name, text) for name, text in fields.items() if name != task.cut), " ".join(fields.get(task.cut or "", "").split())


def _same(a: Apart, b: Apart) -> bool:
    if a[0] != b[0]:
        return False
    short, long = sorted((a[1], b[1]), key=len)
    return short == long or (short in long and (bool(a[0]) or len(short) >= SHORTEST_PART))
