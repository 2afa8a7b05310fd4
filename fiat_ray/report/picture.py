"""A table as a picture: the cells that the page shows, as one SVG."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from html import escape

from fiat_ray.report.cells import Cell, columns, displayed, heading, is_numeric, rows
from fiat_ray.report.figures import drawing
from fiat_ray.report.tables import Table

LETTER, LINE, GAP = 7.2, 17, 18
"""Of a text of 13 units: width of a letter, height of a line, space between columns."""


def picture(table: Table) -> str:
    """Title, headings, rows and footnotes; long texts are wrapped, nothing is cut."""
    frame = displayed(table.frame)
    names = columns(frame)
    grid = [[replace(heading(name), is_number=is_numeric(frame, name)) for name in names], *rows(frame, names)]
    texts = [[_lines(cell, is_head=i == 0) for cell in row] for i, row in enumerate(grid)]
    widths = [GAP + max(_width(text) for row in texts for text, _ in row[at]) for at in range(len(names))]
    width = int(max(GAP + sum(widths), 560))
    parts = [f'<text font-weight="600" x="{GAP}" y="24">{escape(table.title)}</text>']
    y = 40.0
    for row, of_row in zip(grid, texts, strict=True):
        x = float(GAP)
        for cell, lines, wide in zip(row, of_row, widths, strict=True):
            at, anchor = (x + wide - GAP, ' text-anchor="end"') if cell.is_number else (x, "")
            parts += _written(lines, at, y, anchor)
            x += wide
        y += LINE * max(map(len, of_row), default=0) + 7
        parts.append(f'<line class="grid" x1="{GAP}" x2="{width - GAP}" y1="{y - 3}" y2="{y - 3}"/>')
    for note in table.footnotes:
        lines = [(line, "tick") for line in textwrap.wrap(note, int((width - 2 * GAP) / LETTER))]
        parts += _written(lines, GAP, y + 4, "")
        y += LINE * len(lines) + 4
    return drawing(int(y) + 16, table.title, "", parts, width)


def _lines(cell: Cell, is_head: bool) -> list[tuple[str, str]]:
    """(text, class) of each line of a cell."""
    wide = 14 if is_head else 44
    return [
        *((line, "tick" if is_head else "label") for line in textwrap.wrap(cell.text, wide) or [""]),
        *((line, "tick") for line in textwrap.wrap(cell.small, wide)),
    ]


def _written(lines: Iterable[tuple[str, str]], x: float, y: float, anchor: str) -> list[str]:
    return [f'<text class="{kind}"{anchor} x="{x:g}" y="{y + 13 + i * LINE:g}">{escape(line)}</text>' for i, (line, kind) in enumerate(lines)]


def _width(text: str) -> float:
    return LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
