"""What ``make controls`` stands on: a task that only rationales make answerable, and bounds that notice what they should. The runs take minutes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_directory import write_run

from benchmarks import controls, leaky_task, lockers
from benchmarks.controls import Controls
from fiat_ray.leaks import leaking_rows
from fiat_ray.reason.reasoners import load_script
from fiat_ray.reason.requests import script_row
from fiat_ray.render import Renderer
from fiat_ray.runs import Run
from fiat_ray.significance import Comparison
from fiat_ray.task import Row, Task

KEYS = [
    *("cot_gain", "cot_p", "shuffled_gain_high", "no_train_gain", "no_infer_gain", "shuffled_infer_gain"),
    *("instruction_gain_low", "leak_caught", "n", "seeds"),
]


@pytest.fixture(scope="module", params=lockers.REASONING)
def task(request: pytest.FixtureRequest) -> Task:
    return lockers.task(request.param)


REASON = load_script(Path(lockers.__file__))


def rationale(task: Task, row: Row) -> str:
    """As a run gets it: the file is loaded as a script, and sees what scripts see."""
    return REASON(script_row(row, task.text(row.fields)))


def test_no_rationale_holds_the_answer(task: Task) -> None:
    assert {row.split for row in task.rows} == set(lockers.SIZES)
    for row in task.rows:
        assert row.targets[0] not in rationale(task, row) and row.targets[0] not in task.text(row.fields)


def test_own_rationales_imply_the_answer_and_others_another(task: Task) -> None:
    own = {split: {f"The peg is {peg}." for peg in lockers.pegs(split).values()} for split in lockers.SIZES}
    for row in task.rows:
        text = rationale(task, row)
        implied = f"The peg is {int(row.targets[0]) - 1}."
        assert (text == implied) == (row.language == "own")
        assert text in own[row.split] or row.language == "none"
        assert (text == "") == (row.language == "none")


def test_other_rows_rationales_follow_no_rule() -> None:
    """Were the distance to the answer always the same, tuning could learn to undo the shuffling."""
    task = lockers.task("another")
    apart = [int(row.targets[0]) - int(rationale(task, row).split()[-1][:-1]) for row in task.rows if row.language == "another"]
    assert Counter(apart).most_common(1)[0][1] < 0.05 * len(apart)


def test_splits_share_nobody_and_questions_tell_nothing(task: Task) -> None:
    people = {split: {row.group for row in task.split(split)} for split in lockers.SIZES}
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == sum(lockers.SIZES.values())
    for split in lockers.SIZES:
        answers = Counter(row.targets for row in task.split(split))
        kinds = {row.language for row in task.split(split)}
        assert max(answers.values()) <= len(kinds) * -(-lockers.SIZES[split] // len(lockers.PEGS)), "no answer is worth guessing"
    assert not any(character.isdigit() for row in task.rows for character in task.text(row.fields))


def test_a_test_row_is_there_once_with_each_kind_that_is_tested_and_no_prompt_shows_which(task: Task) -> None:
    texts: dict[str, set[tuple[str, ...]]] = {}
    for row in task.split("test"):
        texts.setdefault(row.group, set()).add((task.text(row.fields), *row.targets))
    assert all(len(found) == 1 for found in texts.values())
    [training] = {row.language for split in ("train", "validation") for row in task.split(split)}
    assert Counter(row.language for row in task.split("test")) == lockers.TESTED[training]
    assert len({(row.language, row.group) for row in task.split("test")}) == len(task.split("test"))


class Predicted:
    """What a run predicted: a method's share of right answers on each kind of test rows."""

    def __init__(self, **right: dict[str, float]) -> None:
        self.right = right

    def predictions(self, method: str, task: str) -> list[list[dict[str, Any]]]:
        rows = [(kind, number) for kind in lockers.REASONING for number in range(100)]
        return [
            [
                {
                    "id": f"{kind} {number}",
                    "group": f"person {number}",
                    "language": kind,
                    "targets": ["41"],
                    "prediction": "41" if (number * 7 + seed) % 100 < 100 * self.right[method][kind] else "7",
                }
                for kind, number in rows
            ]
            for seed in controls.SEEDS
        ]


