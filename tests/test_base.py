"""The model that a lane's LoRA trials have in common: the second finds it as the first did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.lora.layer import Linear

from fiat_ray import cpu
from fiat_ray.config import Lora
from fiat_ray.tune.adapter import add_lora
from fiat_ray.tune.base import Base
from fiat_ray.tune.layers import make_fast

READ = torch.tensor([2, 7])


def adapted(base: Base, folder: Path, rank: int, checkpointing: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of a borrowed model with an adapter of this rank, and the adapter's gradients."""
    model = add_lora(base.borrow(folder, torch.float32), Lora(rank=rank), 0).train()
    for layer in model.modules():
        if isinstance(layer, Linear):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(1))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    make_fast(model)
    logits = model(input_ids=torch.arange(9)[None], logits_to_keep=READ).logits
    logits.square().mean().backward()
    base.give_back(model)
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("laid_out", [False, True])
def test_each_tuning_finds_it_as_the_first_did(tiny: Path, monkeypatch: pytest.MonkeyPatch, laid_out: bool) -> None:
    monkeypatch.setattr(cpu, "is_amds_with_avx2", lambda: laid_out and torch.backends.mkldnn.is_available())
    base, first = Base(), adapted(Base(), tiny, 4)
    adapted(base, tiny, 8, checkpointing=True)
    second = adapted(base, tiny, 4)
    assert first[1].keys() == second[1].keys() and len(first[1]) > 4
    for found, expected in zip((second[0], *second[1].values()), (first[0], *first[1].values()), strict=True):
        assert torch.equal(found, expected)
    again = adapted(base, tiny, 4, checkpointing=True)
    assert all(torch.allclose(again[1][name], gradient, rtol=1e-4, atol=1e-6) for name, gradient in first[1].items())


def test_one_model_is_kept_and_no_other(tiny: Path) -> None:
    base = Base()
    model = base.borrow(tiny, torch.float32)
    names = [name for name, _ in model.named_parameters()]
    adapter = add_lora(model, Lora(rank=2), 0)
    adapter.gradient_checkpointing_enable({"use_reentrant": False})
    base.give_back(adapter)
    assert base.borrow(tiny, torch.float32) is model
    assert not model.get_input_embeddings()._forward_hooks
    assert [name for name, _ in model.named_parameters()] == names
    assert base.borrow(tiny, torch.float32) is not model, "it was not given back"
    base.give_back(add_lora(model, Lora(rank=2), 0))
    assert base.borrow(tiny, torch.bfloat16).dtype == torch.bfloat16
