"""Charts of numbers with their 95 % intervals: scores by train size, and differences by language (a forest plot). SVG, each with its key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from fiat_ray.report.figures import DASHES, ticks
from fiat_ray.significance import Comparison

WIDTH, RIGHT = 560, 544
ROW = 30
"""Height of a language, and 22 of an entry of the key, in the units of the SVG; on a narrow screen texts are 17 high."""


@dataclass(frozen=True)
class Curve:
    title: str
    points: Sequence[tuple[float, float]]
    bars: Sequence[tuple[float, float] | None]
    """Low and high end of each point's interval; None without."""


def log_chart(title: str, x_title: str, y_title: str, curves: Sequence[Curve]) -> str:
    """A line a curve over a logarithmic x axis, with a tick at each x that occurs: two at least."""
    top, height = 22 * len(curves) + 16, 300
    left, bottom = 54, top + height - 48
    xs = sorted({x for curve in curves for x, _ in curve.points})
    heights = [y for curve in curves for _, y in curve.points] + [end for curve in curves for bar in curve.bars for end in bar or ()]
    ys = ticks(min(heights), max(heights))

    def at(x: float, y: float) -> tuple[float, float]:
        share = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        across = left + 22 + share * (RIGHT - left - 44)  # room for the bars of the first and last x
        return round(across, 1), round(bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (bottom - top), 1)

    parts = _key([curve.title for curve in curves])
    for y in ys:
        level = at(xs[0], y)[1]
        parts += [_line("grid", left, level, RIGHT, level), _text(f"{y:g}", left - 7, level + 4, "end", "tick")]
    parts += [_text(f"{x:g}", at(x, ys[0])[0], bottom + 19, "middle", "tick") for x in xs]
    parts += [_line("axis", left, bottom, RIGHT, bottom), _text(x_title, (left + RIGHT) / 2, bottom + 42, "middle", "label")]
    turned = f'transform="translate(15 {(top + bottom) / 2}) rotate(-90)"'
    parts.append(f'<text class="label" text-anchor="middle" {turned}>{escape(y_title)}</text>')
    for style, curve in enumerate(curves):
        dots = [at(*point) for point in curve.points]
        path = " ".join(f"{x},{y}" for x, y in dots)
        aside = 4 * (style - (len(curves) - 1) / 2)  # bars at one x stand side by side
        bars = [(x + aside, *bar) for (x, _), bar in zip(dots, curve.bars, strict=True) if bar]
        parts.append(f'<g class="s{style}"><polyline points="{path}"{_dash(style)}/>')
        parts += [f'<circle class="dot" r="2.5" cx="{x}" cy="{y}"/>' for x, y in dots]
        parts += [_line("bar", x, at(xs[0], low)[1], x, at(xs[0], high)[1]) for x, low, high in bars]
        parts.append("</g>")
    said = "; ".join(f"{curve.title}: " + ", ".join(f"{y:.1f} at {x:g}" for x, y in curve.points) for curve in curves)
    return _drawing(title, said, parts, top + height)


def forest(title: str, x_title: str, rows: Sequence[str], series: Mapping[str, Mapping[str, Comparison]]) -> str:
    """A line a row, about a rule at 0. ``series``: title → row → its difference, at least one; without an interval it is a dot alone."""
    found = [one[row] for one in series.values() for row in rows if row in one and one[row].difference is not None]
    ends = [0.0, *(end for c in found for end in (c.difference, c.low, c.high) if end is not None)]
    xs = ticks(min(ends), max(ends))
    left, top = 92, 22 * len(series) + 12
    bottom = top + ROW * len(rows)

    def at(x: float) -> float:
        return round(left + (x - xs[0]) / (xs[-1] - xs[0]) * (RIGHT - left), 1)

    parts = _key(list(series))
    for x in xs:
        parts.append(_line("axis" if x == 0 else "grid", at(x), top, at(x), bottom))
        parts.append(_text(f"{x:g}".replace("-", "−"), at(x), bottom + 19, "middle", "tick"))
    for number, row in enumerate(rows):
        middle = top + ROW * (number + 0.5)
        parts.append(_text(row, left - 10, middle + 4, "end", "label"))
        for style, one in enumerate(series.values()):
            if row in one:
                parts.append(_difference(one[row], style, round(middle + 9 * (style - (len(series) - 1) / 2), 1), at))
    parts.append(_text(x_title, (left + RIGHT) / 2, bottom + 42, "middle", "label"))
    said = [f"{row}: {', '.join(_said(name, one[row]) for name, one in series.items() if row in one)}" for row in rows]
    return _drawing(title, "; ".join(said), parts, bottom + 48)


def _difference(found: Comparison, style: int, y: float, at: Callable[[float], float]) -> str:
    if found.difference is None:
        return ""
    bar = "" if found.low is None or found.high is None else _line("bar", at(found.low), y, at(found.high), y, _dash(style))
    return f'<g class="s{style}">{bar}<circle class="dot" r="4" cx="{at(found.difference)}" cy="{y}"/></g>'


def _said(title: str, found: Comparison) -> str:
    return f"{title} {'not defined' if found.difference is None else f'{found.difference:+.1f}'}"


def _key(titles: Sequence[str]) -> list[str]:
    parts = []
    for style, title in enumerate(titles):
        y = 12 + 22 * style
        parts.append(f'<g class="s{style}">{_line("bar", 8, y, 42, y, _dash(style))}</g>{_text(title, 50, y + 5, "start", "label")}')
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float, dash: str = "") -> str:
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"{dash}/>'


def _text(text: str, x: float, y: float, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _dash(style: int) -> str:
    return f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""


def _drawing(title: str, description: str, parts: Sequence[str], height: float) -> str:
    said = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    box = f'viewBox="0 0 {WIDTH} {height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" {box}>{said}{"".join(parts)}</svg>'
