"""Rows → batches: which rows make a step, and which of them go through the model together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fiat_ray.augmented import Example
from fiat_ray.render import IGNORED, Prompt


def steps_of(examples: Sequence[Example], batch_size: int, epochs: float, steps: int | None, seed: int) -> Iterator[list[Example]]:
    """The rows of each step, ``steps`` or ``epochs`` long: every epoch in an order of its own, the last batch of an epoch as small as it is."""
    order = random.Random(seed)
    done, bound = 0, number_of_steps(len(examples), batch_size, epochs, steps)
    while done < bound:
        rows = list(examples)
        order.shuffle(rows)
        for start in range(0, len(rows), batch_size):
            if done == bound:
                return
            yield rows[start : start + batch_size]
            done += 1


def number_of_steps(rows: int, batch_size: int, epochs: float, steps: int | None) -> int:
    return steps if steps is not None else max(1, round(epochs * -(-rows // batch_size)))


@dataclass(frozen=True)
class Supervised:
    """A prompt with its target, and its share in the loss of a step."""

    prompt: Prompt
    weight: float
    """Factor on each supervised token's cross-entropy."""

    @property
    def tokens(self) -> int:
        return len(self.prompt.pieces[-1].ids)


def micro_batches(items: Sequence[Supervised], token_budget: int) -> list[list[Supervised]]:
    """Items of similar length together, as many as stay under ``token_budget`` tokens, padding counted; at least one."""
    batches: list[list[Supervised]] = []
    for item in sorted(items, key=lambda item: len(item.prompt), reverse=True):
        longest = len(batches[-1][0].prompt) if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


@dataclass(frozen=True)
class Tensors:
    """A right-padded micro-batch of B prompts, T tokens wide."""

    input_ids: torch.Tensor
    """(B, T) int64."""
    attention_mask: torch.Tensor
    """(B, T) int64."""
    labels: torch.Tensor
    """(B, T) int64: the token itself where it is supervised, ``IGNORED`` elsewhere."""
    weights: torch.Tensor
    """(B,) float32."""


def tensors(batch: Sequence[Supervised], pad: int, device: torch.device) -> Tensors:
    width = max(len(item.prompt) for item in batch)

    def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)

    return Tensors(
        padded([item.prompt.ids for item in batch], pad),
        padded([[1] * len(item.prompt) for item in batch], 0),
        padded([item.prompt.labels for item in batch], IGNORED),
        torch.tensor([item.weight for item in batch], device=device),
    )
