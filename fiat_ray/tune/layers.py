"""A model's layers, made faster: they compute the same."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import nn

from fiat_ray.tune.frozen import lay_out


def make_fast(model: Any, zero: int = 0) -> None:
    """For this machine; once for each adapter that a model gets. ``zero``: ZeRO's stage; in 3, hooks gather weights layer by layer, which is not
    compiled."""
    if not torch.cuda.is_available():
        norms_in_few_passes(model)
        last_layer_where_read(model)
        lay_out(model, zero)
    elif zero != 3:
        compile_layers(model)


def compile_layers(model: Any) -> None:
    """Norms, rotation, SwiGLU and sums of each layer become few kernels, forward and back: they are passes over memory, and launches, which a GPU
    waits for more than for products. All layers share what is compiled; sizes are left open."""
    from torch.fx.experimental import _config

    _config.use_duck_shape = False  # type: ignore[attr-defined]  # else two sizes that happen to be equal once are taken to be always
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)


def last_layer_where_read(model: Any) -> None:
    """The last layer's MLP, queries and attention's output, nine tenths of it, are computed at the positions alone that the model is given as
    ``logits_to_keep`` (N,): what they add to others nobody reads. Keys and values are read at all."""
    last = getattr(model.get_decoder(), "layers", [None])[-1]
    mlp: Any = getattr(last, "mlp", None)
    attention: Any = getattr(last, "self_attn", None)
    parts = []
    if all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")):  # experts may return more than what is added
        parts.append(mlp)
    if all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")):
        parts += [attention.q_proj, attention.o_proj]
    for part in parts:
        if not hasattr(part, "where_read"):
            part.where_read = WhereRead()
            part.register_forward_pre_hook(part.where_read.pick)
            part.register_forward_hook(part.where_read.place)
        model.register_forward_pre_hook(part.where_read.note, with_kwargs=True)


class WhereRead:
    """Hooks of a model, and of the module in it that is to be computed at ``logits_to_keep`` alone."""

    def __init__(self) -> None:
        self._read: torch.Tensor | None = None
        self._positions = 0

    def note(self, _: nn.Module, __: Any, named: dict[str, Any]) -> None:
        self._read = kept if isinstance(kept := named.get("logits_to_keep"), torch.Tensor) else None

    def pick(self, _: nn.Module, given: Any) -> Any:
        self._positions = given[0].shape[1]
        return given if self._read is None else (given[0][:, self._read], *given[1:])

    def place(self, _: nn.Module, __: Any, found: torch.Tensor) -> torch.Tensor:
        if self._read is None:
            return found
        return found.new_zeros(len(found), self._positions, found.shape[2]).index_copy_(1, self._read, found)


class InFewPasses(nn.Module):
    """RMSNorm as models of the Llama family have it, w · x / √(mean x² + ε), in few passes over memory, forward and back: on a CPU each of the dozen
    that autograd makes of it takes a layer a millisecond."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Normalized.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-any-return]


def norms_in_few_passes(model: nn.Module) -> None:
    """All norms of a model that compute just what ``InFewPasses`` does."""
    for norm in model.modules():
        if isinstance(norm, InFewPasses):  # of a model that had another adapter before
            continue
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
