"""Which trials' scores a run shows: those of trials that are whole, on the rationales that are there now."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_keep import finished
from test_overfit import memory_task, settings

from fiat_ray import artifact, augmented
from fiat_ray.collect import collect
from fiat_ray.prepare import Prepared, prepare
from fiat_ray.run_folder import RunFolder


@pytest.fixture
def prepared(tmp_path: Path, tiny: Path) -> Prepared:
    return prepare(settings(tmp_path, tiny, task="memory", methods=["majority", "fiat", "no_cot"]), {"memory": memory_task()})


@pytest.fixture
def run(tmp_path: Path, prepared: Prepared) -> RunFolder:
    """Both trials are tuned and evaluated."""
    run = RunFolder(tmp_path / "run")
    for trial in prepared.trials:
        finished(run, trial, value=1.0)
        artifact.write_json(run.trial(trial.name) / "scores.json", [{"language": "mean", "metric": "f1", "value": 50.0, "n": 16}])
    return run


def shown(prepared: Prepared, run: RunFolder) -> set[str]:
    return {row["method"] for row in collect(prepared, run) if row["seed"] is not None}


def test_scores_on_rationales_that_were_sealed_anew_are_not_shown(prepared: Prepared, run: RunFolder) -> None:
    """As when the run was stopped before it tuned again."""
    assert shown(prepared, run) == {"fiat", "no_cot"}
    seal = {"fingerprint": "new", "asked": prepared.asked("memory"), "rows": 48, "status": {}}
    artifact.write_json(run.augmented("memory") / augmented.SEAL, seal)
    assert shown(prepared, run) == {"no_cot"}


def test_scores_without_their_trials_record_are_not_shown(prepared: Prepared, run: RunFolder) -> None:
    """As when it was damaged, and deleted as its message says."""
    [trial] = [trial for trial in prepared.trials if trial.method == "no_cot"]
    (run.trial(trial.name) / "trial.json").unlink()
    assert shown(prepared, run) == {"fiat"}
