"""A lane: the workers of one Ray Train run, which tune one trial after another. Imports and start-up, most of a short tuning, are paid once.

A lane takes trials from the board until none is ready. Several lanes run side by side.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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


class Board:
    """Where lanes take trials from and report to; a Ray actor."""

    def __init__(self) -> None:
        self._ready: deque[Trial] = deque()
        self._reports: list[Report] = []
        self._taken: dict[str, Trial] = {}

    def add(self, trials: list[Trial]) -> None:
        self._ready.extend(trials)

    def take(self, lane: str) -> Trial | None:
        """The next trial for a lane. None: there is none, and the lane should end."""
        self._taken.pop(lane, None)
        if self._ready:
            self._taken[lane] = self._ready.popleft()
        return self._taken.get(lane)

    def withdraw(self) -> list[Trial]:
        """Trials that no lane has taken yet, and now none will."""
        withdrawn = list(self._ready)
        self._ready.clear()
        return withdrawn

    def waiting(self) -> int:
        return len(self._ready)

    def report(self, report: Report) -> None:
        self._reports.append(report)

    def reports(self) -> list[Report]:
        """What was reported since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def lost(self, lane: str) -> Trial | None:
        """The trial that a lane was at when it died."""
        return self._taken.pop(lane, None)


def run_lane(name: str, board: Any, run: Path, *, workers: int, cpus: float, gpus: float, zero: int, storage: Path) -> None:
    """Start a lane and wait for its end. Raises what Ray Train or Ray raises when a worker dies."""
    config = {"lane": name, "board": board, "run": str(run), "zero": zero, "threads": int(max(1, cpus)), "share": gpus or 1.0}
    if workers == 1:
        _alone(config, cpus, gpus)
        return
    import ray.train
    from ray.train.torch import TorchTrainer

    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=resources),
        # A name of its own: Ray Train resumes a run whose name it has seen.
        run_config=ray.train.RunConfig(name=name, storage_path=str(storage)),
    )
    trainer.fit()


class LoneWorker:
    """The worker of a lane that has no other, a Ray actor in which Ray Train runs in local mode: without the five actors that lead several workers,
    and take 5 % of two CPUs from the tuning and twelve seconds to start."""

    def __init__(self) -> None:
        from fiat_ray import cpu
        from fiat_ray.cluster import end_with_raylet

        end_with_raylet()
        cpu.keep_memory()

    def tune(self, work: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
        import os

        import ray.train
        from ray.train.torch import TorchTrainer

        # With these Ray Train makes the process group that DeepSpeed asks for.
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        TorchTrainer(work, train_loop_config=config, scaling_config=ray.train.ScalingConfig(num_workers=0)).fit()

    def answer(self) -> None:
        """That it does not stand still."""


def _alone(config: dict[str, Any], cpus: float, gpus: float) -> None:
    import os

    import ray

    patience = float(os.environ.get("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", PATIENCE))
    worker = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(LoneWorker).remote()
    try:
        ended = worker.tune.remote(_work, config)
        while not ray.wait([ended], timeout=BETWEEN_CHECKS)[0]:
            try:
                ray.get(worker.answer.remote(), timeout=patience)
            except ray.exceptions.GetTimeoutError as error:
                raise RuntimeError(f"the worker gave no answer for {patience:g} seconds") from error
        ray.get(ended)
    finally:
        ray.kill(worker)


def _work(config: dict[str, Any]) -> None:
    """What each worker of a lane runs."""
    import os

    import ray
    import torch
    import torch.distributed as dist

    from fiat_ray.cluster import end_with_raylet
    from fiat_ray.run_folder import RunFolder
    from fiat_ray.tune.trial import Progress, run_trial
    from fiat_ray.tune.validate import Validation

    end_with_raylet()
    _quiet_deepspeed()
    if not torch.cuda.is_available():
        torch.set_num_threads(config["threads"])
    board, rank, run = config["board"], dist.get_rank(), RunFolder(config["run"])
    os.chdir(run.path)
    untuned: dict[str, Validation] = {}

    def say(trial: Trial) -> Progress:
        return lambda *said: board.report.remote(Report(trial.name, *said)) if rank == 0 else None

    while True:
        chosen = [ray.get(board.take.remote(config["lane"])) if rank == 0 else None]
        dist.broadcast_object_list(chosen)
        trial = chosen[0]
        if trial is None:
            return
        try:
            run_trial(trial, run, config["zero"], config["share"], say(trial), untuned)
            end = Report(trial.name, "tuned", ended=True)
        except Exception as error:
            # Several workers wait for one another in a collective, and errors of CUDA may stay with a process: only a new lane helps.
            last = dist.get_world_size() > 1 or torch.cuda.is_available()
            end = Report(trial.name, "failed", ended=not last, error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            if last:
                ray.get(board.report.remote(end))
                raise
        if rank == 0:
            ray.get(board.report.remote(end))


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
