"""Which rows a trial sees: nested train subsets, the order and language mix of an epoch, the validation subset. Pure, and always the same."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from fiat_ray.augmented import Example
from fiat_ray.task import digest

LanguageMix = Literal["natural", "equal"]


def train_subset(examples: Sequence[Example], size: int) -> list[Example]:
    """``size`` rows, as equal over languages as these have rows; all where there are no more. A smaller subset is part of a larger one.

    Groups are taken in the order of their hash, so translations of one question are drawn together, and few questions stand behind few rows.
    """
    languages = _by_language(examples)
    for rows in languages.values():
        rows.sort(key=lambda e: (digest(e.group), e.id))
    chosen = set(_round_robin(list(languages.values()), size))
    return [e for e in examples if e.id in chosen]


def validation_subset(examples: Sequence[Example], size: int) -> list[Example]:
    """``size`` rows, the same for all trials of a task: as equal over languages as can be, and in each language by target where targets repeat.

    Of labels the rarest come first, so that a small subset still holds positives, without which AUC-PR is not defined.
    """
    languages = _by_language(sorted(examples, key=lambda e: e.id))
    for language, rows in languages.items():
        random.Random(f"0{(language,)}").shuffle(rows)
        strata: dict[str, list[Example]] = defaultdict(list)
        for row in rows:
            strata[row.targets[0]].append(row)
        if 2 * len(strata) <= len(rows):
            place = {row.id: (at / len(stratum), len(stratum)) for stratum in strata.values() for at, row in enumerate(stratum)}
            rows.sort(key=lambda e: place[e.id])
    chosen = _round_robin(list(languages.values()), size)
    by_id = {e.id: e for e in examples}
    return [by_id[name] for name in chosen]


def steps_of(
    examples: Sequence[Example], batch_size: int, epochs: float, steps: int | None, seed: int, mix: LanguageMix = "natural"
) -> Iterator[list[Example]]:
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


def _equal_shares(examples: Sequence[Example], order: random.Random) -> list[Example]:
    """As many rows as there are, equally many of each language."""
    languages = _by_language(examples)
    share, left = divmod(len(examples), len(languages))
    favoured = set(order.sample(list(languages), left))
    drawn: list[Example] = []
    for language, rows in languages.items():
        wanted = share + (language in favoured)
        whole, rest = divmod(wanted, len(rows))
        drawn += rows * whole + order.sample(rows, rest)
    return drawn


def _by_language(examples: Sequence[Example]) -> dict[str, list[Example]]:
    languages: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        languages[example.language].append(example)
    return dict(sorted(languages.items()))


def _round_robin(strata: Sequence[Sequence[Example]], size: int) -> list[str]:
    """Ids of the first of each stratum, then the second of each, and so on."""
    longest = max(map(len, strata), default=0)
    return [stratum[at].id for at in range(longest) for stratum in strata if at < len(stratum)][:size]
