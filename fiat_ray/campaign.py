"""A campaign: config → trials (task × recipe × tunable × seed × train size), each with the fingerprint of all that decides its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fiat_ray.artifact import fingerprint
from fiat_ray.config import Config, Lora
from fiat_ray.draw import LanguageMix
from fiat_ray.recipe import UNTUNED, Recipe
from fiat_ray.schema import VERSION


@dataclass(frozen=True)
class Trial:
    task: str
    method: str
    recipe: Recipe
    tunable: str
    """Its name in the config: ``xs``, ``s``."""
    seed: int
    train_size: int
    """Rows of the train split that are trained on (see ``draw.train_subset``)."""
    language_mix: LanguageMix
    model: str
    """The checkpoint that is tuned, as the config names it."""
    learning_rates: tuple[float, ...]
    lora: Lora
    batch_size: int
    epochs: float
    steps: int | None
    validations: int
    validation_rows: int
    answer_tokens: int
    """Bound on a generated answer, in tokens."""
    rationale_tokens: int
    """Bound on a rationale in the tunable's prompt, in its own tokens."""
    max_length: int
    fingerprint: str

    @property
    def name(self) -> str:
        return f"{self.method}-{self.tunable}-s{self.seed}-{self.fingerprint[:8]}"

    @property
    def role(self) -> str:
        return role(self.tunable, self.recipe.instruction_tuned)


def role(tunable: str, instruction_tuned: bool) -> str:
    """What a tunable's checkpoint is called in messages and manifests: ``tunables.xs``, ``tunables.xs.pretrained``."""
    return f"tunables.{tunable}{'' if instruction_tuned else '.pretrained'}"


def recipes(config: Config, instruction_tuned: bool) -> tuple[Recipe, ...]:
    """Those that tunables' instruction-tuned checkpoints are tuned in, or their pretrained twins."""
    found = (config.recipe(method) for method in config.methods if method not in UNTUNED)
    return tuple(recipe for recipe in found if recipe.instruction_tuned == instruction_tuned)


@dataclass(frozen=True)
class NotRun:
    """What a config asks for but can't have, and the key that would give it."""

    task: str
    method: str
    tunable: str
    reason: str
    config_key: str


@dataclass(frozen=True)
class Measured:
    """What is known of a task once its rows are read and rendered."""

    rows: str
    """Fingerprint of rows as used: ids, texts (cut), targets."""
    rationales: str
    """Fingerprint of the keys of all rationales."""
    i_tau: str
    labels: tuple[str, ...]
    metric: str
    """Its identity: see ``metrics.identity``."""
    train_size: int
    """Rows of the train split."""


@dataclass(frozen=True)
class Checkpoint:
    """A model of a tunable, resolved: content hash, and bounds in its own tokens."""

    model: str
    hash: str
    max_length: int
    answer_tokens: Mapping[str, int]
    """Task → bound on an answer."""


def trials(config: Config, tasks: Mapping[str, Measured], checkpoints: Mapping[tuple[str, bool], Checkpoint]) -> tuple[list[Trial], list[NotRun]]:
    """All trials of a config, in the order in which they had best start, and what can't run.

    ``checkpoints``: (tunable, instruction-tuned) → its checkpoint; without a pretrained twin there is no entry for (tunable, False).
    """
    found: list[Trial] = []
    missing: list[NotRun] = []
    for task, measured in tasks.items():
        for tunable in config.tunables:
            for method in config.methods:
                if method in UNTUNED:
                    continue
                recipe = config.recipe(method)
                checkpoint = checkpoints.get((tunable, recipe.instruction_tuned))
                if checkpoint is None:
                    reason = f"needs the pretrained twin of tunable {tunable}, a checkpoint without instruction tuning"
                    missing.append(NotRun(task, method, tunable, reason, role(tunable, False)))
                    continue
                for size in train_sizes(config, measured.train_size):
                    found += [_trial(config, task, measured, method, recipe, tunable, checkpoint, size, seed) for seed in config.seeds]
    return _one_for_each_task(found), missing


def _one_for_each_task(trials: list[Trial]) -> list[Trial]:
    """With the task in the fingerprints that several tasks share: drafts of instructions for the same rows are one thing to a recipe without any.

    In those alone, so that a run directory of one task, or of tasks with rows of their own, goes on with what it holds.
    """
    tasks = Counter(trial.name for trial in trials)
    return [replace(trial, fingerprint=fingerprint(trial.fingerprint, trial.task)) if tasks[trial.name] > 1 else trial for trial in trials]


def train_sizes(config: Config, rows: int) -> list[int]:
    """Sizes of the scaling curve, smallest first; one that is larger than what is there is all of it. Without a curve all rows."""
    return sorted({min(size, rows) for size in config.train_size or [rows]})


def _trial(
    config: Config, task: str, measured: Measured, method: str, recipe: Recipe, tunable: str, checkpoint: Checkpoint, train_size: int, seed: int
) -> Trial:
    decides = {
        "train_size": train_size,
        "language_mix": config.language_mix,
        "learning_rates": tuple(config.learning_rate.lora if recipe.peft else config.learning_rate.full),
        "lora": config.lora,
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "steps": config.steps,
        "validations": config.validation.times,
        "validation_rows": config.validation.rows,
        "answer_tokens": checkpoint.answer_tokens[task],
        "rationale_tokens": config.reasoner.max_tokens,
        "max_length": checkpoint.max_length,
    }
    identity = fingerprint(
        VERSION,
        checkpoint.hash,
        asdict(recipe),
        seed,
        measured.rows,
        measured.rationales if recipe.cot != "none" else None,
        measured.i_tau if recipe.instructions else None,
        measured.labels,
        measured.metric,
        decides
        | {
            "lora": asdict(config.lora) if recipe.peft else None,
            "epochs": config.epochs if config.steps is None else None,
            "rationale_tokens": config.reasoner.max_tokens if recipe.cot != "none" else None,
            "max_length": None,  # decides where passages are cut, and the cut texts are in `rows`
        },
    )
    return Trial(task, method, recipe, tunable, seed, model=checkpoint.model, fingerprint=identity, **decides)  # type: ignore[arg-type]


def needs_rationales(trial: Trial) -> bool:
    """Whether a trial waits for the augmented set; all others start without it."""
    return trial.recipe.cot != "none"


def on_validation(record: Mapping[str, Any]) -> tuple[float, str]:
    """What orders records of tuned trials, the best last: the score that selected, then the name, so that equals have one order everywhere."""
    value = record["selection_value"]
    return -1.0 if value is None else value, record["name"]


def with_reasoner(config: Config) -> Config:
    """The config, with few-shot ICL added where nothing in it asks the reasoner."""
    return config if needs_reasoner(config) else replace(config, methods=[*config.methods, "icl"])


def needs_reasoner(config: Config) -> bool:
    return "icl" in config.methods or any(config.recipe(m).cot != "none" for m in config.methods if m not in UNTUNED)
