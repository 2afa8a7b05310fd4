"""``keep: best``: which trials' weights stay, and what is said where those that are gone are asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_overfit import memory_task, settings

from fiat_ray import artifact
from fiat_ray.campaign import Trial
from fiat_ray.prepare import prepare
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.trials import drop_weights, evaluated, tuned


@pytest.fixture
def trials(tmp_path: Path, tiny: Path) -> list[Trial]:
    config = settings(tmp_path, tiny, task="memory", methods=["no_cot", "no_peft"], seeds=[0, 1, 2], train_size=[4, 8])
    return prepare(config, {"memory": memory_task()}).trials


def finished(run: RunFolder, trial: Trial, value: float | None, scored: bool = True) -> None:
    """What a trial that was tuned, and evaluated where it was ``scored``, leaves; its weights are a file of that name."""
    folder = run.trial(trial.name)
    (folder / ("adapter" if trial.recipe.peft else "checkpoint")).mkdir(parents=True)
    numbers = {"learning_rate": 1e-3, "step": 1, "steps": 1, "kept_step_0": False, "selection_metric": "f1", "selection_value": value}
    who = {key: getattr(trial, key) for key in ("name", "task", "method", "tunable", "seed", "train_size", "fingerprint")}
    counts = {"answer_tokens": 1, "validation_rows": 1, "train_groups": 1, "tokens": 1, "supervised_tokens": 1, "seconds": 1.0, "gpus": 0}
    record = {**who, **numbers, **counts, "augmented": None, "recipe": vars(trial.recipe), "learning_rates_tried": [1e-3], "validation": {}}
    artifact.write_json(folder / "trial.json", record)
    if scored:
        artifact.write_json(folder / "scores.json", [])


def test_the_best_of_each_method_and_size_keeps_its_weights(tmp_path: Path, trials: list[Trial]) -> None:
    run = RunFolder(tmp_path / "run")
    for trial in trials:
        finished(run, trial, value=[10.0, 30.0, 20.0][trial.seed])
    assert len(trials) == 12
    dropped = drop_weights(run, trials)
    assert sorted(dropped) == sorted(trial.name for trial in trials if trial.seed != 1)
    assert all((run.weights(trial.name) is not None) == (trial.seed == 1) for trial in trials)
    assert all(evaluated(run, trial) for trial in trials), "scores stay, and nothing is tuned again for them"
    assert drop_weights(run, trials) == []


def test_what_is_not_scored_yet_keeps_its_weights_and_is_none_of_the_best(tmp_path: Path, trials: list[Trial]) -> None:
    run, three = RunFolder(tmp_path / "run"), [trial for trial in trials if trial.method == "no_cot" and trial.train_size == 8]
    finished(run, three[0], value=None)
    finished(run, three[1], value=5.0)
    finished(run, three[2], value=99.0, scored=False)
    assert drop_weights(run, three) == [three[0].name]
    assert run.weights(three[2].name) is not None


def test_weights_that_are_gone_are_tuned_again_where_they_are_needed(tmp_path: Path, trials: list[Trial]) -> None:
    run = RunFolder(tmp_path / "run")
    for trial in trials:
        finished(run, trial, value=float(trial.seed))
    name = drop_weights(run, trials)[0]
    [trial] = [trial for trial in trials if trial.name == name]
    (run.trial(name) / "scores.json").unlink()
    assert not tuned(run, trial)
    assert json.loads((run.trial(name) / "trial.json").read_text())["fingerprint"] == trial.fingerprint


def test_what_another_task_has_left_under_a_trials_name_is_not_its_own(tmp_path: Path, trials: list[Trial]) -> None:
    """One draft of instructions, then both, then the other alone: a recipe without any has one name in the first and the last run."""
    run, trial = RunFolder(tmp_path / "run"), trials[0]
    finished(run, trial, value=1.0)
    assert evaluated(run, trial) and not tuned(run, replace(trial, task="another draft"))
