"""Attention within packed prompts, against each prompt's own with a mask over all pairs. In float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fiat_ray.tune.attention import SHORT, packed_attention
from fiat_ray.tune.attention_on_cpu import BLOCK

HEADS, KV_HEADS, D = 6, 2, 8


def alone(tensors: list[torch.Tensor], bounds: list[int], shared: int) -> torch.Tensor:
    """(1, T, heads, d), one prompt after the other."""
    found = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        before = shared if number else 0
        rows = [*range(before), *range(start, end)]
        mask = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
        q, k, v = (tensor[:, :, rows].repeat_interleave(HEADS // tensor.shape[1], 1) for tensor in tensors)
        found.append(scaled_dot_product_attention(q, k, v, mask, scale=0.3)[:, :, before:])
    return torch.cat(found, 2).transpose(1, 2)


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two have a part each of one key's head and of three; four, four of three's, for which odd numbers of queries need padding."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kv_heads", [KV_HEADS, 3, 1])
@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize(
    "lengths", [[9], [5, 1, 300, 2], [BLOCK, BLOCK + 1, 2 * BLOCK - 1, BLOCK - 1], [4, 1], [SHORT, SHORT - 4, 10], [SHORT + 1, 20, 7], [20, SHORT, 7]]
)
def test_prompts_have_the_outputs_and_gradients_that_they_have_alone(lengths: list[int], shared: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    bounds = [0, *accumulate(lengths)]
    laid_out_as_layers_do = [torch.randn(1, bounds[-1], heads, D, dtype=torch.float64).transpose(1, 2) for heads in (HEADS, kv_heads, kv_heads)]
    tensors = [tensor.requires_grad_() for tensor in laid_out_as_layers_do]
    weights = torch.randn(1, bounds[-1], HEADS, D, dtype=torch.float64)
    results = []
    for found in (packed_attention(None, *tensors, None, bounds=bounds, shared=shared, scaling=0.3)[0], alone(tensors, bounds, shared)):
        results.append([found, *torch.autograd.grad((found * weights).sum(), tensors)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_scores_are_divided_by_the_root_of_d_where_no_scale_is_given() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, 12, D, dtype=torch.float64) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    found, same = (packed_attention(None, *tensors, None, bounds=[0, 5, 12], scaling=scale)[0] for scale in (None, D**-0.5))
    assert torch.equal(found, same)