def found(**changes: Any) -> Controls:
    guess = {"own": 0.02, "none": 0.02, "another": 0.02}
    runs = {
        "own": Predicted(no_cot=guess, fiat={"own": 0.9, "none": 0.03, "another": 0.0}),
        "none": Predicted(fiat=guess | {"own": 0.05}),
        "another": Predicted(fiat=guess),
    }
    helped = Comparison(12.0, 8.0, 16.0, 0.001, 240, 180, (1, 1), "")
    return replace(Controls(**controls.cot_gains(runs), instructions=helped, leak_caught=True), **changes)  # type: ignore[arg-type]


def test_gains_of_known_predictions() -> None:
    summary = found().summary()
    assert list(summary) == KEYS
    assert json.loads(json.dumps(summary)) == pytest.approx(
        {
            "cot_gain": 88,
            "cot_p": 0,
            "shuffled_gain_high": None,  # the same answers as no_cot in every row
            "no_train_gain": 3,
            "no_infer_gain": 1,
            "shuffled_infer_gain": -2,
            "instruction_gain_low": 8,
            "leak_caught": True,
            "n": 100,
            "seeds": 3,
        },
        abs=1e-6,
    )
    assert found().apart.difference == pytest.approx(88) and all(claim.holds for claim in found().claims())


def gains(value: float | None, low: float | None = None, high: float | None = None, p: float | None = 1e-6) -> Comparison:
    return Comparison(value, low, high, p, 100, 100, (3, 3), "")


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"gain": gains(19.9)}, "own rationales gain at least 20"),
        ({"gain": gains(88.0, p=0.01)}, "p of that gain"),
        ({"shuffled": gains(1.0, high=5.1)}, "rationales of other rows gain at most 5"),
        ({"shuffled": gains(None)}, "rationales of other rows gain at most 5"),
        ({"apart": gains(1.0, low=-0.1)}, "own rationales gain more than those"),
        ({"no_train": gains(44.1)}, "dropped in training"),
        ({"no_infer": gains(44.1)}, "dropped at inference"),
        ({"shuffled_infer": gains(44.1)}, "shuffled at inference"),
        ({"instructions": gains(1.0, low=0.0)}, "instructions help"),
        ({"leak_caught": False}, "the leakage check"),
    ],
)
def test_each_claim_fails_alone(change: dict[str, Any], claim: str) -> None:
    failing = [claim.text for claim in found(**change).claims() if not claim.holds]
    assert len(failing) == 1 and failing[0].startswith(claim)


def test_a_gain_that_is_not_defined_holds_no_claim() -> None:
    assert sum(claim.holds for claim in found(gain=gains(None, p=None)).claims()) == 4


def test_what_was_found_stands_in_the_report(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run"))
    controls.write(found(no_train=gains(1.5)), run)
    figure = (run.path / "report" / "controls_gains.svg").read_text()
    assert figure.count("<circle") == 6 and "+1.5 (no interval)" in figure and "+0.0 (no interval)" in figure
    page = (run.path / "report" / "index.html").read_text()
    assert "9 of 9 claims hold, with 3 seeds" in page and "own rationales gain at least 20 points" in page


def test_the_leaky_task_leaks_in_every_row_and_its_model_in_none(tmp_path: Path, tiny: Path) -> None:
    renderer = Renderer(tiny)
    leaky, data = leaky_task.write(tmp_path)
    assert len(leaking_rows(leaky, data, renderer, 8192)) == 7 * leaky_task.ROWS
    assert leaking_rows("xor_attriqa", data, renderer, 8192) == []


def test_another_run_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = tmp_path / controls.OUT / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    with pytest.raises(SystemExit, match="is a run directory of another config"):
        controls.main()
    assert manifest.is_file()
