"""What ``fiat-ray init`` says of the rows that it was given."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_init import jsonl
from test_own_task import about_passages, questions

from fiat_ray import Task
from fiat_ray.cli import main
from fiat_ray.task import SPLITS


def test_every_row_is_in_a_split_or_said_to_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three questions about a passage one becomes an exemplar, and the other two are left out."""
    said = {}
    for name, rows in (("alone", questions(60)), ("shared", about_passages(30, 3))):
        file = jsonl(tmp_path / f"{name}.jsonl", rows)
        assert main(["init", str(tmp_path / name), "--train", str(file), "--hardware", "gpu24"]) == 0
        said[name] = capsys.readouterr().out
        in_splits = sum(len(Task.load(tmp_path / name).split(split)) for split in SPLITS)
        assert in_splits == len(rows) - (4 if name == "alone" else 12)
    one = "exemplars: 4 train rows became worked examples, and are in no split any more"
    assert f"\n{one}\n" in said["alone"]
    assert f"\n{one}; 8 more that share an input, passage or group with one are left out\n" in said["shared"]
    worked = jsonl(tmp_path / "worked.jsonl", [questions(61)[60] | {"rationale": "The context says so."}])
    assert main(["init", str(tmp_path / "own"), "--train", str(tmp_path / "alone.jsonl"), "--hardware", "gpu24", "--exemplars", str(worked)]) == 0
    assert "became worked examples" not in capsys.readouterr().out
