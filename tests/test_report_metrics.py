"""The report of tasks unlike the paper's: scored by another metric, or tuned on languages that are not tested."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from run_directory import write_run

from fiat_ray.metrics import shown_metrics
from fiat_ray.report import answer, decision, page, terminal
from fiat_ray.report.read import read
from fiat_ray.report.results import Results
from fiat_ray.report.tables import Table

THREE = ("ham", "eggs", "spam")


@pytest.mark.parametrize(
    ("metric", "labels", "title"),
    [
        ("chrf", (), "chrF"),
        ("exact_match", (), "Exact match"),
        ("run_scores:same_length", (), "same_length"),
        ("macro_f1", THREE, "Macro-F1"),
        ("accuracy", THREE, "Accuracy"),
        ("auc_pr", ("no", "yes"), "AUC-PR"),
    ],
)
def test_the_tasks_metric_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, labels: tuple[str, ...], title: str) -> None:
    (tmp_path / "run_scores.py").write_text("def same_length(targets, prediction):\n    return 100 * (len(targets[0]) == len(prediction))\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = write_run(tmp_path / "run", seeds=(0, 1), labels=labels, metric=metric, rows=24, right={"fiat": 22, "no_cot": 9, "no_peft": 6})
    html = page.build(run).read_text("utf-8")
    assert f"{title} on 96 test rows in 4 languages" in html
    table = (run / "report" / "table2_overall.csv").read_text("utf-8")
    assert table.startswith(f"task,tunable,method,row,seeds,{metric},{shown_metrics(metric, labels)[1]},")
    results = Results(read(run))
    gain, whole = results.difference("rivers", ("fiat", "xs"), ("no_cot", "xs"), metric), results.interval("rivers", "fiat", "xs")
    assert gain and gain.low is not None and gain.low > 0
    assert whole and whole.low is not None and whole.high is not None and whole.low < (whole.difference or 0) <= whole.high <= 100
    assert whole.difference == pytest.approx(results.value("rivers", "fiat", "xs", metric))


def test_what_has_no_auc_pr_is_named_and_is_no_zero(tmp_path: Path) -> None:
    """Few-shot ICL gives no probabilities; without a positive test row nothing has an AUC-PR."""
    right = {"fiat": 22, "no_peft": 9}
    run = write_run(tmp_path, methods=("fiat", "no_peft"), labels=("no", "yes"), metric="auc_pr", rows=24, right=right)
    [said], [chosen] = answer.answers(results := Results(read(run))), decision.section(results).sentences
    assert said.startswith("Both, on rivers") and "FIAT beats " in said
    assert "beside fine-tuning" in chosen and chosen.count("points of AUC-PR") == 1
    scores = pd.read_parquet(run / "scores.parquet")
    scores.loc[(scores["metric"] == "auc_pr") & (scores["method"] == "fiat"), "value"] = float("nan")
    scores.to_parquet(run / "scores.parquet")
    [without], [unchosen] = answer.answers(results := Results(read(run))), decision.section(results).sentences
    assert "FIAT has no AUC-PR" in without and "FIAT has no AUC-PR" in unchosen and "points of AUC-PR" not in unchosen
    for text in (said, chosen, without, unchosen):
        assert text.endswith("; few-shot ICL has no AUC-PR.") and " 0.0 " not in text and "beside few-shot ICL" not in text
    scores.loc[scores["metric"] == "auc_pr", "value"] = float("nan")
    scores.to_parquet(run / "scores.parquet")
    [nothing] = answer.answers(Results(read(run)))
    assert nothing == "No answer on rivers with tunable xs: FIAT has no AUC-PR; full fine-tuning (no_peft) has no AUC-PR; few-shot ICL has no AUC-PR."


@pytest.mark.parametrize("metric", ["auc_pr", "accuracy"])
def test_a_language_without_positive_rows_is_in_no_mean_of_auc_pr(tmp_path: Path, metric: str) -> None:
    run = write_run(tmp_path, labels=("no", "yes"), metric=metric, rows=24, right={"fiat": 22})
    scores = pd.read_parquet(run / "scores.parquet")
    scores.loc[(scores["metric"] == "auc_pr") & (scores["language"] == "ja"), "value"] = float("nan")
    scores.to_parquet(run / "scores.parquet")
    html, text = page.build(run).read_text("utf-8"), terminal.console_table(run)
    left_out = "AUC-PR is not defined without positive test rows; left out of its mean: ja."
    assert left_out in text and f"<li>rivers: {left_out}</li>" in html and f"<li>{left_out}</li>" in html
    if metric == "accuracy":
        assert "Accuracy is the mean of 4 languages (fi bn ur ja)." in html and "means of 4 languages;" in html
        assert "rivers: means of 4 languages on test (fi bn ur ja)" in text
    else:
        assert "AUC-PR is the mean of 3 languages (fi bn ur)." in html and "means of 3 languages, not defined in ja;" in html
        assert "rivers: means of 3 languages on test (fi bn ur)" in text and "4 languages" not in text


def test_a_language_without_test_rows_is_in_no_mean(tmp_path: Path) -> None:
    """Cross-lingual transfer: train rows in English alone, test rows in four other languages."""
    run = write_run(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    of_task = manifest["tasks"]["rivers"]
    of_task |= {"languages": ["en", *of_task["languages"]], "rows": of_task["rows"] | {"train": {"en": 48}}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    html, text = page.build(run).read_text("utf-8"), terminal.console_table(run)
    assert "means of 4 languages" in html and "F1 is the mean of 4 languages (fi bn ur ja)." in html and "5 languages" not in html
    assert "rivers: means of 4 languages on test (fi bn ur ja)" in text and "5 languages" not in text
    for table in ("per_language", "language_differences", "rationale_use", "figure3_gain_by_language"):
        assert not re.search(r"\ben\b", (run / "report" / f"{table}.csv").read_text("utf-8")), table


def test_a_table_shows_markup_of_strangers_as_text() -> None:
    """A language, a label or a note may hold what rows held: in heads, first cells, others and footnotes."""
    evil = "<script>alert(1)</script>"
    frame = pd.DataFrame([{"row": evil, evil: 1.0, "source": evil, "note": evil}])
    html = page._table(Table("t", evil, frame, [evil]))
    assert "<script" not in html and html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
