"""The part of a campaign that tunes: lanes of warm Ray Train workers take trials from a board."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fiat_ray.campaign import needs_rationales
from fiat_ray.progress import Console
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.hardware import Hardware
from fiat_ray.schedule.reasoning import Reasoning
from fiat_ray.schedule.trials import Trials, tuned
from fiat_ray.tune import lane
from fiat_ray.where import Where

MOST_LANE_FAILURES = 3
"""Lanes that may die before they take a trial."""


class Tuning:
    def __init__(self, run: RunFolder, trials: Trials, reasoning: Reasoning, console: Console, where: Where, storage: Path) -> None:
        self._run, self._trials, self._reasoning, self._console = run, trials, reasoning, console
        self._where, self._storage = where, storage
        self._board = lane.Board()
        self._lanes: set[str] = set()
        self._waiting = 0
        """Trials on the board that no lane was started for."""
        self._failures = 0
        self._causes: dict[str, str] = {}
        """Trial → why its lane ends, as a worker said it; Ray Train's own words begin with something else."""

    @property
    def unfinished(self) -> bool:
        return bool(self._lanes or self._waiting or self._trials.to_tune)

    def start_what_can(self, hardware: Hardware) -> None:
        ready = [t for t in self._trials.to_tune if self._reasoning.sealed or not needs_rationales(t)]
        if ready:
            self._board.add(ready)
            self._trials.to_tune = [t for t in self._trials.to_tune if t not in ready]
            self._waiting += len(ready)
        units = self._where.workers * self.share(hardware)
        while self._waiting and hardware.free(units):
            self._waiting -= 1  # a lane for each, as long as there is room; what more it takes is seen when it ends
            name = f"lane-{uuid.uuid4().hex[:8]}"
            self._lanes.add(name)
            hardware.start(units, self._lane, hardware, name, gpus=1)

    def share(self, hardware: Hardware) -> float:
        """Of a unit, for one worker."""
        return 1 / self._where.tunings_per_gpu if hardware.unit.gpus and self._where.workers == 1 else 1.0

    def stop(self) -> None:
        """Lanes end with the trial they are at."""
        self._trials.to_tune += self._board.withdraw()
        self._waiting = 0

    def show_progress(self) -> None:
        """What lanes said since the last look."""
        for report in self._board.reports():
            trial = self._trials.all[report.trial]
            if report.error is not None and not report.ended:
                self._causes.setdefault(report.trial, report.error)
            elif report.error is not None:
                self._retry(report.trial, report.error)
            elif report.ended:
                self._console.line(f"tuned {trial.name}", "tune", trial=trial.name)
            elif report.lasting:
                self._console.line(f"tune {trial.name}: {report.text}", "tune", trial=trial.name)
            else:
                self._console.status(f"tune {trial.name}: {report.text}", "tune", trial=trial.name, step=report.step, steps=report.steps)

    def _lane(self, hardware: Hardware, name: str) -> Callable[[], None]:
        workers, unit, share = self._where.workers, hardware.unit, self.share(hardware)
        self._console.line(f"tune: starting {workers} worker(s)", "tune", lane=name, workers=workers)
        error: str | None = None
        try:
            lane.run_lane(
                name,
                self._board,
                self._run.path,
                workers=workers,
                cpus=unit.cpus * share,
                gpus=min(1, unit.gpus) * share,
                zero=self._where.zero,
                storage=self._storage,
            )
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        return partial(self._lane_ended, name, error)

    def _lane_ended(self, name: str, error: str | None) -> None:
        self.show_progress()
        self._lanes.discard(name)
        trial = self._board.lost(name)
        if error is not None and trial is not None and not tuned(self._run, trial):
            self._retry(trial.name, self._causes.pop(trial.name, error))
        elif error is not None and not self._board.began(name):
            self._failures += 1
            if self._failures >= MOST_LANE_FAILURES:
                raise RuntimeError(f"Ray Train could not start workers, {MOST_LANE_FAILURES} times: {error}")
        self._waiting = self._board.waiting()

    def _retry(self, name: str, error: str) -> None:
        trial = self._trials.all[name]
        if self._trials.may_retry(trial, "tune", error):
            self._trials.to_tune.append(trial)
