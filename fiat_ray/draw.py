"""Which rows a trial sees: nested train subsets, the order and language mix of an epoch, the validation subset. Pure, and always the same."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from fiat_ray.task import HasLanguage, by_language, digest

LanguageMix = Literal["natural", "equal"]


class Drawable(HasLanguage, Protocol):
    """A ``task.Row``, or an ``augmented.Example``."""

    @property
    def id(self) -> str: ...

    @property
    def targets(self) -> tuple[str, ...]: ...

    @property
    def group(self) -> str: ...


X = TypeVar("X", bound=Drawable)


def train_subset(examples: Sequence[X], size: int) -> list[X]:
    """``size`` rows, as equal over languages as these have rows; all where there are no more. A smaller subset is part of a larger one.

    Groups are taken in the order of their hash, so translations of one question are drawn together, and few questions stand behind few rows.
    """
    languages = by_language(examples)
    for rows in languages.values():
        rows.sort(key=lambda e: (digest(e.group), e.id))
    chosen = {e.id for e in _round_robin(list(languages.values()), size)}
    return [e for e in examples if e.id in chosen]


def validation_subset(examples: Sequence[X], size: int) -> list[X]:
    """``size`` rows, the same for all trials of a task: as equal over languages as can be, and in each language by target where targets repeat.

    Of labels the rarest come first, so that a small subset still holds positives, without which AUC-PR is not defined.
    """
    languages = by_language(sorted(examples, key=lambda e: e.id))
    for language, rows in languages.items():
        random.Random(f"0{(language,)}").shuffle(rows)
        strata: dict[str, list[X]] = defaultdict(list)
        for row in rows:
            strata[row.targets[0]].append(row)
        if 2 * len(strata) <= len(rows):
            place = {row.id: (at / len(stratum), len(stratum)) for stratum in strata.values() for at, row in enumerate(stratum)}
            rows.sort(key=lambda e: place[e.id])
    return _round_robin(list(languages.values()), size)


def steps_of(examples: Sequence[X], batch_size: int, epochs: float, steps: int | None, seed: int, mix: LanguageMix = "natural") -> Iterator[list[X]]:
    """The rows of each step, ``steps`` or ``epochs`` long: every epoch in an order of its own, the last batch of an epoch as small as it is.

    With the ``equal`` mix every language has the same share of an epoch: the rows of small ones recur in it, those of large ones take turns.
    """
    order = random.Random(seed)
    done, bound = 0, number_of_steps(len(examples), batch_size, epochs, steps)
    while done < bound:
        rows = list(examples) if mix == "natural" else _equal_shares(examples, order)
        order.shuffle(rows)
        for start in range(0, len(rows), batch_size):
            if done == bound:
                return
            yield rows[start : start + batch_size]
            done += 1


def number_of_steps(rows: int, batch_size: int, epochs: float, steps: int | None) -> int:
    return steps if steps is not None else max(1, round(epochs * -(-rows // batch_size)))


def _equal_shares(examples: Sequence[X], order: random.Random) -> list[X]:
    """As many rows as there are, equally many of each language."""
    languages = by_language(examples)
    share, left = divmod(len(examples), len(languages))
    favoured = set(order.sample(list(languages), left))
    drawn: list[X] = []
    for language, rows in languages.items():
        wanted = share + (language in favoured)
        whole, rest = divmod(wanted, len(rows))
        drawn += rows * whole + order.sample(rows, rest)
    return drawn


def _round_robin(strata: Sequence[Sequence[X]], size: int) -> list[X]:
    """The first of each stratum, then the second of each, and so on."""
    longest = max(map(len, strata), default=0)
    return [stratum[at] for at in range(longest) for stratum in strata if at < len(stratum)][:size]
