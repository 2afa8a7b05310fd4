"""The loss: cross-entropy of the target's tokens and EOS, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fiat_ray.render import IGNORED
from fiat_ray.tune.batches import Packed


class SupervisedLoss(nn.Module):
    """A causal language model that returns its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Packed) -> torch.Tensor:
        """Σ over supervised tokens of weight × cross-entropy, a float32 scalar."""
        losses, positions = token_losses(self.model, batch)
        return (losses * batch.weights[positions]).sum()


def token_losses(model: nn.Module, batch: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each supervised token (N,), float32, and its position in the batch (N,).

    Logits are computed for supervised positions only: a vocabulary is wide, and targets are short.
    """
    positions = (batch.labels != IGNORED).nonzero(as_tuple=True)[0]
    logits = packed_logits(model, batch, positions - 1)  # the token before predicts the token
    return cross_entropy(logits, batch.labels[positions], reduction="none"), positions


def packed_logits(model: nn.Module, batch: Packed, positions: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """What the model, whose own scaling counts, says after the tokens at ``positions`` (N,): (N, vocabulary), float32. ``cache``: is filled."""
    packing = batch.attention(model.dtype)
    kept = {"past_key_values": cache, "use_cache": cache is not None}
    with _last_mlp_at(positions, model, batch.input_ids.shape[1]):
        output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, **packing, **kept, logits_to_keep=positions)
    logits: torch.Tensor = output.logits[0].float()
    return logits


@contextmanager
def _last_mlp_at(positions: torch.Tensor, model: nn.Module, tokens: int) -> Iterator[None]:
    """The last layer's MLP, three quarters of the layer, is computed at ``positions`` (N,) of ``tokens`` alone: what it adds to others nobody reads.

    Not on a GPU, where layers are compiled whole, nor where activations are checkpointed: the layer is computed again when this is over.
    """
    layers = getattr(model.get_decoder(), "layers", [None])  # type: ignore[operator]
    mlp: Any = getattr(layers[-1], "mlp", None)
    again = getattr(layers[-1], "gradient_checkpointing", True)
    of_llama = all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))  # experts may return more than what is added
    if positions.is_cuda or again or not of_llama:
        yield
        return
    hooks = [
        mlp.register_forward_pre_hook(lambda _, given: (given[0][:, positions], *given[1:])),
        mlp.register_forward_hook(lambda _, __, found: found.new_zeros(1, tokens, found.shape[-1]).index_copy(1, positions, found)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
