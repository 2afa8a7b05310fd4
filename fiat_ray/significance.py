"""Is a difference between two methods real? Groups of rows are resampled, jointly over languages, and seeds count too. Pure: no files.

Rows of one group (translations of one question, say) are not independent, so groups are drawn with replacement, all rows of a group at once in
every language that holds them, and each language's score and their average are computed anew in every replicate. The spread of the replicates is
the standard error of a t interval: percentiles of the replicates would be too close together where groups are few, and 3 seeds have too few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fiat_ray.metrics import average_precision, known_mean, macro_f1, row_score

Floats = NDArray[np.float64]
OF_ALL_ROWS = ("auc_pr", "macro_f1")
"""Metrics of which a single row has no score of its own."""
LEVEL = 0.95
DIFFERENT_ROWS = "methods can be compared only on the same test rows; these predictions are about different ones, or about none"
MIN_GROUPS = 6
"""Were methods equal, five groups would all favour the same one in 1 of 16 samples: with fewer than six nothing is significant at 5 %."""

NO_SPREAD = "no interval: resampling these rows gives the same value every time"
"""Where all rows are right, say, or none, or one method is as far above the other in each."""
ROUNDING = 1e-9
"""Points of a score, far below any that rows make."""

NOTES = ("seed error counted", "seed error of one method only", "test-sample error only")
"""By the number of methods that have one seed alone."""
TWO_SEEDS = "seed error counted, from two seeds: take three, with two equal methods seem to differ 8 times in 100 instead of 5"
"""Measured in simulation, where seeds have a real effect: 8.4 % with two seeds, 6.0 % with three."""


@dataclass(frozen=True)
class Comparison:
    """Method a less method b, in points of a 0–100 score. None where not defined, as ``note`` says."""

    difference: float | None
    low: float | None
    high: float | None
    """95 % interval."""
    p: float | None
    """Two-sided, not adjusted: see ``holm`` and ``benjamini_hochberg``."""
    n_rows: int
    n_groups: int
    n_seeds: tuple[int, int]
    """Of a and of b."""
    note: str
    by_language: dict[str, Comparison] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """At 5 %; where there is an interval, it leaves out 0."""
        return self.p is not None and self.p < 1 - LEVEL


@dataclass(frozen=True)
class Sample:
    """The test rows, by index of group and language, (n,) each, and how often each group is drawn, (1 + replicates, groups).

    The first row of ``weights`` is the sample as it is: each group once.
    """

    languages: list[str]
    language: NDArray[np.intp]
    group: NDArray[np.intp]
    weights: Floats

    @classmethod
    def draw(cls, groups: Sequence[str], languages: Sequence[str], replicates: int, seed: int) -> Sample:
        names, language = np.unique(np.array(languages, dtype=str), return_inverse=True)
        units, group = np.unique(np.array(groups, dtype=str), return_inverse=True)
        n = len(units)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates)
        return cls(names.tolist(), language, group, np.vstack([np.ones(n), drawn]))

    def table(self, values: ArrayLike) -> Floats:
        """Sums of values of rows, (n,), by group and language: (groups, languages)."""
        shape = self.weights.shape[1], len(self.languages)
        sums = np.bincount(self.group * shape[1] + self.language, np.asarray(values, float), minlength=shape[0] * shape[1])
        return sums.astype(float).reshape(shape)


@dataclass(frozen=True)
class Rows:
    """Scores of single rows, 0–100, in the order of their ids."""

    ids: list[str]
    groups: list[str]
    languages: list[str]
    values: Floats
    """(seeds, rows)"""

    def only(self, languages: Sequence[str]) -> Rows:
        """Those in these languages."""
        taken = np.flatnonzero(np.isin(self.languages, languages))
        ids, groups, kept = ([names[i] for i in taken] for names in (self.ids, self.groups, self.languages))
        return Rows(ids, groups, kept, self.values[:, taken])


def compare(
    a: Sequence[Sequence[Mapping[str, Any]]],
    b: Sequence[Sequence[Mapping[str, Any]]],
    metric: str,
    *,
    positive: str | None = None,
    languages: Sequence[str] | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare the mean over languages of ``metric`` between two methods.

    ``a``, ``b``: each method's predictions, one list of rows (columns of ``schema.PREDICTIONS``) a seed; all about the same test rows, in any
    order. ``positive``: the positive label, for AUC-PR. ``languages``: those to look at, such as the ones of ``mean_22``; default all.
    Raises ``ValueError`` where the predictions are not about the same rows.
    """
    frames = [_by_id(frame, languages) for frame in (*a, *b)]
    rows = frames[0]
    if not rows or any([row["id"] for row in frame] != [row["id"] for row in rows] for frame in frames):
        raise ValueError(DIFFERENT_ROWS)
    sample, scores, carriers = _scored(frames, metric, positive, replicates, seed)
    return _within(_comparison(sample, scores[: len(a)], scores[len(a) :], carriers), -100.0)


