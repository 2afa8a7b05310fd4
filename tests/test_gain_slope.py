"""Do weaker languages gain more: the slope as plotted falls by regression to the mean alone, the one from split halves does not."""

from __future__ import annotations

import numpy as np
import pytest

from fiat_ray.gain_slope import MIN_LANGUAGES, GainSlopes, Slope, gain_slopes, slope
from fiat_ray.significance import MIN_GROUPS

DRAWS = 60
Sample = tuple[list[str], list[str], np.ndarray, np.ndarray]


def drawn(
    rng: np.random.Generator, relation: float = 0.0, languages: int = 20, groups: int = 60, spread: float = 3.0, seeds: int = 1, luck: float = 0.0
) -> Sample:
    """Translated questions: (groups, languages, baseline, method), the values (seeds, rows).

    ``relation``: true gain by point of the true baseline; ``spread``: of the languages' true baselines; ``luck``: of a seed's tuning, by language.
    """
    group, language = np.repeat(np.arange(groups), languages), np.tile(np.arange(languages), groups)
    quality = rng.normal(0, spread, languages)
    question = rng.normal(0, 20, groups)[group]

    def scores(level: np.ndarray) -> np.ndarray:
        return np.array([(level + rng.normal(0, luck, languages))[language] + question + rng.normal(0, 30, len(group)) + 60 for _ in range(seeds)])

    return group.astype(str).tolist(), language.astype(str).tolist(), scores(quality), scores(quality * (1 + relation) + 4)


def slopes(relation: float = 0.0, **of: float) -> list[GainSlopes]:
    return [gain_slopes(*drawn(np.random.default_rng(draw), relation, **of), splits=50, seed=draw) for draw in range(DRAWS)]  # type: ignore[arg-type]


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def test_without_a_relation_only_the_slope_as_plotted_is_negative() -> None:
    found = slopes(0.0)
    assert share([x.plotted.is_negative for x in found]) > 0.5  # regression to the mean
    assert share([x.split.is_negative for x in found]) <= 0.05
    assert share([x.split.is_negative or x.split.is_positive for x in found]) <= 0.12
    assert np.mean([x.plotted.value for x in found]) < -0.25
    assert abs(np.mean([x.split.value for x in found])) < 0.05


@pytest.mark.parametrize("spread", [0.0, 8.0])
def test_equal_and_very_different_languages_are_judged_alike(spread: float) -> None:
    assert share([x.split.is_negative for x in slopes(0.0, spread=spread)]) <= 0.07


def test_a_true_relation_is_found_by_both() -> None:
    found = slopes(-0.8, spread=10.0)
    assert share([x.plotted.is_negative for x in found]) > 0.95
    assert share([x.split.is_negative for x in found]) > 0.9
    assert -0.85 < np.mean([x.split.value for x in found]) < -0.5  # drawn towards 0 by the noise of half the rows, never beyond the truth


def test_the_luck_of_tuning_counts_as_a_relation_with_one_seed_only() -> None:
    """A seed that tuned badly for a language is bad on all of its rows: halves of the rows do not tell, halves of the seeds do."""
    one, several = slopes(0.0, luck=8.0, seeds=1), slopes(0.0, luck=8.0, seeds=4)
    assert np.mean([x.split.value for x in one]) < -0.3
    assert abs(np.mean([x.split.value for x in several])) < 0.1


def test_neither_the_order_of_rows_nor_a_constant_gain_changes_anything() -> None:
    groups, languages, baseline, method = drawn(np.random.default_rng(0), seeds=3)
    found = gain_slopes(groups, languages, baseline, method)
    order = np.random.default_rng(1).permutation(len(groups))
    again = gain_slopes([groups[i] for i in order], [languages[i] for i in order], baseline[:, order], method[:, order] + 7)
    for one, other in ((found.plotted, again.plotted), (found.split, again.split)):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    assert found == gain_slopes(groups, languages, baseline, method)  # seeded


def test_the_slope_as_plotted_is_that_of_the_language_means() -> None:
    groups, languages, baseline, method = drawn(np.random.default_rng(2), seeds=2)
    of = [np.array(languages) == name for name in sorted(set(languages))]
    x = [baseline[:, rows].mean() for rows in of]
    y = [method[:, rows].mean() - before for rows, before in zip(of, x, strict=True)]
    assert gain_slopes(groups, languages, baseline, method).plotted.value == pytest.approx(np.polyfit(x, y, 1)[0])
    assert slope(x, y).value == pytest.approx(np.polyfit(x, y, 1)[0])


def test_points_on_a_line_have_its_slope_without_error() -> None:
    exact = slope([10, 20, 40, 70], [5, 0, -10, -25])
    assert (exact.value, exact.low, exact.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert exact.is_negative and not exact.is_positive


@pytest.mark.parametrize(("languages", "groups"), [(MIN_LANGUAGES - 1, 40), (8, MIN_GROUPS - 1)])
def test_too_few_languages_or_groups_have_no_interval_and_support_nothing(languages: int, groups: int) -> None:
    found = gain_slopes(*drawn(np.random.default_rng(3), languages=languages, groups=groups))
    assert found.split.value is not None and found.split.low is None and not found.split.is_negative
    assert gain_slopes(["a", "b"], ["bn", "bn"], [[1, 2]], [[3, 4]]).plotted == Slope(None, None, None)


def test_a_language_of_few_rows_is_left_out_of_splits_that_lack_it() -> None:
    groups, languages, baseline, method = drawn(np.random.default_rng(4), languages=6)
    with_rare = gain_slopes([*groups, "alone"], [*languages, "rare"], np.append(baseline, [[0.0]], axis=1), np.append(method, [[100.0]], axis=1))
    assert with_rare.plotted.value is not None and with_rare.plotted.value < -0.5  # as plotted, it decides
    assert with_rare.split.value == pytest.approx(gain_slopes(groups, languages, baseline, method).split.value, abs=0.2)
