"""Questions that only a rationale makes answerable: the task of ``make controls``, and its scripted reasoner.

Everybody has a peg and a locker, and the locker's number is the peg's plus one. The question names a person, the answer is the locker, and the
rationale tells the peg. Pegs are drawn at random and nobody stands in two splits, so the question alone tells nothing; the rule is nowhere stated,
so a rationale tells nothing either to who was not tuned with rationales; and no rationale holds the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice, product
from typing import Any

from fiat_ray.task import Task

REASONING = ("own", "none", "another")
"""Whose rationale a row gets: its own, none, or that of another row of its split, which implies another answer."""

SIZES = {"train": 48, "validation": 16, "test": 100}

TESTED = {"own": {"own": 100, "none": 50, "another": 50}, "none": {"own": 100}, "another": {"another": 100}}
"""What training rows got → what test rows get, of all that could be asked what the controls are about; and how many of them."""

PEGS = range(10, 99)


def name(training: str) -> str:
    """What the task is called."""
    return f"lockers_{training}"


def task(training: str) -> Task:
    """The task whose train and validation rows get the ``training`` kind of rationale; test rows are there once with each kind of ``TESTED``.

    The kind stands where a task has its language: the script sees it, no prompt shows it, and scores come out by kind.
    """
    return Task.from_rows(
        [row for split, size in SIZES.items() for row in _rows(split, TESTED[training] if split == "test" else {training: size})],
        name=name(training),
        input="{question}",
        target="locker",
        language="reasoning",
        group="name",
        split="split",
        i_beta="Say on which peg the person's coat hangs.",
        i_tau="Reply with a number.",
        exemplars=[],
    )


def _rows(split: str, kinds: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for kind, size in kinds.items():
        for person, peg in islice(pegs(split).items(), size):
            yield {"split": split, "reasoning": kind, "name": person, "question": f"Which locker is {person}'s?", "locker": str(peg + 1)}


def reason(row: dict[str, Any]) -> str:
    """The scripted reasoner: ``reasoner.script`` names this file."""
    known = pegs(row["split"])
    person = next(person for person in known if person in row["input"])
    if row["language"] == "none":
        return ""
    if row["language"] == "another":
        person = random.Random(person).choice([other for other, peg in known.items() if peg not in (known[person], known[person] + 1)])
    return f"The peg is {known[person]}."


@cache
def pegs(split: str) -> dict[str, int]:
    """Name → peg of everybody in a split; pegs as equally frequent as can be."""
    chance = random.Random(f"lockers {split}")
    numbers = (list(PEGS) * (SIZES[split] // len(PEGS) + 1))[: SIZES[split]]
    chance.shuffle(numbers)
    return dict(zip(_names()[split], numbers, strict=True))


@cache
def _names() -> dict[str, list[str]]:
    syllables = [consonant + vowel for consonant, vowel in product("bdklmnrstv", "aeiou")]
    chance = random.Random("lockers")
    drawn = iter(chance.sample(["".join(parts).title() for parts in product(syllables, repeat=3)], sum(SIZES.values())))
    return {split: [next(drawn) for _ in range(size)] for split, size in SIZES.items()}
