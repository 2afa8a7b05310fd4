"""One engine for all trials of a checkpoint: the weights of one after another are swapped into it, and each swap is checked."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fiat_ray.engine import Engine
from fiat_ray.models import check_same_tensors
from fiat_ray.run_folder import ADAPTER, CHECKPOINT
from fiat_ray.tune import model as checkpoints

TOLERANCE = 0.25
"""Largest mean difference, in nats, between the engine's and transformers' log-probabilities of likely first tokens. Rounding to bfloat16, in which
vLLM runs checkpoints by default, makes about 0.1; weights before and after tuning differ by one and more."""

PROBE = 8
"""Tokens of a prompt's end that are enough to tell weights apart; transformers computes them anew for every trial."""

LIKELIEST = 16
"""First tokens of each prompt whose log-probabilities are compared."""


@dataclass(frozen=True)
class _Answers:
    """What weights answer to the prompts, shape (prompts, tokens)."""

    own: torch.Tensor
    """transformers' log-probabilities of all first tokens."""
    likeliest: torch.Tensor
    """The likeliest tokens of these."""
    engines: torch.Tensor
    """The engine's log-probabilities of those."""


class Swaps:
    """A running engine, and beside it the same model in transformers, which tells what the weights that the engine should have answer.

    ``base``: the checkpoint θ_τ that the engine was started with.
    """

    def __init__(self, engine: Engine, base: Path) -> None:
        self._engine, self._folder = engine, base
        self._dtype = checkpoints.dtype_of(base)
        self._own: Any = None
        """transformers' model, with the weights that the engine should have."""
        self._tuned: set[str] = set()
        """Its parameters that may not be the base's."""
        self._probes: list[list[int]] = []
        self._before: _Answers | None = None
        """What the weights answer that the engine has. After a swap that failed nobody knows which these are."""

    def swap(self, trial: Path, prompts: Sequence[Sequence[int]]) -> None:
        """Give the engine the weights θ'_τ of a trial's folder.

        Raises ``RuntimeError`` unless its log-probabilities of likely first tokens are then the new weights' own, computed by transformers, and no
        longer those from before the swap: checkpoints that are close to each other differ in some last bit. Raises ``ValueError`` for a checkpoint
        that is not whole. ``prompts``: some that tell weights apart, token ids; all swaps are checked by the first one's.
        """
        before, self._before = self._before or self._begin(prompts), None
        changed = self._engine.run(lambda: self._take(trial))
        self._put(changed)
        own, likeliest = self._engine.run(self._own_answers)
        # One step of the engine tells both: what it now says of its likeliest tokens, and of those from before.
        engines = self._engines(torch.cat([before.likeliest, likeliest], 1))
        then, now = engines.split(LIKELIEST, 1)
        off, due = _apart(now, own.gather(1, likeliest)), own.gather(1, before.likeliest)
        nearer = _apart(due, before.engines) > TOLERANCE and _apart(then, before.engines) < _apart(then, due)
        stayed = nearer or torch.equal(then, before.engines)
        if off > TOLERANCE or stayed and not torch.equal(own, before.own):
            raise RuntimeError(f"weight swap did not take: log-probabilities differ by {off:.2f} nats from the tuned model's own ({trial})")
        self._before = _Answers(own, likeliest, now)

    def _begin(self, prompts: Sequence[Sequence[int]]) -> _Answers:
        """The engine and transformers' model have the base's weights afterwards."""
        if self._probes:
            self._engine.swap(self._folder)
        else:
            length = min(PROBE, *map(len, prompts))
            self._probes = [list(prompt[-length:]) for prompt in prompts]
        own, likeliest = self._engine.run(self._own_answers_of_base)
        return _Answers(own, likeliest, self._engines(likeliest))

    @cached_property
    def _base(self) -> Any:
        """θ_τ in memory, for adapters to be added to."""
        # CPUs may be slow at bfloat16; what is rounded to it is so in float32 too.
        return checkpoints.load(self._folder, "auto" if torch.cuda.is_available() else torch.float32).eval()

    def _own_answers_of_base(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._own, self._tuned = copy.deepcopy(self._base), set()
        return self._own_answers()

    @torch.no_grad()
    def _take(self, trial: Path) -> set[str]:
        """Give transformers' model a trial's weights. Returns the names of those that may be others than before."""
        before = self._tuned
        if (trial / CHECKPOINT).is_dir():
            check_same_tensors(self._folder, trial / CHECKPOINT)  # transformers, as vLLM, would put up with one that is not whole
            tuned = dict(checkpoints.load(trial / CHECKPOINT).named_parameters())
            for name, tensor in tuned.items():
                self._own.get_parameter(name).copy_(tensor)
            self._tuned = set(tuned)
        else:
            self._tuned = checkpoints.merge_into(self._own, self._base, trial / ADAPTER, self._dtype)
        for name in before - self._tuned:
            self._own.get_parameter(name).copy_(self._base.get_parameter(name))
        return before | self._tuned

    def _put(self, changed: set[str]) -> None:
        tensors = {name: parameter.data for name, parameter in self._own.named_parameters()}
        if self._engine.takes(tensors):
            self._engine.swap(tensors, changed)
            return
        with tempfile.TemporaryDirectory() as folder:
            self._own.save_pretrained(folder, state_dict={name: tensor.to(self._dtype) for name, tensor in self._own.state_dict().items()})
            self._engine.swap(Path(folder))

    @torch.no_grad()
    def _own_answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._own(input_ids=torch.tensor(self._probes), logits_to_keep=1).logits[:, -1].float()
        own = torch.log_softmax(logits, dim=-1)
        return own, own.topk(LIKELIEST).indices

    def _engines(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self._engine.first_logprobs(self._probes, tokens.tolist()))


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())
