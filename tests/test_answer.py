"""The answer in one sentence names the languages of the largest and the smallest difference; in terminal and page alike."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

import pytest
from run_directory import rewrite_predictions, write_run

from fiat_ray.report import page, terminal
from fiat_ray.report.answer import answers
from fiat_ray.report.read import read
from fiat_ray.report.results import Results
from fiat_ray.report.tables import signed


def written(folder: Path, fiat: dict[str, int], full: int) -> Path:
    """A run of two seeds in which FIAT has as many of 12 rows of each language right, and full fine-tuning ``full`` of each."""
    run = write_run(folder, languages=fiat, methods=("fiat", "no_peft"), seeds=(0, 1), right={"icl": 0, "majority": 0})

    def says(right: dict[str, int], row: dict[str, Any]) -> str:
        return str(row["targets"][0]) if int(row["id"].rsplit("-", 1)[1]) < right[row["language"]] else ""

    rewrite_predictions(run, "fiat", lambda row: says(fiat, row))
    rewrite_predictions(run, "no_peft", lambda row: says(dict.fromkeys(fiat, full), row))
    return run


@pytest.mark.parametrize(
    ("fiat", "full", "said", "named"),
    [
        ({"fi": 11, "bn": 5, "ur": 9}, 4, "FIAT beats", "most for Finnish ({fi}), least for Bangla ({bn})"),
        ({"fi": 1, "bn": 5, "ur": 3}, 9, "FIAT loses to", "most for Finnish ({fi}), least for Bangla ({bn})"),
        ({"fi": 3, "bn": 7, "ur": 7}, 5, "which does not hold", "most for Bangla and Urdu ({ur}), least for Finnish ({fi})"),
        ({"fi": 11, "bn": 2}, 4, "does not hold", "most for Finnish ({fi}), least for Bangla ({bn})"),
        ({"fi": 9, "bn": 3}, 6, "FIAT equals", "most for Finnish ({fi}), least for Bangla ({bn})"),
        ({"fi": 11, "bn": 4, "ur": 4, "ja": 4}, 4, "FIAT", "most for Finnish ({fi}), least for Bangla and 2 others (+0.0)"),
        ({"fi": 9, "bn": 9, "ur": 9}, 4, "FIAT beats", ""),
        ({"fi": 11}, 4, "FIAT beats", ""),
    ],
)
def test_the_languages_of_the_largest_and_the_smallest_difference_are_named(
    tmp_path: Path, fiat: dict[str, int], full: int, said: str, named: str
) -> None:
    of = Results(read(written(tmp_path, fiat, full)))
    scores = {x: [of.value("rivers", method, "xs", "f1", x) or 0.0 for method in ("fiat", "no_peft")] for x in fiat}
    [answer] = answers(of)
    assert said in answer
    assert named.format(**{language: signed(a - b) for language, (a, b) in scores.items()}) in answer
    assert ("most for" in answer) == bool(named)
    assert " ".join(answer.split()) in " ".join(terminal.console_table(tmp_path).split())


def test_every_metric_compares_languages_and_the_page_says_it_too(tmp_path: Path) -> None:
    """Of AUC-PR a single row has no score."""
    run = write_run(tmp_path, methods=("fiat", "no_peft"), labels=("no", "yes"), metric="auc_pr", right={"fiat": 11, "no_peft": 2})
    of = Results(read(run))
    [answer] = answers(of)
    found = of.difference("rivers", ("fiat", "xs"), ("majority", ""), "auc_pr")
    assert found is not None
    most, least = (signed(found.by_language[language].difference or 0.0) for language in ("fi", "ur"))
    assert f"most for Bangla and Finnish ({most}), least for Japanese and Urdu ({least})" in answer
    assert answer in unescape(page.build(run).read_text("utf-8"))
