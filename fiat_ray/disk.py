"""Disk that a campaign will take, beside what is free: at most so much, by what texts and weights can be."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from fiat_ray import augmented, models
from fiat_ray.campaign import Trial
from fiat_ray.config import Lora
from fiat_ray.errors import UserError
from fiat_ray.prepare import Prepared
from fiat_ray.run_folder import KEPT, KEPT_OF_ZERO_2, RunFolder
from fiat_ray.schedule.trials import tuned
from fiat_ray.text import size_of
from fiat_ray.where import Where

TOKEN = 5
"""Bytes of text that a token stands for, rarely more in any script."""
ROW = 400
"""Bytes of a row besides its texts: ids, keys, targets."""
WEIGHT = 4
"""Bytes of an adapter's number; half of that where it is tuned on a GPU."""


def disk(prepared: Prepared, run: RunFolder, units: int | None = None) -> list[dict[str, Any]]:
    """For each disk concerned: a ``folder`` on it, bytes ``free``, and bytes ``needed`` for what is not there yet, by what it is. JSON-able.

    ``units``: of hardware that there are; None: nobody knows yet, and it is taken for as many as the config asks for.
    """
    config, store = prepared.config, Path(prepared.config.store or run.path)
    remote = "://" in (config.store or "")  # an object store is no disk
    prompts = sum(len(requests) for requests in prepared.requests.values())
    if all(augmented.read_seal(run.augmented(task), prepared.asked(task)) for task in prepared.requests):
        prompts = 0
    rationales = prompts * (config.reasoner.max_tokens * TOKEN + ROW)
    rows = sum(ROW + len(text.encode("utf-8", "replace")) for lengths in prepared.lengths.values() for text in lengths.texts.values())
    to_tune = [trial for trial in prepared.trials if not tuned(run, trial)]
    weights = [_weights(models.find(trial.model), trial.recipe.peft, trial.lora) for trial in to_tune]
    states = sorted((_state(trial, config.where) for trial in to_tune), reverse=True)
    merged = [_weights(models.find(trial.model), False, trial.lora) for trial in prepared.trials if trial.recipe.peft]
    parts = [
        ("rationales", run.path if remote else store, 0 if remote else rationales),
        ("their copy in the run", run.path, rationales if config.store else 0),
        ("rows and the augmented set", run.path, 2 * rows + (rationales + rows if prompts else 0)),
        ("adapters and checkpoints", run.path, sum(weights)),
        # The one before goes when a new one is whole.
        ("states that broken-off tunings go on from", run.path, 2 * sum(states[: _side_by_side(config.where, units or config.where.replicas)])),
        ("a merged checkpoint, for a while", Path(tempfile.gettempdir()), max(merged, default=0)),
    ]
    disks: dict[int, dict[str, Any]] = {}
    for what, path, size in parts:
        folder = next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())
        found = disks.setdefault(folder.stat().st_dev, {"folder": str(path), "free": shutil.disk_usage(folder).free, "needed": defaultdict(int)})
        found["needed"][what] += size
    return [{**found, "needed": {what: size for what, size in found["needed"].items() if size}} for found in disks.values()]


def check(prepared: Prepared, run: RunFolder, units: int | None = None) -> None:
    """Raises ``UserError`` where a disk has less room than the campaign may need."""
    for found in disk(prepared, run, units):
        if sum(found["needed"].values()) > found["free"]:
            parts = ", ".join(f"{what} {size_of(size)}" for what, size in found["needed"].items())
            raise UserError(f"{found['folder']}: too little room, {size_of(found['free'])} are free; needed are at most: {parts}; free some first")


@lru_cache
def _weights(folder: Path, peft: bool, lora: Lora) -> int:
    """Bytes of a trial's adapter, were all linear layers its targets, or of its checkpoint, which is as large as the one that is tuned."""
    if not peft:
        return models.weight_bytes(folder)
    linear = [shape for name, shape in models.shapes(folder).items() if len(shape) == 2 and "embed" not in name and "lm_head" not in name]
    return WEIGHT * sum(lora.rank * sum(shape) for shape in linear)


def _state(trial: Trial, where: Where) -> int:
    """Bytes of the state that a tuning goes on from."""
    folder = models.find(trial.model)
    numbers = _weights(folder, True, trial.lora) // WEIGHT if trial.recipe.peft else models.parameters(folder).total
    return numbers * (KEPT_OF_ZERO_2 if where.zero == 2 else KEPT)


def _side_by_side(where: Where, units: int) -> int:
    """How many tunings at most."""
    return max(1, units * where.tunings_per_gpu if where.workers == 1 and where.gpus != 0 else units // where.workers)
