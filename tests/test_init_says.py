"""What ``fiat-ray init`` says of the rows that it was given."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_init import jsonl, topics
from test_own_task import about_passages, questions

from fiat_ray import Task
from fiat_ray.cli import main
from fiat_ray.init import init
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


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, [], "3 labels (sport, trade, weather), accuracy"),
        ({}, ["--positive", "trade", "--metric", "auc_pr"], "3 labels (sport, weather, trade), auc_pr"),
        ({"label": "klass"}, ["--target", "klass"], "free text, f1; only 3 different ones: for a classification add --labels sport,trade,weather"),
        ({"label": "klass"}, ["--target", "klass", "--labels", "sport,trade,weather"], "3 labels (sport, trade, weather), accuracy"),
        ({"label": "klass", "sport": "ball games"}, ["--target", "klass"], "…--labels 'ball games,trade,weather'"),
        ({"label": "klass", "sport": "ball, games"}, ["--target", "klass"], "free text, f1"),
    ],
)
def test_what_answers_are_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], options: list[str], said: str) -> None:
    """``change``: of names of fields and of labels."""
    rows = [{change.get(name, name): change.get(value, value) for name, value in row.items()} for row in topics()]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    assert main(["init", str(tmp_path / "mytask"), "--train", str(file), "--hardware", "gpu24", *options]) == 0
    [answers] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("answers: ")]
    assert answers.endswith(said.removeprefix("…")) and ("different" in answers) == ("--labels" in said)


def test_many_or_rare_answers_are_no_labels(tmp_path: Path) -> None:
    """Nine answers to 90 rows may be labels; each of ten is too rare, and rows with several answers have no label."""
    for different, several, few in ((9, False, 9), (10, False, 0), (9, True, 0)):
        answers = [f"answer {n % different}" for n in range(90)]
        rows = [{"question": f"Which is {n}?", "answer": [said, "another"] if several else said} for n, said in enumerate(answers)]
        place = tmp_path / f"{different}{several}"
        started = init(place, jsonl(place.with_suffix(".jsonl"), rows), hardware="gpu24")
        assert len(started.like_labels) == few
