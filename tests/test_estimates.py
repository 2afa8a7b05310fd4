"""Planned and measured: the table compares like with like, and says what is not known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_directory import rewrite_rationales, write_run

from fiat_ray.report import estimates, facts
from fiat_ray.report.page import build
from fiat_ray.report.read import read
from fiat_ray.report.results import Results


def plan(gpus: int = 0, known: bool = True) -> dict[str, Any]:
    asked = {"prompts": 96, "all": {"tokens_out_most": 9600, "tokens_out_estimate": None}}
    trials = [{"method": m, "tunable": "xs", "task": "rivers", "seeds": [0], "tokens": 5000, "rows_tested": 48} for m in ("fiat", "no_peft")]
    each = {"tuning": 10.0, "evaluation": 4.0}
    time = {"seconds": 250.0, "gpus": gpus, "prompts": {"rivers": {"all": 40.0}}, "trials": [each, each]}
    return {
        "tasks": {"rivers": {"reasoner": asked}},
        "trials": trials,
        "time": time if known else {"seconds": None, "gpus": gpus, "prompts": {}, "trials": []},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", methods=("fiat", "no_peft"))
    rewrite_rationales(folder, lambda row: "Because.\nAnswer: x", tokens=7)
    (folder / "reasoning.json").write_text(json.dumps({"rivers": {"rows": 48, "seconds": 30.0, "gpu_seconds": 60.0}}))
    (folder / "spent.json").write_text(json.dumps({"gpu_seconds": 500.0}))
    for trial in folder.glob("trials/*"):
        (trial / "evaluation.json").write_text(json.dumps({"rows": 48, "seconds": 2.0, "prompt_tokens": 4800, "answer_tokens": 96, "gpus": 0}))
    return folder


def rows(folder: Path, planned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (folder / "plan.json").write_text(json.dumps(planned))
    frame = estimates.table(Results(read(folder))).frame
    return {str(row["what"]).split(" ·")[0]: row for row in frame.to_dict("records")}


def test_measured_beside_planned(run: Path) -> None:
    found = rows(run, plan())
    reasoner = found["reasoner: rivers"]
    assert (reasoner["count_planned"], reasoner["count"], reasoner["tokens_planned"], reasoner["tokens"]) == (96, 48, 9600, 96 * 7)
    assert reasoner["stored_before"] == 48  # so that nothing is left to do
    # Half of the prompts took 30 s, and all of them were to take 40 s.
    assert (reasoner["seconds_planned"], reasoner["seconds"], reasoner["times_planned"]) == (40, 30, 1.5)
    tuning = found["tuning: FIAT"]
    assert (tuning["count"], tuning["tokens"], tuning["seconds"], tuning["times_planned"]) == (1, 5678, 12.5, 1.25)
    evaluation = found["evaluation: test rows"]
    assert (evaluation["count_planned"], evaluation["count"], evaluation["seconds"], evaluation["times_planned"]) == (96, 96, 4, 0.5)
    whole = found["all, with starts and what was done again"]
    assert (whole["seconds_planned"], whole["seconds"], whole["times_planned"]) == (250, 500, 2)


def test_the_costs_have_the_reasoners_seconds(run: Path) -> None:
    assert facts.costs(Results(read(run))).frame["seconds"].tolist() == [30.0, 12.5, 12.5]
    (run / "reasoning.json").unlink()
    assert facts.costs(Results(read(run))).frame["seconds"].isna().tolist() == [True, False, False]


def test_engines_of_several_gpus_side_by_side_count_as_one(run: Path) -> None:
    found = rows(run, plan(gpus=2))
    assert found["reasoner: rivers"]["seconds"] == 30 and found["all, with starts and what was done again"]["seconds"] == 250


def test_what_nobody_knew_or_measured_stays_empty(run: Path) -> None:
    (run / "reasoning.json").unlink()
    (run / "spent.json").unlink()
    found = rows(run, plan(known=False))
    assert all(row["times_planned"] != row["times_planned"] or row["times_planned"] is None for row in found.values())
    assert "–" in estimates.console_table(run)


def test_before_anything_ran_there_is_no_table(run: Path) -> None:
    for path in (run / "reasoning.json", run / "spent.json", *run.glob("trials/*/trial.json"), *run.glob("trials/*/evaluation.json")):
        path.unlink()
    (run / "plan.json").write_text(json.dumps(plan()))
    assert estimates.console_table(run) == ""


def test_on_the_page_and_in_the_terminal(run: Path) -> None:
    (run / "plan.json").write_text(json.dumps(plan()))
    page = build(run).read_text()
    assert "Planned and measured" in page and "times planned" in page and (run / "report" / "estimates.csv").is_file()
    text = estimates.console_table(run)
    assert max(map(len, text.splitlines())) <= 110 and "reasoner: rivers" in text and "1.50" in text
    above, below = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[1:3])
    assert [f"{a} {b}" for a, b in zip(above, below, strict=True)] == [
        *("number planned", "number done", "found in the store", "tokens planned", "tokens measured"),
        *("seconds planned", "seconds measured", "times planned"),
    ]
    costs = page[page.index('<section id="costs"') :]
    heads = " ".join(re.findall(r"<th scope=\"col\"[^>]*>([^<]*)<", costs))
    assert all(word in heads for word in ("number planned", "found in the store", "times planned")) and "charged" not in heads
    assert "Number: of rationales, or trials." in costs and "Found in the store: those" in costs
    assert not [word for word in ("count:", "charged:", "Charged:", "Stored:") if word in costs]
    labels = "".join(f"{line[:36].strip()} " for line in text.splitlines())
    assert "tuning: full fine-tuning (no_peft) · xs · rivers" in labels, "a label is wrapped, not cut"


def test_a_run_without_a_plan_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", methods=("fiat",))
    assert "without a plan" in build(folder).read_text() and estimates.console_table(folder) == ""


def test_rationales_that_the_token_limit_cut_off_are_counted_and_called_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    [path] = run.glob("augmented/*/split=test/language=bn/*.parquet")
    pd.read_parquet(path).assign(status=["length"] * 4 + ["ok"] * 8).to_parquet(path)
    table = facts.rationales(Results(read(run)))
    [bengali] = table.frame[(table.frame["split"] == "test") & (table.frame["language"] == "bn")].to_dict("records")
    assert (bengali["rows"], bengali["ok"], bengali["cut_off"]) == (12, 8, 4) and "length" not in table.frame
    shown = build(run).read_text().split('aria-label="Rationales and how they ended"')[-1]
    heads = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)<", shown)
    assert "cut off" in heads and "%" not in "".join(heads) and table.footnotes[0].startswith("Numbers of rows. Cut off: at the token limit")


def test_rationales_that_were_cut_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(0, 1))
    assert len(facts.trials(Results(read(tmp_path))).footnotes) == 1
    for path in (tmp_path / "trials").glob("fiat-*/trial.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"cut_rationales": {"ja": 1, "bn": 1200}}))
    [_, note] = facts.trials(Results(read(tmp_path))).footnotes
    assert note == "rivers, fiat, xs: rationales cut, because they are too long in the tunable's own tokens: bn 1,200, ja 1."
