"""One trial: tune with each learning rate, validate through training, keep the best step of the best rate, write it down."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from fiat_ray import artifact, augmented, fiat, models
from fiat_ray.augmented import Example
from fiat_ray.campaign import Trial
from fiat_ray.draw import number_of_steps, steps_of, train_subset, validation_subset
from fiat_ray.predict import cut_rationales, shown_rationales
from fiat_ray.render import Renderer
from fiat_ray.run_folder import ADAPTER, CHECKPOINT, RunFolder
from fiat_ray.schema import HISTORY, VALIDATED
from fiat_ray.task import Task
from fiat_ray.text import by_language
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune.base import Base
from fiat_ray.tune.resume import Keeper, Kept
from fiat_ray.tune.tunable import DeepSpeedTunable, precision
from fiat_ray.tune.validate import Validation, validate

RECORDED = ("name", "task", "method", "tunable", "seed", "train_size", "fingerprint", "answer_tokens")

KEPT = ("history", "validated", "tokens", "supervised_tokens")
"""What of a session is kept as it is, beside its best state."""

BEFORE_TUNING = ("task", "recipe", "model", "lora", "validation_rows", "answer_tokens", "rationale_tokens")
"""What of a trial decides how it does at step 0. Its seed does not: A is drawn from it, but B is zero."""


class Progress(Protocol):
    def __call__(self, text: str, step: int, steps: int, lasting: bool = False, /) -> None:
        """Is told what goes on, the step, and how many there are. ``lasting``: to be read later too."""


@dataclass
class Shared:
    """What the trials of a lane have in common."""

    untuned: dict[str, Validation] = field(default_factory=dict)
    """Validations at step 0, which trials that differ in seed or size have in common."""
    base: Base = field(default_factory=Base)


@dataclass
class Best:
    """The best validated state so far, over all learning rates."""

    validation: Validation
    learning_rate: float
    step: int
    state: dict[str, torch.Tensor]


def run_trial(trial: Trial, run: RunFolder, zero: int, share: float, progress: Progress, shared: Shared) -> None:
    """Tune and write ``adapter/`` or ``checkpoint/``, ``history.parquet``, ``validation.parquet``, and last ``trial.json``.

    All workers of a trial run this together; ``share``: of a GPU's or a machine's memory, for each. One that was broken off goes on from where it was
    kept (see ``tune.resume``).
    """
    task = run.load_task(trial.task)
    renderer = _renderer(models.find(trial.model), trial.recipe.instruction_tuned)
    examples = run.examples(trial.task, with_rationales=trial.recipe.cot != "none")
    rationales = shown_rationales(task, renderer, trial.recipe, examples, trial.rationale_tokens)
    seal = augmented.read_seal(run.augmented(trial.task)) if trial.recipe.cot != "none" else None
    fingerprint = seal["fingerprint"] if seal else None
    session = _Session(trial, task, renderer, examples, rationales, fingerprint, run.trial(trial.name), zero, share, progress, shared)
    for learning_rate in trial.learning_rates:
        session.tune(learning_rate)
    if dist.get_rank() == 0:
        session.write()
    dist.barrier()


@lru_cache(maxsize=2)
def _renderer(folder: Path, chat: bool) -> Renderer:
    """One for a lane's trials: to load a tokenizer takes half a second, and to fill its cache again another."""
    return Renderer(folder, chat)


