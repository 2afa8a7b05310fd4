"""Faster layers: the outputs and gradients of transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from fiat_ray.tune.layers import InFewPasses, norms_in_few_passes


def outcome(norm: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of x and, where it is tuned, the weight."""
    found = norm(x)
    torch.manual_seed(1)
    wanted = [x, *(p for p in norm.parameters() if p.requires_grad)]
    return [found, *torch.autograd.grad((found * torch.randn_like(found)).sum(), wanted)]


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("kind", "shape"), [(LlamaRMSNorm, (1, 7, 48)), (Qwen3RMSNorm, (2, 7, 3, 16))])
def test_outputs_and_gradients_are_those_of_transformers(
    kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, off: float, tuned: bool
) -> None:
    torch.manual_seed(0)
    norm = kind(shape[-1]).to(dtype).requires_grad_(tuned)
    nn.init.normal_(norm.weight, 1.0, 0.3)  # type: ignore[arg-type]
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    theirs = outcome(norm, x)
    norms_in_few_passes(norm)
    assert type(norm) is InFewPasses
    ours = outcome(norm, x)
    assert len(ours) == 2 + tuned
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == dtype and (found - expected).abs().max() <= off * expected.abs().max()


def test_a_norm_that_computes_something_else_stays_as_it_is() -> None:
    class Shifted(LlamaRMSNorm):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 + self.weight)

    model = nn.Sequential(GemmaRMSNorm(8), Shifted(8), nn.LayerNorm(8), MambaRMSNormGated(8), Qwen3NextRMSNormGated(8))
    norms_in_few_passes(model)
    assert [type(norm) for norm in model] == [GemmaRMSNorm, Shifted, nn.LayerNorm, MambaRMSNormGated, Qwen3NextRMSNormGated]


def test_the_gradient_is_exact() -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(6).double()
    nn.init.normal_(norm.weight)
    norms_in_few_passes(norm)
    assert torch.autograd.gradcheck(norm, torch.randn(3, 6, dtype=torch.float64, requires_grad=True))
