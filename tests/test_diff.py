"""``fiat-ray diff``: what differs between two runs, what is the same to the byte, and which differences are real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from run_directory import rewrite_predictions, rewrite_rationales, write_run

from fiat_ray.cli import main
from fiat_ray.diff import describe, diff


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
    assert rows["no_cot"]["change"] < -20 and rows["no_cot"]["high"] < 0 and rows["no_cot"]["p"] < 0.01
    assert rows["fiat"]["low"] < rows["fiat"]["change"] < 0 <= rows["fiat"]["high"] and rows["fiat"]["p"] > 0.05
    assert rows["no_peft"]["same"] and rows["icl"]["same"]
    text = describe(found)
    assert "lora.rank: 16 → 8" in text
    assert [line.count("*") for line in text.splitlines() if "w/o CoT" in line or "· FIAT ·" in line] == [0, 1]


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
