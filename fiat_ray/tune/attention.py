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
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(B, heads, T, d) queries, (B, kv_heads, T, d) keys and values → (B, T, heads, d).

    With ``bounds`` (B is 1) prompt i attends to tokens bounds[i] … bounds[i + 1] alone; without them, as in validation, this is transformers' sdpa.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if bounds is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    lengths = [end - start for start, end in pairwise(bounds)]
    # Split, not sliced: the gradient of a slice is as large as the whole, zeros but for one prompt, and all of them are added up.
    prompts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    parts = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in prompts]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make ``attn_implementation="packed"`` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
        return sdpa_mask(*arguments, **options)

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, mask)
