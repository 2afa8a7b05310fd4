"""What a lane's trials share, and how it ends."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import test_tune_resume
import torch
import torch.distributed as dist

from fiat_ray import cluster, runs
from fiat_ray.errors import UserError
from fiat_ray.prepare import prepare
from fiat_ray.progress import Console
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.trials import Trials
from fiat_ray.schedule.tuning import Tuning
from fiat_ray.tune import lane
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune import trial as trial_module
from fiat_ray.tune.validate import validate
from fiat_ray.where import Where

QUIET_DEEPSPEED = lane._quiet_deepspeed
FAILS: list[Any] = [SimpleNamespace(name=name, task="of no run") for name in ("a", "b")]


class Here:
    """A channel to a board in this process."""

    def __init__(self, board: lane.Board) -> None:
        self.take, self.report = partial(board.take, "lane"), partial(board.report, "lane")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[lane.Board]:
    """With two trials that fail. In a process that is the only worker of a lane."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "end_with_raylet", lambda: None)
    monkeypatch.setattr(lane, "_quiet_deepspeed", lambda: None)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    made = lane.Board()
    made.add(FAILS)
    yield made
    dist.destroy_process_group()


def work(board: lane.Board, run: Path) -> None:
    lane._work({"channel": Here(board), "run": str(run), "zero": 0, "threads": torch.get_num_threads(), "share": 1.0})


def test_without_cuda_a_lane_goes_on_after_a_failed_trial(board: lane.Board, tmp_path: Path) -> None:
    work(board, tmp_path)
    assert [(report.trial, report.ended) for report in board.reports()] == [("a", True), ("b", True)]


def test_a_trial_that_fails_on_cuda_ends_its_lane_and_its_error_is_told(board: lane.Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some errors of CUDA stay with the process: in it every other trial would fail too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run = RunFolder(tmp_path)
    trials = Trials(FAILS, run, (), Console(quiet=True))
    tuning = Tuning(run, trials, None, Console(quiet=True), Where(), tmp_path)  # type: ignore[arg-type]
    tuning._board = board
    for retried in (["a"], []):
        with pytest.raises(UserError):
            work(board, tmp_path)
        assert board.waiting() == 1, "it took another trial"
        tuning._lane_ended("lane", "WorkerGroupError: Training failed due to worker errors:")
        assert [trial.name for trial in trials.to_tune] == retried
        board._ready.extendleft(trials.to_tune)
        trials.to_tune = []
    assert trials.outcome.failed.keys() == {"a"} and "no task 'of no run' in this run" in trials.outcome.failed["a"].splitlines()[0]


def test_trials_that_differ_in_their_seed_are_validated_once_before_tuning(
    board: lane.Board, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each leaves the very bytes that it leaves in a lane of its own."""
    monkeypatch.setattr(lane, "_quiet_deepspeed", QUIET_DEEPSPEED)
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = dataclasses.replace(test_tune_resume.config(tiny), seeds=(0, 1), steps=2)
    trials, asked, loaded = prepare(config).trials, Counter[str](), Counter[str]()
    load = checkpoints.load
    for run, lanes in (("together", [trials]), ("alone", [[trial] for trial in trials])):
        runs.run_config(config, tmp_path / run, stages=("reason",), console=Console(quiet=True))
        monkeypatch.setattr(trial_module, "validate", lambda *given, run=run: asked.update([run]) or validate(*given))
        monkeypatch.setattr(checkpoints, "load", lambda *given, run=run: loaded.update([run]) or load(*given))
        for taken in lanes:
            board.withdraw()
            board.add(taken)
            work(board, tmp_path / run)
            assert [report.error for report in board.reports() if report.ended] == [None] * len(taken)
    assert {trial.method for trial in trials} == {"no_cot", "no_peft"} and len(trials) == 4
    assert asked["together"] == asked["alone"] - 2
    assert loaded == {"alone": 6, "together": 5}, "LoRA's trials have a model in common"
    for trial in trials:
        assert test_tune_resume.content(tmp_path / "together", trial) == test_tune_resume.content(tmp_path / "alone", trial)


def test_a_lane_has_one_trial_at_a_time() -> None:
    board = lane.Board()
    board.add(FAILS)
    assert [board.take("lane").name, board.take("lane").name] == ["a", "a"], "one that begins anew goes on with it"  # type: ignore[union-attr]
    board.report("lane", lane.Report("a", "step 1/2", 1, 2))
    assert board.lost("lane") == FAILS[0] and board.lost("lane") is None
    assert board.take("lane") == FAILS[1]
    board.report("lane", lane.Report("b", "tuned", ended=True))
    assert board.lost("lane") is None and board.take("lane") is None and board.began("lane") and not board.began("other")


def test_what_a_lane_says_is_heard_in_its_order_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel in this process, which Ray's calls reach at once."""
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    board, channel, taken = lane.Board(), lane.Channel(), list[Any]()
    board.add(FAILS)

    def work() -> None:
        while trial := channel.take():
            taken.append(trial)
            for step in range(50):
                channel.report(lane.Report(trial.name, "", step))
            channel.report(lane.Report(trial.name, "", ended=True))
        channel.end()

    thread = threading.Thread(target=work)
    thread.start()
    actor = SimpleNamespace(heard=SimpleNamespace(remote=channel.heard), give=SimpleNamespace(remote=channel.give))
    lane._listen(actor, board, "lane", over=lambda: False)
    thread.join()
    assert taken == FAILS
    assert [(report.trial, report.step, report.ended) for report in board.reports()] == [
        (name, step % 50, step == 50) for name in ("a", "b") for step in range(51)
    ]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.leave()


def run_lane(place: Path) -> None:
    lane.run_lane("lane", lane.Board(), place, workers=1, cpus=1, gpus=0, zero=0, storage=place)


class Unreadable:
    """What can be sent to a worker, but not received."""

    def __reduce__(self) -> Any:
        return exec, ("raise MemoryError('none is left')",)


def test_a_lane_ends_that_does_not_even_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    monkeypatch.setattr(lane, "_work", Unreadable())
    with pytest.raises(ray.exceptions.RayError, match="none is left"):
        run_lane(tmp_path)


def test_a_lone_worker_that_stands_still_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    seen = tmp_path / "seen"

    def stand_still(_: dict[str, Any]) -> None:
        seen.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(lane, "_work", stand_still)
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "3")
    with pytest.raises(RuntimeError, match="the worker gave no answer for 3 seconds"):
        run_lane(tmp_path)
    patience = time.monotonic() + 60
    while Path(f"/proc/{seen.read_text()}").exists() and time.monotonic() < patience:
        time.sleep(0.1)
    assert not Path(f"/proc/{seen.read_text()}").exists()
