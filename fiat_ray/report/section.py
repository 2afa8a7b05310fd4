"""What the page's sections beyond the paper are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from fiat_ray.report.columns import Rows
from fiat_ray.report.results import Results
from fiat_ray.report.tables import Table, metric_title


@dataclass(frozen=True)
class Section:
    sentences: Sequence[str]
    """What the numbers below say."""
    figures: Sequence[tuple[str, str]]
    """(stem of its file, svg) each."""
    tables: Sequence[Table]
    """Rows of single languages, where a table has a column ``language``, are folded away below those of the average."""


def in_a_sentence(metric: str) -> str:
    """A metric's name within a sentence: a word begins small, an abbreviation doesn't."""
    title = metric_title(metric)
    return title.lower() if metric in ("accuracy", "exact_match") else title


def without_headline(results: Results, task: str, places: Iterable[tuple[str, str]]) -> list[str]:
    """A clause for each (method, tunable) that has scores, but none in the task's metric."""
    ran = [place for place in places if results.has(task, *place) and results.headline(task, *place) is None]
    metric = in_a_sentence(results.metrics(task)[0])
    return [f"{results.title(method).replace('Few', 'few')} has no {metric}" for method, _ in ran]


def frame(rows: Rows, about: Sequence[str]) -> pd.DataFrame:
    """What rows are about first, then the other columns in order of first appearance, last why a row has no numbers."""
    last = ("note", "reason", "config_key")
    names = [*dict.fromkeys((*about, *(name for row in rows for name in row if name not in last))), *last]
    return pd.DataFrame([dict.fromkeys((*about, *last), "") | row for row in rows], columns=names)
