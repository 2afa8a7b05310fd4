"""Attention within packed prompts by plain matrix products, which a CPU is fastest at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count, pairwise
from typing import Any, NamedTuple

import torch

BLOCK = 128
"""Most queries that are asked together: they meet the keys up to their own end, so that of later ones, which are masked, few are computed."""

BUSY = 0.9
"""Least share of the threads that have something to do, where heads are enough: in a batch each product is one thread's."""


class Block(NamedTuple):
    """Queries of a prompt that are asked together."""

    prompt: int
    before: int
    """Keys of the prompt before the first of them; all see those."""
    later: torch.Tensor
    """(queries and padding, times groups; queries): −∞ where a key comes after its query, 0 elsewhere."""


class Layout(NamedTuple):
    """Operands of all products, gathered at once: a block's queries one behind the other, a prompt's keys with the shared start before them.

    For each key's head there are ``parts`` products, with equally many of its queries in each. A row is what one token has of one key's head.
    """

    blocks: list[Block]
    parts: int
    sizes_of_blocks: list[int]
    """In rows; so are the prompts'."""
    sizes_of_prompts: list[int]
    asked: torch.Tensor
    """(Q,) int64: which of the T · kv_heads rows of queries stand there."""
    padding: torch.Tensor
    """Of Q, those that only make parts equal."""
    answers: torch.Tensor
    """(T · kv_heads,) int64: where among Q each is answered."""
    seen: torch.Tensor
    """(K,) int64: which of the T · kv_heads rows of keys stand there."""
    own: torch.Tensor
    """(T, kv_heads · parts) int64: where among K those of each token are, in its own prompt."""
    starts: torch.Tensor
    """(prompts − 1, shared, kv_heads · parts) int64: where those of the shared start are, in the others."""


