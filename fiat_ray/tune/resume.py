"""A tuning that was broken off goes on from its last kept state, in the middle of an epoch, to the same weights as an undisturbed one.

What is kept is DeepSpeed's own state (parameters and optimizer, each worker its share), the best parameters so far, and what the trial has recorded.
It is private to the run and goes when the trial is done. DeepSpeed's files are pickles: they are read only where all files have the sha256 that
stands in the trial's record.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fiat_ray import artifact
from fiat_ray.errors import UserError
from fiat_ray.run_folder import KEPT, forget_state
from fiat_ray.text import size_of

KEEP_SECONDS = 300.0
"""How often a tuning's state is kept: what a break-off costs at most. Shorter tunings, which keep nothing, just start over."""

MOST_SHARE = 0.02
"""Of the time, that keeping may take; large models are kept more rarely for that."""

RECORD, BEST = "resume.json", "best.safetensors"


@dataclass(frozen=True)
class Kept:
    folder: Path
    """Where DeepSpeed's files are."""
    progress: dict[str, Any]
    """JSON, as it was given to ``Keeper.keep``."""

    def best(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / BEST)


class Keeper:
    """Keeps the state of one trial. All its workers do everything together."""

    def __init__(self, place: Path, identity: Mapping[str, Any]) -> None:
        """``place``: the trial's folder. ``identity``: what must be the same for a state to be gone on from, beside versions of packages."""
        self._place = place
        self._identity = {**identity, **{name: version(name) for name in ("torch", "deepspeed", "transformers", "peft")}}
        self._next = time.monotonic() + KEEP_SECONDS

    def find(self) -> Kept | None:
        """The state to go on from. None where there is none, or none of this trial as it is now, or one that is not as it was written."""
        try:
            record = artifact.read_json(self._place / RECORD, identity=dict, folder=str, files=dict, progress=dict)
        except UserError:
            return None
        if record is None or record["identity"] != self._identity:
            return None
        folder = self._place / Path(record["folder"]).name
        return Kept(folder, record["progress"]) if _hashes(folder) == record["files"] else None

    def due(self) -> bool:
        """Whether it is time to keep the state; the first worker's clock decides for all."""
        due = torch.tensor(time.monotonic() >= self._next)
        if dist.get_world_size() > 1:
            dist.broadcast(due := due.to("cuda" if dist.get_backend() == "nccl" else "cpu"), 0)
        return bool(due)

    def keep(self, name: str, progress: Mapping[str, Any], best: Mapping[str, torch.Tensor], save: Callable[[Path], None]) -> str:
        """``save`` writes the workers' shares into a folder, which has a ``name`` of its own. The state before stays until this one is whole.

        Returns what was in the way, where the disk has no room for it; the state before stays then too.
        """
        start, folder, said = time.monotonic(), self._place / f"resume-{name}", ""
        try:
            said = self._lack_of_room(KEPT * sum(tensor.numel() for tensor in best.values()))
            if not said:
                self._write(folder, progress, best, save)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
            if dist.get_world_size() > 1:
                raise  # the other workers wait in a collective
            shutil.rmtree(folder, ignore_errors=True)
            said = " ".join(str(error).split())[:160]
        self._next = time.monotonic() + max(KEEP_SECONDS, (time.monotonic() - start) / MOST_SHARE)
        return said

    def _lack_of_room(self, size: int) -> str:
        """In words, the same on all workers: none begins what one of them could not end."""
        self._place.mkdir(parents=True, exist_ok=True)
        free = [shutil.disk_usage(self._place).free]
        dist.broadcast_object_list(free)
        return f"{size_of(free[0])} are free, and it takes {size_of(size)}" if free[0] < size else ""

    def _write(self, folder: Path, progress: Mapping[str, Any], best: Mapping[str, torch.Tensor], save: Callable[[Path], None]) -> None:
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        dist.barrier()
        save(folder)
        if first:
            save_file(dict(best), folder / BEST)
        dist.barrier()
        if first:
            record = {"identity": self._identity, "folder": folder.name, "files": _hashes(folder, durable=True), "progress": dict(progress)}
            artifact.write_json(self._place / RECORD, record)
            forget_state(self._place, but=(RECORD, folder.name))

    def forget(self) -> None:
        """Delete everything that was kept."""
        if dist.get_rank() == 0:
            forget_state(self._place)


def _hashes(folder: Path, *, durable: bool = False) -> dict[str, str]:
    """File → sha256; ``durable``: they are on the disk for good when this returns."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
                if durable:
                    os.fsync(file.fileno())
    return found
