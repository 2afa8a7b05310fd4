"""A lane: the workers of one Ray Train run, which tune one trial after another. Imports and start-up, most of a short tuning, are paid once.

A lane takes trials from the board, through a channel, until none is ready. Several lanes run side by side.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fiat_ray.campaign import Trial

PATIENCE = 600.0
"""Seconds that a worker may stand still, as Ray Train has them for several workers; the same variable sets both."""

BETWEEN_CHECKS = 2.0
"""Seconds."""


@dataclass(frozen=True)
class Report:
    """What a lane says of a trial: progress, or its end."""

    trial: str
    text: str
    step: int = 0
    steps: int = 0
    lasting: bool = False
    """To be read later too."""
    ended: bool = False
    error: str | None = None
    """Why it failed. Where it has not ``ended`` by that, the lane does."""


class Word(Enum):
    """What a lane says beside its reports."""

    NEXT = "next"
    END = "end"


class Board:
    """Where lanes get trials from, and where what they say is read; in the driver, whose threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: deque[Trial] = deque()
        self._reports: list[Report] = []
        self._taken: dict[str, Trial] = {}
        """Lane → the trial that it is at."""
        self._began: set[str] = set()
        """Lanes that ever took one."""

    def add(self, trials: list[Trial]) -> None:
        with self._lock:
            self._ready.extend(trials)

    def take(self, lane: str) -> Trial | None:
        """The next trial for a lane; the one it is at, where its workers begin anew. None: there is none, and the lane should end."""
        with self._lock:
            if lane not in self._taken and self._ready:
                self._taken[lane] = self._ready.popleft()
                self._began.add(lane)
            return self._taken.get(lane)

    def withdraw(self) -> list[Trial]:
        """Trials that no lane has taken yet, and now none will."""
        with self._lock:
            withdrawn = list(self._ready)
            self._ready.clear()
            return withdrawn

    def waiting(self) -> int:
        return len(self._ready)

    def report(self, lane: str, report: Report) -> None:
        with self._lock:
            self._reports.append(report)
            if report.ended:
                self._taken.pop(lane, None)

    def reports(self) -> list[Report]:
        """What was reported since the last call."""
        with self._lock:
            reports, self._reports = self._reports, []
            return reports

    def lost(self, lane: str) -> Trial | None:
        """The trial that a lane was at when it died."""
        with self._lock:
            return self._taken.pop(lane, None)

    def began(self, lane: str) -> bool:
        """Whether it ever took a trial."""
        return lane in self._began


class Channel:
    """Between a lane and the driver, in an actor, whose threads share it. That the driver asks for what is said, and has the board, saves a process
    where the lane has one worker: each that Ray has takes a percent of a CPU, even when it does nothing."""

    def __init__(self) -> None:
        self._said: SimpleQueue[Report | Word] = SimpleQueue()
        self._given: SimpleQueue[Trial | None] = SimpleQueue()

    def take(self) -> Trial | None:
        """For the lane: ``Board.take``."""
        self._said.put(Word.NEXT)
        return self._given.get()

    def report(self, report: Report) -> None:
        """For the lane: ``Board.report``."""
        self._said.put(report)

    def end(self) -> None:
        """Nothing more will be said."""
        self._said.put(Word.END)

    def heard(self, seconds: float) -> list[Report | Word]:
        """For the driver: what was said since the last call. Waits so long for it: an answer also tells that the lane does not stand still."""
        said: list[Report | Word] = []
        with contextlib.suppress(Empty):
            said.append(self._said.get(timeout=seconds))
            while True:
                said.append(self._said.get_nowait())
        return said

    def give(self, trial: Trial | None) -> None:
        """For the driver: what ``take`` waits for."""
        self._given.put(trial)


@dataclass(frozen=True)
class FarChannel:
    """A channel in another process, for the lane."""

    actor: Any

    def take(self) -> Trial | None:
        import ray

        return ray.get(self.actor.take.remote())  # type: ignore[no-any-return]

    def report(self, report: Report) -> None:
        import ray

        heard = self.actor.report.remote(report)
        if report.ended or report.error is not None:
            ray.get(heard)


def run_lane(name: str, board: Board, run: Path, *, workers: int, cpus: float, gpus: float, zero: int, storage: Path) -> None:
    """Start a lane and wait for its end. Raises what Ray Train or Ray raises when a worker dies."""
    config = {"run": str(run), "zero": zero, "threads": int(max(1, cpus)), "share": gpus or _share_of_machine(cpus)}
    if workers == 1:
        _alone(name, board, config, cpus, gpus)
    else:
        _together(name, board, config, workers, cpus, gpus, storage)


def _share_of_machine(cpus: float) -> float:
    """Of its memory what a worker without GPU may take: as many as its CPUs allow may be beside it."""
    import ray

    return min(1.0, cpus / max([1.0, *(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])]))


