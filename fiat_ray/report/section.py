"""What the page's sections beyond the paper are made of, and how their tables say that a difference holds, or why something is not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fiat_ray.report.tables import Table
from fiat_ray.significance import Comparison

IN_A_SENTENCE = {"f1": "F1", "accuracy": "accuracy"}
"""The headline metrics."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    sentences: Sequence[str]
    """What the numbers below say."""
    figures: Sequence[tuple[str, str]]
    """(stem of its file, svg) each."""
    tables: Sequence[Table]
    """Rows of single languages, where a table has a column ``language``, are folded away below those of the average."""


def bounds(name: str, found: Comparison | None) -> dict[str, float | None]:
    """Columns: the ends of an interval."""
    return {f"{name}_low": found.low, f"{name}_high": found.high} if found else {}


def tested(name: str, found: Comparison | None) -> dict[str, float | None]:
    """Columns: a difference, its interval, its p (see ``adjust``)."""
    return {name: found.difference, f"{name}_p": found.p} | bounds(name, found) if found else {}


def adjust(rows: Rows, name: str, adjusted: Callable[[Sequence[float]], Sequence[float]]) -> None:
    """Replaces the p values of one family of differences by those adjusted together."""
    family = [row for row in rows if row.get(f"{name}_p") is not None]
    for row, p in zip(family, adjusted([row[f"{name}_p"] for row in family]), strict=True):
        row[f"{name}_p"] = p


def absent(why: tuple[str, str]) -> dict[str, str]:
    """Columns of a row without numbers: the reason, and the config key that adds it."""
    return dict(zip(("reason", "config_key"), why, strict=True))


def frame(rows: Rows, about: Sequence[str]) -> pd.DataFrame:
    """What rows are about first, then the other columns in order of first appearance, last why a row has no numbers."""
    last = ("note", "reason", "config_key")
    names = [*dict.fromkeys((*about, *(name for row in rows for name in row if name not in last))), *last]
    return pd.DataFrame([dict.fromkeys((*about, *last), "") | row for row in rows], columns=names)
