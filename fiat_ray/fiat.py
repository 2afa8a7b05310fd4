"""FIAT itself: Algorithms 1 and 2 of the paper (Figure 2), without Ray. Every tuning and every inference of this project goes through here.

Symbols: β is the big fixed reasoner, τ the small tunable model; θ their parameters, I their instructions (i_beta, i_tau); x a row, y its gold
answer, ŷ_β the reasoner's rationale. PROMPTENGINEERING, Algorithm 1's first two lines, is what a person does with ``fiat-ray prompt``: a task
brings i_beta and i_tau along. The methods that are compared with FIAT go the same way with an ingredient left out: ``reason`` gives nothing
(no CoT), τ reads no i_tau, θ_τ^PEFT is all of θ_τ, or θ_τ comes from a checkpoint that was not instruction-tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

X = TypeVar("X")
"""A row as the model sees it: text and language."""

X_ = TypeVar("X_", contravariant=True)

Y = TypeVar("Y", covariant=True)
"""A prediction."""

Reason = Callable[[Sequence[X]], Sequence[str | None]]
"""ŷ_β = argmax_y P(y | x; θ_β, I_β) for several rows. β is fixed, so this may look up what was generated before; None: no rationale."""


class Tunable(Protocol[X_]):
    """τ in training: θ_τ with θ_τ^PEFT beside it."""

    def initialize(self) -> None:
        """θ_τ^PEFT ← INIT(θ_τ)."""

    def gradient(self, x: Sequence[X_], y_beta: Sequence[str | None]) -> None:
        """g_τ = ∇_PEFT P(y | x, ŷ_β; θ_τ, θ_τ^PEFT, I_τ), kept with the parameters. Rows carry their gold answers y."""

    def update(self) -> None:
        """θ_τ^PEFT ← UPDATE(θ_τ^PEFT, g_τ)."""


class Tuned(Protocol[X_, Y]):
    """τ after tuning: θ'_τ = θ_τ ⊕ θ_τ^PEFT."""

    def predict(self, x: Sequence[X_], y_beta: Sequence[str | None]) -> Sequence[Y]:
        """y = argmax_y P(y | x, ŷ_β; θ'_τ, I_τ)."""


def build(batches: Iterable[Sequence[X]], reason: Reason[X], tunable: Tunable[X], watch: Callable[[int], None], done: int = 0) -> None:
    """Algorithm 1, model building: tune τ on every row plus the reasoning about it.

    ``watch(step)`` is called before the first update (step 0) and after each one: validation, and keeping the best θ_τ^PEFT, happen there.
    θ'_τ ← θ_τ ⊕ θ_τ^PEFT, the algorithm's last line, is ``tune.model.merge``. ``done``: steps that a tuning had behind it when it was broken off,
    which ``batches`` begins after, and which ``tunable`` initializes to.
    """
    tunable.initialize()
    watch(done)
    for step, x in enumerate(batches, done + 1):
        y_beta = reason(x)
        tunable.gradient(x, y_beta)
        tunable.update()
        watch(step)


def infer(x: Sequence[X], reason: Reason[X], tuned: Tuned[X, Y]) -> Sequence[Y]:
    """Algorithm 2, inference: the reasoner reasons, the tuned model answers."""
    y_beta = reason(x)
    return tuned.predict(x, y_beta)
