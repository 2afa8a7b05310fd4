"""θ_τ^PEFT in memory: LoRA's layers, as PEFT makes them, and how they add up."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from fiat_ray.config import Lora
from fiat_ray.tune.frozen import LaidOut, product


def add_lora(model: Any, lora: Lora, seed: int) -> Any:
    """θ_τ^PEFT ← INIT(θ_τ): B is zero, A is drawn from ``seed``; only A and B are tuned."""
    torch.manual_seed(seed)
    # The adapter takes the checkpoint's dtype: DeepSpeed keeps float32 masters of all that is tuned.
    adapted = get_peft_model(model, lora_config(lora), autocast_adapter_dtype=False)
    for layer in adapted.modules():
        if type(layer) is Linear and isinstance(layer.base_layer, nn.Linear) and not layer.lora_variant:  # DoRA's stay as PEFT has them
            layer.__class__ = InOneSum
    return adapted


def lora_config(lora: Lora) -> LoraConfig:
    """The same in PEFT's words."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets,
        lora_dropout=0.0,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )


class InOneSum(Linear):
    """PEFT's layer, W x + scale · B A x, in few passes over memory, and in bfloat16 without losing what A and B learn."""

    laid_out: LaidOut | None = None
    """W, where ``frozen`` has laid it out."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        [name] = self.active_adapters
        a, b, scale = self.lora_A[name], self.lora_B[name], self.scaling[name]
        if hasattr(b.weight, "ds_id"):  # ZeRO-3 gathers weights when the layer that has them is called
            return self.base_layer(x) + b(a(x)) * scale
        return OneSum.apply(x, self.base_layer.weight, a.weight, b.weight, self.base_layer.bias, scale, self.laid_out)


class OneSum(torch.autograd.Function):
    """W x + scale · B A x, added up in float32. In bfloat16 it is one product, [W | scale · B] [x; A x], which is rounded once.

    Were W x rounded before, it would lie on a grid, and what a young adapter adds to it, less than half a step of that grid, would be rounded away:
    at a learning rate of 1e-4 tuning stands almost still for its first steps (docs/costs.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
        laid_out: LaidOut | None,
    ) -> torch.Tensor:
        low = nn.functional.linear(x, a)
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale, ctx.laid_out = scale, laid_out
        if x.dtype == torch.bfloat16:
            return nn.functional.linear(torch.cat([x, low], -1), torch.cat([weight, b * scale], 1), bias)
        y = product(x, laid_out.forward, bias) if laid_out else nn.functional.linear(x, weight, bias)
        # A copy of so small a matrix: MKL takes twice as long with it transposed.
        y.view(-1, len(weight)).addmm_(low.flatten(0, -2), b.t().contiguous(), alpha=scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        x, low, weight, a, b = ctx.saved_tensors
        shape, x, low, gradient = x.shape, x.flatten(0, -2), low.flatten(0, -2), gradient.flatten(0, -2)
        of_low = (gradient @ b).mul_(ctx.scale)
        of_b = (gradient.t() @ low).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            through_w = product(gradient, ctx.laid_out.back) if ctx.laid_out else gradient @ weight
            of_x = through_w.addmm_(of_low, a).view(shape)
        of_a = (x.t() @ of_low).t()  # MKL takes half as long again for it the other way round
        return of_x, None, of_a, of_b, None, None, None
