"""Figures as SVG: one text each, drawn by hand, that follows the reader's light or dark scheme and needs nothing from outside."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from fiat_ray.report.tables import metric_title

STYLE = (Path(__file__).parent / "figure.css").read_text("utf-8")
WIDTH = 560
"""Of every chart, in the units of its SVG; on a narrow screen, where it shrinks, the page draws its texts larger (17 units)."""
MARGIN = {"left": 54, "right": 16, "top": 14, "bottom": 48}
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
"""Lines differ in colour and dash, so that they can be told apart without colours."""
LETTER, LINE = 9.5, 18
"""Width of a letter and height of a line at 17 units: nothing may overlap there either."""


@dataclass(frozen=True)
class Line:
    title: str
    points: Sequence[tuple[float, float]]
    marked: tuple[float, float] | None = None
    """The selected point: a ring is drawn around it."""
    style: int = 0
    """Lines of equal style share colour, dash and entry in the key. No more styles can be told apart in one chart than there are ``DASHES``."""


@dataclass(frozen=True)
class Mark:
    """A number with its title above: a bar from 0, or a dot with its interval."""

    title: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    style: int = 0


class Plot:
    """A chart's area: from values to the units of its SVG, and the axes around it."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], height: int = 340, left: int = MARGIN["left"]) -> None:
        self.xs, self.ys, self.height = xs, ys, height
        self.left, self.right, self.top, self.bottom = left, WIDTH - MARGIN["right"], MARGIN["top"], height - MARGIN["bottom"]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = self.left + (x - self.xs[0]) / (self.xs[-1] - self.xs[0]) * (self.right - self.left)
        return round(across, 1), round(self.bottom - (y - self.ys[0]) / (self.ys[-1] - self.ys[0]) * (self.bottom - self.top), 1)

    def axes(self, x_title: str, y_title: str) -> list[str]:
        parts = []
        for y in self.ys:
            level = self.at(self.xs[0], y)[1]
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{level}" y2="{level}"/>')
            parts.append(f'<text class="tick" text-anchor="end" x="{self.left - 7}" y="{level + 4}">{_plain(y)}</text>')
        for x in self.xs:
            parts.append(f'<text class="tick" text-anchor="middle" x="{self.at(x, self.ys[0])[0]}" y="{self.bottom + 19}">{_plain(x)}</text>')
        parts.append(f'<line class="axis" x1="{self.left}" x2="{self.right}" y1="{self.bottom}" y2="{self.bottom}"/>')
        parts.append(f'<text class="label" text-anchor="middle" x="{(self.left + self.right) / 2}" y="{self.height - 6}">{escape(x_title)}</text>')
        turned = f'transform="translate(15 {(self.top + self.bottom) / 2}) rotate(-90)"'
        return [*parts, f'<text class="label" text-anchor="middle" {turned}>{escape(y_title)}</text>']

    def line(self, line: Line, with_dots: bool = True) -> str:
        at = [self.at(*point) for point in line.points]
        path = " ".join(f"{x},{y}" for x, y in at)
        dots = [f'<circle class="dot" r="2.5" cx="{x}" cy="{y}"/>' for x, y in at] if with_dots else []
        return f'<g class="s{line.style % len(DASHES)}"><polyline points="{path}"{_dash(line.style)}/>{"".join(dots)}{self._ring(line)}</g>'

    def _ring(self, line: Line) -> str:
        if line.marked is None:
            return ""
        x, y = self.at(*line.marked)
        said = f"<title>{escape(line.title)}: selected, step {line.marked[0]:g}</title>"
        return f'<circle class="ring" r="7" cx="{x}" cy="{y}">{said}</circle>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from just below ``low`` to just above ``high``; 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def line_chart(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """Axes, grid, lines, rings at marked points and a key, with a text equivalent for those who cannot see it.

    Lines of more styles than can be told apart stand in several charts, one below the other, with the same scales and each with its key.
    """
    points = [point for line in lines for point in line.points]
    plot = Plot(ticks(0, max(x for x, _ in points)), ticks(min(y for _, y in points), max(y for _, y in points)))
    charts: dict[int, list[Line]] = {}
    for line in lines:
        charts.setdefault(line.style // len(DASHES), []).append(line)
    pictures = []
    for _, shown in sorted(charts.items()):
        parts = [*plot.axes(x_title, y_title), *map(plot.line, shown)]
        pictures += [key(shown), drawing(plot.height, title, _described(shown), parts)]
    return stack(title, pictures)


def scatter(title: str, x_title: str, y_title: str, points: Sequence[tuple[str, float, float]], lines: Sequence[Line]) -> str:
    """Labelled points, no label upon another or upon a point, and lines through them."""
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    plot = Plot(ticks(min(xs), max(xs)), ticks(min(*ys, 0.0), max(*ys, 0.0)), height=460)
    dots = [plot.at(x, y) for _, x, y in points]
    zero = plot.at(plot.xs[0], 0)[1]
    parts = [*plot.axes(x_title, y_title), f'<line class="axis" x1="{plot.left}" x2="{plot.right}" y1="{zero}" y2="{zero}"/>']
    parts += [plot.line(line, with_dots=False) for line in lines]
    names = []
    for (name, x, y), (across, down), (left, top) in zip(points, dots, _label_places([name for name, _, _ in points], dots, plot), strict=True):
        wide = len(name) * LETTER
        nearest = min(max(across, left), left + wide), min(max(down, top), top + LINE)
        if math.dist(nearest, (across, down)) > 9:
            parts.append(f'<line class="axis" x1="{across}" y1="{down}" x2="{nearest[0]:.1f}" y2="{nearest[1]:.1f}"/>')
        parts.append(f'<circle class="dot" r="3.5" cx="{across}" cy="{down}"><title>{escape(name)}: {x:.1f}, {y:+.1f}</title></circle>')
        names.append(f'<text class="name" text-anchor="middle" x="{left + wide / 2:.1f}" y="{top + 13:.1f}">{escape(name)}</text>')
    said = "; ".join(f"{name} {x:.1f}, {y:+.1f}" for name, x, y in points)
    return stack(title, [key(lines), drawing(plot.height, title, said, [*parts, *names])])


def _label_places(names: Sequence[str], dots: Sequence[tuple[float, float]], plot: Plot) -> list[tuple[float, float]]:
    """Left upper corner of each label: the nearest place beside its dot that is free, those in the middle of a crowd first."""
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    places: dict[int, tuple[float, float]] = {}
    for i in sorted(range(len(dots)), key=lambda i: sum(math.dist(dots[i], dot) for dot in dots)):
        (x, y), wide = dots[i], len(names[i]) * LETTER
        tries = [
            (x + math.cos(turn) * (radius + wide / 2) - wide / 2, y + math.sin(turn) * (radius + LINE / 2) - LINE / 2)
            for radius in range(4, 240, 6)
            for turn in (math.tau * part / 24 for part in (0, 12, 18, 6, 21, 3, 15, 9, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23))
        ]
        inside = [(a, b) for a, b in tries if plot.left < a < plot.right - wide and plot.top < b < plot.bottom - LINE]
        free = ((a, b) for a, b in inside if not any(a < right and left < a + wide and b < low and top < b + LINE for left, top, right, low in taken))
        places[i] = next(free, (x + 5, y - LINE))
        taken.append((*places[i], places[i][0] + wide, places[i][1] + LINE))
    return [places[i] for i in range(len(dots))]


def mark_chart(title: str, x_title: str, marks: Sequence[Mark]) -> str:
    """A line of its own for each mark; with intervals they are dots, about a rule at 0, else bars from 0."""
    ends = [end for mark in marks for end in (mark.value, mark.low, mark.high, 0.0) if end is not None]
    is_bar = all(mark.low is None for mark in marks) and min(ends) >= 0
    xs = ticks(min(ends), max(ends))
    each = 46
    plot = Plot(xs, (0, 1), height=MARGIN["top"] + each * len(marks) + MARGIN["bottom"], left=24)
    zero, parts = plot.at(0, 0)[0], []
    for x in xs:
        parts.append(f'<text class="tick" text-anchor="middle" x="{plot.at(x, 0)[0]}" y="{plot.bottom + 19}">{_plain(x)}</text>')
    parts.append(f'<text class="label" text-anchor="middle" x="{WIDTH / 2}" y="{plot.height - 6}">{escape(x_title)}</text>')
    for i, mark in enumerate(marks):
        y = plot.top + each * i + 16
        parts.append(f'<text x="{plot.left + 4}" y="{y}">{escape(mark.title)}</text>')
        parts.append(f'<text text-anchor="end" x="{plot.right}" y="{y}">{escape(mark.text)}</text><g class="s{mark.style % len(DASHES)}">')
        parts.append(f'<line class="axis" x1="{zero}" x2="{zero}" y1="{y + 5}" y2="{y + 23}"/>')
        x = plot.at(mark.value, 0)[0]
        if is_bar:
            parts.append(f'<rect class="dot" x="{zero}" y="{y + 6}" width="{x - zero:.1f}" height="14"/></g>')
            continue
        if mark.low is not None and mark.high is not None:
            parts.append(f'<line x1="{plot.at(mark.low, 0)[0]}" x2="{plot.at(mark.high, 0)[0]}" y1="{y + 14}" y2="{y + 14}"/>')
        parts.append(f'<circle class="dot" r="5" cx="{x}" cy="{y + 14}"/></g>')
    return drawing(plot.height, title, "; ".join(f"{mark.title}: {mark.text}" for mark in marks), parts)


def key(lines: Sequence[Line]) -> str:
    """What the lines are: an entry for each style."""
    entries = {line.style % len(DASHES): line.title for line in reversed(lines)}
    parts = []
    for i, (style, title) in enumerate(sorted(entries.items())):
        y = 12 + i * 22
        parts.append(f'<g class="s{style}"><line x1="{MARGIN["left"]}" x2="{MARGIN["left"] + 34}" y1="{y}" y2="{y}"{_dash(style)}/></g>')
        parts.append(f'<text x="{MARGIN["left"] + 42}" y="{y + 5}">{escape(title)}</text>')
    return drawing(8 + 22 * len(entries), "Key", "", parts)


def words(text: str, bold: bool = False) -> str:
    """A paragraph as wide as a chart, wrapped so that it fits at 17 units too."""
    lines = textwrap.wrap(text, 56)
    weight = ' font-weight="600"' if bold else ""
    parts = [f'<text x="8" y="{24 + i * 21}"{weight}>{escape(line)}</text>' for i, line in enumerate(lines)]
    return drawing(14 + 21 * len(lines), "", "", parts)


def stack(title: str, pictures: Iterable[str]) -> str:
    """One SVG of several, one below the other."""
    parts, height = [], 0
    for picture in pictures:
        _, tall = size(picture)
        parts.append(picture.replace("<svg ", f'<svg y="{height}" width="{WIDTH}" height="{tall}" ', 1).replace(' role="img"', "", 1))
        height += tall
    return drawing(height, title, "", parts)


def size(svg: str) -> tuple[int, int]:
    """Width and height, from its view box."""
    found = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
    assert found
    return int(found[1]), int(found[2])


def standalone(svg: str) -> str:
    """The figure as a file of its own: its style inside, the scheme taken from the viewer."""
    width, height = size(svg)
    return svg.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1).replace(
        ">", f'><style>{STYLE}</style><rect class="sheet" width="{width}" height="{height}"/>', 1
    )


def validation_lines(curves: pd.DataFrame, title: Callable[[str], str]) -> list[Line]:
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
            lines.append(Line(title(method), pairs, marked, styles[method]))
    return lines


def validation_figures(curves: pd.DataFrame, title_of: Callable[[str], str]) -> list[tuple[str, str]]:
    """(stem of its file, svg) of each task and tunable with curves."""
    figures = []
    for (task, tunable), of in curves.groupby(["task", "tunable"], sort=False):
        lines = validation_lines(of, title_of)
        if lines:
            metric = metric_title(of["metric"].iloc[0])
            title = f"{task}, tunable {tunable}: {metric} on validation through training"
            chart = line_chart(title, "optimizer step", f"{metric} on validation", lines)
            figures.append((f"validation_{task}_{tunable}", stack(title, [words(title, bold=True), chart])))
    return figures


def drawing(height: int, title: str, description: str, parts: Iterable[str], width: int = WIDTH) -> str:
    """An ``<svg>`` of these parts."""
    said = f"<title>{escape(title)}</title>" if title else ""
    said += f"<desc>{escape(description)}</desc>" if description else ""
    box = f'viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" {box}>{said}{"".join(parts)}</svg>'


def _dash(style: int) -> str:
    dashes = DASHES[style % len(DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _described(lines: Sequence[Line]) -> str:
    ends = []
    for line in lines:
        selected = f", selected step {line.marked[0]:g} with {line.marked[1]:.1f}" if line.marked else ""
        ends.append(f"{line.title}: from {line.points[0][1]:.1f} at step {line.points[0][0]:g} to {line.points[-1][1]:.1f}{selected}")
    return "; ".join(ends)
