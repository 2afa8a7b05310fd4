"""Which trials are done, which are not, and how their tries ended."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fiat_ray import artifact, augmented
from fiat_ray.campaign import Trial, needs_rationales, on_validation
from fiat_ray.errors import Unfinished
from fiat_ray.progress import Console
from fiat_ray.run_folder import RunFolder, forget_state
from fiat_ray.schema import TRIAL
from fiat_ray.text import count

TRIES = 2
"""A failed trial is tried once more."""


@dataclass
class Outcome:
    failed: dict[str, str] = field(default_factory=dict)
    """Trial → what went wrong, its last try."""
    engine_errors: list[str] = field(default_factory=list)
    """Rows whose rationale could not be generated."""
    stopped: str | None = None
    """Which limit of spending stopped the campaign, and what is missing therefore."""
    broken_off: list[str] = field(default_factory=list)
    """Why reasoning ended before it was done."""

    def check(self, run: RunFolder) -> None:
        """Raises ``Unfinished``, which says what is missing, unless nothing is."""
        parts = [f"{self.stopped}; with a higher limit the same command goes on"] if self.stopped else []
        parts += [*self.broken_off, *(f"trial {name}: {error.splitlines()[0]}" for name, error in self.failed.items())]
        if self.engine_errors:
            parts.append(f"{count(len(self.engine_errors), 'row')} without a rationale (engine_error): {', '.join(self.engine_errors[:10])}")
        if parts:
            raise Unfinished(f"{run.path}: finished, but not all of it: " + "; ".join(parts))


def tuned(run: RunFolder, trial: Trial) -> bool:
    """Whether a trial is finished, on the rationales that are there now: those that failed before may have come since."""
    folder = run.trial(trial.name)
    record = artifact.read_json(folder / "trial.json", **TRIAL)
    if record is None or (record["fingerprint"], record["task"]) != (trial.fingerprint, trial.task):
        return False
    if not (run.weights(trial.name) or (folder / "scores.json").is_file()):
        return False  # they were not kept, and are needed again
    seal = augmented.read_seal(run.augmented(trial.task))
    return not needs_rationales(trial) or seal is None or record["augmented"] == seal["fingerprint"]


def evaluated(run: RunFolder, trial: Trial) -> bool:
    return tuned(run, trial) and (run.trial(trial.name) / "scores.json").is_file()


def drop_states(run: RunFolder, trials: Sequence[Trial]) -> None:
    """Remove what finished trials would go on from: where they were killed after their record was written, it is still there."""
    for trial in trials:
        if tuned(run, trial):
            forget_state(run.trial(trial.name))


def drop_weights(run: RunFolder, trials: Sequence[Trial]) -> list[str]:
    """``keep: best``: of evaluated trials of one task, method, tunable and size that one keeps its weights that is best on validation.

    Returns the names of those that lost theirs.
    """
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    done = [artifact.read_json(run.trial(trial.name) / "trial.json", **TRIAL) for trial in trials if evaluated(run, trial)]
    for record in done:
        who = tuple(record[key] for key in ("task", "method", "tunable", "train_size"))
        best[who] = max(best.get(who, record), record, key=on_validation)
    kept = {record["name"] for record in best.values()}
    dropped = {record["name"]: weights for record in done if record["name"] not in kept and (weights := run.weights(record["name"]))}
    for weights in dropped.values():
        shutil.rmtree(weights)
    return list(dropped)


class Trials:
    """The trials of a campaign that some of the given stages have still to do."""

    def __init__(self, trials: Sequence[Trial], run: RunFolder, stages: Sequence[str], console: Console) -> None:
        self.all = {trial.name: trial for trial in trials}
        self.outcome = Outcome()
        self.to_tune: list[Trial] = []
        """Not tuned, and not given to a lane."""
        self.to_evaluate: list[Trial] = []
        """Not evaluated, whether tuned or not."""
        self._run, self._stages, self._console = run, stages, console
        self._tries: Counter[tuple[str, str]] = Counter()

    @property
    def unfinished(self) -> bool:
        return bool(self.to_tune or self.to_evaluate)

    def refresh(self, *, with_rationales: bool = False) -> None:
        """List what is to be done; ``with_rationales``: of those alone that need them, when an augmented set was sealed anew."""
        for trial in [t for t in self.all.values() if needs_rationales(t) or not with_rationales]:
            if "tune" in self._stages and trial not in self.to_tune and not tuned(self._run, trial):
                self.to_tune.append(trial)
            if "evaluate" in self._stages and trial not in self.to_evaluate and not evaluated(self._run, trial):
                self.to_evaluate.append(trial)

    def fail_untuned(self) -> None:
        """Where this run does not tune."""
        for trial in [t for t in self.to_evaluate if not tuned(self._run, t)]:
            self.fail(trial, "is not tuned; run `fiat-ray tune` first")

    def fail_without_rationales(self) -> None:
        """Where reasoning stopped."""
        self._fail_that_need_rationales("has not all of its rationales, because reasoning stopped")

    def fail_unsealed(self) -> None:
        """Where this run does not reason."""
        self._fail_that_need_rationales("there is no sealed augmented set for this config; run `fiat-ray reason` first")

    def _fail_that_need_rationales(self, error: str) -> None:
        for trial in [t for t in self.all.values() if needs_rationales(t) and t in (*self.to_tune, *self.to_evaluate)]:
            self.fail(trial, error)
        self.to_tune = [t for t in self.to_tune if t.name not in self.outcome.failed]

    def forget_evaluated(self) -> None:
        self.to_evaluate = [trial for trial in self.to_evaluate if not evaluated(self._run, trial)]

    def open(self) -> list[Trial]:
        """Those that may still become tuned."""
        return [t for t in self.all.values() if t.name not in self.outcome.failed and not tuned(self._run, t)]

    def may_retry(self, trial: Trial, stage: str, error: str) -> bool:
        """Count a failed try; False where it was the last: then the trial has failed."""
        self._tries[stage, trial.name] += 1
        if self._tries[stage, trial.name] >= TRIES:
            self.fail(trial, error)
            return False
        self._console.line(f"{stage} {trial.name} failed, trying once more: {error.splitlines()[0][:200]}", stage, trial=trial.name)
        return True

    def fail(self, trial: Trial, error: str) -> None:
        self.outcome.failed[trial.name] = error
        self.to_evaluate = [t for t in self.to_evaluate if t.name != trial.name]
        self._console.line(f"{trial.name} FAILED: {error.splitlines()[0][:300]}", "failed", trial=trial.name)
