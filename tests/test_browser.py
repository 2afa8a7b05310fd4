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


def choose(browser: Browser, what: str, value: str) -> str:
    """Chooses a value in the list of this label in the example browser, and returns which row of how many is shown."""
    return str(
        browser.run(
            f"""(() => {{
                const lists = [...document.querySelectorAll('#filter select')];
                const list = lists.find((one) => one.labels[0].firstChild.textContent.trim() === {json.dumps(what)});
                list.value = {json.dumps(value)};
                list.dispatchEvent(new Event('change', {{ bubbles: true }}));
                return document.getElementById('position').textContent; }})()"""
        )
    )


def test_examples_are_filtered_and_leafed_through(browser: Browser) -> None:
    everything = choose(browser, "Language", "")
    urdu = choose(browser, "Language", "ur")
    assert (everything, urdu) == ("1 of 48", "1 of 12")
    assert browser.run("document.querySelector('#filter .scope').innerText") == "Answers are those of each method’s first seed."
    assert browser.run("document.querySelector('#example p[lang=ur]').dir") == "rtl"
    wrong = choose(browser, "Few-shot ICL", "wrong")
    assert wrong == "1 of 10"  # it has three right in the first two languages, two in the others
    browser.run("document.getElementById('next').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.getElementById('position').textContent") == "2 of 10"
    assert "✗ wrong" in browser.run("document.getElementById('example').innerText")


def test_examples_are_filtered_by_several_methods_at_once(browser: Browser) -> None:
    choose(browser, "Language", "ur")
    choose(browser, "Few-shot ICL", "wrong")
    options = "[...[...document.querySelectorAll('#who label')].find((label) => label.firstChild.textContent.startsWith('FIAT')).lastChild.options]"
    assert browser.run(f"{options}.map((option) => option.text)") == ["any", "right (8)", "wrong (2)"]  # of 12 it has 10 right, ICL the first two
    assert choose(browser, "FIAT · xs", "right") == "1 of 8"
    rows = browser.run("[...document.querySelectorAll('#example tbody tr')].map((row) => row.innerText)")
    assert any(row.startswith("FIAT") and "✓ right" in row for row in rows)
    assert any(row.startswith("Few-shot ICL") and "✗ wrong" in row for row in rows)
    assert choose(browser, "Few-shot ICL", "right") == "1 of 2"
    assert choose(browser, "FIAT · xs", "wrong") == "none"
    browser.run("document.querySelector('#filter button[type=reset]').click()")
    assert browser.run("new Promise((done) => setTimeout(() => done(document.getElementById('position').textContent)))") == "1 of 48"


def test_ten_thousand_examples_of_usual_length_do_not_lag(browser: Browser, report: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path, methods=("fiat", "no_peft"), rows=2600, right={"icl": 1300}, passage=" The river is long and wide." * 50)
    rewrite_rationales(run, lambda row: f"Of {row['id']}: " + "the passage says so. " * 20)
    large = page.build(run)
    assert large.stat().st_size < 30_000_000
    began = time.monotonic()
    browser.open(large)
    assert time.monotonic() - began < 10
    assert browser.run("document.querySelector('#filter .scope').innerText").startswith("10,000 of 10,400 test rows")
    assert browser.run("document.getElementById('position').textContent") == "1 of 10000"
    nodes = browser.run("document.getElementsByTagName('*').length")
    took = browser.run(
        "(() => { const from = performance.now(); for (let i = 0; i < 20; i++) document.getElementById('next').click();"
        " for (const list of document.querySelectorAll('#who select')) list.value = 'wrong';"
        " document.getElementById('language').dispatchEvent(new Event('change', { bubbles: true })); return performance.now() - from; })()"
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
