"""θ_τ^PEFT in memory: LoRA's layers, as PEFT makes them, and how they add up."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from fiat_ray.config import Lora


def add_lora(model: Any, lora: Lora, seed: int) -> Any:
    """θ_τ^PEFT ← INIT(θ_τ): B is zero, A is drawn from ``seed``; only A and B are tuned."""
    torch.manual_seed(seed)
    # The adapter takes the checkpoint's dtype: DeepSpeed keeps float32 masters of all that is tuned.
    adapted = get_peft_model(model, lora_config(lora), autocast_adapter_dtype=False)
    for layer in adapted.modules():
        if type(layer) is Linear and not layer.lora_variant:  # DoRA's stay as PEFT has them
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

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        [name] = self.active_adapters
        low, b, scale = self.lora_A[name](x), self.lora_B[name], self.scaling[name]
        if hasattr(b.weight, "ds_id"):  # ZeRO-3 gathers weights when the layer that has them is called
            return self.base_layer(x) + b(low) * scale
        if x.dtype == torch.bfloat16:
            return OneSum.apply(x, low, self.base_layer.weight, b.weight, self.base_layer.bias, scale)
        result = self.base_layer(x)
        return torch.addmm(result.flatten(0, -2), low.flatten(0, -2), b.weight.t(), alpha=scale).view_as(result)


class OneSum(torch.autograd.Function):
    """W x + scale · B A x as one product, [W | scale · B] [x; A x]: it adds up in float32 and rounds to bfloat16 once.

    Were W x rounded before, it would lie on a grid, and what a young adapter adds to it, less than half a step of that grid, would be rounded away:
    at a learning rate of 1e-4 tuning stands almost still for its first steps (docs/costs.md).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: torch.Tensor, weight: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, scale: float) -> Any:
        ctx.save_for_backward(low, weight, b)
        ctx.scale = scale
        return nn.functional.linear(torch.cat([x, low], -1), torch.cat([weight, b * scale], 1), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        low, weight, b = ctx.saved_tensors
        of_b = (gradient.flatten(0, -2).t() @ low.flatten(0, -2)) * ctx.scale
        return gradient @ weight if ctx.needs_input_grad[0] else None, (gradient @ b) * ctx.scale, None, of_b, None, None
