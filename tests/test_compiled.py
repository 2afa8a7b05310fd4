"""Layers that are compiled, as a GPU has them, here on a CPU: in one piece, once for all layers and sizes, with the same loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from test_memory import items
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

from fiat_ray.config import Lora
from fiat_ray.tune import attention, batches
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune.adapter import add_lora
from fiat_ray.tune.batches import common_start, pack
from fiat_ray.tune.layers import compile_layers
from fiat_ray.tune.loss import SupervisedLoss

CPU = torch.device("cpu")


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, *_: Any) -> torch.Tensor:
    """What the kernel of a GPU computes, with a mask over all pairs."""
    asked, answered = torch.arange(len(query)), torch.arange(len(key))
    prompt, of_key = (torch.bucketize(at, ends[1:], right=True) for at, ends in ((asked, queries), (answered, keys)))
    later = keys[1:][of_key] - answered < (queries[1:][prompt] - asked)[:, None]
    mask = (prompt[:, None] == of_key) & ~later
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)[0].transpose(0, 1)


@torch._dynamo.config.patch(disable=False)  # an engine that ran in this process has set it
@pytest.mark.parametrize(("lora", "dtype"), [(None, torch.float32), (Lora(rank=4), torch.float32), (Lora(rank=4), torch.bfloat16)])
def test_compiled_once_with_the_same_loss_and_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora | None, dtype: torch.dtype
) -> None:
    of_loss, of_gradient = (1e-5, {"atol": 1e-4}) if dtype == torch.float32 else (0.02, {"atol": 0.2, "rtol": 0.2})
    monkeypatch.setattr(attention, "_flash", dense)
    monkeypatch.setattr(batches.Packed, "attention", lambda self, _: {"plan": attention.plan(self.bounds, self.shared, CPU)})
    torch._dynamo.reset()
    counters.clear()
    folder = tiny_model.write(tmp_path / "tiny")
    plain, compiled = (checkpoints.load(folder, dtype).train() for _ in range(2))
    if lora:
        plain, compiled = (add_lora(model, lora, 0) for model in (plain, compiled))
    compile_layers(compiled)
    for lengths in ([20, 31, 12], [9, 40, 33, 27, 18], [50, 51, 52, 300]):
        rows = items(lengths)
        batch = pack(rows, CPU, common_start(rows))
        losses = [SupervisedLoss(model)(batch) for model in (plain, compiled)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=of_loss)
        for loss in losses:
            loss.backward()
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, **of_gradient), name
    # With an adapter the first layer's input has no gradient, that of the others has.
    assert counters["stats"]["unique_graphs"] == (2 if lora else 1) and not counters["graph_break"], (counters["stats"], counters["graph_break"])
