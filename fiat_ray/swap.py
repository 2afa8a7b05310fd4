"""One engine for all trials of a checkpoint: the weights of one after another are swapped into it, and each swap is checked."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fiat_ray.engine import Engine, check_same_tensors
from fiat_ray.run_folder import ADAPTER, CHECKPOINT
from fiat_ray.tune import model as checkpoints

TOLERANCE = 0.25
"""Largest mean difference, in nats, between the engine's and transformers' log-probabilities of likely first tokens. Rounding to bfloat16, in which
vLLM runs checkpoints by default, makes about 0.1; weights before and after tuning differ by one and more."""

PROBE = 16
"""Tokens of a prompt's end that are enough to tell weights apart; transformers computes them anew for every trial."""


class Swaps:
    """A running engine, and beside it the same model in transformers, which tells what the weights that the engine should have answer.

    ``base``: the checkpoint θ_τ that the engine was started with.
    """

    def __init__(self, engine: Engine, base: Path) -> None:
        self._engine, self._folder = engine, base
        self._base: Any = None
        """θ_τ in memory, for adapters to be added to, once there is a trial."""
        self._own: Any = None
        """transformers' model, with the weights that the engine should have."""
        self._tuned: set[str] = set()
        """Its parameters that may not be the base's."""
        self._lost = False
        """Nobody knows which weights the engine has, since a swap failed."""

    def swap(self, trial: Path, prompts: Sequence[Sequence[int]]) -> None:
        """Give the engine the weights θ'_τ of a trial's folder.

        Raises ``RuntimeError`` unless its log-probabilities of likely first tokens are then the new weights' own, computed by transformers, and no
        longer those from before the swap: checkpoints that are close to each other differ in some last bit. Raises ``ValueError`` for a checkpoint
        that is not whole. ``prompts``: some that tell weights apart, token ids.
        """
        self._begin()
        self._lost = True
        others = self._take(trial)
        length = min(PROBE, *map(len, prompts))
        probes = [list(prompt[-length:]) for prompt in prompts]
        own = _first_token_logprobs(self._own, probes)
        likeliest = own.topk(8).indices
        own, before = own.gather(1, likeliest), self._engines(probes, likeliest)
        self._put()
        after = self._engines(probes, likeliest)
        took = _apart(after, own) <= TOLERANCE
        nearer = _apart(own, before) > TOLERANCE and _apart(after, before) < _apart(after, own)
        if not took or others and (nearer or bool((after == before).all())):
            raise RuntimeError(
                f"weight swap did not take: log-probabilities differ by {_apart(after, own):.2f} nats from the tuned model's own ({trial})"
            )
        self._lost = False

    def _begin(self) -> None:
        if self._base is None:
            self._base = checkpoints.load(self._folder).eval()
        if self._lost:
            self._engine.swap(self._folder)
            self._own = None
        if self._own is None:
            own = copy.deepcopy(self._base)
            # CPUs may be slow at bfloat16; what is rounded to it is so in float32 too.
            self._own = own if torch.cuda.is_available() else own.float()
            self._tuned = set()

    @torch.no_grad()
    def _take(self, trial: Path) -> bool:
        """Give transformers' model a trial's weights. Returns whether they are others than those before."""
        others, tuned = False, set()
        for name, tensor in self._weights(trial):
            parameter = self._own.get_parameter(name)
            others = others or not torch.equal(parameter, tensor.to(parameter.dtype))
            parameter.copy_(tensor)
            tuned.add(name)
        self._tuned = tuned
        return others

    def _weights(self, trial: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Those by which a trial differs from the base, then the base's where only the trial before did."""
        if (trial / CHECKPOINT).is_dir():
            check_same_tensors(self._folder, trial / CHECKPOINT)  # transformers, as vLLM, would put up with one that is not whole
            yield from checkpoints.load(trial / CHECKPOINT).named_parameters()
            return
        left = set(self._tuned)
        for name, tensor in checkpoints.merged(self._base, trial / ADAPTER):
            left.discard(name)
            yield name, tensor
        for name in left:
            yield name, self._base.get_parameter(name)

    def _put(self) -> None:
        tensors = {name: parameter.data for name, parameter in self._own.named_parameters()}
        if self._engine.takes(tensors):
            self._engine.swap(tensors)
            return
        with tempfile.TemporaryDirectory() as folder:
            dtype = checkpoints.dtype_of(self._folder)
            self._own.save_pretrained(folder, state_dict={name: tensor.to(dtype) for name, tensor in self._own.state_dict().items()})
            self._engine.swap(Path(folder))

    def _engines(self, prompts: list[list[int]], tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self._engine.first_logprobs(prompts, tokens.tolist()))


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())


@torch.no_grad()
def _first_token_logprobs(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """transformers' own for prompts of one length, shape (prompts, vocabulary)."""
    logits = model(input_ids=torch.tensor(prompts), logits_to_keep=1).logits[:, -1].float()
    return torch.log_softmax(logits, dim=-1)
