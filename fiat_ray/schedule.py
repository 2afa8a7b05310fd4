"""Runs a campaign on Ray: each part starts when what it needs exists and hardware is free.

One driver thread decides; reasoning, lanes of tuning and evaluation each wait in a thread of their own. The unit of hardware is what one engine
or one tuning worker takes, so a machine with two cores does one thing after the other, and a cluster does them side by side.
"""

from __future__ import annotations

import queue
import shutil
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fiat_ray import artifact, augmented
from fiat_ray.campaign import Trial, needs_rationales
from fiat_ray.cluster import Unit, check_shared, connect, resolved, unit
from fiat_ray.config import Where
from fiat_ray.prepare import Prepared, make_reasoner
from fiat_ray.progress import Console
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store, is_final
from fiat_ray.reason.watch import Watch
from fiat_ray.run_folder import RunFolder

STAGES = ("reason", "tune", "evaluate")
TRIES = 2
"""A failed trial is tried once more."""

MOST_LANE_FAILURES = 3  # before they take a trial


@dataclass
class Outcome:
    failed: dict[str, str] = field(default_factory=dict)
    """Trial → what went wrong, its last try."""
    engine_errors: list[str] = field(default_factory=list)
    """Rows whose rationale could not be generated."""


def tuned(run: RunFolder, trial: Trial) -> bool:
    """Whether a trial is finished, on the rationales that are there now: those that failed before may have come since."""
    record = artifact.read_json(run.trial(trial.name) / "trial.json")
    if record is None or record["fingerprint"] != trial.fingerprint:
        return False
    seal = augmented.read_seal(run.augmented(trial.task))
    return not needs_rationales(trial) or seal is None or record["augmented"] == seal["fingerprint"]


def evaluated(run: RunFolder, trial: Trial) -> bool:
    return tuned(run, trial) and (run.trial(trial.name) / "scores.json").is_file()


def store_of(prepared: Prepared, run: RunFolder) -> Store:
    return Store(Path(prepared.config.store).resolve() if prepared.config.store else run.rationales)


def execute(prepared: Prepared, run: RunFolder, console: Console, stages: tuple[str, ...] = STAGES) -> Outcome:
    """Do what is missing of the given stages. Starts no Ray where nothing is."""
    return _Schedule(prepared, run, console, stages).execute()


