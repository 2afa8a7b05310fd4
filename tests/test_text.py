"""Texts that commands print."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from run_directory import write_run

from fiat_ray import open_run
from fiat_ray.report import page, terminal
from fiat_ray.report.cells import cell
from fiat_ray.text import count


@pytest.mark.parametrize(("number", "said"), [(0, "0 languages"), (1, "1 language"), (2, "2 languages"), (13428, "13,428 languages")])
def test_one_thing_is_singular_and_thousands_are_set_apart(number: int, said: str) -> None:
    assert count(number, "language") == said


def test_a_report_of_one_language_has_no_plural_of_it(tmp_path: Path) -> None:
    write_run(tmp_path, languages=("fi",))
    html, text = page.build(tmp_path).read_text("utf-8"), terminal.console_table(tmp_path)
    assert "12 test rows in 1 language<" in html and "F1 is the mean of 1 language (fi)" in html
    assert "rivers: scores on test (fi)" in text and not [shown for shown in (html, text) if "1 languages" in shown]


def test_thousands_in_a_report_are_those_of_a_terminal() -> None:
    assert cell(pd.DataFrame({"tokens": [13428.0]}).to_dict("records")[0], "tokens").text == "13,428"


def test_a_run_says_where_it_lies_and_what_it_is_about(tmp_path: Path) -> None:
    assert repr(open_run(write_run(tmp_path / "mine"))) == f"Run('{tmp_path}/mine', tasks: rivers)"
