"""Attention within the prompts of a packed micro-batch: no padding, no mask, and no example sees another.

Registered with transformers as the attention implementation ``packed``. The linear layers see all tokens of a micro-batch at once, which is where
the time goes; attention, whose cost grows with the square of the length, runs prompt by prompt, on GPUs within one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from fiat_ray.tune.attention_on_cpu import BLOCK, CausalBlocks

NAME = "packed"

LONGEST_STEP = 256
"""What the longest prompt's tokens are rounded up to: for each other value compiled code is compiled again."""

SHORT = 1024
"""Tokens of a prompt up to which plain matrix products, which keep all weights of attention, pay on a CPU: at 512 they take 0.61 of
the fused kernel's time, at 1024 0.79, at 2048 0.83."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    bounds: Sequence[int] | None = None,
    shared: int = 0,
    plan: Plan | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(B, heads, T, d) queries, (B, kv_heads, T, d) keys and values → (B, T, heads, d).

    With ``bounds`` (B is 1) prompt i attends to tokens bounds[i] … bounds[i + 1] alone, and to the first ``shared`` tokens, which all begin with;
    ``plan`` says the same to a GPU; without either this is transformers' sdpa.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if plan is not None:
        return _one_kernel(query, key, value, plan, scaling)[None], None
    if bounds is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    lengths = [end - start for start, end in pairwise(bounds)]
    short = max([lengths[0], *(shared + length for length in lengths[1:])]) <= SHORT
    if query.device.type == "cpu" and short and query.shape[-1] == value.shape[-1]:
        return CausalBlocks.apply(query, key, value, bounds, shared, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    # Split, not sliced: the gradient of a slice is as large as the whole, zeros but for one prompt, and all of them are added up.
    start, *own = zip(*(tensor.split([shared, lengths[0] - shared, *lengths[1:]], 2) for tensor in (query, key, value)), strict=True)
    prompts = [[torch.cat(both, 2) for both in zip(start, prompt, strict=True)] for prompt in own] if shared else own
    # The start asks again in every prompt: queries that end where keys do are what the causal kernels take.
    parts = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in prompts]
    parts[1:] = [part[:, :, shared:] for part in parts[1:]]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


class Plan(NamedTuple):
    """Where prompts lie among T packed queries and among their keys, each of which has the shared start before its own; on a GPU."""

    queries: torch.Tensor
    """(N + 1,) int32: bounds."""
    keys: torch.Tensor
    """(N + 1,) int32, the same of keys."""
    longest: int
    """No prompt has more tokens, its start among them."""
    sources: torch.Tensor
    """(keys,) int64: which of the T tokens each key is."""
    places: torch.Tensor
    """(T,) int64: where each token stands among the keys; those of the start, in the first prompt."""
    starts: torch.Tensor
    """(N - 1, shared) int64: where the others' copies of the start stand."""


def plan(bounds: Sequence[int], shared: int, device: torch.device) -> Plan:
    """``bounds``, ``shared``: as in ``packed_attention``."""
    own = [range(start, end) for start, end in pairwise(bounds)]
    tokens = [[*range(shared), *prompt] if number else [*prompt] for number, prompt in enumerate(own)]
    keys = [0, *accumulate(map(len, tokens))]
    places = [at for number, end in enumerate(keys[1:]) for at in range(end - len(own[number]), end)]
    starts = [list(range(start, start + shared)) for start in keys[1:-1]]
    longest = -(-max(map(len, tokens)) // LONGEST_STEP) * LONGEST_STEP
    return Plan(
        torch.tensor(bounds, dtype=torch.int32, device=device),
        torch.tensor(keys, dtype=torch.int32, device=device),
        longest,
        torch.tensor([token for prompt in tokens for token in prompt], device=device),
        torch.tensor(places, device=device),
        torch.tensor(starts, dtype=torch.int64, device=device).view(len(starts), shared),
    )


def _one_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Plan, scaling: float | None) -> torch.Tensor:
    """Flash attention over prompts of any lengths; the arguments of ``packed_attention`` → (T, heads, d)."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if plan.starts.shape[1]:
        key, value = (_WithStart.apply(tensor, plan.sources, plan.places, plan.starts) for tensor in (key, value))
    return _flash(query, key, value, plan.queries, plan.keys, plan.longest, scaling)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, longest: int, scaling: float | None
) -> torch.Tensor:
    """Causal; where queries are fewer than keys, they are the last ones. torch's public ``varlen_attn`` has other arguments in each version."""
    return torch.ops.aten._flash_attention_forward(  # type: ignore[no-any-return]
        query, key, value, queries, keys, longest, longest, 0.0, True, False, scale=scaling
    )[0]


class _WithStart(torch.autograd.Function):
    """(T, …) → (keys, …): each prompt with the shared start before it. Its gradient is gathered, not scattered: the same to the bit every time."""

    @staticmethod
    def forward(context: Any, tokens: torch.Tensor, sources: torch.Tensor, places: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(places, starts)
        return tokens[sources]

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (places, starts) = gradients, context.saved_tensors
        shared = starts.shape[1]
        of_starts = gradient[starts].sum(0, dtype=torch.float32).to(gradient.dtype)
        own = gradient[places]
        return torch.cat([own[:shared] + of_starts, own[shared:]]), None, None, None


def keys_kept(longest: int, device: torch.device) -> int:
    """For so many keys each head keeps a token's weights of attention for the way back, on average at most, where no prompt has more tokens than
    ``longest``; fused kernels keep none."""
    return (min(longest, SHORT) + BLOCK) // 2 if device.type == "cpu" else 0


def register() -> None:
    """Make ``attn_implementation="packed"`` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
        """None for whole prompts without padding: bounds tell them apart, or attention is causal. A mask holds a value for each pair."""
        if options.get("attention_mask") is None and options.get("q_length") == options.get("kv_length"):
            return None
        return sdpa_mask(*arguments, **options)

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, mask)