class LoneWorker(Channel):
    """The worker of a lane that has no other, a Ray actor in which Ray Train runs in local mode: without the five actors that lead several workers,
    and take 5 % of two CPUs from the tuning and twelve seconds to start."""

    def __init__(self) -> None:
        from fiat_ray import cpu
        from fiat_ray.cluster import end_with_raylet

        super().__init__()
        end_with_raylet()
        cpu.keep_memory()

    def tune(self, work: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
        import os

        import ray.train
        from ray.train.torch import TorchTrainer

        # With these Ray Train makes the process group that DeepSpeed asks for.
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        try:
            scaling = ray.train.ScalingConfig(num_workers=0)
            TorchTrainer(work, train_loop_config={**config, "channel": self}, scaling_config=scaling).fit()
        finally:
            self.end()


def _alone(name: str, board: Board, config: dict[str, Any], cpus: float, gpus: float) -> None:
    import ray

    worker = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=3)(LoneWorker).remote()
    try:
        tuned = worker.tune.remote(_work, config)
        _listen(worker, board, name, over=lambda: bool(ray.wait([tuned], timeout=0)[0]))
        ray.get(tuned)
    finally:
        ray.kill(worker)


def _together(name: str, board: Board, config: dict[str, Any], workers: int, cpus: float, gpus: float, storage: Path) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's own node: any other may be lost, and with it what the lane said.
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    channel = ray.remote(num_cpus=0, max_concurrency=4, scheduling_strategy=here)(Channel).remote()
    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={**config, "channel": FarChannel(channel)},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=resources),
        # A name of its own: Ray Train resumes a run whose name it has seen.
        run_config=ray.train.RunConfig(name=name, storage_path=str(storage)),
    )
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            errors.append(error)
        channel.end.remote()

    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    try:
        _listen(channel, board, name, over=lambda: not fitting.is_alive())
    finally:
        ray.kill(channel)  # without it workers that still run fail
        fitting.join()
    if errors:
        raise errors[0]


def _listen(channel: Any, board: Board, lane: str, over: Callable[[], bool]) -> None:
    """Answer what a lane says, to its end. ``over``: whether it has ended, said or not. Raises ``RuntimeError`` where it stands still."""
    import os

    patience = float(os.environ.get("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", PATIENCE))
    while True:
        last = over()
        for said in _answer(channel.heard.remote(min(BETWEEN_CHECKS, patience / 4)), patience):
            if isinstance(said, Report):
                board.report(lane, said)
            elif said is Word.NEXT:
                _answer(channel.give.remote(board.take(lane)), patience)
            else:
                last = True
        if last:
            return


def _answer(reference: Any, patience: float) -> Any:
    import ray

    since = time.monotonic()
    while not ray.wait([reference], timeout=BETWEEN_CHECKS)[0]:  # not at once for so long: Ray may be left meanwhile
        if time.monotonic() - since > patience:
            raise RuntimeError(f"the worker gave no answer for {patience:g} seconds")
    return ray.get(reference)


def _work(config: dict[str, Any]) -> None:
    """What each worker of a lane runs."""
    import os

    import torch
    import torch.distributed as dist

    from fiat_ray.cluster import end_with_raylet
    from fiat_ray.run_folder import RunFolder
    from fiat_ray.tune.trial import Progress, Shared, run_trial

    end_with_raylet()
    _quiet_deepspeed()
    if not torch.cuda.is_available():
        torch.set_num_threads(config["threads"])
    channel, rank, run = config["channel"], dist.get_rank(), RunFolder(config["run"])
    os.chdir(run.path)
    shared = Shared()

    def say(trial: Trial) -> Progress:
        return lambda *said: channel.report(Report(trial.name, *said)) if rank == 0 else None

    while True:
        chosen = [channel.take() if rank == 0 else None]
        dist.broadcast_object_list(chosen)
        trial = chosen[0]
        if trial is None:
            return
        try:
            run_trial(trial, run, config["zero"], config["share"], say(trial), shared)
            end = Report(trial.name, "tuned", ended=True)
        except Exception as error:
            # Several workers wait for one another in a collective, and errors of CUDA may stay with a process: only a new lane helps.
            last = dist.get_world_size() > 1 or torch.cuda.is_available()
            end = Report(trial.name, "failed", ended=not last, error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            if last:
                channel.report(end)
                raise
        if rank == 0:
            channel.report(end)


def _quiet_deepspeed() -> None:
    """DeepSpeed over the process group that Ray Train made, without its shared-memory operator.

    That one is compiled with g++ at first use (half a minute, and an error without a compiler) and speeds up only several CPU workers.
    """
    import logging

    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None:
        deepspeed.ops.__compatible_ops__[builder.NAME] = False
    deepspeed.init_distributed()
