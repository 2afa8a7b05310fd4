"""LoRA's layers: the outputs and gradients that PEFT's own have, but for what those lose in bfloat16; and merging, which loses nothing either."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_model
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from transformers import GPT2Config, GPT2LMHeadModel

from fiat_ray import cpu
from fiat_ray.config import Lora
from fiat_ray.errors import UserError
from fiat_ray.prepare import check_targets
from fiat_ray.tune import adapter, frozen
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune.adapter import InOneSum, add_lora
from fiat_ray.tune.rounding import rounded


def outcome(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(input_ids=torch.arange(24).view(2, 12)).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


LORAS = [Lora(rank=4, alpha=12), Lora(rank=4, alpha=12, rslora=True), Lora(rank=4, dora=True)]


@pytest.mark.parametrize("lora", LORAS)
def test_layers_compute_what_pefts_own_do(tmp_path: Path, lora: Lora) -> None:
    model = add_lora(checkpoints.load(tiny_model.write(tmp_path / "tiny"), torch.float64), lora, 0)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    logits, gradients = outcome(model)
    if not lora.dora:
        assert all(type(layer) is InOneSum for layer in layers)
        for layer in layers:
            layer.__class__ = Linear
    own, own_gradients = outcome(model)
    assert logits.std() > 1e-2 and torch.allclose(logits, own, rtol=1e-4)
    assert len(gradients) == 2 * len(layers) + len(layers) * lora.dora
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, own_gradients[name], rtol=1e-4), name


def test_layers_whose_weights_are_transposed_stay_as_peft_has_them() -> None:
    """Those of GPT-2; where they are square, nothing else would show it."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)).eval()
    x = torch.arange(8)[None]
    untuned = model(input_ids=x).logits
    adapted = add_lora(model, Lora(rank=2, targets="transformer.h.0.attn.c_proj"), 0)
    assert [type(layer) for layer in adapted.modules() if isinstance(layer, Linear)] == [Linear]
    assert torch.allclose(adapted(input_ids=x).logits, untuned, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize("rslora", [False, True])
def test_weights_that_are_laid_out_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rslora: bool) -> None:
    model = add_lora(checkpoints.load(tiny_model.write(tmp_path / "tiny"), torch.float32), Lora(rank=4, rslora=rslora), 0)
    layers = [layer for layer in model.modules() if isinstance(layer, InOneSum)]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    logits, gradients = outcome(model)
    for processor, zero, share in ((False, 0, 1.0), (True, 3, 1.0), (True, 0, 0.0), (True, 0, 1.0)):
        monkeypatch.setattr(cpu, "is_amds_with_avx2", lambda found=processor: found)
        monkeypatch.setattr(frozen, "MOST_SHARE", share)
        frozen.lay_out(model, zero)
        laid_out = processor and zero == 0 and share > 0
        assert all((layer.laid_out is not None) == laid_out for layer in layers) and layers
        assert frozen.bytes_laid_out(model, zero) == laid_out * sum(2 * layer.base_layer.weight.nbytes for layer in layers)
    asked = []
    monkeypatch.setattr(adapter, "product", lambda *given: asked.append(given) or frozen.product(*given))
    found, of_found = outcome(model)
    assert len(asked) == 2 * len(layers) - 3  # the first layer's q, k and v give no gradient on
    assert torch.allclose(found, logits, rtol=1e-4, atol=1e-5)
    for name, gradient in of_found.items():
        assert torch.allclose(gradient, gradients[name], rtol=1e-3, atol=1e-6), name
    layer, x, bias = layers[0], torch.randn(1, 5, 64), torch.randn(layers[0].out_features)
    expected = torch.nn.functional.linear(x, layer.base_layer.weight, bias)
    assert layer.laid_out is not None and torch.allclose(frozen.product(x, layer.laid_out.forward, bias), expected, atol=1e-5)


