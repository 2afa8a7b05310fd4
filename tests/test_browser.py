"""The report as people use it: in Chromium, at the width of a desk and of a phone, in light and dark, by mouse and by keyboard."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from browser import Browser
from run_directory import rewrite_rationales, write_run

from fiat_ray.report import page

AXE = Path(distribution("axe-playwright-python").locate_file("axe_playwright_python/axe.min.js"))
SERIOUS = """axe.run().then((found) => found.violations.filter((rule) => ["serious", "critical"].includes(rule.impact))
    .map((rule) => [rule.id, rule.nodes.length, ...rule.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]))"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.build(write_run(tmp_path_factory.mktemp("run"), seeds=(0, 1)))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, report: Path) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(report)
        yield browser
        assert browser.said == []


TABLE = "document.querySelector('#table2 table')"


def column(browser: Browser, number: int) -> list[str]:
    return browser.run(f"[...{TABLE}.tBodies[0].rows].map((row) => row.cells[{number}].firstChild?.textContent ?? '')")


def test_a_table_sorts_by_a_column_and_back(browser: Browser) -> None:
    score = browser.run(f"[...{TABLE}.tHead.rows[0].cells].findIndex((head) => head.textContent.startsWith('F1'))")
    click = f"{TABLE}.tHead.rows[0].cells[{score}].querySelector('button').click()"
    given = column(browser, score)
    numbers = sorted(float(text.replace("−", "-").rstrip("*")) for text in given if re.match(r"[+−-]?\d", text))
    shown = []
    for _ in range(3):
        browser.run(click)
        shown.append(column(browser, score))
    up, down, again = shown
    assert [float(text.replace("−", "-").rstrip("*")) for text in up[: len(numbers)]] == numbers  # what is missing stands last
    assert [float(text.replace("−", "-").rstrip("*")) for text in down[: len(numbers)]] == numbers[::-1]
    assert again == given != up


def test_the_keyboard_sorts_too(browser: Browser) -> None:
    browser.run(f"{TABLE}.tHead.rows[0].cells[0].querySelector('button').focus()")
    browser.press("Enter")
    assert browser.run(f"{TABLE}.tHead.rows[0].cells[0].getAttribute('aria-sort')") == "ascending"
    assert column(browser, 0) == sorted(column(browser, 0), key=str.casefold)


def test_examples_are_filtered_and_leafed_through(browser: Browser) -> None:
    def choose(what: str, value: str) -> str:
        browser.run(
            f"(() => {{ const s = document.getElementById('{what}'); s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change')); }})()"
        )
        return str(browser.run("document.getElementById('position').textContent"))

    everything = choose("language", "")
    urdu = choose("language", "ur")
    assert (everything, urdu) == ("1 of 48", "1 of 12")
    assert browser.run("document.querySelector('#example p[lang=ur]').dir") == "rtl"
    wrong = choose("who", json.dumps(["Few-shot ICL", False], separators=(",", ":")))
    assert wrong == "1 of 10"  # it has three right in the first two languages, two in the others
    browser.run("document.getElementById('next').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.getElementById('position').textContent") == "2 of 10"
    assert "✗ wrong" in browser.run("document.getElementById('example').innerText")


def test_ten_thousand_examples_of_usual_length_do_not_lag(browser: Browser, report: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path, methods=("fiat", "no_peft"), rows=2600, right={"icl": 1300}, passage=" The river is long and wide." * 50)
    rewrite_rationales(run, lambda row: f"Of {row['id']}: " + "the passage says so. " * 20)
    large = page.build(run)
    assert large.stat().st_size < 30_000_000
    began = time.monotonic()
    browser.open(large)
    assert time.monotonic() - began < 15
    assert browser.run("document.querySelector('#filter .left-out').innerText").startswith("10,000 of 10,400 test rows")
    assert browser.run("document.getElementById('position').textContent") == "1 of 10000"
    nodes = browser.run("document.getElementsByTagName('*').length")
    took = browser.run(
        "(() => { const from = performance.now(); for (let i = 0; i < 20; i++) document.getElementById('next').click();"
        " document.getElementById('language').dispatchEvent(new Event('change')); return performance.now() - from; })()"
    )
    assert took < 1000  # 21 actions
    assert browser.run("document.getElementsByTagName('*').length") == nodes  # one row at a time, never a list of all
    browser.open(report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_page_and_axe_finds_nothing_serious(tmp_path: Path, report: Path, width: int, scheme: str) -> None:
    with Browser(tmp_path, width, scheme) as browser:
        browser.open(report)
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run(AXE.read_text("utf-8") + "; axe.version")
        assert browser.run(SERIOUS) == []
        assert browser.said == []
