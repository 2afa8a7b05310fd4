"""FLOPs that tuning all parameters really needs: no padding, the head for supervised tokens only, attention within prompts, nothing computed twice,
and what all prompts of a step begin with once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fiat_ray.tune.batches import Supervised, common_start

PEAK = 989e12
"""FLOP/s of an H100 or H200 in bfloat16, as its data sheet has it for dense products."""
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
"""Of Qwen3-0.6B."""


def flops_of_step(config: Any, items: Sequence[Supervised]) -> float:
    """``config``: the model's. Forward, and twice that backward; a multiplication and its sum are two."""
    hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    start = common_start(items)
    own = [len(item.prompt) - start for item in items]
    weights = hidden * size * (2 * heads + 2 * config.num_key_value_heads) + 3 * hidden * config.intermediate_size
    pairs = start * (start + 1) // 2 + sum(n * start + n * (n + 1) // 2 for n in own)
    forward = 2 * layers * weights * (start + sum(own))
    forward += 4 * layers * heads * size * pairs  # of queries with keys, and of their weights with values
    forward += 2 * hidden * config.vocab_size * sum(item.tokens for item in items)
    return 3.0 * forward
