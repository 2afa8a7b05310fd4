"""Runs a campaign on Ray: each part starts when what it needs exists and hardware is free.

One driver thread decides; reasoning, lanes of tuning and evaluation each wait in a thread of their own. The unit of hardware is what one engine
or one tuning worker takes, so a machine with two cores does one thing after the other, and a cluster does them side by side.
"""

from __future__ import annotations

import shutil
import uuid

from fiat_ray import disk, memory
from fiat_ray.cluster import Raylet, check_shared, join, memory_of, resolved
from fiat_ray.prepare import Prepared
from fiat_ray.progress import Console
from fiat_ray.reason.store import Store
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.evaluation import Evaluation
from fiat_ray.schedule.hardware import Hardware
from fiat_ray.schedule.reasoning import Reasoning
from fiat_ray.schedule.spending import Spending
from fiat_ray.schedule.trials import Outcome, Trials
from fiat_ray.schedule.tuning import Tuning
from fiat_ray.text import count

STAGES = ("reason", "tune", "evaluate")


def execute(prepared: Prepared, run: RunFolder, console: Console, stages: tuple[str, ...] = STAGES) -> Outcome:
    """Do what is missing of the given stages. Starts no Ray where nothing is. Raises ``RayEnded`` where it ends before."""
    trials = Trials(prepared.trials, run, stages, console)
    reasoning = Reasoning(prepared, run, trials, console, wanted="reason" in stages)
    trials.refresh()
    if "tune" not in stages:
        trials.fail_untuned()
    if not (reasoning.sealed or reasoning.unfinished):
        trials.fail_unsealed()
    spending = Spending(run.spent, prepared.config)
    if not (reasoning.unfinished or trials.unfinished):
        return trials.outcome
    if spending.reached:
        trials.outcome.stopped = f"{spending.reached}; {_left(reasoning, trials)}"
        return trials.outcome
    hardware = _connect(prepared, run, console, reasoning, tune=bool(trials.to_tune))
    where = resolved(prepared.config.where, hardware.unit)
    needed = memory.at_least(prepared.config, where, reasoning=reasoning.unfinished, tune=trials.to_tune, evaluate=trials.to_evaluate)
    memory.check(needed, memory_of(hardware.unit), "a GPU" if hardware.unit.gpus else "a machine")
    if trials.to_tune:
        disk.check(prepared, run, hardware.unit.count)
    raylet = Raylet()
    hardware.start(0, raylet.watch)
    storage = run.path / f".ray-train-{uuid.uuid4().hex[:8]}"
    tuning = Tuning(run, trials, reasoning, console, where, storage)
    evaluation = Evaluation(run, trials, reasoning, tuning, console)
    parts = (reasoning, tuning, evaluation)
    stopping = False
    try:
        while any(part.unfinished for part in parts) and (hardware.busy or reasoning.running or not stopping):
            spending.update(hardware.gpu_seconds, reasoning.charged)
            if spending.reached and not stopping:
                stopping = True
                console.line(f"{spending.reached}: what runs is finished, nothing more is started")
                for part in parts:
                    part.stop()
            elif not stopping:
                for part in parts:
                    part.start_what_can(hardware)
            if not hardware.deal_with_next():
                reasoning.show_progress()
                tuning.show_progress()
    finally:
        raylet.close()
        spending.update(hardware.gpu_seconds, reasoning.charged, last=True)
        run.stop.unlink(missing_ok=True)
        shutil.rmtree(storage, ignore_errors=True)
    if stopping and (left := _left(reasoning, trials)):
        trials.outcome.stopped = f"{spending.reached}; {left}"
    return trials.outcome


def _left(reasoning: Reasoning, trials: Trials) -> str:
    """What is missing when a limit stops a campaign, in words."""
    to_tune = [trial.name for trial in trials.to_tune]
    to_evaluate = [trial.name for trial in trials.to_evaluate if trial.name not in to_tune]
    missing = [(reasoning.missing, "prompt", "answered", ""), (len(to_tune), "trial", "tuned", f" ({', '.join(to_tune)})")]
    missing.append((len(to_evaluate), "trial", "evaluated", f" ({', '.join(to_evaluate)})"))
    left = [f"{count(number, what)} {'is' if number == 1 else 'are'} not {done}{names}" for number, what, done, names in missing if number]
    return "; ".join(left)


def _connect(prepared: Prepared, run: RunFolder, console: Console, reasoning: Reasoning, *, tune: bool) -> Hardware:
    found = join(prepared.config.where, run.path, "--out", console, tune)
    what = f"{found.gpus:g} GPU" if found.gpus else f"{found.cpus:g} CPUs"
    console.line(f"Ray: room for {count(found.count, 'engine')} or as many tuning workers at a time, {what} each")
    if reasoning.unfinished and prepared.config.store and (folder := Store(prepared.config.store).folder):  # reasoners write there themselves
        check_shared(folder, "store")
    return Hardware(found)