class _Session:
    """What the learning rates of one trial share."""

    def __init__(
        self,
        trial: Trial,
        task: Task,
        renderer: Renderer,
        examples: Sequence[Example],
        rationales: dict[str, str],
        seal: str | None,
        folder: Path,
        zero: int,
        share: float,
        progress: Progress,
        shared: Shared,
    ) -> None:
        """``seal``: fingerprint of the augmented set that is trained on; None without CoT."""
        self.trial, self.task, self.renderer, self.rationales, self.seal = trial, task, renderer, rationales, seal
        self.folder, self.zero, self.share, self.progress, self.shared = folder, zero, share, progress, shared
        self.train = train_subset([e for e in examples if e.split == "train"], trial.train_size)
        self.validation = validation_subset([e for e in examples if e.split == "validation"], trial.validation_rows)
        self.steps = number_of_steps(len(self.train), trial.batch_size, trial.epochs, trial.steps)
        self.history: list[dict[str, Any]] = []
        self.validated: list[tuple[float, int, list[dict[str, Any]]]] = []
        """(learning rate, step, predictions)"""
        self.best: Best | None = None
        self.tokens = self.supervised_tokens = 0
        self.model: Any = None
        self.start = time.perf_counter()
        self.base, workers = models.find(trial.model), dist.get_world_size()
        self.dtype = precision(self.base, trial.recipe.peft, workers)
        identity = {"fingerprint": trial.fingerprint, "augmented": seal, "zero": zero, "workers": workers, "dtype": str(self.dtype)}
        self.keeper = Keeper(folder, identity)
        self.warned = False
        """That its state can't be kept."""
        self.kept = self.keeper.find()
        if self.kept:
            self._go_on(self.kept)

        self.cut = cut_rationales(task, trial.recipe, examples, rationales)
        if self.cut:
            said = f"rationales cut to {trial.rationale_tokens} tokens of the tunable, answer lines kept where they fit: {by_language(self.cut)}"
            progress(said, 0, self.steps, True)

    def tune(self, learning_rate: float) -> None:
        """Algorithm 1 with one learning rate."""
        kept = self.kept
        if kept and kept.progress["learning_rate"] != learning_rate:
            return  # done with before the break-off
        self.kept = self.model = None
        gc.collect()  # an engine's parts hold one another, and with them the weights of the rate before
        trial, done = self.trial, kept.progress["tunable"]["step"] if kept else 0
        how = (learning_rate, self.steps, self.zero, self.dtype, self.share, kept, self.shared.base)
        tunable = DeepSpeedTunable(trial, self.task, self.renderer, self.base, *how)
        batches = islice(steps_of(self.train, trial.batch_size, trial.epochs, trial.steps, trial.seed, trial.language_mix), done, None)
        start = time.perf_counter() - (kept.progress["seconds_of_rate"] if kept else 0)
        validated = {round(at * self.steps / self.trial.validations) for at in range(self.trial.validations + 1)}

        def reason(x: Sequence[Example]) -> list[str | None]:
            return [self.rationales.get(e.id) for e in x]

        def watch(step: int) -> None:
            if kept and step == done:
                return
            if step in validated:
                self._validate(tunable, learning_rate, step, time.perf_counter() - start)
            elif step % 10 == 0:
                self.progress(f"step {step}/{self.steps} · loss {tunable.losses[-1]:.3f}", step, self.steps)
            if step < self.steps and self.keeper.due():
                self._keep(tunable, learning_rate, time.perf_counter() - start)

        try:
            fiat.build(batches, reason, tunable, watch, done)
            self.tokens += tunable.tokens
            self.supervised_tokens += tunable.supervised_tokens
            self.model = tunable.model  # for its configs, when the best state is written
        finally:
            tunable.close()

    def _validate(self, tunable: DeepSpeedTunable, learning_rate: float, step: int, seconds: float) -> None:
        if step == 0 and self.history:  # the same model as under the first learning rate
            self.history.append(self.history[0] | {"learning_rate": learning_rate})
            return
        found = self._untuned(tunable) if step == 0 else self._found(tunable)
        since = self.history[-1]["step"] if self.history and self.history[-1]["learning_rate"] == learning_rate else 0
        losses = tunable.losses[since:step]
        self.history.append(
            {
                "learning_rate": learning_rate,
                "step": step,
                "epoch": step * self.trial.batch_size / max(1, len(self.train)),
                "train_loss": sum(losses) / len(losses) if losses else None,
                "metric": found.metric,
                "value": found.value,
                "validation_loss": found.loss,
                "seconds": seconds,
                "selected": False,
            }
        )
        self.validated.append((learning_rate, step, found.predictions))
        value = "n/a" if found.value is None else f"{found.value:.1f}"
        self.progress(f"step {step}/{self.steps} · validation {found.metric} {value} · loss {found.loss:.3f}", step, self.steps)
        if found.better_than(self.best.validation if self.best else None):
            self.best = Best(found, learning_rate, step, tunable.state())

    def _untuned(self, tunable: DeepSpeedTunable) -> Validation:
        key = repr((*(getattr(self.trial, name) for name in BEFORE_TUNING), self.seal, self.dtype, tunable.passes))
        if key not in self.shared.untuned:
            self.shared.untuned[key] = self._found(tunable)
        return self.shared.untuned[key]

    def _found(self, tunable: DeepSpeedTunable) -> Validation:
        asked = (self.renderer, self.task, self.trial.recipe, self.validation, self.rationales, self.trial.answer_tokens)
        agreed = [validate(tunable.model, *asked, tunable.passes.without_gradients)]
        dist.broadcast_object_list(agreed)  # rounding may differ between GPUs, and all workers must keep the same step
        return agreed[0]

    def _keep(self, tunable: DeepSpeedTunable, learning_rate: float, seconds: float) -> None:
        assert self.best is not None, "step 0 is always validated"
        progress = {
            "learning_rate": learning_rate,
            "seconds_of_rate": seconds,
            "seconds": time.perf_counter() - self.start,
            "tunable": tunable.progress(),
            **{name: getattr(self, name) for name in KEPT},
            "best": {"validation": asdict(self.best.validation), "learning_rate": self.best.learning_rate, "step": self.best.step},
        }
        name = f"{self.trial.learning_rates.index(learning_rate)}-{tunable.step}"
        said = self.keeper.keep(name, progress, self.best.state, tunable.keep)
        if said and not self.warned:
            self.warned = True
            text = f"its state can't be kept ({said}); once broken off, it goes on from what was kept before"
            self.progress(text, tunable.step, self.steps, True)

    def _go_on(self, kept: Kept) -> None:
        for name in KEPT:
            setattr(self, name, kept.progress[name])
        best = kept.progress["best"]
        self.best = Best(**{**best, "validation": Validation(**best["validation"])}, state=kept.best())
        self.start -= kept.progress["seconds"]
        step = kept.progress["tunable"]["step"]
        self.progress(f"goes on after step {step}/{self.steps}", step, self.steps)

    def write(self) -> None:
        assert self.best is not None, "step 0 is always validated"
        best, trial, folder = self.best, self.trial, self.folder
        for row in self.history:
            row["selected"] = (row["learning_rate"], row["step"]) == (best.learning_rate, best.step)
        kind = ADAPTER if trial.recipe.peft else CHECKPOINT
        dtype = checkpoints.dtype_of(models.find(trial.model))
        for stale in ("scores.json", "evaluation.json", "predictions.parquet", "trial.json"):  # what says that others are whole goes before them
            (folder / stale).unlink(missing_ok=True)
        artifact.write_folder(folder / kind, lambda path: checkpoints.save(self.model, best.state, trial.recipe.peft, dtype, path))
        artifact.write_rows(folder / "history.parquet", self.history, HISTORY)
        kept = [(step, rows) for rate, step, rows in self.validated if step == 0 or rate == best.learning_rate]
        artifact.write_rows(folder / "validation.parquet", [row | {"step": step} for step, rows in kept for row in rows], VALIDATED)
        artifact.write_json(
            folder / "trial.json",
            {
                **{name: getattr(trial, name) for name in RECORDED},
                "base": models.public_name(trial.model)._asdict(),
                "recipe": asdict(trial.recipe),
                "augmented": self.seal,
                "cut_rationales": self.cut,
                "learning_rate": best.learning_rate,
                "learning_rates_tried": list(trial.learning_rates),
                "step": best.step,
                "steps": self.steps,
                "kept_step_0": best.step == 0,
                "selection_metric": best.validation.metric,
                "selection_value": best.validation.value,
                "validation": best.validation.scores,
                "validation_rows": len(self.validation),
                "train_groups": len({e.group for e in self.train}),
                "supervised_tokens": self.supervised_tokens,
                "seconds": round(time.perf_counter() - self.start, 2),
                "tokens": self.tokens,
                "gpus": dist.get_world_size() if torch.cuda.is_available() else 0,
            },
        )
        self.keeper.forget()  # not before: until the record is there, a tuning that is killed goes on from it
