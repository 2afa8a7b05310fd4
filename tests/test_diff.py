"""``fiat-ray diff``: what differs between two runs, what is the same to the byte, and which differences are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from run_directory import rewrite_predictions, rewrite_rationales, write_run

from fiat_ray.cli import main
from fiat_ray.diff import WIDTH, describe, diff


def write(folder: Path, rank: int = 16) -> Path:
    write_run(folder, rows=24)
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": "rivers", "lora": {"rank": rank}}))
    return folder


def test_a_run_is_the_same_as_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "a")
    assert main(["diff", str(run), str(run)]) == 0
    said = capsys.readouterr().out
    assert "inputs: all the same" in said and "→" in said and "*" not in said.split("correction):")[1]
    assert said.count("predictions the same to the byte") == 6
    assert main(["diff", str(run), str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == {} and all(row["same"] and row["change"] == 0 for row in found["scores"])
    assert found["rationales"]["rivers"]["other_text"] == 0 < found["rationales"]["rivers"]["rows"]


def test_what_differs_and_whether_it_is_real(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", rank=8)
    rewrite_predictions(b, "no_cot", lambda row: "wrong")
    rewrite_predictions(b, "fiat", lambda row: "wrong" if row["id"] == "test-fi-0" else row["prediction"])
    rewrite_rationales(b, lambda row: "another")
    found = diff(a, b)
    assert found["inputs"] == {"lora.rank": [16, 8]}
    assert found["rationales"]["rivers"]["other_text"] == found["rationales"]["rivers"]["rows"]
    rows = {row["method"]: row for row in found["scores"]}
    assert rows["no_cot"]["change"] < -20 and rows["no_cot"]["change_high"] < 0 and rows["no_cot"]["change_p"] < 0.01
    assert rows["fiat"]["change_low"] < rows["fiat"]["change"] < 0 <= rows["fiat"]["change_high"] and rows["fiat"]["change_p"] > 0.05
    assert rows["no_peft"]["same"] and rows["icl"]["same"]
    text = describe(found)
    assert "full fine-tuning (no_peft) · xs" in text and "w/o" not in text
    assert "lora.rank: 16 → 8" in text
    assert [line.count("*") for line in text.splitlines() if "LoRA tuning with instructions (no_cot) · xs" in line or "· FIAT ·" in line] == [0, 1]


def test_methods_and_rows_of_one_run_alone(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rows=12), write_run(tmp_path / "b", rows=18, methods=("fiat",))
    for folder in (a, b):
        (folder / "config.yaml").write_text("task: rivers\n")
    rows = {row["method"]: row for row in diff(a, b)["scores"]}
    assert rows["no_cot"]["note"] == "only in A" and rows["no_cot"]["change"] is None
    assert rows["fiat"]["note"] == "not about the same test rows"


def test_predictions_that_are_not_there(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    for path in b.glob("trials/fiat-*/predictions.parquet"):
        path.unlink()
    assert [row["note"] for row in diff(a, b)["scores"] if row["method"] == "fiat"] == ["no predictions in B"]
    assert [(row["note"], row["same"]) for row in diff(b, b)["scores"] if row["method"] == "fiat"] == [("no predictions in either", False)]


@pytest.mark.parametrize(
    ("changes", "note", "b"),
    [
        ({"languages": ("fi", "bn")}, "averaged languages", 50.0),
        ({"labels": ("no", "yes", "maybe")}, "metric, labels", None),
    ],
)
def test_scores_of_other_languages_labels_or_metrics_are_not_compared(tmp_path: Path, changes: dict[str, Any], note: str, b: float | None) -> None:
    wide, narrow = write_run(tmp_path / "a", right={"fiat": 6}), write_run(tmp_path / "b", right={"fiat": 6}, **changes)
    found = diff(wide, narrow)
    rows = {row["method"]: row for row in found["scores"]}
    assert {row["note"] for row in rows.values()} == {f"not compared, because they differ in {note}"}
    assert all((row["change"], row["change_p"], row["same"]) == (None, None, False) for row in rows.values())
    assert (rows["fiat"]["a"], rows["fiat"]["b"]) == (pytest.approx(100 * 5.5 / 12), b)
    assert {f"rivers: {name}" for name in changes} <= found["inputs"].keys()
    assert "FIAT · xs: F1 45.8 → " in describe(found)


def test_runs_with_nothing_in_common_are_told_apart_first(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", methods=("fiat",)), write_run(tmp_path / "b", methods=("no_cot",))
    for folder in (a, b):
        scores = pd.read_parquet(folder / "scores.parquet")
        scores[scores["tunable"] == "xs"].to_parquet(folder / "scores.parquet")
    assert describe(diff(a, b)).startswith("nothing to compare: no method of a task has scores in both")
    assert "nothing to compare" not in describe(diff(a, a))


def test_runs_about_other_tasks_are_not_compared(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", task="lakes")
    assert describe(diff(a, b)) == "nothing to compare: A is about rivers, B about lakes"


def test_labels_in_another_order_have_another_positive_one(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", labels=("no", "yes")), write_run(tmp_path / "b", labels=("yes", "no"))
    assert {row["note"] for row in diff(a, b)["scores"]} == {"not compared, because they differ in labels"}


def test_icl_has_no_probabilities_to_compare(tmp_path: Path) -> None:
    """Its labels differ between the runs, yet it has no AUC-PR in either: no change, and no part in Holm's family."""
    a, b = (write_run(tmp_path / name, labels=("no", "yes"), metric="auc_pr", right={"icl": right}) for name, right in (("a", 3), ("b", 9)))
    rows = {row["method"]: row for row in diff(a, b)["scores"]}
    assert {(row["a"], row["b"], row["change"], row["change_p"], row["note"]) for row in [rows["icl"]]} == {
        (None, None, None, None, "no AUC-PR in either")
    }
    assert rows["fiat"]["same"] and rows["fiat"]["change"] == 0
    icl = {row["method"]: row for row in diff(a, a)["scores"]}["icl"]
    assert icl["same"] and icl["change"] is None
    assert "Few-shot ICL: AUC-PR – → –; no AUC-PR in either" in describe(diff(a, b))


