"""What only a GPU does: attention in one kernel, compiled kernels, memory. Skipped elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_memory import SHAPE, items

from fiat_ray.config import Lora
from fiat_ray.tune import memory
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune.adapter import add_lora
from fiat_ray.tune.batches import common_start, pack
from fiat_ray.tune.layers import compile_layers
from fiat_ray.tune.loss import SupervisedLoss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LENGTHS = [300, 130, 41, 515, 77]
LORA = Lora(rank=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, of two layers as wide as those of a model of 0.6 billion parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(**{**vars(SHAPE), "num_hidden_layers": 2}, vocab_size=1000, tie_word_embeddings=True)
    path = tmp_path_factory.mktemp("gpu") / "model"
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[bool, tuple[float, dict[str, Any]]]:
    """Of a CPU in float32, with and without an adapter."""
    return {bool(lora): tuned(folder, "cpu", torch.float32, False, False, lora) for lora in (None, LORA)}


def tuned(folder: Path, device: str, dtype: torch.dtype, shared: bool, compiled: bool, lora: Lora | None = None) -> tuple[float, dict[str, Any]]:
    model = checkpoints.load(folder, dtype)
    if lora:
        model = add_lora(model, lora, 0)
    if compiled:
        compile_layers(model)
    rows = items(LENGTHS)
    loss = SupervisedLoss(model.to(device).train())(pack(rows, torch.device(device), common_start(rows) if shared else 0))
    loss.backward()
    return loss.item(), {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_loss_and_gradients_are_a_cpus_but_for_rounding(
    folder: Path, expected: dict[bool, tuple[float, dict[str, Any]]], shared: bool, compiled: bool, lora: Lora | None
) -> None:
    loss, gradients = tuned(folder, "cuda", torch.bfloat16, shared, compiled, lora)
    of_loss, of_cpu = expected[bool(lora)]
    assert loss == pytest.approx(of_loss, rel=5e-3)
    assert gradients.keys() == of_cpu.keys()
    for name, gradient in gradients.items():
        if of_cpu[name].norm() > 1e-6:  # A's is zero as long as B is
            assert torch.cosine_similarity(gradient.flatten(), of_cpu[name].flatten(), 0) > 0.98, name


def test_activations_take_no_more_than_is_planned(folder: Path) -> None:
    model = checkpoints.load(folder, torch.bfloat16).to("cuda").train()
    compile_layers(model)
    rows = items([700] * 20)
    batch, before = pack(rows, torch.device("cuda")), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = SupervisedLoss(model)(batch)
    taken = torch.cuda.max_memory_allocated() - before
    loss.backward()
    planned = len(batch.labels) * memory.activation_bytes(model.config, torch.bfloat16)[0]
    print(f"activations: {taken / 2**20:.0f} MiB, planned {planned / 2**20:.0f}")
    assert 0.3 * planned < taken < planned
