"""Products with weights that LoRA leaves as they are, on a CPU: laid out once as oneDNN wants them, where it is faster than MKL, which torch asks."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from fiat_ray import cpu
from fiat_ray.tune import memory

TOKENS = 2048
"""That the layout is best for; it serves any number."""

MOST_SHARE = 1 / 8
"""Of a machine's memory that a model may take, in as large a part of it as this process has of the CPUs: laid out, both ways, it takes twice as much
again."""


class LaidOut(NamedTuple):
    """A weight W (m, n) for products both ways."""

    forward: torch.Tensor
    """For x Wᵀ."""
    back: torch.Tensor
    """For g W."""


def lay_out(model: Any, zero: int) -> None:
    """All weights beside which an adapter is tuned, where it pays. ``zero``: ZeRO's stage; in 3 they are nowhere whole."""
    for layer in _layers(model, zero):
        base = layer.base_layer
        if not hasattr(base, "both_ways"):  # it may have had another adapter before
            weight = base.weight.detach()
            base.both_ways = LaidOut(*(torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), TOKENS) for w in (weight, weight.t())))
        layer.laid_out = base.both_ways


def bytes_laid_out(model: Any, zero: int) -> int:
    """What ``lay_out`` takes."""
    return sum(2 * layer.base_layer.weight.nbytes for layer in _layers(model, zero))


def product(x: torch.Tensor, laid_out: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + bias, (…, n) → (…, m), or x W, (…, m) → (…, n)."""
    return torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")  # type: ignore[no-any-return]


def _layers(model: Any, zero: int) -> list[Any]:
    """Those whose products are faster so. On GPUs and other processors, in other precisions, and of larger models all stay with torch's own."""
    pays = not torch.cuda.is_available() and cpu.is_amds_with_avx2() and torch.backends.mkldnn.is_available()
    room = memory.of_device(torch.device("cpu")) * torch.get_num_threads() / (os.cpu_count() or 1)
    fits = sum(p.nbytes for p in model.parameters()) <= MOST_SHARE * room
    if not (pays and fits) or model.dtype != torch.float32 or zero == 3:
        return []
    return [layer for layer in model.modules() if hasattr(layer, "laid_out")]
