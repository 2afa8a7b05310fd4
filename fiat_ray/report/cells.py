"""What people read in a table: its columns in their order, headings, and cells as text; for the page and for pictures alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from fiat_ray.recipe import plain_title
from fiat_ray.report.read import records
from fiat_ray.report.tables import AVERAGE_TITLES, METRIC_TITLES, PAPER, metric_title, missing, signed

ALWAYS_HIDDEN = {"method", "compared_with", "train_size"}
WORDS = {
    "row": "method",
    "what": "",
    "all": "all",
    "steps": "of steps",
    "reason": "why it is not there",
    "config_key": "config key that adds it",
    "count": "number",
    "count_planned": "number planned",
    "stored_before": "found in the store",
    "times_planned": "times planned",
    "fiat": "FIAT",
    "no_cot": "w/o rationales",
    "same_answer": "gives its answer %: FIAT",
    "same_answer_no_cot": "gives its answer %: w/o rationales",
    "readable": "readable %",
    "latin": "Latin letters %",
    "answered": "has an answer %",
    "right": "answer right %",
}
WHOLE = {"seeds", "count", "count_planned", "stored_before", "questions", "characters"}
"""Columns of whole numbers, which a missing one makes floats."""
NAMES = {"tunable", "metric", "source", "note", "absent", *ALWAYS_HIDDEN, *WORDS, *WHOLE, *METRIC_TITLES}
"""Columns beside those of languages, and names that are read otherwise than a language's."""
TAG = re.compile(r"[a-z]{2,3}(-[a-z]{3}){0,3}(-[a-z]{4})?(-([a-z]{2}|[0-9]{3}))?(-([a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*", re.ASCII | re.IGNORECASE)
"""A language of RFC 5646 with its extensions, script, region and variants. It allows for words of more than three letters; none is registered."""


@dataclass(frozen=True)
class Cell:
    text: str
    small: str = ""
    """Below the text: an interval, or more of a heading."""
    is_number: bool = False
    is_prose: bool = False
    """Sentences, which may be wrapped."""


def language_name(code: str) -> str:
    """English name of a language code where CLDR has one, else the code."""
    from babel import Locale

    return str(Locale("en").languages.get(code, code))


def language_columns(languages: Sequence[str]) -> dict[str, str]:
    """Language → its column. Codes may be names of other columns, as ``all`` and ``row`` are: then theirs say what they are."""
    taken = NAMES | _parts(languages)
    return {language: f"language {language}" if language in taken else language for language in languages}


def _parts(names: Iterable[str]) -> set[str]:
    """Columns that are shown in others' cells: ends of intervals, and p."""
    return {f"{name}{end}" for name in names for end in ("_low", "_high", "_p")}


def language_tag(language: str) -> str | None:
    """A language of rows as a BCP 47 tag, which a page's ``lang`` and model hubs ask for; None where rows call it by a name, such as Hindi."""
    tag = language.replace("_", "-")
    return tag if TAG.fullmatch(tag) else None


def displayed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is shown: beside notes, why a row is not there is a note too; columns without any value are left out."""
    if {"note", "reason", "config_key"} <= set(frame):
        notes = [missing(row["reason"], row["config_key"]) if row["reason"] else row["note"] for row in records(frame)]
        absent = (frame["reason"] != "").tolist()
        frame = frame.drop(columns=["note", "reason", "config_key"]).assign(note=notes, absent=absent)
    return frame.dropna(axis="columns", how="all")


def columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns that are shown: what a row is about first; what few rows have, and explanations, last."""
    hidden = {*_parts(map(str, frame)), *ALWAYS_HIDDEN, "absent"}
    names = [name for name in map(str, frame) if name not in hidden and not (frame[name].astype(str) == "").all()]
    return sorted(names, key=_rank)


def is_numeric(frame: pd.DataFrame, name: str) -> bool:
    return pd.api.types.is_numeric_dtype(frame[name])


def heading(name: str) -> Cell:
    """A column's name as people read it."""
    if name.startswith(PAPER):
        return Cell(metric_title(name.removeprefix(PAPER).strip()), PAPER)
    if name.endswith("_change"):
        return Cell(f"Δ {heading(name.removesuffix('_change')).text}", "to the row above")
    if "_from_" in name:
        metric, _, method = name.partition("_from_")
        return Cell(f"Δ {heading(metric).text}", f"from {plain_title(method)}")
    if metric := _metric_of(name):
        return Cell(metric_title(metric), AVERAGE_TITLES.get(name.removeprefix(metric).lstrip("_"), ""))
    plain = name.replace("per_1000_", "1,000 predictions: ").replace("tuning_", "tuning: ").replace("_", " ")
    return Cell(AVERAGE_TITLES.get(name) or WORDS.get(name, plain))


def _metric_of(name: str) -> str:
    """The metric of a column of scores, else an empty text."""
    metric, mean, number = name.rpartition("_mean_")
    metric = metric if mean and number.isdigit() else name
    return metric if metric in METRIC_TITLES or ":" in metric else ""


def cell(row: dict[str, Any], name: str) -> Cell:
    """A cell of a row; ``p`` of a difference is adjusted already, so a mark stands only where it holds."""
    value = row[name]
    if isinstance(value, str):
        text = metric_title(value) if name in ("metric", "selection_metric") else value
        if name == "language" and value in AVERAGE_TITLES:
            text = AVERAGE_TITLES[value]
        elif name == "language" and language_name(value) != value:
            text = f"{language_name(value)} ({value})"
        return Cell(text, is_prose=name in ("note", "reason"))
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if value is None or math.isnan(value):
        return Cell("not run" if _metric_of(name) and row.get("absent") else "", is_number=True)
    is_change = name.endswith("_change") or "_from_" in name or row.get("method") == "gain"
    low, high, p = (row.get(f"{name}{end}", math.nan) for end in ("_low", "_high", "_p"))
    mark = "*" if p is not None and p < 0.05 else ""
    write = signed if is_change else partial(_number, name=name)
    interval = "" if low is None or math.isnan(low) else f"{write(low)} to {write(high)}"
    return Cell(write(value) + mark, interval, is_number=True)


def rows(frame: pd.DataFrame, names: Sequence[str]) -> list[list[Cell]]:
    return [[cell(row, name) for name in names] for row in records(frame)]


def _rank(name: str) -> int:
    if name.startswith(PAPER):
        return 2
    return {"row": 0, "what": 0, "language": 0, "unparsed": 3, "length": 3, "seeds": 4, "note": 5}.get(name, 1)


def _number(value: float, name: str) -> str:
    if name == "learning_rate":
        return f"{value:g}"
    if name.endswith("price"):
        return f"{value:.2f}" if value >= 1 else f"{value:.3g}"
    whole = isinstance(value, int) or name in WHOLE or name.endswith("rows") or "tokens" in name
    return f"{value:,.0f}" if whole else f"{value:.1f}"
