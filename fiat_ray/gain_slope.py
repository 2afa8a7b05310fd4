"""Do weaker languages gain more? The slope of a method's gain over the score of its baseline, by language (Figure 3). Pure: no files.

Plotting the gain, method less baseline, against the baseline itself shows a falling line even where nothing is related: a baseline that scores
low by bad luck comes back by as much in the gain (regression to the mean). Where score and gain come from different rows their luck is unrelated,
and so is, with two seeds or more, that of tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fiat_ray.significance import LEVEL, MIN_GROUPS, Floats, Sample

MIN_LANGUAGES = 4
"""With fewer points a line has no error worth the name."""


@dataclass(frozen=True)
class Slope:
    """Points of gain by point of the baseline's score, and its 95 % interval; None where there are too few languages or groups."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def is_negative(self) -> bool:
        """Weaker languages gain more, and the interval excludes 0."""
        return self.high is not None and self.high < 0

    @property
    def is_positive(self) -> bool:
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class GainSlopes:
    plotted: Slope
    """As the paper plots it: score and gain from the same rows."""
    split: Slope
    """Free of regression to the mean, the mean over all splits. The noise of half the rows in the score draws it towards 0, never away."""


def gain_slopes(
    groups: Sequence[str], languages: Sequence[str], baseline: ArrayLike, method: ArrayLike, *, splits: int = 200, seed: int = 0
) -> GainSlopes:
    """Both slopes of a score that is a mean over rows. ``baseline``, ``method``: values of the rows, (seeds, n), 0–100.

    In each split the groups are halved at random, the same for all languages, and so are the baseline's seeds where there are two or more: one
    half gives the baseline's score, the other the gain. A language without rows in a half is left out of that split.
    """
    sample = Sample.draw(groups, languages, replicates=0, seed=seed)
    rows = sample.table(np.ones(len(groups)))
    n_groups = len(rows)
    of_baseline = np.array([sample.table(values) for values in np.atleast_2d(np.asarray(baseline, float))])
    of_method = np.mean([sample.table(values) for values in np.atleast_2d(np.asarray(method, float))], axis=0)
    rng = np.random.default_rng(seed)
    xs, ys = np.empty((2, splits, rows.shape[1]))
    for i in range(splits):
        first = rng.permutation(n_groups) < n_groups // 2
        seeds = rng.permutation(len(of_baseline))
        middle = len(seeds) // 2
        for_score, for_gain = (of_baseline[seeds[:middle]], of_baseline[seeds[middle:]]) if middle else (of_baseline, of_baseline)
        xs[i] = _mean(first @ for_score.mean(axis=0), first @ rows)
        ys[i] = _mean(~first @ (of_method - for_gain.mean(axis=0)), ~first @ rows)
    sums, counts = of_baseline.mean(axis=0), rows.sum(axis=0)
    x, y = _mean(sums.sum(axis=0), counts), _mean((of_method - sums).sum(axis=0), counts)
    enough = n_groups >= MIN_GROUPS
    return GainSlopes(_slope(x[None], y[None], enough), _slope(xs, ys, enough))


def slope(x: ArrayLike, y: ArrayLike) -> Slope:
    """Of gains ``y`` over scores ``x``, a value a language, as they stand: with its regression to the mean."""
    return _slope(np.asarray(x, float)[None], np.asarray(y, float)[None], enough_groups=True)


def _mean(sums: Floats, counts: Floats) -> Floats:
    mean: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return mean


def _slope(x: Floats, y: Floats, enough_groups: bool) -> Slope:
    """The mean slope of y over x, (splits, languages) each. Its error: jackknife over languages, which also counts that they truly differ."""
    value = _mean_slope(x, y)
    n = x.shape[1]
    if value is None or n < MIN_LANGUAGES or not enough_groups:
        return Slope(value, None, None)
    without = [_mean_slope(np.delete(x, i, axis=1), np.delete(y, i, axis=1)) for i in range(n)]
    known = np.array([slope for slope in without if slope is not None])
    error = float(np.sqrt((len(known) - 1) / len(known) * np.square(known - known.mean()).sum()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 2)) * error
    return Slope(value, value - half, value + half)


def _mean_slope(x: Floats, y: Floats) -> float | None:
    """Least squares in each split, then the mean; None where no split has two languages that differ in x."""
    known = ~np.isnan(x + y)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    x, y = (np.where(known, part - np.where(known, part, 0).sum(axis=1, keepdims=True) / count, 0) for part in (x, y))
    spread = np.square(x).sum(axis=1)
    slopes = (x * y).sum(axis=1)[spread > 1e-9] / spread[spread > 1e-9]
    return float(slopes.mean()) if len(slopes) else None
