"""Draws of rows: nested, spread over languages, and always the same."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from fiat_ray.augmented import Example
from fiat_ray.draw import number_of_steps, steps_of, train_subset, validation_subset

LANGUAGES = ("bn", "hi", "te")


def numbered(number: int) -> list[Example]:
    return [Example(str(n), "train", "bn", f"row {n}", ("yes" * (1 + n % 3),), str(n)) for n in range(number)]


def spread(sizes: dict[str, int], labels: tuple[str, ...] = ()) -> list[Example]:
    """Rows of several languages; rows of one number are translations of each other."""
    return [
        Example(f"{language}{n}", "train", language, f"question {n}", (labels[n % len(labels)] if labels else f"answer {n}",), f"group {n}")
        for language, size in sizes.items()
        for n in range(size)
    ]


def per_language(rows: list[Example]) -> list[int]:
    return [sum(e.language == language for e in rows) for language in LANGUAGES]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_has_every_row_once(rows: int, batch_size: int, epochs: int, seed: int) -> None:
    steps = list(steps_of(numbered(rows), batch_size, epochs, None, seed))
    assert len(steps) == number_of_steps(rows, batch_size, epochs, None) == epochs * -(-rows // batch_size)
    assert all(1 <= len(step) <= batch_size for step in steps)
    for epoch in range(epochs):
        of_epoch = steps[epoch * len(steps) // epochs : (epoch + 1) * len(steps) // epochs]
        assert Counter(e.id for step in of_epoch for e in step) == Counter(map(str, range(rows)))


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 30))
def test_steps_count_instead_of_epochs(rows: int, batch_size: int, steps: int) -> None:
    found = list(steps_of(numbered(rows), batch_size, 1, steps, 0))
    assert len(found) == steps == number_of_steps(rows, batch_size, 7, steps)
    endless = steps_of(numbered(rows), batch_size, 100, None, 0)
    assert found == list(islice(endless, steps))  # the beginning of a longer tuning


def test_the_order_is_of_the_seed_and_another_in_each_epoch() -> None:
    def order(seed: int, epochs: float = 2) -> list[str]:
        return [e.id for step in steps_of(numbered(30), 8, epochs, None, seed) for e in step]

    assert order(0) == order(0) != order(1)
    assert order(0)[:30] != order(0)[30:]
    assert order(0, 1) == order(0)[:30]
    given_ = numbered(30)
    list(steps_of(given_, 8, 2, None, 0))
    assert given_ == numbered(30)


def test_parts_of_an_epoch() -> None:
    assert [number_of_steps(32, 8, epochs, None) for epochs in (0.25, 0.5, 1, 1.5, 3)] == [1, 2, 4, 6, 12]
    assert number_of_steps(32, 8, 0.01, None) == 1


@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.integers(1, 130), st.integers(0, 30))
def test_train_subsets_are_nested_and_as_equal_over_languages_as_can_be(sizes: list[int], size: int, more: int) -> None:
    rows = spread(dict(zip(LANGUAGES, sizes, strict=True)))
    small, large = train_subset(rows, size), train_subset(rows, size + more)
    assert len(small) == min(size, len(rows)) and {e.id for e in small} <= {e.id for e in large}
    assert small == [e for e in rows if e in small]  # in the order that was given
    most = max(per_language(small), default=0)
    assert all(found >= most - 1 or found == there for found, there in zip(per_language(small), sizes, strict=True))


def test_train_subsets_take_translations_of_one_question_together() -> None:
    chosen = train_subset(spread(dict.fromkeys(LANGUAGES, 40)), 30)
    assert per_language(chosen) == [10, 10, 10] and len({e.group for e in chosen}) == 10


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 3))
def test_the_equal_mix_gives_languages_equal_shares_of_an_epoch(bn: int, hi: int, te: int, seed: int) -> None:
    rows = spread({"bn": bn, "hi": hi, "te": te})
    epochs = [[e for step in steps_of(rows, len(rows), 1, at, seed, "equal") for e in step] for at in (1, 2)]
    first, second = epochs[0], epochs[1][len(rows) :]
    for epoch in (first, second):
        assert len(epoch) == len(rows) and max(per_language(epoch)) - min(per_language(epoch)) <= 1
        for language in LANGUAGES:  # no row a third time before every row of its language came twice
            counts = Counter(e.id for e in epoch if e.language == language)
            there = sum(e.language == language for e in rows)
            assert max(counts.values(), default=0) - (min(counts.values()) if len(counts) == there else 0) <= 1
    assert epochs[1][: len(rows)] == first


def test_the_validated_rows_are_spread_over_languages_and_always_the_same() -> None:
    rows = spread({"bn": 50, "hi": 5, "te": 50})
    chosen = validation_subset(rows, 30)
    assert chosen == validation_subset(list(reversed(rows)), 30) and len({e.id for e in chosen}) == 30
    assert sorted(per_language(chosen)) == [5, 12, 13]
    assert validation_subset(rows, 12) == chosen[:12]
    assert len(validation_subset(rows, 1000)) == len(rows) and validation_subset([], 5) == []


def test_few_validated_rows_still_hold_positives_of_every_language() -> None:
    rows = spread(dict.fromkeys(LANGUAGES, 100), labels=("no",) * 9 + ("yes",))
    chosen = validation_subset(rows, 12)
    assert per_language(chosen) == [4, 4, 4]
    assert {e.language for e in chosen if e.targets == ("yes",)} == set(LANGUAGES)
    shares = [sum(e.targets == ("yes",) for e in validation_subset(rows, size)) / size for size in (90, 300)]
    assert 0.1 <= shares[1] <= shares[0] <= 0.15
