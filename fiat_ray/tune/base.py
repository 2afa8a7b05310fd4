"""θ_τ in memory, which LoRA leaves as it is: loaded, made fast and laid out once for all learning rates and trials of a lane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fiat_ray.tune import model as checkpoints


class Base:
    """At most one model, which one tuning after another borrows."""

    def __init__(self) -> None:
        self._of: tuple[Path, torch.dtype] | None = None
        self._adapted: Any = None

    def borrow(self, folder: Path, dtype: torch.dtype) -> Any:
        """The one that was given back, where it is the same, else one that is loaded."""
        adapted = self._adapted if self._of == (folder, dtype) else None
        self.drop()
        self._of = (folder, dtype)
        if adapted is None:
            return checkpoints.load(folder, dtype)
        model = adapted.unload()
        if model.is_gradient_checkpointing:  # PEFT would let gradients through to the embeddings; who needs it enables it again
            model.gradient_checkpointing_disable()
        return model

    def give_back(self, adapted: Any) -> None:
        """What was borrowed last, with the adapter that it has got meanwhile; it keeps that until it is borrowed again."""
        self._adapted = adapted

    def drop(self) -> None:
        """Give the memory back."""
        self._of = self._adapted = None
