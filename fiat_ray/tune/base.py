"""θ_τ in memory, which LoRA leaves as it is: loaded, made fast and laid out once for all learning rates and trials of a lane."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from fiat_ray.tune import model as checkpoints


class Base:
    """At most one model, which one tuning after another borrows. All give it adapters for the same layers: those alone stay laid out."""

    def __init__(self) -> None:
        self._of: tuple[Path, torch.dtype] | None = None
        self._adapted: Any = None

    def borrow(self, folder: Path, dtype: torch.dtype) -> Any:
        """The one that was given back, where it is the same, else one that is loaded."""
        if self._adapted is None or self._of != (folder, dtype):
            self.drop()
            self._of = (folder, dtype)
            return checkpoints.load(folder, dtype)
        model, self._adapted = self._adapted.unload(), None
        if model.is_gradient_checkpointing:  # who needs it enables it again, and with it the gradients of embeddings
            model.gradient_checkpointing_disable()
            model.disable_input_require_grads()
        return model

    def give_back(self, adapted: Any) -> None:
        """What was borrowed last, with the adapter that it has got meanwhile; it keeps that until it is borrowed again."""
        self._adapted = adapted

    def drop(self) -> None:
        """Give the memory back."""
        if self._adapted is not None:
            self._of = self._adapted = None
            gc.collect()  # what has held it may be part of a cycle
