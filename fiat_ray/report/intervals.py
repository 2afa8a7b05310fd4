"""Charts of numbers with their 95 % intervals: scores by train size, and differences by language (a forest plot)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from fiat_ray.report.figures import DASHES, MARGIN, WIDTH, Line, Plot, drawing, key, stack, ticks, words
from fiat_ray.significance import Comparison

ROW = 30
"""Height of a language in a forest plot."""


@dataclass(frozen=True)
class Curve(Line):
    bars: Sequence[tuple[float, float] | None] = ()
    """Low and high end of each point's interval, where it has one."""


class LogPlot(Plot):
    """A logarithmic x axis, from the first to the last of ``xs``, with room at its ends for bars that stand side by side."""

    def at(self, x: float, y: float) -> tuple[float, float]:
        share = math.log(x / self.xs[0]) / math.log(self.xs[-1] / self.xs[0])
        return round(self.left + 22 + share * (self.right - self.left - 44), 1), super().at(self.xs[0], y)[1]

    def bars(self, curve: Curve, aside: float) -> str:
        known = [(x, *bar) for (x, _), bar in zip(curve.points, curve.bars, strict=False) if bar]
        ends = [(self.at(x, low), self.at(x, high)) for x, low, high in known]
        lines = [f'<line x1="{x + aside:g}" x2="{x + aside:g}" y1="{low}" y2="{high}"/>' for (x, low), (_, high) in ends]
        return f'<g class="s{curve.style}">{"".join(lines)}</g>'


def log_chart(title: str, x_title: str, y_title: str, curves: Sequence[Curve]) -> str:
    """A line a curve, with a tick at each x that occurs: two at least."""
    heights = [y for curve in curves for _, y in curve.points] + [end for curve in curves for bar in curve.bars for end in bar or ()]
    plot = LogPlot(sorted({x for curve in curves for x, _ in curve.points}), ticks(min(heights), max(heights)))
    bars = [plot.bars(curve, 4 * (number - (len(curves) - 1) / 2)) for number, curve in enumerate(curves)]
    said = "; ".join(f"{curve.title}: " + ", ".join(f"{y:.1f} at {x:g}" for x, y in curve.points) for curve in curves)
    chart = drawing(plot.height, title, said, [*plot.axes(x_title, y_title), *map(plot.line, curves), *bars])
    return stack(title, [words(title, bold=True), key(curves), chart])


def forest(title: str, x_title: str, rows: Sequence[str], series: Mapping[str, Mapping[str, Comparison]]) -> str:
    """A line a row, about a rule at 0. ``series``: title → row → its difference, at least one; without an interval it is a dot alone."""
    found = [one[row] for one in series.values() for row in rows if row in one and one[row].difference is not None]
    ends = [0.0, *(end for c in found for end in (c.difference, c.low, c.high) if end is not None)]
    xs = ticks(min(ends), max(ends))
    left, right, bottom = 92, WIDTH - MARGIN["right"], ROW * len(rows)

    def at(x: float) -> float:
        return round(left + (x - xs[0]) / (xs[-1] - xs[0]) * (right - left), 1)

    parts = []
    for x in xs:
        parts.append(f'<line class="{"axis" if x == 0 else "grid"}" x1="{at(x)}" x2="{at(x)}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{at(x)}" y="{bottom + 19}">{f"{x:g}".replace("-", "−")}</text>')
    for number, row in enumerate(rows):
        middle = ROW * (number + 0.5)
        parts.append(f'<text text-anchor="end" x="{left - 10}" y="{middle + 4:g}">{escape(row)}</text>')
        for style, one in enumerate(series.values()):
            if row in one:
                parts.append(_difference(one[row], style, round(middle + 9 * (style - (len(series) - 1) / 2), 1), at))
    parts.append(f'<text class="label" text-anchor="middle" x="{(left + right) / 2:g}" y="{bottom + 42}">{escape(x_title)}</text>')
    said = [f"{row}: {', '.join(_said(name, one[row]) for name, one in series.items() if row in one)}" for row in rows]
    chart = drawing(bottom + MARGIN["bottom"], title, "; ".join(said), parts)
    return stack(title, [words(title, bold=True), key([Line(name, [], style=style) for style, name in enumerate(series)]), chart])


def _difference(found: Comparison, style: int, y: float, at: Callable[[float], float]) -> str:
    if found.difference is None:
        return ""
    dash = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    bar = "" if found.low is None or found.high is None else f'<line x1="{at(found.low)}" x2="{at(found.high)}" y1="{y}" y2="{y}"{dash}/>'
    return f'<g class="s{style}">{bar}<circle class="dot" r="4" cx="{at(found.difference)}" cy="{y}"/></g>'


def _said(title: str, found: Comparison) -> str:
    return f"{title} {'not defined' if found.difference is None else f'{found.difference:+.1f}'}"
