"""The leakage guard: no example stands in two splits, and no exemplar is anybody's row."""

from __future__ import annotations

from dataclasses import replace

from fiat_ray.errors import UserError
from fiat_ray.task import Row, Task


def without_overlap(task: Task) -> Task:
    """The task less train and validation rows that overlap with test, and train rows that overlap with validation.

    Test rows are never removed. What was removed stands in ``task.removed``. For people's own tasks an overlap is an error: they should know.
    An exemplar that is somebody's row is an error in every task.
    """
    _check_exemplars(task)
    in_test = {row.example for row in task.split("test")}
    in_validation = {row.example for row in task.split("validation")} - in_test
    kept: list[Row] = []
    removed: list[dict[str, str]] = []
    for row in task.rows:
        overlaps = _overlap(row, in_test, in_validation)
        if overlaps:
            removed.append({"id": row.id, "split": row.split, "language": row.language, "overlaps": overlaps})
        else:
            kept.append(row)
    if removed and not task.built_in:
        first = next(row for row in task.rows if row.id == removed[0]["id"])
        raise UserError(
            f"{task.name}: {len(removed)} rows of train or validation are also in a later split (first: {_named(first)} "
            f"is in {removed[0]['overlaps']}); remove them, or split the rows anew"
        )
    return replace(task, rows=tuple(kept), removed=tuple(removed))


def _overlap(row: Row, in_test: set[str], in_validation: set[str]) -> str:
    if row.split != "test" and row.example in in_test:
        return "test"
    if row.split == "train" and row.example in in_validation:
        return "validation"
    return ""


def _check_exemplars(task: Task) -> None:
    exemplars = {tuple(exemplar.fields.items()) for exemplar in task.exemplars}
    for row in task.rows:
        if tuple(row.fields.items()) in exemplars:
            raise UserError(f"{task.name}: {_named(row)} is also an exemplar; write another exemplar")


def _named(row: Row) -> str:
    return f"row {row.id} of {row.split}, language {row.language}{f' ({row.place})' if row.place else ''},"
