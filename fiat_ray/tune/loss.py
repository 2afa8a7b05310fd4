"""The loss: cross-entropy of the target's tokens and EOS, and of nothing else."""

from __future__ import annotations

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
    output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, **packing, **kept, logits_to_keep=positions)
    logits: torch.Tensor = output.logits[0].float()
    return logits