def from_zero(
    a: Sequence[Sequence[Mapping[str, Any]]], metric: str, *, positive: str | None = None, languages: Sequence[str] | None = None
) -> Comparison:
    """A method's score with its interval: ``compare`` with a method that scores 0, whatever is drawn."""
    sample, scores, carriers = _scored([_by_id(frame, languages) for frame in a], metric, positive, 2000, 0)
    return _within(_comparison(sample, scores, np.zeros_like(scores), carriers), 0.0)


def row_values(frames: Sequence[Sequence[Mapping[str, Any]]], metric: str) -> Rows:
    """Each row's own score under each of a method's seeds. ``frames``: as in ``compare``, of one method; ``metric``: none of ``OF_ALL_ROWS``."""
    ordered = [_by_id(frame, None) for frame in frames]
    ids, groups, languages = ([row[name] for row in ordered[0]] for name in ("id", "group", "language"))
    return Rows(ids, groups, languages, np.array([_values(frame, metric) for frame in ordered]))


def compare_rows(a: Rows, b: Rows) -> Comparison:
    """``compare`` of scores that are there already. Raises ``ValueError`` where they are not of the same rows."""
    if a.ids != b.ids:
        raise ValueError(DIFFERENT_ROWS)
    return _within(compare_values(a.groups, a.languages, a.values, b.values), -100.0)


def compare_values(
    groups: Sequence[str], languages: Sequence[str], a: ArrayLike, b: ArrayLike, *, replicates: int = 2000, seed: int = 0
) -> Comparison:
    """``compare`` for any value of a row whose language score is a mean: ``a`` and ``b`` are (seeds, rows), or (rows,) for one seed."""
    sample = Sample.draw(groups, languages, replicates, seed)
    scores = [_language_means(sample, np.atleast_2d(np.asarray(values, float))) for values in (a, b)]
    return _comparison(sample, scores[0], scores[1], sample.table(np.ones(len(groups))))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false finding (Holm 1979); for one table's adjacent ablations."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the share of false findings (Benjamini and Hochberg 1995); over languages."""
    return stats.false_discovery_control(p, method="bh").tolist() if len(p) else []


@dataclass(frozen=True)
class McNemar:
    only_a: int
    only_b: int
    p: float
    note: str = "pooled, rows taken as independent"


def mcnemar(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> McNemar:
    """Exact test of the rows that just one of two classifiers has right. It ignores groups, so its p is too small where rows repeat."""
    pairs = list(zip(a_correct, b_correct, strict=True))
    only_a, only_b = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)


def _within(found: Comparison, least: float) -> Comparison:
    """A comparison of scores, its intervals without what no score can be: a t interval of few groups may reach beyond."""
    by_language = {name: _within(one, least) for name, one in found.by_language.items()}
    low, high = (None if end is None else min(max(end, least), 100.0) for end in (found.low, found.high))
    return replace(found, low=low, high=high, by_language=by_language)


def _by_id(frame: Sequence[Mapping[str, Any]], languages: Sequence[str] | None) -> list[Mapping[str, Any]]:
    return sorted((row for row in frame if languages is None or row["language"] in languages), key=lambda row: row["id"])


def _scored(
    frames: Sequence[Sequence[Mapping[str, Any]]], metric: str, positive: str | None, replicates: int, seed: int
) -> tuple[Sample, Floats, Floats]:
    """(Sample, scores (frames, 1 + replicates, languages), rows that bear the score (groups, languages)) of frames about the same rows."""
    rows = frames[0]
    sample = Sample.draw([row["group"] for row in rows], [row["language"] for row in rows], replicates, seed)
    if metric == "auc_pr":
        is_positive = np.array([row["targets"][0] == positive for row in rows])
        probabilities = np.array([[row["score"] for row in frame] for frame in frames], float)
        return sample, _language_auc_pr(sample, is_positive, probabilities), sample.table(is_positive)
    if metric == "macro_f1":
        return sample, _language_macro_f1(sample, frames), sample.table(np.ones(len(rows)))
    values = np.array([_values(frame, metric) for frame in frames])
    return sample, _language_means(sample, values), sample.table(np.ones(len(rows)))


def _values(rows: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    score = row_score(metric)
    return [score(row["targets"], row["prediction"]) for row in rows]


def _language_means(sample: Sample, values: Floats) -> Floats:
    """Values of rows (seeds, n) → mean of each language in each replicate, (seeds, 1 + replicates, languages); NaN where none of its rows is in."""
    sizes = sample.weights @ sample.table(np.ones(values.shape[1]))
    sums = np.stack([sample.weights @ sample.table(one) for one in values])
    return np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0)


def _language_auc_pr(sample: Sample, positive: NDArray[np.bool_], probabilities: Floats) -> Floats:
    """P(positive) of rows (seeds, n) → AUC-PR of each language in each replicate, as ``_language_means``.

    NaN where no positive row is in, and all over where rows have no probability: NaN would rank them by their order.
    """
    scores = np.full((len(probabilities), len(sample.weights), len(sample.languages)), np.nan)
    ranked = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    for index in range(len(sample.languages)):
        rows = np.flatnonzero(sample.language == index)
        drawn = sample.weights[:, sample.group[rows]]
        for seed in ranked:
            scores[seed, :, index] = 100 * average_precision(positive[rows], probabilities[seed, rows], drawn)
    return scores


