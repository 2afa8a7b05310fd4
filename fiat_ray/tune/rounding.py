"""Weights in the precision that they are stored in."""

from __future__ import annotations

from functools import cache

import torch


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` cast to ``dtype``; from float32 to bfloat16 up or down at random, the nearer the likelier, and always the same.

    Most of what a short tuning adds to a weight is less than half a step of bfloat16. To the nearest, it would be lost: up to two fifths of what the
    loss had fallen by (docs/costs.md).
    """
    if (tensor.dtype, dtype) != (torch.float32, torch.bfloat16):
        return tensor.to(dtype)
    return round_(tensor.detach().clone(), dtype).to(dtype)


def round_(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same in place: ``tensor``, float32 and contiguous, then holds what ``dtype`` can, in float32."""
    if dtype != torch.bfloat16:
        return tensor.copy_(tensor.to(dtype))
    # bfloat16 lacks the lower half of a float32's bits; a random number below 2**16, added to them, carries as often as they are large.
    bits, dither = tensor.view(-1).view(torch.int32), _dither(tensor.device)
    for part in bits.split(len(dither)):
        part.add_(dither[: len(part)]).bitwise_and_(~0xFFFF)
    return tensor


@cache
def _dither(device: torch.device) -> torch.Tensor:
    """They serve again for the weights that follow; a prime number of them, so that no two rows get the same. As many as stay in a processor's cache,
    and on a GPU, which waits for launches more than for memory, as many as few launches take."""
    size = 262_139 if device.type == "cpu" else 16_777_213
    return torch.randint(0, 2**16, (size,), generator=torch.Generator().manual_seed(0), dtype=torch.int32).to(device)
