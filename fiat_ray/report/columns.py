"""Columns of the report's tables: a difference with its interval and its p, adjusted with its family, or why a row has no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fiat_ray.significance import MIN_GROUPS, Comparison

Rows = list[dict[str, Any]]
NO_INTERVAL = f"A difference without an interval is one of fewer than {MIN_GROUPS} groups of rows, or the same however they are resampled."


def bounds(name: str, found: Comparison | None) -> dict[str, float | None]:
    """The ends of an interval."""
    return {f"{name}_low": found.low, f"{name}_high": found.high} if found else {}


def score_interval(name: str, found: Comparison | None) -> dict[str, Any]:
    """``bounds`` of a score, or a note that says why it has none."""
    return bounds(name, found) | {"note": found.note if found and found.low is None else ""}


def interval(name: str, found: Comparison | None) -> dict[str, float | None]:
    """``bounds``, and the p of a difference (see ``adjust``)."""
    return bounds(name, found) | {f"{name}_p": found.p} if found else {}


def tested(name: str, found: Comparison | None) -> dict[str, float | None]:
    """A difference with its ``interval``."""
    return {name: found.difference} | interval(name, found) if found else {}


def adjust(rows: Rows, name: str, adjusted: Callable[[Sequence[float]], Sequence[float]]) -> None:
    """Replaces the p values of one family of differences by those adjusted together."""
    family = [row for row in rows if row.get(f"{name}_p") is not None]
    for row, p in zip(family, adjusted([row[f"{name}_p"] for row in family]), strict=True):
        row[f"{name}_p"] = p


def why_absent(why: tuple[str, str]) -> dict[str, str]:
    """Of a row without numbers: the reason, and the config key that adds it."""
    return dict(zip(("reason", "config_key"), why, strict=True))
