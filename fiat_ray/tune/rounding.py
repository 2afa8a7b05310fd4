"""Weights in the precision that they are stored in."""

from __future__ import annotations

from functools import lru_cache

import torch


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` cast to ``dtype``; from float32 to bfloat16 up or down at random, the nearer the likelier, and always the same.

    Most of what a short tuning adds to a weight is less than half a step of bfloat16. To the nearest, it would be lost: up to two fifths of what the
    loss had fallen by (docs/costs.md).
    """
    if (tensor.dtype, dtype) != (torch.float32, torch.bfloat16):
        return tensor.to(dtype)
    # bfloat16 lacks the lower half of a float32's bits; a random number below 2**16, added to them, carries as often as they are large.
    bits = tensor.detach().contiguous().view(torch.int32) + _dither(tensor.shape)
    return bits.bitwise_and_(~0xFFFF).view(torch.float32).to(dtype)


@lru_cache(maxsize=4)
def _dither(shape: torch.Size) -> torch.Tensor:
    return torch.randint(0, 2**16, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
