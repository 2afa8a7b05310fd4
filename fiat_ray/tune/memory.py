"""What tuning takes of a device's memory: how many tokens go through the model together, and whether their activations are computed twice.

An estimate from a model's shape, so that the same hardware always takes the same micro-batches; what is free at the moment decides nothing.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from fiat_ray import cpu

FULL_SPEED = {"cuda": 32768, "cpu": 2048}
"""Tokens of a micro-batch at which matrix products reach their speed, and a GPU waits for no launch of a kernel."""

ENOUGH = 1024
"""So few are slower, but not as slow as computing activations twice."""

USABLE = 0.85
"""Share of a device's memory: the rest is the framework's own, and lost between allocations."""

SUPERVISED = 1 / 8
"""Share of tokens whose logits have room where it is short: answers are fewer of a prompt, rationales more, which then make smaller micro-batches."""


class AtOnce(NamedTuple):
    """Most that goes through the model together."""

    tokens: int
    supervised: int
    """Of the tokens: each has logits over the whole vocabulary."""


class Passes(NamedTuple):
    """How prompts pass through the model."""

    at_once: AtOnce
    checkpointing: bool
    """Whether activations are thrown away and computed again in the backward pass."""

    @property
    def without_gradients(self) -> AtOnce:
        """Where no backward pass follows; logits then take nearly as much as before one."""
        return self.at_once if self.checkpointing else self.at_once._replace(tokens=4 * self.at_once.tokens)


def of_device(device: torch.device, share: float = 1.0) -> int:
    """Bytes. ``share``: of a GPU, or a machine, that several workers use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * share)
    return int(min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), cpu.memory_limit()) * share)


def state_bytes(frozen: int, tuned: int, half: bool, stage: int, workers: int) -> int:
    """Weights, gradients and AdamW's state of so many parameters, on each worker. ``half``: weights are bfloat16, with float32 masters.

    ``stage``: of ZeRO, which spreads masters and moments over workers from 1 on, gradients from 2 on, and weights at 3.
    """
    weight = 2 if half else 4
    spread = [workers if stage >= least else 1 for least in (3, 2, 1)]
    state = ((frozen + tuned) * weight, tuned * (weight + 4), tuned * (12 if half else 8))
    return sum(size // over for size, over in zip(state, spread, strict=True))


def passes(config: Any, dtype: torch.dtype, room: int, longest: int, most: int, attended: int = 0) -> Passes:
    """``config``: the model's; ``room``: bytes for activations and logits; in tokens, ``longest``: the longest prompt, ``most``: at once;
    ``attended``: what ``attention.keys_kept`` gives."""
    kept, kept_of_layer = activation_bytes(config, dtype, attended)
    at_once = _at_once(room, kept, logit_bytes(config), most)
    if at_once.tokens >= min(most, max(longest, ENOUGH)):
        return Passes(at_once, False)
    return Passes(_at_once(room, kept_of_layer, logit_bytes(config), most), True)


def _at_once(room: int, kept: int, logits: int, most: int) -> AtOnce:
    """``kept`` and ``logits``: bytes of a token, and of a supervised one besides."""
    tokens = max(1, min(most, int(room / (kept + SUPERVISED * logits))))
    return AtOnce(tokens, max(1, (room - tokens * kept) // logits))


def logit_bytes(config: Any) -> int:
    """Of one supervised token, in any precision: its log-probabilities, their gradient and that of its logits are there together, in float32."""
    return 3 * torch.float32.itemsize * int(config.vocab_size)


def activation_bytes(config: Any, dtype: torch.dtype, attended: int = 0) -> tuple[int, int]:
    """Of one token: all that the backward pass reads; and with activations computed again, of each layer its input, and all of one layer."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    asked, answered = heads * size, 2 * (getattr(config, "num_key_value_heads", None) or heads) * size
    # Of two norms and two sums what goes in and what comes out; q, k, v before and after rotation, attention's output; gate, its SiLU, up, their
    # product. Compiled layers keep two thirds of it. And weights of attention, for so many keys in each head.
    elements = 8 * hidden + 2 * (asked + answered) + asked + 4 * config.intermediate_size + heads * attended
    layer, layers = elements * dtype.itemsize, config.num_hidden_layers
    return layer * layers, hidden * dtype.itemsize * layers + layer
