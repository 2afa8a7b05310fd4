"""Attention within the prompts of a packed micro-batch: no padding, no mask, and no example sees another.

Registered with transformers as the attention implementation ``packed``. The linear layers see all tokens of a micro-batch at once, which is where
the time goes; attention, whose cost grows with the square of the length, runs prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "packed"

SHORT = 512
"""Tokens of a prompt up to which plain matrix products, which keep all weights of attention, beat the fused kernel on a CPU."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    bounds: Sequence[int] | None = None,
    shared: int = 0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(B, heads, T, d) queries, (B, kv_heads, T, d) keys and values → (B, T, heads, d).

    With ``bounds`` (B is 1) prompt i attends to tokens bounds[i] … bounds[i + 1] alone, and to the first ``shared`` tokens, which all begin with;
    without ``bounds`` this is transformers' sdpa.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if bounds is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    lengths = [end - start for start, end in pairwise(bounds)]
    # Split, not sliced: the gradient of a slice is as large as the whole, zeros but for one prompt, and all of them are added up.
    start, *own = zip(*(tensor.split([shared, lengths[0] - shared, *lengths[1:]], 2) for tensor in (query, key, value)), strict=True)
    prompts = [[torch.cat(both, 2) for both in zip(start, prompt, strict=True)] for prompt in own] if shared else own
    if query.device.type == "cpu" and max([lengths[0], *(shared + length for length in lengths[1:])]) <= SHORT:
        asking = [start, *own] if shared else own
        answering = [start, *prompts] if shared else prompts
        parts = [_short(q, k, v, scaling) for (q, _, _), (_, k, v) in zip(asking, answering, strict=True)]
    else:
        # The start asks again in every prompt: queries that end where keys do are what the causal kernels take.
        parts = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in prompts]
        parts[1:] = [part[:, :, shared:] for part in parts[1:]]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _short(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """The last n of m tokens attend: (1, heads, n, d) queries, (1, kv_heads, m, d) keys and values → (1, heads, n, d)."""
    (_, heads, n, d), (_, kv_heads, m, _) = query.shape, key.shape
    groups = heads // kv_heads
    scale = d**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(_unseen(n, m, groups, query.dtype), query.reshape(kv_heads, groups * n, d), key[0].transpose(1, 2), alpha=scale)
    return (scores.softmax(-1) @ value[0]).view(1, heads, n, d)


@lru_cache(maxsize=64)  # every layer asks for the same
def _unseen(n: int, m: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, groups · n, m): −∞ where a key comes after its query."""
    return torch.full((n, m), float("-inf"), dtype=dtype).triu_(m - n + 1).repeat(groups, 1)[None]


def register() -> None:
    """Make ``attn_implementation="packed"`` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
        return sdpa_mask(*arguments, **options)

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, mask)
