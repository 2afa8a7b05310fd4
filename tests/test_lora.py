"""LoRA's layers, whose sum is inside the product with B: the outputs and gradients that PEFT's own forward has."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_model
import torch
from peft.tuners.lora.layer import Linear

from fiat_ray.config import Lora
from fiat_ray.tune import model as checkpoints


def outcome(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(input_ids=torch.arange(24).view(2, 12)).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


LORAS = [Lora(rank=4, alpha=12), Lora(rank=4, alpha=12, rslora=True), Lora(rank=4, dora=True)]


@pytest.mark.parametrize("lora", LORAS)
def test_layers_compute_what_pefts_own_do(tmp_path: Path, lora: Lora) -> None:
    model = checkpoints.add_lora(checkpoints.load(tiny_model.write(tmp_path / "tiny"), torch.float64), lora, 0)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    logits, gradients = outcome(model)
    if not lora.dora:
        assert all(layer.lora_variant for layer in layers)
        for layer in layers:
            layer.lora_variant.clear()
    own, own_gradients = outcome(model)
    assert logits.std() > 1e-2 and torch.allclose(logits, own, rtol=1e-4)
    assert len(gradients) == 2 * len(layers) + len(layers) * lora.dora
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, own_gradients[name], rtol=1e-4), name


@pytest.mark.parametrize("lora", LORAS)
def test_merged_weights_answer_as_the_tuned_model_and_the_base_stays_as_it_was(tmp_path: Path, lora: Lora) -> None:
    folder = tiny_model.write(tmp_path / "tiny")
    tuned = checkpoints.add_lora(checkpoints.load(folder, torch.float32), lora, 0)
    for layer in (layer for layer in tuned.modules() if isinstance(layer, Linear)):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    state = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    checkpoints.save(tuned, state, True, torch.float32, tmp_path / "adapter")
    base = checkpoints.load(folder, torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = checkpoints.load(checkpoints.merge(folder, tmp_path, tmp_path / "merged"), torch.float32)
    for name, tensor in checkpoints.merged(base, tmp_path / "adapter"):
        assert torch.equal(merged.get_parameter(name), tensor)
    with torch.no_grad():
        found, expected, untuned = (model(input_ids=torch.arange(24).view(2, 12)).logits for model in (merged, tuned, base))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, untuned, atol=1e-2)
    assert merged.state_dict().keys() == before.keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