def _language_macro_f1(sample: Sample, frames: Sequence[Sequence[Mapping[str, Any]]]) -> Floats:
    """Macro-F1 of each language in each replicate, as ``_language_means``; NaN where none of its rows is in."""
    scores = np.empty((len(frames), len(sample.weights), len(sample.languages)))
    for index in range(len(sample.languages)):
        rows = np.flatnonzero(sample.language == index)
        drawn = sample.weights[:, sample.group[rows]]
        for seed, frame in enumerate(frames):
            gold, said = ([frame[i]["targets"][0] for i in rows], [frame[i]["prediction"] for i in rows])
            scores[seed, :, index] = 100 * macro_f1(gold, said, drawn)
    return scores


def _comparison(sample: Sample, a: Floats, b: Floats, carriers: Floats) -> Comparison:
    """Scores (seeds, 1 + replicates, languages) of both methods → their comparison. ``carriers``: rows that bear the score, (groups, languages)."""
    rows = sample.table(np.ones(len(sample.group)))
    sizes = carriers.sum(axis=0)
    shares = np.divide(carriers, sizes, out=np.zeros_like(carriers), where=sizes > 0)
    by_language = {
        name: _test(a[..., i], b[..., i], shares[:, i], int(rows[:, i].sum()), int((rows[:, i] > 0).sum())) for i, name in enumerate(sample.languages)
    }
    scored = shares[:, sizes > 0]
    macro = _test(known_mean(a), known_mean(b), scored.sum(axis=1) / max(scored.shape[1], 1), len(sample.group), len(rows))
    return replace(macro, by_language=by_language)


def _test(a: Floats, b: Floats, shares: Floats, n_rows: int, n_groups: int) -> Comparison:
    """Scores (seeds, 1 + replicates) of two methods → their difference, tested. ``shares``: the part each group has in the score, (groups,)."""
    seeds = len(a), len(b)
    difference = float(a[:, 0].mean() - b[:, 0].mean())
    if np.isnan(difference):
        lacking = "predictions without probabilities" if shares.any() else "no positive rows"
        return Comparison(None, None, None, None, n_rows, n_groups, seeds, f"not defined: {lacking}")
    # As many groups of equal size as would give the same error.
    effective_groups = round(1 / float(np.square(shares).sum()), 6)
    if effective_groups < MIN_GROUPS:
        return Comparison(difference, None, None, None, n_rows, n_groups, seeds, f"fewer than {MIN_GROUPS} effective groups: no interval")
    freedom = effective_groups - 1
    small_sample = effective_groups / freedom
    of_groups = _variance(a[:, 1:].mean(axis=0) - b[:, 1:].mean(axis=0)) * small_sample
    of_seeds, seed_part = _seed_variance([a, b], small_sample)
    variance = of_groups + of_seeds
    error = float(np.sqrt(variance))
    # No p below that of all groups favouring one method: with equal methods that is one sample in so many.
    least_p = 2.0 ** (1 - np.count_nonzero(shares))
    if error < ROUNDING:
        return Comparison(difference, None, None, least_p if abs(difference) > ROUNDING else 1.0, n_rows, n_groups, seeds, NO_SPREAD)
    freedom = variance**2 / (of_groups**2 / freedom + seed_part)  # Satterthwaite
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = max(float(2 * stats.t.sf(abs(difference) / error, freedom)), least_p)
    note = TWO_SEEDS if seeds.count(1) == 0 and 2 in seeds else NOTES[seeds.count(1)]
    return Comparison(difference, difference - half, difference + half, p, n_rows, n_groups, seeds, note)


def _seed_variance(methods: Sequence[Floats], small_sample: float) -> tuple[float, float]:
    """(The part of the difference's variance that more test rows would not remove, its square by degree of freedom).

    The spread of a method's seeds is partly due to the test rows: seeds err on different ones. That part is in the groups' variance already,
    so it is taken off here; drawing seeds and groups at once would count it twice, and k seeds drawn from k spread too little by (k - 1) / k.
    """
    spread = interaction = squares = 0.0
    for scores in methods:
        seeds = len(scores)
        if seeds > 1:
            own = float(scores[:, 0].var(ddof=1)) / seeds
            apart = scores[:, 1:] - scores[:, 1:].mean(axis=0)
            interaction += small_sample * float(np.mean([_variance(one) for one in apart])) / (seeds - 1)
            spread += own
            squares += own**2 / (seeds - 1)
    left = max(0.0, spread - interaction)
    # `left` is less certain than its size tells, for it is a difference; the degrees of freedom of `spread`, though, would be too few where
    # little is left. The middle of the two rejects equal methods most evenly at 5 %.
    return left, squares * left / spread if spread > 0 else 0.0


def _variance(replicates: Floats) -> float:
    return float(np.nanvar(replicates, ddof=1))