def test_a_tunable_without_scores_has_no_row(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, tunables=("xs", "s")) for name in "ab")
    scores = pd.read_parquet(b / "scores.parquet")
    scores[scores["tunable"] != "s"].to_parquet(b / "scores.parquet")
    assert {row["note"] for row in diff(a, b)["scores"] if row["tunable"] == "s"} == {"only in A"}
    assert {row["tunable"] for row in diff(b, b)["scores"]} == {"", "xs"}


NO_CONFIGS = ["- a list", "task: [", "", "reasoner: 3", "reasoner: {price_in: much}", "tunables:", "tunables: [xs]", "methods: 3", "where: here"]


@pytest.mark.parametrize("text", NO_CONFIGS)
def test_a_config_that_is_none_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    run = write(tmp_path / "a")
    (run / "config.yaml").write_text(text)
    assert main(["diff", str(run), str(run)]) == 2
    said = capsys.readouterr().err
    assert str(run / "config.yaml") in said and said.count("\n") == 1


def test_of_long_values_the_part_that_differs_is_shown(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    notes = "the same words again and again " * 9
    for folder, end in ((a, "old"), (b, "new")):
        (folder / "config.yaml").write_text(yaml.safe_dump({"task": "rivers", "data": f"{notes}{end} {notes}"}))
    [line] = [line for line in describe(diff(a, b)).splitlines() if "data" in line]
    assert "old the same" in line and "new the same" in line and line.count("… ") == 3
    assert len(line) < 3 * WIDTH


def test_lists_are_shown_whole(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    for folder, methods in ((a, ["majority", "icl", "no_peft", "fiat"]), (b, ["majority", "icl", "no_peft"])):
        (folder / "config.yaml").write_text(yaml.safe_dump({"task": "rivers", "lora": {"rank": 16}, "methods": methods}))
    assert "  methods: [majority, icl, no_peft, fiat] → [majority, icl, no_peft]" in describe(diff(a, b)).splitlines()


def test_a_key_of_a_nested_value_is_named(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    manifest = json.loads((b / "manifest.json").read_text())
    manifest["tasks"]["rivers"]["exemplars"]["ur"] = 3
    (b / "manifest.json").write_text(json.dumps(manifest))
    assert diff(a, b)["inputs"] == {"rivers: exemplars in the reasoner's prompts.ur": [4, 3]}
