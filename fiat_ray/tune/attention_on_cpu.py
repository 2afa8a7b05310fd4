"""Attention within packed prompts by plain matrix products, which a CPU is fastest at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch

BLOCK = 192
"""Most queries that are asked together: they meet the keys up to their own end, so that of later ones, which are masked, few are computed."""


class CausalBlocks(torch.autograd.Function):
    """(1, heads, T, d) queries, (1, kv_heads, T, d) keys and values → (1, T, heads, d). It keeps all weights of attention for the way back."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int], shared: int, scale: float
    ) -> torch.Tensor:
        """``bounds``, ``shared``: as in ``attention.packed_attention``."""
        (_, heads, tokens, d), kv_heads = query.shape, key.shape[1]
        result = query.new_empty(1, tokens, heads, d)
        q, out = (_by_kv_head(tensor, kv_heads) for tensor in (query.transpose(1, 2), result))
        kept = []
        for start, end, before in _prompts(bounds, shared):
            k, v = (torch.cat([tensor[0, :, :before], tensor[0, :, start:end]], 1) for tensor in (key, value))
            kept += [k, v]
            for at, to in _blocks(start, end):
                seen = before + to - start
                asked = q[:, :, at:to].reshape(kv_heads, -1, d)
                scores = _product(asked, k[:, :seen].transpose(1, 2), scale).view(kv_heads, -1, to - at, seen)
                scores[..., seen - (to - at) :] += _later(query.dtype)[: to - at, : to - at]
                weights = scores.softmax(-1).view(kv_heads, -1, seen)
                out[:, :, at:to] = _product(weights, v[:, :seen]).view(kv_heads, -1, to - at, d)
                kept += [asked, weights]
        ctx.save_for_backward(*kept)
        ctx.asked = (bounds, shared, scale, kv_heads)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        (bounds, shared, scale, kv_heads), kept = ctx.asked, iter(ctx.saved_tensors)
        _, tokens, _, d = gradient.shape
        of_out = _by_kv_head(gradient, kv_heads)
        of_q = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        # Sums over blocks, and those of the shared start over prompts, are not rounded on their way.
        exact = torch.promote_types(gradient.dtype, torch.float32)
        of_k, of_v = (gradient.new_empty(1, tokens, kv_heads, d, dtype=exact) for _ in range(2))
        by_kv_head = _by_kv_head(of_q, kv_heads)
        for start, end, before in _prompts(bounds, shared):
            k, v = next(kept), next(kept)
            own_k, own_v = (torch.zeros_like(k, dtype=exact) for _ in range(2))
            for at, to in _blocks(start, end):
                seen = before + to - start
                asked, weights = next(kept), next(kept)
                of_answer = of_out[:, :, at:to].reshape(kv_heads, -1, d)
                own_v[:, :seen] += _product(weights.transpose(1, 2), of_answer)
                of_weights = _product(of_answer, v[:, :seen].transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                by_kv_head[:, :, at:to] = _product(of_scores, k[:, :seen], scale).view(kv_heads, -1, to - at, d)
                own_k[:, :seen] += _product(of_scores.transpose(1, 2), asked)
            for of_all, own in ((of_k, own_k.mul_(scale)), (of_v, own_v)):
                of_all[0, start:end] = own[:, before:].transpose(0, 1)
                of_all[0, :before] += own[:, :before].transpose(0, 1)
        return *(found.to(gradient.dtype).transpose(1, 2) for found in (of_q, of_k, of_v)), None, None, None


def _prompts(bounds: Sequence[int], shared: int) -> Iterator[tuple[int, int, int]]:
    """Where each begins and ends, and how many tokens of the first stand before it."""
    for number, (start, end) in enumerate(pairwise(bounds)):
        yield start, end, shared if number else 0


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Of about equal sizes."""
    blocks = -(-(end - start) // BLOCK)
    size = -(-(end - start) // blocks)
    for at in range(start, end, size):
        yield at, min(at + size, end)


def _product(a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """scale · a b, rounded once: (kv_heads, m, k), (kv_heads, k, n) → (kv_heads, m, n).

    In a batch each product is one thread's, so with three of them one of two threads would wait; what is left over is computed by all together.
    """
    nothing, together = a.new_empty(1, 1), len(a) - len(a) % torch.get_num_threads()
    result = a.new_empty(len(a), a.shape[1], b.shape[2])
    if together:
        torch.baddbmm(nothing, a[:together], b[:together], beta=0, alpha=scale, out=result[:together])
    for left, right, out in zip(a[together:], b[together:], result[together:], strict=True):
        torch.addmm(nothing, left, right, beta=0, alpha=scale, out=out)
    return result


def _by_kv_head(tensor: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(1, T, heads, d) → (kv_heads, groups, T, d), the same memory."""
    return tensor[0].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)


@cache
def _later(dtype: torch.dtype) -> torch.Tensor:
    """−∞ where a key comes after its query."""
    return torch.full((BLOCK, BLOCK), float("-inf"), dtype=dtype).triu_(1)