@pytest.mark.parametrize("lora", LORAS)
def test_merged_weights_answer_as_the_tuned_model_and_the_base_stays_as_it_was(tmp_path: Path, lora: Lora) -> None:
    folder = tiny_model.write(tmp_path / "tiny")
    tuned = add_lora(checkpoints.load(folder, torch.float32), lora, 0)
    for layer in (layer for layer in tuned.modules() if isinstance(layer, Linear)):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    state = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    checkpoints.save(tuned, state, True, torch.float32, tmp_path / "adapter")
    base = checkpoints.load(folder, torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = checkpoints.load(checkpoints.merge(folder, tmp_path, tmp_path / "merged"), torch.float32)
    model = checkpoints.load(folder, torch.float32)
    for name in checkpoints.merge_into(model, base, tmp_path / "adapter", torch.float32):
        assert torch.equal(merged.get_parameter(name), model.get_parameter(name))
    with torch.no_grad():
        found, expected, untuned = (model(input_ids=torch.arange(24).view(2, 12)).logits for model in (merged, tuned, base))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, untuned, atol=1e-2)
    assert merged.state_dict().keys() == before.keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def kept(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The share of ``expected`` that is in ``found``, whatever noise is there too."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found * expected).sum() / expected.square().sum())


def test_what_a_young_adapter_adds_is_not_rounded_away() -> None:
    """Less than half a step of the grid that W x lies on in bfloat16: PEFT's own forward loses most of it."""
    torch.manual_seed(0)
    base = torch.nn.Linear(256, 128)
    layer = Linear(base, "default", config=LoraConfig(), r=16, lora_alpha=32).to(torch.bfloat16)
    x = torch.randn(512, 256, dtype=torch.bfloat16)
    untuned = layer(x)
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=5e-5)
    delta = x.double() @ layer.get_delta_weight("default").double().t()
    assert kept(delta, layer(x) - untuned) < 0.5
    layer.__class__ = InOneSum
    assert kept(delta, layer(x) - untuned) == pytest.approx(1, abs=0.1)


def test_gradients_in_bfloat16_are_those_in_float32(tmp_path: Path) -> None:
    folder, found = tiny_model.write(tmp_path / "tiny"), []
    for dtype in (torch.float32, torch.bfloat16):
        model = add_lora(checkpoints.load(folder, torch.float32), Lora(rank=4, alpha=12), 0)
        for layer in (layer for layer in model.modules() if isinstance(layer, Linear)):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(0))
        found.append(outcome(model.to(dtype))[1])
    for name, gradient in found[0].items():
        assert torch.cosine_similarity(gradient.flatten(), found[1][name].float().flatten(), 0) > 0.99, name


def test_weights_are_rounded_without_bias_and_always_alike() -> None:
    torch.manual_seed(0)
    weight, change = torch.randn(512, 384).bfloat16(), 1e-4 * torch.randn(512, 384)
    exact = weight.float() + change
    assert torch.equal(rounded(weight.float(), torch.bfloat16), weight)
    found = rounded(exact, torch.bfloat16)
    assert torch.equal(found, rounded(exact, torch.bfloat16))
    assert kept(change, found.double() - weight.double()) == pytest.approx(1, abs=0.1)
    assert kept(change, exact.bfloat16().double() - weight.double()) < 0.6
    nearest = exact.bfloat16().view(torch.int16).int()
    assert (found.view(torch.int16).int() - nearest).abs().max() == 1  # a neighbour at most
    assert torch.equal(rounded(exact, torch.float32), exact)
    assert rounded(torch.tensor([torch.inf, -torch.inf]), torch.bfloat16).isinf().all() and rounded(torch.tensor([torch.nan]), torch.bfloat16).isnan()


def test_a_young_adapter_is_merged_into_bfloat16_and_not_lost(tmp_path: Path) -> None:
    folder = tiny_model.write(tmp_path / "tiny", dtype="bfloat16")
    tuned = add_lora(checkpoints.load(folder, torch.float32), Lora(rank=4), 0)
    layers = {name.removeprefix("base_model.model."): layer for name, layer in tuned.named_modules() if isinstance(layer, Linear)}
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=2e-4)
    checkpoints.save(tuned, {name: p for name, p in tuned.named_parameters() if p.requires_grad}, True, torch.float32, tmp_path / "adapter")
    base, merged = (checkpoints.load(path) for path in (folder, checkpoints.merge(folder, tmp_path, tmp_path / "merged")))
    assert merged.dtype == torch.bfloat16
    changes = [merged.get_submodule(name).weight.float() - base.get_submodule(name).weight.float() for name in layers]
    expected = torch.cat([layer.get_delta_weight("default").flatten() for layer in layers.values()])
    assert kept(expected, torch.cat([change.flatten() for change in changes])) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("reached", ["lm_head", "model.embed_tokens"])
def test_targets_that_reach_a_tied_head_are_refused(tmp_path: Path, reached: str) -> None:
    """Merged, such an adapter would change the embedding too: a model that was never tuned would be scored."""
    folder = tiny_model.write(tmp_path / "tiny")
    check_targets("tunables.xs", folder, ".*(q_proj|v_proj)")
    with pytest.raises(UserError, match=f"lora.targets.* takes in {reached}, .*tunables.xs"):
        check_targets("tunables.xs", folder, f".*(q_proj|v_proj)|{reached}")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    check_targets("tunables.xs", folder, f".*(q_proj|v_proj)|{reached}")
