"""Products with weights that LoRA leaves as they are, on a CPU: laid out once as oneDNN wants them, where it is faster than MKL, which torch asks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fiat_ray import cpu
from fiat_ray.tune import memory

TOKENS = 2048
"""That the layout is best for; it serves any number."""

MOST_SHARE = 1 / 8
"""Of a machine's memory that a model may take: laid out, both ways, it takes twice as much again."""


class LaidOut(NamedTuple):
    """A weight W (m, n) for products both ways."""

    forward: torch.Tensor
    """For x Wᵀ."""
    back: torch.Tensor
    """For g W."""


def lay_out(model: Any) -> None:
    """All weights beside which an adapter is tuned, where it pays."""
    for layer in _layers(model):
        weight = layer.base_layer.weight.detach()
        layer.laid_out = LaidOut(*(torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), TOKENS) for w in (weight, weight.t())))


def bytes_laid_out(model: Any) -> int:
    """What ``lay_out`` takes."""
    return sum(2 * layer.base_layer.weight.nbytes for layer in _layers(model))


def product(x: torch.Tensor, laid_out: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + bias, (…, n) → (…, m), or x W, (…, m) → (…, n)."""
    return torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")  # type: ignore[no-any-return]


def _layers(model: Any) -> list[Any]:
    """Those whose products are faster so. Other processors, other precisions and larger models stay with torch's own."""
    size = sum(p.nbytes for p in model.parameters())
    pays = model.dtype == torch.float32 and cpu.is_amds() and torch.backends.mkldnn.is_available()
    fits = size <= MOST_SHARE * memory.of_device(torch.device("cpu"))
    return [layer for layer in model.modules() if hasattr(layer, "laid_out")] if pays and fits else []
