"""What the benchmark of the reasoning stage measures against."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations

import pytest

from benchmarks.reasoning import fewest


def computed(prompts: Sequence[tuple[tuple[int, ...], int]], block: int) -> int:
    """By an engine that takes one prompt after the other and forgets nothing."""
    cache: set[tuple[int, ...]] = set()
    total = 0
    for ids, start in prompts:
        hit = 0
        while (hit + 1) * block < len(ids) and ids[: (hit + 1) * block] in cache:
            hit += 1
        total += len(ids) - max(hit * block, start)
        cache |= {ids[: (number + 1) * block] for number in range(len(ids) // block)}
    return total


@pytest.mark.parametrize("seed", range(100))
def test_fewest_is_what_the_best_order_of_prompts_computes(seed: int) -> None:
    chance = random.Random(seed)
    shared = tuple(chance.choices((0, 1), k=chance.randrange(4)))
    prompts = {(*shared, *chance.choices((0, 1), k=chance.randrange(1, 6))) for _ in range(chance.randrange(1, 5))}
    for start in (0, len(shared)):
        asked = [(ids, start) for ids in prompts]
        assert fewest(asked, 2) == min(computed(order, 2) for order in permutations(asked))
