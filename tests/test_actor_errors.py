"""Engines that Ray says are gone, by whichever of its errors: what stands in for Ray here raises them, as it does where it kills for memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError, NodeDiedError, OutOfMemoryError
from test_infer import make_run, row
from test_keep import finished
from test_overfit import memory_task, settings

from fiat_ray import artifact, cluster, evaluate, runs
from fiat_ray.campaign import Trial
from fiat_ray.cluster import Unit
from fiat_ray.errors import Unfinished
from fiat_ray.prepare import prepare
from fiat_ray.progress import Console
from fiat_ray.reason.stage import EngineFailed, _answered
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.evaluation import Evaluation
from fiat_ray.schedule.trials import Trials

pytestmark = pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("low on memory\nmore"), NodeDiedError("its node died"), ActorUnschedulableError("no node"), ActorDiedError()],
    ids=lambda error: type(error).__name__,
)


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[Any]:
    """Ray without processes: every answer of an actor is ``error``. The list holds those that were killed afterwards."""
    killed: list[Any] = []
    actor = SimpleNamespace(**{name: SimpleNamespace(remote=lambda *_: None) for name in ("__ray_ready__", "evaluate", "infer")})
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=lambda *_: actor))
    monkeypatch.setattr(ray, "get", raising(error))
    monkeypatch.setattr(ray, "kill", killed.append)
    return killed


def test_a_trial_is_evaluated_once_more_and_then_has_failed(tmp_path: Path, tiny: Path, actors: list[Any], error: Exception) -> None:
    prepared, run = prepare(settings(tmp_path, tiny, task="memory", methods=["no_cot"]), {"memory": memory_task()}), RunFolder(tmp_path / "run")
    [trial] = prepared.trials
    finished(run, trial, value=1.0, scored=False)
    trials = Trials([trial], run, ("evaluate",), Console(quiet=True))
    trials.refresh()
    evaluation = Evaluation(run, trials, SimpleNamespace(), SimpleNamespace(), Console(quiet=True))  # type: ignore[arg-type]
    for failed in ({}, {trial.name: f"the engine died: {error}"}):
        evaluation._evaluate(SimpleNamespace(unit=Unit(1, 0, 1)), trial.model, [trial])()  # type: ignore[arg-type]
        assert trials.outcome.failed == failed
    assert len(actors) == 2


def test_an_engine_that_dies_is_held_against_the_trial_that_it_was_at(
    tmp_path: Path, tiny: Path, actors: list[Any], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"task": "memory", "methods": ["no_cot"], "seeds": [0, 1, 2]}
    prepared, run = prepare(settings(tmp_path, tiny, **values), {"memory": memory_task()}), RunFolder(tmp_path / "run")
    _, bad, _ = prepared.trials
    for trial in prepared.trials:
        finished(run, trial, value=1.0, scored=False)

    def get(asked: Trial | None) -> None:
        if asked is bad:
            raise error
        if asked is not None:
            artifact.write_json(run.trial(asked.name) / "scores.json", [])

    actor = SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: None), evaluate=SimpleNamespace(remote=lambda trial: trial))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=lambda *_: actor))
    monkeypatch.setattr(ray, "get", get)
    trials = Trials(prepared.trials, run, ("evaluate",), Console(quiet=True))
    trials.refresh()
    evaluation = Evaluation(run, trials, SimpleNamespace(), SimpleNamespace(), Console(quiet=True))  # type: ignore[arg-type]
    while trials.to_evaluate:
        evaluation._evaluate(SimpleNamespace(unit=Unit(1, 0, 1)), bad.model, list(trials.to_evaluate))()  # type: ignore[arg-type]
    assert trials.outcome.failed == {bad.name: f"the engine died: {error}"}
    assert len(actors) == 3


def test_a_reasoner_counts_as_an_engine_that_failed(tmp_path: Path, error: Exception) -> None:
    note = tmp_path / "note"
    for said in ("its process died", "it made no progress"):
        with pytest.raises(EngineFailed, match=said):
            next(_answered(SimpleNamespace(iter_batches=raising(error)), note))
        note.write_text("it made no progress")


def test_infer_ends_in_one_line(tmp_path: Path, tiny: Path, actors: list[Any], error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.open_run(make_run(tmp_path / "it", tiny, 0, methods=("no_cot",)))
    monkeypatch.setattr(evaluate, "Evaluator", object)
    monkeypatch.setattr(cluster, "join", lambda *_: Unit(1, 0, 1))
    monkeypatch.setattr(cluster, "Raylet", lambda: SimpleNamespace(result=ray.get, close=lambda: None))
    with pytest.raises(Unfinished, match=f"^the engine died: {str(error)[:10]}"):
        run.infer([row(1)])
    assert len(actors) == 1
