"""The report of tasks that are scored by another metric than the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_directory import write_run

from fiat_ray.metrics import shown_metrics
from fiat_ray.report import page
from fiat_ray.report.read import read
from fiat_ray.report.results import Results

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
