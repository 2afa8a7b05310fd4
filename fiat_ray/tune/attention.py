"""Attention within the prompts of a packed micro-batch: no padding, no mask, and no example sees another.

Registered with transformers as the attention implementation ``packed``. The linear layers see all tokens of a micro-batch at once, which is where
the time goes; attention, whose cost grows with the square of the length, runs prompt by prompt with the fused causal kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "packed"


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
    # The start asks again in every prompt: queries that end where keys do are what the causal kernels take.
    parts = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in prompts]
    parts[1:] = [part[:, :, shared:] for part in parts[1:]]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make ``attn_implementation="packed"`` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
        return sdpa_mask(*arguments, **options)

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, mask)
