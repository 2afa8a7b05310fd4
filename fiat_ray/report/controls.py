"""Whether effects like those of a report are real, and would be missed were they not: what ``make controls`` found, shown in its own run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fiat_ray.artifact import read_json
from fiat_ray.report.figures import Mark, mark_chart, stack, words
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section
from fiat_ray.report.tables import Table, signed

CONTROLS = "controls.json"
"""In the run directory of the positive control: ``claims``, each with whether it holds and the gain behind it, ``gains``, and ``summary``."""

COLUMNS = ["what", "holds", "gain", "gain_low", "gain_high", "gain_p", "rows"]


def section(results: Results) -> Section:
    found = read_json(results.run.path / CONTROLS, claims=list, summary=dict)
    if found is None:
        sentence = (
            "Not part of this run. `make controls` tunes the embedded model on questions that only a rationale makes answerable, and shows that a "
            "gain is found where there is one, and none where rationales imply another answer, or are dropped or shuffled in training or inference."
        )
        return Section([sentence], [], [])
    claims = pd.DataFrame(found["claims"]).rename(columns={"claim": "what"}).reindex(columns=COLUMNS)
    holding = int(claims["holds"].sum())
    claims["holds"] = claims["holds"].map({True: "holds", False: "FAILS"})
    sentence = f"{holding} of {len(claims)} claims hold, with {found['summary']['seeds']} seeds of the embedded model."
    note = "gain: F1 less that of no_cot on the same rows, or, of instructions, less that of the same untuned model without i_tau; 95 % intervals."
    return Section([sentence], _figures(found.get("gains", [])), [Table("controls", "Controls", claims, [note])])


def _figures(gains: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    marks = [Mark(of["what"], _said(of), of["gain"], of["gain_low"], of["gain_high"]) for of in gains if of["gain"] is not None]
    title = "Controls: gains where they should be"
    if not marks:
        return []
    return [("controls_gains", stack(title, [words(title, bold=True), mark_chart(title, "gain in F1 points, 95 % interval", marks)]))]


def _said(of: Mapping[str, Any]) -> str:
    ends = "no interval" if of["gain_low"] is None else f"{signed(of['gain_low'])} to {signed(of['gain_high'])}"
    return f"{signed(of['gain'])} ({ends})"
