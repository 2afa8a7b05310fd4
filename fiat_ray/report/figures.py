"""Figures as SVG: one text each, drawn by hand, that follows the reader's light or dark scheme and needs nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from fiat_ray.report.tables import METRIC_TITLES, title_of

STYLE = (Path(__file__).parent / "figure.css").read_text("utf-8")
SIZE = (560, 340)
MARGIN = {"left": 54, "right": 16, "top": 14, "bottom": 48}
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
"""Lines differ in colour and dash, so that they can be told apart without colours."""


@dataclass(frozen=True)
class Line:
    title: str
    points: Sequence[tuple[float, float]]
    marked: tuple[float, float] | None = None
    """The selected point: a ring is drawn around it."""
    style: int = 0
    """Lines of equal style share colour, dash and legend entry."""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from just below ``low`` to just above ``high``; 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def line_chart(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """One ``<svg>`` with axes, grid, lines, rings at marked points, and a text equivalent for those who cannot see it."""
    points = [point for line in lines for point in line.points]
    xs, ys = ticks(0, max(x for x, _ in points)), ticks(min(y for _, y in points), max(y for _, y in points))
    width, height = SIZE
    right, bottom = width - MARGIN["right"], height - MARGIN["bottom"]

    def at(x: float, y: float) -> tuple[float, float]:
        across = MARGIN["left"] + (x - xs[0]) / (xs[-1] - xs[0]) * (right - MARGIN["left"])
        return round(across, 1), round(bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (bottom - MARGIN["top"]), 1)

    parts = [f"<title>{escape(title)}</title>", f"<desc>{escape(_described(lines))}</desc>"]
    for y in ys:
        parts.append(f'<line class="grid" x1="{MARGIN["left"]}" x2="{right}" y1="{at(0, y)[1]}" y2="{at(0, y)[1]}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{MARGIN["left"] - 7}" y="{at(0, y)[1] + 4}">{y:g}</text>')
    for x in xs:
        parts.append(f'<text class="tick" text-anchor="middle" x="{at(x, ys[0])[0]}" y="{bottom + 19}">{x:g}</text>')
    parts.append(f'<line class="axis" x1="{MARGIN["left"]}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" text-anchor="middle" x="{(MARGIN["left"] + right) / 2}" y="{height - 6}">{escape(x_title)}</text>')
    middle = (MARGIN["top"] + bottom) / 2
    parts.append(f'<text class="label" text-anchor="middle" transform="translate(15 {middle}) rotate(-90)">{escape(y_title)}</text>')
    for line in lines:
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in line.points))
        dash = f' stroke-dasharray="{DASHES[line.style % 6]}"' if DASHES[line.style % 6] else ""
        parts.append(f'<g class="s{line.style % 6}"><polyline points="{path}"{dash}/>')
        parts += [f'<circle class="dot" r="2.5" cx="{x}" cy="{y}"/>' for x, y in (at(*point) for point in line.points)]
        if line.marked:
            x, y = at(*line.marked)
            parts.append(
                f'<circle class="ring" r="7" cx="{x}" cy="{y}"><title>{escape(line.title)}: selected, step {line.marked[0]:g}</title></circle>'
            )
        parts.append("</g>")
    box = f'viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" {box}>{"".join(parts)}</svg>'


def legend(lines: Sequence[Line]) -> str:
    """HTML: one entry for each style of line."""
    entries = {line.style % 6: line.title for line in reversed(lines)}
    items = []
    for style, title in sorted(entries.items()):
        stroke = f'<line x1="0" x2="30" y1="6" y2="6" stroke-dasharray="{DASHES[style]}"/>'
        items.append(f'<li><svg class="figure" width="30" height="12" aria-hidden="true"><g class="s{style}">{stroke}</g></svg> {escape(title)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def standalone(svg: str) -> str:
    """The figure as a file of its own: its style inside, the scheme taken from the viewer."""
    return svg.replace(">", f"><style>{STYLE}</style>", 1)


def validation_lines(curves: pd.DataFrame) -> list[Line]:
    """One line a trial of the chosen learning rate, from step 0; seeds of one method share a style. ``curves``: as ``facts.curves``."""
    styles = {method: i for i, method in enumerate(dict.fromkeys(curves["method"]))}
    lines = []
    for _, points in curves[curves["chosen"].astype(bool)].groupby("trial", sort=False):
        points = points.dropna(subset=["value"]).sort_values("step")
        chosen = points[points["selected"].astype(bool)]
        marked = (float(chosen["step"].iloc[0]), float(chosen["value"].iloc[0])) if len(chosen) else None
        method = points["method"].iloc[0] if len(points) else ""
        if len(points):
            pairs = list(zip(points["step"].astype(float), points["value"].astype(float), strict=True))
            lines.append(Line(title_of(method), pairs, marked, styles[method]))
    return lines


def validation_figures(curves: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(stem of its file, svg, legend) of each task and tunable with curves."""
    figures = []
    for (task, tunable), of in curves.groupby(["task", "tunable"], sort=False):
        lines = validation_lines(of)
        if lines:
            metric = METRIC_TITLES.get(of["metric"].iloc[0], of["metric"].iloc[0])
            title = f"{task}, tunable {tunable}: {metric} on validation through training"
            figures.append((f"validation_{task}_{tunable}", line_chart(title, "optimizer step", f"{metric} on validation", lines), legend(lines)))
    return figures


def _described(lines: Sequence[Line]) -> str:
    ends = []
    for line in lines:
        selected = f", selected step {line.marked[0]:g} with {line.marked[1]:.1f}" if line.marked else ""
        ends.append(f"{line.title}: from {line.points[0][1]:.1f} at step {line.points[0][0]:g} to {line.points[-1][1]:.1f}{selected}")
    return "; ".join(ends)