@lru_cache(maxsize=4)
def layout(bounds: tuple[int, ...], shared: int, kv_heads: int, groups: int, threads: int, dtype: torch.dtype) -> Layout:
    """For all layers of a model, and both ways. ``bounds``, ``shared``: as in ``attention.packed_attention``; ``groups``: heads for one of a key."""
    busy = (n for n in count(1) if kv_heads * n >= BUSY * threads * -(-kv_heads * n // threads))
    parts = min(next(busy), groups)  # each has keys and values of its own
    heads = torch.arange(kv_heads)[:, None]
    blocks, asked, is_padding, seen = [], [], [], []
    for prompt, (start, end) in enumerate(pairwise(bounds)):
        before = shared if prompt else 0
        tokens = torch.cat([torch.arange(before), torch.arange(start, end)])
        seen.append((tokens * kv_heads + heads).repeat_interleave(parts, 0).flatten())
        for at, to in _blocks(start, end):
            equal = next(n for n in count(to - at) if n * groups % parts == 0)
            later = torch.full((equal, to - at), float("-inf"), dtype=dtype).triu_(1).repeat_interleave(groups, 0)
            blocks.append(Block(prompt, before + at - start, later))
            asked.append((torch.arange(at, at + equal).clamp(max=to - 1) * kv_heads + heads).flatten())
            is_padding.append((torch.arange(equal) >= to - at).repeat(kv_heads))
    queries, padding = torch.cat(asked), torch.cat(is_padding)
    answers = torch.empty(bounds[-1] * kv_heads, dtype=torch.int64)
    answers[queries[~padding]] = (~padding).nonzero()[:, 0]
    sizes = [*map(len, seen)]
    first, *others = (rows.view(kv_heads * parts, -1).t() for rows in torch.arange(sum(sizes)).split(sizes))
    own = torch.cat([first, *(rows[shared:] for rows in others)])
    starts = torch.stack([rows[:shared] for rows in others]) if others else own.new_empty(0, shared, kv_heads * parts)
    return Layout(blocks, parts, [*map(len, asked)], sizes, queries, padding.nonzero()[:, 0], answers, torch.cat(seen), own, starts)


class CausalBlocks(torch.autograd.Function):
    """(1, heads, T, d) queries, (1, kv_heads, T, d) keys and values → (1, T, heads, d). It keeps all weights of attention for the way back."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int], shared: int, scale: float
    ) -> torch.Tensor:
        """``bounds``, ``shared``: as in ``attention.packed_attention``."""
        (_, heads, _, d), kv_heads = query.shape, key.shape[1]
        at = layout(tuple(bounds), shared, kv_heads, heads // kv_heads, torch.get_num_threads(), query.dtype)
        ctx.at, ctx.scale, ctx.batch = at, scale, (kv_heads * at.parts, -1, d)
        q, k, v = (_rows(t.transpose(1, 2), kv_heads, rows) for t, rows in ((query, at.asked), (key, at.seen), (value, at.seen)))
        answers, weights = torch.empty_like(q), []
        keys, values = (_products(t, at.sizes_of_prompts, ctx.batch) for t in (k, v))
        for block, asked, answer in zip(at.blocks, *(_products(t, at.sizes_of_blocks, ctx.batch) for t in (q, answers)), strict=True):
            seen = block.before + block.later.shape[1]
            scores = _product(asked, keys[block.prompt][:, :seen].transpose(1, 2), scale)
            scores.view(kv_heads, -1, seen)[..., block.before :] += block.later
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, values[block.prompt][:, :seen], out=answer)
            if any(ctx.needs_input_grad):
                weights.append(scores)
        ctx.save_for_backward(q, k, v, *weights)
        return answers.index_select(0, at.answers).view(1, -1, heads, d)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        at, (q, k, v, *kept) = ctx.at, ctx.saved_tensors
        of_answers = _rows(gradient, at.own.shape[1] // at.parts, at.asked).index_fill_(0, at.padding, 0)
        # Sums over blocks, and those of the shared start over prompts, are not rounded on their way.
        exact = torch.promote_types(gradient.dtype, torch.float32)
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k, dtype=exact), torch.zeros_like(v, dtype=exact)
        keys, values, of_keys, of_values = (_products(t, at.sizes_of_prompts, ctx.batch) for t in (k, v, of_k, of_v))
        by_block = (_products(t, at.sizes_of_blocks, ctx.batch) for t in (q, of_q, of_answers))
        for block, weights, asked, of_asked, of_answer in zip(at.blocks, kept, *by_block, strict=True):
            seen = weights.shape[2]
            of_weights = torch.bmm(of_answer, values[block.prompt][:, :seen].transpose(1, 2))
            # First, as it streams the weights into the caches, where the next product would wait for each.
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype, grad_input=of_weights)
            of_values[block.prompt][:, :seen] += torch.bmm(weights.transpose(1, 2), of_answer)
            _product(of_scores, keys[block.prompt][:, :seen], ctx.scale, of_asked)
            of_keys[block.prompt][:, :seen] += torch.bmm(of_scores.transpose(1, 2), asked)
        of_query = of_q.index_select(0, at.answers).view(gradient.shape)
        of_key, of_value = (_summed(t, at, ctx.batch[-1]) for t in (of_k.mul_(ctx.scale), of_v))
        return *(found.to(gradient.dtype).transpose(1, 2) for found in (of_query, of_key, of_value)), None, None, None


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Of about equal sizes."""
    blocks = -(-(end - start) // BLOCK)
    size = -(-(end - start) // blocks)
    for at in range(start, end, size):
        yield at, min(at + size, end)


def _rows(tensor: torch.Tensor, kv_heads: int, which: torch.Tensor) -> torch.Tensor:
    """(1, T, heads, d) → (N, groups · d), those of T · kv_heads that are asked for."""
    return tensor.reshape(tensor.shape[1] * kv_heads, -1).index_select(0, which)


def _products(rows: torch.Tensor, sizes: list[int], batch: tuple[int, int, int]) -> list[torch.Tensor]:
    """Of each block or prompt (kv_heads · parts, queries or keys, d), the same memory."""
    return [part.view(batch) for part in rows.split(sizes)]


def _product(a: torch.Tensor, b: torch.Tensor, scale: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """scale · a b, rounded once."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale, out=out)


def _summed(found: torch.Tensor, at: Layout, d: int) -> torch.Tensor:
    """(K, d) → (1, T, kv_heads, d): over parts, and for the shared start over prompts."""
    gathered = (found.index_select(0, rows.flatten()).view(*rows.shape, d) for rows in (at.own, at.starts))
    sums, of_starts = (rows.unflatten(-2, (rows.shape[-2] // at.parts, at.parts)).sum(-2) for rows in gathered)
    sums[: of_starts.shape[1]] += of_starts.sum(0)
    return sums[None]
