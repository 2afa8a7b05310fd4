"""Micro-batches: which prompts of a step go through the model together, and how they are packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from fiat_ray.render import Prompt


@dataclass(frozen=True)
class Supervised:
    """A prompt with its target, and its share in the loss of a step."""

    prompt: Prompt
    weight: float
    """Factor on each supervised token's cross-entropy."""

    @property
    def tokens(self) -> int:
        return len(self.prompt.pieces[-1].ids)


def token_budget(device: torch.device) -> int:
    """Tokens of a micro-batch: enough for matrix products at full speed."""
    return 16384 if device.type == "cuda" else 1024


def micro_batches(items: Sequence[Supervised], budget: int) -> list[list[Supervised]]:
    """Items in order, as many together as stay within ``budget`` tokens; at least one. Nothing is padded, so lengths may differ."""
    batches: list[list[Supervised]] = []
    room = 0
    for item in items:
        if not batches or len(item.prompt) > room:
            batches.append([])
            room = budget
        batches[-1].append(item)
        room -= len(item.prompt)
    return batches


@dataclass(frozen=True)
class Packed:
    """A micro-batch of prompts one behind the other, T tokens in all; attention stays within a prompt (see ``tune.attention``)."""

    input_ids: torch.Tensor
    """(1, T) int64."""
    position_ids: torch.Tensor
    """(1, T) int64, from 0 in each prompt."""
    labels: torch.Tensor
    """(T,) int64: the token itself where it is supervised, ``IGNORED`` elsewhere."""
    weights: torch.Tensor
    """(T,) float32: of each token in the loss."""
    bounds: tuple[int, ...]
    """Where prompts begin, and the end."""


def pack(batch: Sequence[Supervised], device: torch.device) -> Packed:
    ids = [item.prompt.ids for item in batch]
    bounds = (0, *accumulate(map(len, ids)))
    return Packed(
        torch.tensor([[token for row in ids for token in row]], device=device),
        torch.tensor([[at for row in ids for at in range(len(row))]], device=device),
        torch.tensor([label for item in batch for label in item.prompt.labels], device=device),
        torch.tensor([item.weight for item, row in zip(batch, ids, strict=True) for _ in row], device=device),
        bounds,
    )
