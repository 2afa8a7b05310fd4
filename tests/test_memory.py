"""What tuning takes of memory: tokens at once, and when activations are computed twice."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_model
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from fiat_ray.config import Lora
from fiat_ray.render import Piece, Prompt
from fiat_ray.tune import memory
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune.adapter import add_lora
from fiat_ray.tune.attention import _WithStart, keys_kept, plan, register
from fiat_ray.tune.batches import Supervised, common_start, micro_batches, pack
from fiat_ray.tune.loss import SupervisedLoss

SHAPE = SimpleNamespace(
    hidden_size=1024,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=3072,
    num_hidden_layers=28,
    vocab_size=151936,
)
"""Of a model of 0.6 billion parameters."""

GIB = 2**30


def items(lengths: list[int], target: int = 3) -> list[Supervised]:
    """Prompts that begin with the same four tokens."""
    rows = [[5, 6, 7, 8, *(9 + (number + at) % 40 for at in range(length - 4))] for number, length in enumerate(lengths)]
    pieces = [(Piece("input", "", tuple(row[:-target])), Piece("target", "", tuple(row[-target:]))) for row in rows]
    return [Supervised(Prompt(piece), 1 / (target * len(rows))) for piece in pieces]


def test_a_large_gpu_takes_full_speed_and_computes_nothing_twice() -> None:
    at_once, checkpointing = memory.passes(SHAPE, torch.bfloat16, 60 * GIB, 2048, 32768)
    assert at_once.tokens == 32768 and not checkpointing


def test_a_smaller_one_takes_fewer_tokens_before_it_computes_anything_twice() -> None:
    at_once, checkpointing = memory.passes(SHAPE, torch.bfloat16, 12 * GIB, 2048, 16384)
    assert 2048 <= at_once.tokens < 16384 and not checkpointing


def test_activations_are_computed_twice_where_a_prompt_would_not_fit_otherwise() -> None:
    room = 12 * GIB
    fits = memory.passes(SHAPE, torch.bfloat16, room, 2048, 16384).at_once.tokens
    at_once, checkpointing = memory.passes(SHAPE, torch.bfloat16, room, fits + 1, 16384)
    assert checkpointing and at_once.tokens > fits
    assert not memory.passes(SHAPE, torch.bfloat16, room, fits, 16384).checkpointing


def test_without_room_a_prompt_is_tried_all_the_same() -> None:
    assert memory.passes(SHAPE, torch.bfloat16, -GIB, 2048, 16384) == ((1, 1), True)


@pytest.mark.parametrize("vocabulary", [49152, 151936, 262144])
@pytest.mark.parametrize("gib", [2, 4, 12, 24, 60])
@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_what_goes_through_together_has_room_for_its_logits(vocabulary: int, gib: int, share: float) -> None:
    """However many of the tokens are supervised: each has 12 bytes for every word of the vocabulary."""
    shape, room = SimpleNamespace(**vars(SHAPE) | {"vocab_size": vocabulary}), gib * GIB
    at_once, checkpointing = memory.passes(shape, torch.bfloat16, room, 1024, 32768)
    length = 100
    for batch in micro_batches(items([length] * 400, target=max(1, int(share * (length - 5)))), at_once):
        tokens, supervised = sum(len(item.prompt) for item in batch), sum(item.tokens for item in batch)
        activations = tokens * memory.activation_bytes(shape, torch.bfloat16)[checkpointing]
        assert activations + 12 * supervised * vocabulary <= room


def test_few_supervised_tokens_split_no_batch() -> None:
    """SmolLM2-135M in float32 on a laptop with 16 GB: micro-batches are those that tokens alone would make."""
    small = SimpleNamespace(
        hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152
    )
    at_once, checkpointing = memory.passes(small, torch.float32, 12 * GIB, 1024, memory.FULL_SPEED["cpu"])
    assert at_once.tokens == memory.FULL_SPEED["cpu"] <= at_once.supervised and not checkpointing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_take_what_the_plan_says(dtype: torch.dtype) -> None:
    """Measured: the most that a loss and its gradient have allocated at once, where a wide vocabulary dwarfs all else."""
    shape = LlamaConfig(vocab_size=20000, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    model = add_lora(LlamaForCausalLM(shape).to(dtype), Lora(rank=1), 0)
    rows = items([150, 150], target=100)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        SupervisedLoss(model)(pack(rows, torch.device("cpu"))).backward()
    allocated = accumulate(event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    assert max(allocated) == pytest.approx(200 * memory.logit_bytes(shape), rel=0.05)


def test_weights_of_attention_on_a_cpu_take_what_the_plan_says() -> None:
    """Measured: the most that a loss and its gradient have allocated at once, where prompts are long and heads are many, but narrow."""
    register()
    shape = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=8, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=8)
    model = add_lora(LlamaForCausalLM._from_config(shape, attn_implementation="packed"), Lora(rank=1), 0)
    longest = 500
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        SupervisedLoss(model)(pack(items([longest] * 2), torch.device("cpu"))).backward()
    allocated = accumulate(event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    kept, _ = memory.activation_bytes(shape, torch.float32, keys_kept(longest, torch.device("cpu")))
    assert max(allocated) == pytest.approx(2 * longest * kept, rel=0.1)


@pytest.mark.parametrize(("half", "weight", "gradient", "optimizer"), [(True, 2, 6, 12), (False, 4, 8, 8)])
def test_state(half: bool, weight: int, gradient: int, optimizer: int) -> None:
    """A tuned parameter in bfloat16: 2 weight, 2 gradient, 4 sum of gradients, 4 master, 8 moments; in float32: 4, 4, 4, 8."""
    for stage in range(4):
        assert memory.state_bytes(12, 8, half, stage, 1) == 20 * weight + 8 * (gradient + optimizer)
    assert memory.state_bytes(12, 8, half, 0, 4) == 20 * weight + 8 * (gradient + optimizer)
    assert memory.state_bytes(12, 8, half, 1, 4) == 20 * weight + 8 * gradient + 2 * optimizer
    assert memory.state_bytes(12, 8, half, 2, 4) == 20 * weight + 2 * (gradient + optimizer)
    assert memory.state_bytes(12, 8, half, 3, 4) == 5 * weight + 2 * (gradient + optimizer)


def test_eight_billion_parameters_have_room_on_four_gpus_that_share_them() -> None:
    """Full tuning of a model of Qwen3-8B's shape, 80 GB a GPU: without ZeRO-3 not even one prompt would fit."""
    larger = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 12288, "num_hidden_layers": 36}
    shape = SimpleNamespace(**vars(SHAPE) | larger)
    room = {stage: int(80e9 * memory.USABLE) - memory.state_bytes(0, 8_190_000_000, True, stage, 4) for stage in (1, 3)}
    assert memory.passes(shape, torch.bfloat16, room[1], 4096, 32768) == ((1, 1), True)
    assert memory.passes(shape, torch.bfloat16, room[3], 4096, 32768).at_once.tokens >= 4096


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_activations_computed_twice_give_the_same_loss_and_gradients(tmp_path: Path, lora: Lora | None) -> None:
    found = []
    rows = items([20, 31, 12])
    for checkpointing in (False, True):
        model = checkpoints.load(tiny_model.write(tmp_path / "tiny"), torch.float32)
        if lora:
            model = add_lora(model, lora, 0)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = SupervisedLoss(model.train())(pack(rows, torch.device("cpu"), common_start(rows)))
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (loss, gradients), (again, of_again) = found
    assert loss == again
    assert gradients and all(torch.equal(a, b) for a, b in zip(gradients, of_again, strict=True))


def test_keys_of_the_one_kernel_begin_with_the_start_and_their_gradient_is_the_plain_one() -> None:
    """(T,) tokens in prompts of 7, 2 and 3, the last two without the 4 that all begin with."""
    made = plan((0, 7, 9, 12), 4, torch.device("cpu"))
    assert made.sources.tolist() == [*range(7), *range(4), 7, 8, *range(4), 9, 10, 11]
    assert made.queries.tolist() == [0, 7, 9, 12] and made.keys.tolist() == [0, 7, 13, 20] and made.longest == 256
    tokens, factors = torch.randn(12, 2, 3, requires_grad=True), torch.randn(20, 2, 3)
    (_WithStart.apply(tokens, made.sources, made.places, made.starts) * factors).sum().backward()
    found, tokens.grad = tokens.grad, None
    (tokens[made.sources] * factors).sum().backward()
    assert found is not None and tokens.grad is not None and torch.allclose(found, tokens.grad, atol=1e-6)
