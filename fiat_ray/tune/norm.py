"""RMSNorm in few passes over memory, forward and back: on a CPU each of the dozen that autograd makes of it takes a layer a millisecond."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import nn


class InFewPasses(nn.Module):
    """w · x / √(mean x² + ε), what models of the Llama family call RMSNorm."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Normalized.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-any-return]


def in_few_passes(model: nn.Module) -> None:
    """Let all norms of a model that compute just this do it in few passes."""
    for norm in model.modules():
        # Some take a gate besides, which those of hybrid models can't do without.
        if hasattr(norm, "variance_epsilon") and hasattr(norm, "weight") and len(signature(norm.forward).parameters) == 1:
            x = torch.linspace(-2, 3, len(norm.weight), dtype=norm.weight.dtype, device=norm.weight.device)
            with torch.no_grad():
                same = torch.allclose(norm(x), Normalized.apply(x, norm.weight, norm.variance_epsilon), rtol=1e-2)
            if same:
                norm.__class__ = InFewPasses


class Normalized(torch.autograd.Function):
    """(…, n) → (…, n), computed in float32, rounded before w as transformers does it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        rate = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normal = (exact * rate).to(x.dtype)
        ctx.save_for_backward(normal, rate, weight)
        return weight * normal

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        normal, rate, weight = ctx.saved_tensors
        of_weight = (gradient * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        of_x, normal = (gradient * weight).to(rate.dtype), normal.to(rate.dtype)
        along = torch.linalg.vecdot(of_x, normal).unsqueeze(-1).div_(normal.shape[-1])
        return of_x.addcmul_(normal, along, value=-1).mul_(rate).to(gradient.dtype), of_weight, None
