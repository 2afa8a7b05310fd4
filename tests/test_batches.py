"""Rows → steps → micro-batches: nothing lost, nothing twice, always the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import tiny_model
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiat_ray.augmented import Example
from fiat_ray.recipe import RECIPES
from fiat_ray.render import IGNORED, Piece, Prompt, Renderer
from fiat_ray.tune.batches import Supervised, common_start, micro_batches, pack, padded_batches
from fiat_ray.tune.memory import AtOnce
from fiat_ray.tune.tunable import DISTILLED_ALPHA, supervised

CPU = torch.device("cpu")


def examples(number: int) -> list[Example]:
    return [Example(str(n), "train", "bn", f"row {n}", ("yes" * (1 + n % 3),), str(n)) for n in range(number)]


def item(prompt: int, target: int, weight: float = 1.0) -> Supervised:
    pieces = (Piece("input", "", tuple(range(prompt))), Piece("target", "", tuple(range(100, 100 + target))))
    return Supervised(Prompt(pieces), weight)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 5)), max_size=30), st.integers(1, 60), st.integers(1, 20))
def test_micro_batches_keep_all_items_in_order(sizes: list[tuple[int, int]], tokens: int, supervised: int) -> None:
    items = [item(*size) for size in sizes]
    batches = micro_batches(items, AtOnce(tokens, supervised))
    assert [each for batch in batches for each in batch] == items
    for batch, following in pairwise([*batches, []]):
        size, targets = sum(len(each.prompt) for each in batch), sum(each.tokens for each in batch)
        assert batch and (size <= tokens and targets <= supervised or len(batch) == 1)
        # As many together as stay within both.
        assert not following or size + len(following[0].prompt) > tokens or targets + following[0].tokens > supervised


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 5)), max_size=30), st.integers(1, 60), st.integers(1, 20), st.integers(0, 9))
def test_padded_batches_hold_each_item_once_and_have_room_for_the_longest(
    sizes: list[tuple[int, int]], tokens: int, supervised: int, more: int
) -> None:
    items = [item(*size) for size in sizes]
    batches = padded_batches(items, AtOnce(tokens, supervised), more)
    assert sorted(at for batch in batches for at in batch) == list(range(len(items)))
    for batch in batches:
        size, targets = len(batch) * (max(len(items[at].prompt) for at in batch) + more), sum(items[at].tokens for at in batch)
        assert batch == sorted(batch) and (size <= tokens and targets <= supervised or len(batch) == 1)


def test_a_common_start_is_packed_once_and_takes_room_once() -> None:
    items = [item(5, 2), item(4, 1), item(6, 2)]  # they count from 0, and each keeps the last token before its target
    assert common_start(items) == 3
    packed = pack(items, CPU, 3)
    assert packed.input_ids.tolist() == [[0, 1, 2, 3, 4, 100, 101, 3, 100, 3, 4, 5, 100, 101]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 3, 4, 5, 6, 7]]
    assert packed.labels.tolist() == [*[IGNORED] * 5, 100, 101, IGNORED, 100, *[IGNORED] * 3, 100, 101]
    assert (packed.bounds, packed.shared) == ((0, 7, 9, 14), 3)
    assert [[len(batch) for batch in micro_batches(items, AtOnce(tokens, 5), 3)] for tokens in (14, 13)] == [[3], [2, 1]]
    assert common_start([items[0]]) == 4


def test_a_packed_batch_holds_the_prompts_one_behind_the_other() -> None:
    packed = pack([item(3, 2, 0.5), item(1, 1, 0.25)], CPU)
    assert packed.input_ids.tolist() == [[0, 1, 2, 100, 101, 0, 100]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert packed.labels.tolist() == [IGNORED, IGNORED, IGNORED, 100, 101, IGNORED, 100]
    assert packed.weights.tolist() == [0.5] * 5 + [0.25] * 2 and packed.weights.dtype == torch.float32
    assert packed.bounds == (0, 5, 7)


@pytest.mark.parametrize("name", RECIPES)
def test_weights_make_a_mean_over_supervised_tokens(tiny: Path, name: str) -> None:
    renderer, recipe, rows = Renderer(tiny), RECIPES[name], examples(5)
    rationales = ["a rationale", "", None, "Answer: x", "b"] if recipe.cot != "none" else [None] * 5
    items = supervised(renderer, tiny_model.task(), recipe, rows, rationales)
    total = sum(each.weight * each.tokens for each in items)
    assert total == pytest.approx(1.0)
    assert len({each.weight for each in items[:5]}) == 1  # a token counts the same in whichever row
    if recipe.cot == "distilled":
        assert len(items) == 5 + 3  # rows without a rationale explain nothing
        assert sum(each.weight * each.tokens for each in items[:5]) == pytest.approx(DISTILLED_ALPHA)
        assert sum(each.weight * each.tokens for each in supervised(renderer, tiny_model.task(), recipe, rows, [None] * 5)) == pytest.approx(1.0)
    else:
        assert len(items) == 5
