"""Curves of validation through training: whose they are can be seen, however many methods a run has."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_directory import write_run

from fiat_ray.recipe import PAPER, UNTUNED
from fiat_ray.report import page
from fiat_ray.report.read import read
from fiat_ray.report.results import Results

SVG = "{http://www.w3.org/2000/svg}"
TUNED = tuple(method for method in PAPER if method not in UNTUNED)


def charts(path: Path) -> Iterator[tuple[dict[str, str], list[tuple[str, str]], list[str]]]:
    """Of each chart: what its key says of the styles, (style, title) of its lines, the numbers at its axes."""
    _, *pictures = (svg for svg in ElementTree.parse(path).iter(f"{SVG}svg") if svg.find(f"{SVG}svg") is None)
    for key, chart in zip(pictures[::2], pictures[1::2], strict=True):
        styles = [str(entry.get("class")) for entry in key.findall(f"{SVG}g")]
        named = dict(zip(styles, (str(text.text) for text in key.findall(f"{SVG}text")), strict=True))
        titles = ((str(line.get("class")), line.findtext(f"{SVG}circle/{SVG}title", "")) for line in chart.findall(f"{SVG}g"))
        ticks = [str(text.text) for text in chart.findall(f"{SVG}text[@class='tick']")]
        yield named, [(style, title.partition(": selected")[0]) for style, title in titles], ticks


@pytest.mark.parametrize("count", [3, 6, 7, len(TUNED)])
def test_a_key_names_every_curve_and_none_wrongly(tmp_path: Path, count: int) -> None:
    run = write_run(tmp_path, methods=TUNED[:count], seeds=(0, 1))
    page.build(run)
    found = list(charts(run / "report" / "validation_rivers_xs.svg"))
    for named, lines, ticks in found:
        assert lines and all(named[style] == title for style, title in lines)
        assert ticks == found[0][2], "all charts have the same scales"
    titles = [title for named, _, _ in found for title in named.values()]
    assert sorted(titles) == sorted(map(Results(read(run)).title, TUNED[:count])), "each method stands in one key, once"
    assert len(found) == -(-count // 6)
