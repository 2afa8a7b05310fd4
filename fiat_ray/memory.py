"""Memory that models take at least, beside what a GPU or a machine has: their weights, and what tuning keeps for each number of them.

Activations and the KV cache take what is left, so a campaign that passes may still end for want of memory; one that does not pass can't run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fiat_ray import models
from fiat_ray.campaign import Trial
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.text import size_of
from fiat_ray.where import Where


def at_least(config: Config, where: Where, *, reasoning: bool, tune: Iterable[Trial], evaluate: Iterable[Trial]) -> dict[str, int]:
    """What is loaded → bytes on each of its GPUs, or of a machine's memory where it has none."""
    found, gpus = dict[str, int](), where.gpus or 1
    if reasoning and config.reasoner.kind == "vllm":
        found["reasoner"] = models.weight_bytes(models.find(config.reasoner.model)) // gpus
    for trial in tune:
        what = f"tunables.{trial.tunable}: {'LoRA' if trial.recipe.peft else 'full tuning'}"
        found[what] = _tuning(models.find(trial.model), trial.recipe.peft, where)
    for trial in evaluate:
        found[f"tunables.{trial.tunable}: evaluation"] = _evaluation(models.find(trial.model), where)
    return found


def _evaluation(folder: Path, where: Where) -> int:
    """The engine's weights; a machine without GPUs also holds the two float32 copies that swaps are checked by (``swap.Swaps``)."""
    return models.weight_bytes(folder) // (where.gpus or 1) + (8 * models.parameters(folder).total if where.gpus == 0 else 0)


def _tuning(folder: Path, peft: bool, where: Where) -> int:
    """Of one worker. Full tuning keeps 16 bytes for each parameter: weight, gradient and AdamW's moments, and in bfloat16 a float32 master."""
    shards = {stage: where.workers if where.zero >= stage else 1 for stage in (2, 3)}
    if peft:
        return models.weight_bytes(folder) // shards[3]
    half = where.gpus != 0
    number = 2 if half else 4
    state = (16 - 2 * number) / (where.workers if half or where.zero else 1)
    return int(models.parameters(folder).total * (number / shards[3] + number / shards[2] + state))


def check(needed: Mapping[str, int], there: int | None, of: str) -> None:
    """Raises ``UserError`` for what takes more than ``there`` is, in bytes; None: nobody knows. ``of``: a GPU or a machine."""
    for what, size in needed.items():
        if there is not None and size > there:
            ways = {"LoRA": "where.zero: 3 with where.workers", "full tuning": "where.zero: 3 with where.workers, LoRA"}
            way = ways.get(what.partition(": ")[2], "where.gpus, which shares it out over several GPUs")
            raise UserError(f"{what} takes at least {size_of(size)} of memory, and {of} has {size_of(there)}; try {way}, or a smaller model")
