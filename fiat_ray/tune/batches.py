"""Micro-batches: which prompts of a step go through the model together, and how they are packed."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from fiat_ray.render import Prompt
from fiat_ray.tune.attention import plan
from fiat_ray.tune.memory import AtOnce


@dataclass(frozen=True)
class Supervised:
    """A prompt with its target, and its share in the loss of a step."""

    prompt: Prompt
    weight: float
    """Factor on each supervised token's cross-entropy."""

    @property
    def tokens(self) -> int:
        return len(self.prompt.pieces[-1].ids)


def common_start(items: Sequence[Supervised]) -> int:
    """How many tokens all prompts begin with: chat template and instructions. Each keeps a token of its own before its target."""
    return min(len(os.path.commonprefix([item.prompt.ids for item in items])), *(len(item.prompt) - item.tokens - 1 for item in items))


def micro_batches(items: Sequence[Supervised], most: AtOnce, shared: int = 0) -> list[list[Supervised]]:
    """Items in order, as many together as stay within ``most``; at least one. Nothing is padded, so lengths may differ.

    ``shared``: their common start, which a micro-batch holds once.
    """
    batches: list[list[Supervised]] = []
    tokens = supervised = 0
    for item in items:
        own = len(item.prompt) - shared
        if not batches or own > tokens or item.tokens > supervised:
            batches.append([])
            tokens, supervised = most.tokens - shared, most.supervised
        batches[-1].append(item)
        tokens -= own
        supervised -= item.tokens
    return batches


def padded_batches(items: Sequence[Supervised], most: AtOnce, more: int) -> list[list[int]]:
    """Places of items, as many of like length together as stay within ``most`` when each is padded to the longest; at least one.

    ``more``: tokens that each may grow by. Within a batch the items stay in order.
    """
    batches: list[list[int]] = []
    longest = supervised = 0
    for at in sorted(range(len(items)), key=lambda at: -len(items[at].prompt)):
        if not batches or (len(batches[-1]) + 1) * longest > most.tokens or items[at].tokens > supervised:
            batches.append([])
            longest, supervised = len(items[at].prompt) + more, most.supervised
        batches[-1].append(at)
        supervised -= items[at].tokens
    return [sorted(batch) for batch in batches]


@dataclass(frozen=True)
class Packed:
    """A micro-batch of prompts one behind the other, T tokens in all; attention stays within a prompt (see ``tune.attention``).

    A common start stands in the first prompt alone: what a causal model makes of it is the same in all.
    """

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
    shared: int
    """So many tokens of the first prompt stand before each of the others too."""

    def attention(self, dtype: torch.dtype) -> dict[str, Any]:
        """What ``tune.attention`` is to be told, for a model of this precision."""
        if self.input_ids.is_cuda and dtype == torch.bfloat16:
            return {"plan": plan(self.bounds, self.shared, self.input_ids.device)}
        return {"bounds": self.bounds, "shared": self.shared}


def pack(batch: Sequence[Supervised], device: torch.device, shared: int = 0) -> Packed:
    """``shared``: tokens that all prompts begin with, which are packed once (see ``common_start``)."""
    starts = [0] + [shared] * (len(batch) - 1)
    kept = [range(start, len(item.prompt)) for start, item in zip(starts, batch, strict=True)]
    return Packed(
        torch.tensor([[token for start, item in zip(starts, batch, strict=True) for token in item.prompt.ids[start:]]], device=device),
        torch.tensor([[at for row in kept for at in row]], device=device),
        torch.tensor([label for start, item in zip(starts, batch, strict=True) for label in item.prompt.labels[start:]], device=device),
        torch.tensor([item.weight for item, row in zip(batch, kept, strict=True) for _ in row], device=device),
        (0, *accumulate(map(len, kept))),
        shared,
    )
