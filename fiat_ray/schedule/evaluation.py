"""The part of a campaign that predicts and scores: one engine a checkpoint, all its trials' weights swapped in one after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

from fiat_ray.campaign import Trial, needs_rationales
from fiat_ray.cluster import actor_errors
from fiat_ray.progress import Console
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.hardware import Hardware
from fiat_ray.schedule.reasoning import Reasoning
from fiat_ray.schedule.trials import Trials
from fiat_ray.schedule.tuning import Tuning


class Evaluation:
    def __init__(self, run: RunFolder, trials: Trials, reasoning: Reasoning, tuning: Tuning, console: Console) -> None:
        self._run, self._trials, self._reasoning, self._tuning, self._console = run, trials, reasoning, tuning, console
        self._running: set[str] = set()
        """Checkpoints whose engine runs."""
        self._stopped = False

    @property
    def unfinished(self) -> bool:
        return bool(self._running or self._trials.to_evaluate)

    def start_what_can(self, hardware: Hardware) -> None:
        for model, trials in self._ready().items():
            if model not in self._running and hardware.free(1):
                self._running.add(model)
                hardware.start(1, self._evaluate, hardware, model, trials)

    def stop(self) -> None:
        """Engines end with the trial they are at."""
        self._stopped = True

    def _ready(self) -> dict[str, list[Trial]]:
        """Checkpoint → its trials, once all of them are tuned (or failed)."""
        waiting = {trial.model for trial in self._trials.open()} if self._tuning.unfinished else set()
        ready: dict[str, list[Trial]] = defaultdict(list)
        for trial in self._trials.to_evaluate:
            if trial.model not in waiting and (self._reasoning.sealed or not needs_rationales(trial)):
                ready[trial.model].append(trial)
        return ready

    def _evaluate(self, hardware: Hardware, model: str, trials: list[Trial]) -> Callable[[], None]:
        import ray

        from fiat_ray.evaluate import Evaluator, why_died

        unit = hardware.unit
        errors: dict[str, str] = {}
        actor = ray.remote(num_cpus=unit.cpus, num_gpus=unit.gpus)(Evaluator).remote(
            str(self._run.path), model, max(t.max_length for t in trials), int(max(1, unit.gpus))
        )
        self._console.line(f"evaluate: starting the engine of {model} for {len(trials)} trial(s)", "evaluate", trials=len(trials))
        struck = trials  # who has failed where the engine dies: while it starts all of them, then the one that it is at
        try:
            ray.get(actor.__ray_ready__.remote())
            for number, trial in enumerate(trials, 1):
                if self._stopped:
                    break
                struck = [trial]
                try:
                    ray.get(actor.evaluate.remote(trial))
                    said = f"evaluated {trial.name} ({number}/{len(trials)})"
                    self._console.line(said, "evaluate", trial=trial.name, done=number, trials=len(trials))
                except ray.exceptions.RayTaskError as error:
                    errors[trial.name] = f"{type(error.cause or error).__name__}: {error.cause or error}"
                    if "the engine stopped" in errors[trial.name]:
                        break
        except actor_errors() as error:
            said = why_died(self._run, error)
            errors |= {trial.name: f"the engine died: {said}" for trial in struck}
        ray.kill(actor)
        return partial(self._evaluated, model, errors)

    def _evaluated(self, model: str, errors: dict[str, str]) -> None:
        self._running.discard(model)
        self._trials.forget_evaluated()
        for name, error in errors.items():
            self._trials.may_retry(self._trials.all[name], "evaluate", error)