class _Schedule:
    def __init__(self, prepared: Prepared, run: RunFolder, console: Console, stages: tuple[str, ...]) -> None:
        self.prepared, self.run, self.console = prepared, run, console
        self.outcome = Outcome()
        self.store = store_of(prepared, run)
        self.sealed = not prepared.requests
        self.to_reason = "reason" in stages and not self.sealed
        self.stages = stages
        self.to_tune: list[Trial] = []
        self.to_evaluate: list[Trial] = []
        self._list_trials(prepared.trials)
        self.tries: Counter[str] = Counter()
        self.busy = 0  # units in use
        self.lanes: set[str] = set()
        self.waiting = 0  # trials on the board that no lane was started for
        self.events: queue.Queue[Callable[[], None]] = queue.Queue()
        self.evaluating: set[str] = set()
        self.reasoning = False
        self.watch: Watch | None = None
        self.where: Where = prepared.config.where
        self.unit = Unit(1, 0, 1)
        self.board: Any = None
        self.storage = run.path / f".ray-train-{uuid.uuid4().hex[:8]}"

    def _list_trials(self, trials: list[Trial]) -> None:
        """Add what is to be done of ``trials``."""
        self.to_tune += [t for t in trials if "tune" in self.stages and not tuned(self.run, t)]
        self.to_evaluate += [t for t in trials if "evaluate" in self.stages and not evaluated(self.run, t)]

    def execute(self) -> Outcome:
        if self.to_reason:
            missing = len({key for r in self.prepared.requests.values() for key in r.distinct} - self.store.finished())
            if not missing:
                self._seal()
                self.to_reason = False
        elif self.prepared.requests:
            self.sealed = all(augmented.read_seal(self.run.augmented(task), self.prepared.asked(task)) for task in self.prepared.requests)
        if "tune" not in self.stages:
            for trial in [t for t in self.to_evaluate if not tuned(self.run, t)]:
                self._failed(trial, "is not tuned; run `fiat-ray tune` first")
        if not (self.to_reason or self.to_tune or self.to_evaluate):
            return self.outcome
        self._connect()
        try:
            while self._unfinished():
                self._start_what_can()
                try:
                    self.events.get(timeout=0.3)()
                except queue.Empty:
                    self._show_progress()
        finally:
            shutil.rmtree(self.storage, ignore_errors=True)
        return self.outcome

    def _connect(self) -> None:
        import ray

        connect()
        self.unit = unit(self.where)
        self.where = resolved(self.where, self.unit)
        what = f"{self.unit.gpus:g} GPU" if self.unit.gpus else f"{self.unit.cpus:g} CPUs"
        self.console.line(f"Ray: room for {self.unit.count} engine(s) or tuning worker(s) of {what} each")
        check_shared(self.run.path)
        if "tune" in self.stages:
            from fiat_ray.tune.lane import Board

            self.board = ray.remote(num_cpus=0)(Board).remote()

    def _show_progress(self) -> None:
        self._read_board()
        if self.watch is not None:
            self.console.status(self.watch.text())

    def _unfinished(self) -> bool:
        return bool(self.reasoning or self.lanes or self.waiting or self.evaluating or self.to_reason or self.to_tune or self.to_evaluate)

    # Starting

    def _start_what_can(self) -> None:
        if self.to_reason and not self.reasoning and self._free(1):
            replicas = max(1, min(self.prepared.config.where.replicas, self.unit.count - self.busy))
            self.reasoning, self.to_reason = True, False
            self._start(replicas, self._reason, replicas)
        self._start_lanes()
        for model, trials in self._ready_to_evaluate().items():
            if model not in self.evaluating and self._free(1):
                self.evaluating.add(model)
                self._start(1, self._evaluate, model, trials)

    def _start_lanes(self) -> None:
        import ray

        ready = [t for t in self.to_tune if self.sealed or not needs_rationales(t)]
        if self.to_tune and not ready and not (self.reasoning or self.to_reason or self.lanes):
            for trial in self.to_tune:
                self._failed(trial, "there is no sealed augmented set for this config; run `fiat-ray reason` first")
            self.to_tune = []
        if ready:
            ray.get(self.board.add.remote(ready))
            self.to_tune = [t for t in self.to_tune if t not in ready]
            self.waiting += len(ready)
        while self.waiting and self._free(self.where.workers):
            self.waiting -= 1  # a lane for each, as long as there is room; what more it takes is seen when it ends
            name = f"lane-{uuid.uuid4().hex[:8]}"
            self.lanes.add(name)
            self._start(self.where.workers, self._lane, name)

    def _ready_to_evaluate(self) -> dict[str, list[Trial]]:
        """Checkpoint → its trials, once all of them are tuned (or failed)."""
        if self.lanes or self.waiting or self.to_tune:
            open_ = {t.model for t in self.prepared.trials if not tuned(self.run, t) and t.name not in self.outcome.failed}
        else:
            open_ = set()
        ready: dict[str, list[Trial]] = defaultdict(list)
        for trial in self.to_evaluate:
            if trial.model not in open_ and (self.sealed or not needs_rationales(trial)):
                ready[trial.model].append(trial)
        return ready

    def _free(self, units: int) -> bool:
        """Whether so many units are free; something may always run, also where a tuning wants more than there is at once."""
        return self.busy == 0 or self.busy + units <= self.unit.count

    def _start(self, units: int, work: Callable[..., Callable[[], None]], *arguments: Any) -> None:
        """Run ``work`` in a thread; what it returns, or its error, is dealt with by the deciding thread."""
        self.busy += units

        def body() -> None:
            try:
                after = work(*arguments)
            except BaseException as error:
                after = partial(self._raise, error)
            self.events.put(partial(self._ended, units, after))

        threading.Thread(target=body, daemon=True).start()

    def _ended(self, units: int, after: Callable[[], None]) -> None:
        self.busy -= units
        after()

    @staticmethod
    def _raise(error: BaseException) -> None:
        raise error

    # Reasoning

    def _reason(self, replicas: int) -> Callable[[], None]:
        create = make_reasoner(self._resolved_config(), self.prepared.reasoner_length)
        for task, requests in self.prepared.requests.items():
            total = len(requests.distinct)
            missing = total - len(requests.distinct.keys() & self.store.finished())
            self.console.line(f"reason: {task}: {total} distinct prompts, {total - missing} stored; starting {replicas} reasoner(s)")
            self.watch = Watch(task, missing, self.store)
            batch = 128 if self.unit.gpus else 16
            for _ in reason(requests, self.store, create, replicas=replicas, cpus=self.unit.cpus, gpus=self.unit.gpus, batch_size=batch):
                pass
        return self._reasoned

    def _resolved_config(self) -> Any:
        from dataclasses import replace

        return replace(self.prepared.config, where=self.where)

    def _reasoned(self) -> None:
        self.reasoning, self.watch = False, None
        self._seal()

    def _seal(self) -> None:
        for name, requests in self.prepared.requests.items():
            task, rationales = self.prepared.tasks[name], self.store.read(requests.distinct)
            seal = augmented.seal(self.run.augmented(name), task.rows, self.prepared.lengths[name], requests.keys, rationales)
            if self.prepared.config.store:  # a run is self-contained: its rows are copied from a shared store
                own = Store(self.run.rationales)
                new = [rationales[key] for key in sorted(requests.distinct.keys() - own.finished()) if is_final(rationales[key])]
                if new:
                    own.write(new)
            totals: Counter[str] = Counter()
            for counts in seal["status"].values():
                totals.update(counts)
            self.outcome.engine_errors += [row.id for row in task.rows if rationales[requests.keys[row.id]]["status"] == "engine_error"]
            self.console.line(f"augmented set sealed: {name}: {seal['rows']} rows ({', '.join(f'{n} {s}' for s, n in totals.most_common())})")
        self.sealed = True
        listed = {t.name for t in [*self.to_tune, *self.to_evaluate]}
        self._list_trials([t for t in self.prepared.trials if needs_rationales(t) and t.name not in listed])

    # Tuning

    def _lane(self, name: str) -> Callable[[], None]:
        from fiat_ray.tune.lane import run_lane

        self.console.line(f"tune: starting {name} with {self.where.workers} worker(s)")
        error: str | None = None
        try:
            run_lane(
                name,
                self.board,
                self.run.path,
                workers=self.where.workers,
                cpus=self.unit.cpus,
                gpus=min(1, self.unit.gpus),
                zero=self.where.zero,
                storage=self.storage,
            )
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        return partial(self._lane_ended, name, error)

    def _lane_ended(self, name: str, error: str | None) -> None:
        import ray

        self._read_board()
        self.lanes.discard(name)
        trial = ray.get(self.board.lost.remote(name))
        if error is not None and trial is not None and not tuned(self.run, trial):
            self._retry(trial, error)
        elif error is not None and trial is None:
            self.tries["lane"] += 1
            if self.tries["lane"] >= MOST_LANE_FAILURES:
                raise RuntimeError(f"Ray Train could not start workers, {MOST_LANE_FAILURES} times: {error}")
        self.waiting = ray.get(self.board.waiting.remote())

    def _read_board(self) -> None:
        if self.board is None:
            return
        import ray

        for report in ray.get(self.board.reports.remote()):
            trial = next(t for t in self.prepared.trials if t.name == report.trial)
            if report.error is not None:
                self._retry(trial, report.error)
            elif report.ended:
                self.console.line(f"tuned {trial.name}")
            else:
                self.console.status(f"tune {trial.name}: {report.text}")

    def _retry(self, trial: Trial, error: str) -> None:
        self.tries[trial.name] += 1
        if self.tries[trial.name] < TRIES:
            self.console.line(f"{trial.name} failed, trying once more: {error.splitlines()[0][:200]}")
            self.to_tune.append(trial)
        else:
            self._failed(trial, error)

    def _failed(self, trial: Trial, error: str) -> None:
        self.outcome.failed[trial.name] = error
        self.to_evaluate = [t for t in self.to_evaluate if t.name != trial.name]
        self.console.line(f"{trial.name} FAILED: {error.splitlines()[0][:300]}")

    # Evaluation

    def _evaluate(self, model: str, trials: list[Trial]) -> Callable[[], None]:
        import ray

        from fiat_ray.evaluate import Evaluator

        errors: dict[str, str] = {}
        actor = ray.remote(num_cpus=self.unit.cpus, num_gpus=self.unit.gpus)(Evaluator).remote(
            str(self.run.path), model, max(t.max_length for t in trials), int(max(1, self.unit.gpus))
        )
        self.console.line(f"evaluate: starting the engine of {model} for {len(trials)} trial(s)")
        for number, trial in enumerate(trials, 1):
            try:
                ray.get(actor.evaluate.remote(trial))
                self.console.line(f"evaluated {trial.name} ({number}/{len(trials)})")
            except ray.exceptions.RayActorError as error:
                errors |= {t.name: f"the engine died: {error}" for t in trials if not evaluated(self.run, t)}
                break
            except ray.exceptions.RayTaskError as error:
                errors[trial.name] = f"{type(error.cause or error).__name__}: {error.cause or error}"
                if "the engine stopped" in errors[trial.name]:
                    break
        ray.kill(actor)
        return partial(self._evaluated, model, trials, errors)

    def _evaluated(self, model: str, trials: list[Trial], errors: dict[str, str]) -> None:
        self.evaluating.discard(model)
        self.to_evaluate = [t for t in self.to_evaluate if not evaluated(self.run, t)]
        for trial in [t for t in trials if t.name in errors]:
            self.tries[f"evaluate {trial.name}"] += 1
            if self.tries[f"evaluate {trial.name}"] >= TRIES:
                self._failed(trial, errors[trial.name])
            else:
                self.console.line(f"evaluating {trial.name} failed, trying once more: {errors[trial.name].splitlines()[0][:200]}")
