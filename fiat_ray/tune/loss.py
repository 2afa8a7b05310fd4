"""The loss: cross-entropy of the target's tokens and EOS, and of nothing else."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fiat_ray.render import IGNORED
from fiat_ray.tune.batches import Tensors


class SupervisedLoss(nn.Module):
    """A causal language model that returns its loss. Logits are computed for supervised positions only: a vocabulary is wide, targets are short."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensors) -> torch.Tensor:
        """Σ over the micro-batch of weight × cross-entropy, a float32 scalar."""
        losses, rows = token_losses(self.model, batch)
        return (losses * batch.weights[rows]).sum()


def token_losses(model: nn.Module, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each supervised token (N,), float32, and the row it stands in (N,)."""
    supervised = batch.labels != IGNORED
    rows, columns = supervised.nonzero(as_tuple=True)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    # A padding-free batch of one needs no mask, which lets attention take its fastest kernel.
    mask = batch.attention_mask if len(batch.input_ids) > 1 else None
    hidden = causal.model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    logits = causal.lm_head(hidden[rows, columns - 1])  # the token before predicts the token
    return cross_entropy(logits.float(), batch.labels[rows, columns], reduction="none"), rows
