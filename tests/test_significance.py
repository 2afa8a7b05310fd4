import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import f1_score

from fiat_ray.metrics import f1
from fiat_ray.significance import (
    MIN_GROUPS,
    NO_SPREAD,
    TWO_SEEDS,
    benjamini_hochberg,
    compare,
    compare_rows,
    compare_values,
    from_zero,
    holm,
    mcnemar,
    row_values,
)

DRAWS = 1000
"""Pairs of equal systems; a rate of 5 % is then measured to within 0.7 points (one standard error)."""
P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def rows_of(values: list[tuple[str, str, str, str]], prediction: int) -> list[dict]:
    """(group, language, target, prediction) … as predictions of the method whose prediction stands at that index."""
    return [
        {"id": str(i), "group": v[0], "language": v[1], "targets": [v[2]], "prediction": v[prediction], "score": None} for i, v in enumerate(values)
    ]


def equal_systems(rng: np.random.Generator, groups: int, languages: int, seeds: int, seed_effect: float) -> tuple[list, list, list[np.ndarray]]:
    """Two systems of one true quality on translated questions: questions are hard alike, and each system (and seed) likes other questions."""
    group, language = np.repeat(np.arange(groups), languages), np.tile(np.arange(languages), groups)
    difficulty = rng.normal(0, 1.5, groups)[group] + rng.normal(0, 0.5, len(group))
    systems = []
    for _ in range(2):
        liked = rng.normal(0, 1, groups)[group]
        values = []
        for _ in range(seeds):
            of_seed = rng.normal(0, 1, groups)[group] + rng.normal(0, seed_effect) if seeds > 1 else 0.0
            values.append(100.0 * (rng.random(len(group)) < expit(difficulty + liked + of_seed)))
        systems.append(np.array(values))
    return group.astype(str).tolist(), language.astype(str).tolist(), systems


@pytest.mark.parametrize(("groups", "languages", "seeds", "seed_effect"), [(100, 4, 1, 0), (20, 4, 1, 0), (100, 4, 3, 0), (100, 4, 3, 0.5)])
def test_equal_systems_differ_significantly_as_often_as_promised(groups: int, languages: int, seeds: int, seed_effect: float) -> None:
    rng = np.random.default_rng(0)
    found = by_language = 0
    for draw in range(DRAWS):
        group, language, (a, b) = equal_systems(rng, groups, languages, seeds, seed_effect)
        result = compare_values(group, language, a, b, replicates=300, seed=draw)
        assert result.p is not None and result.low is not None and result.high is not None
        assert result.holds == (result.p < 0.05) == (not result.low <= 0 <= result.high)  # the interval and p say the same
        found += result.p < 0.05
        by_language += sum(x.p < 0.05 for x in result.by_language.values() if x.p is not None)
    assert 0.029 <= found / DRAWS <= 0.071
    assert 0.029 <= by_language / (DRAWS * languages) <= 0.071


def test_rows_taken_as_independent_would_promise_too_much() -> None:
    """The reason for groups: the same data, each row its own group, calls far more equal systems different."""
    rng = np.random.default_rng(0)
    found = 0
    for draw in range(100):
        group, language, (a, b) = equal_systems(rng, 100, 20, 1, 0)
        result = compare_values([str(i) for i in range(len(group))], language, a, b, replicates=200, seed=draw)
        found += result.p is not None and result.p < 0.05
    assert found > 20


def test_a_real_difference_is_found_and_its_sign_follows_the_order() -> None:
    rng = np.random.default_rng(1)
    group = [str(i // 2) for i in range(200)]
    b = rng.random(200) * 50
    a = b + 10 + rng.normal(0, 5, 200)
    forth, back = compare_values(group, ["bn"] * 200, a, b), compare_values(group, ["bn"] * 200, b, a)
    assert forth.difference == pytest.approx((a - b).mean())
    assert forth.p is not None and forth.p < 1e-6 and forth.low is not None and 0 < forth.low < forth.difference
    assert (back.difference, back.low, back.high, back.p) == pytest.approx((-forth.difference, -forth.high, -forth.low, forth.p))
    assert (forth.n_rows, forth.n_groups, forth.n_seeds, forth.note) == (200, 100, (1, 1), "test-sample error only")


def test_one_language_of_equal_groups_agrees_with_the_t_test_of_group_means() -> None:
    from scipy import stats

    rng = np.random.default_rng(2)
    a, b = rng.normal(50, 20, (40, 3)), rng.normal(45, 20, (40, 3))
    result = compare_values([str(i // 3) for i in range(120)], ["bn"] * 120, a.ravel(), b.ravel(), replicates=20_000)
    expected = stats.ttest_1samp((a - b).mean(axis=1), 0)
    interval = expected.confidence_interval()
    assert result.p == pytest.approx(expected.pvalue, rel=0.1)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=0.15)


def test_languages_weigh_the_same_in_the_average() -> None:
    values = [(str(i), "bn", "x", "x", "y") for i in range(30)] + [(str(i), "te", "x", "y", "x") for i in range(10)]
    result = compare([rows_of(values, 3)], [rows_of(values, 4)], "f1")
    assert result.difference == 0
    assert {name: x.difference for name, x in result.by_language.items()} == {"bn": 100, "te": -100}
    assert {name: (x.n_rows, x.n_groups) for name, x in result.by_language.items()} == {"bn": (30, 30), "te": (10, 10)}
    only = compare([rows_of(values, 3)], [rows_of(values, 4)], "exact_match", languages=["bn"])
    assert only.difference == 100 and list(only.by_language) == ["bn"] and only.n_rows == 30


def test_rows_are_paired_by_id_and_their_order_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    values = [(str(i // 3), "bnte"[i % 2 * 2 :][:2], "x y", str(rng.choice(["x", "x y", "z"])), str(rng.choice(["x", "z"]))) for i in range(90)]
    a, b = rows_of(values, 3), rows_of(values, 4)
    result = compare([a], [b], "f1")
    assert compare([a[::-1]], [sorted(b, key=lambda row: row["prediction"])], "f1") == result
    means = [np.mean([100 * f1(r["targets"], r["prediction"]) for r in a if r["language"] == x]) for x in ("bn", "te")]
    other = [np.mean([100 * f1(r["targets"], r["prediction"]) for r in b if r["language"] == x]) for x in ("bn", "te")]
    assert result.difference == pytest.approx(np.mean(means) - np.mean(other))
    with pytest.raises(ValueError, match="the same test rows"):
        compare([a], [b[1:]], "f1")
    with pytest.raises(ValueError, match="about none"):
        compare([[]], [[]], "f1")


def test_scores_of_rows_compare_as_their_predictions_do() -> None:
    rng = np.random.default_rng(6)
    values = [(str(i // 3), ("bn", "te", "fi")[i % 3], "x y", str(rng.choice(["x", "x y", "z"])), str(rng.choice(["x", "z"]))) for i in range(90)]
    a, b = rows_of(values, 3), rows_of(values, 4)
    one, other = row_values([a, a[::-1]], "f1"), row_values([b], "f1")
    assert compare_rows(one, other) == compare([a, a], [b], "f1")
    assert compare_rows(one.only(["bn", "fi"]), other.only(["bn", "fi"])) == compare([a, a], [b], "f1", languages=["bn", "fi"])
    with pytest.raises(ValueError, match="the same test rows"):
        compare_rows(one, other.only(["bn", "fi"]))


def test_identical_predictions_do_not_differ() -> None:
    values = [(str(i), "bn", "x", "x" if i % 3 else "y", "") for i in range(20)]
    result = compare([rows_of(values, 3)], [rows_of(values, 3)], "accuracy")
    assert (result.difference, result.p, result.holds) == (0, 1, False)


@pytest.mark.parametrize(("one", "other", "difference"), [("x", "x", 0), ("y", "y", 0), ("x", "y", 100), ("x x x", "y", 50)])
def test_where_resampling_cannot_vary_there_is_no_interval(one: str, other: str, difference: float) -> None:
    """All right, none right, or as far apart in every row: 60 to 60 of 60 rows says nothing of the 61st."""
    values = [(str(i), ("bn", "te", "fi")[i % 3], "x", one, other) for i in range(60)]
    a, b = rows_of(values, 3), rows_of(values, 4)
    for found in (compare([a], [b], "f1"), compare([a, a, a], [b], "f1"), compare_rows(row_values([a], "f1"), row_values([b], "f1"))):
        for result in (found, *found.by_language.values()):
            assert (result.difference, result.low, result.high, result.note) == (pytest.approx(difference), None, None, NO_SPREAD)
            assert result.p == (1 if difference == 0 else 2.0 ** (1 - result.n_groups)) and result.holds == (difference > 0)
    alone = from_zero([a], "f1")
    assert (alone.low, alone.high, alone.note) == (None, None, NO_SPREAD)
    assert from_zero([a[:-1] + [a[-1] | {"prediction": "x z"}]], "f1").low is not None, "one row that differs is enough"


def test_too_few_groups_have_no_interval_and_unanimous_ones_no_absurd_p() -> None:
    values = [(str(i), "bn", "x", "x", "y") for i in range(MIN_GROUPS)]
    few = compare([rows_of(values[1:], 3)], [rows_of(values[1:], 4)], "f1")
    assert (few.difference, few.low, few.p) == (100, None, None) and few.note == "fewer than 6 effective groups: no interval"
    unlike = compare_values(["large"] * 5 + [str(i) for i in range(5)], ["bn"] * 10, np.ones(10), np.zeros(10))
    assert unlike.n_groups == MIN_GROUPS and (unlike.low, unlike.note) == (None, few.note)
    enough = compare([rows_of(values, 3)], [rows_of(values, 4)], "f1")
    assert enough.p == 2.0 ** (1 - MIN_GROUPS)


def test_an_interval_holds_only_what_can_be() -> None:
    """A t interval of few groups reaches beyond."""
    values = [(str(i), "bn", "x", "x", "y" if i else "x") for i in range(24)]
    best, worst = rows_of(values, 3), rows_of(values, 4)
    of_rows = compare_rows(row_values([best], "f1"), row_values([worst], "f1"))
    for found in (compare([best], [worst], "f1"), of_rows):
        for one in (found, found.by_language["bn"]):
            assert one.low is not None and 0 < one.low < (one.difference or 0) < 100 == one.high
    least, alone = compare([worst], [best], "f1"), from_zero([worst], "f1")
    assert least.low == -100 < (least.difference or 0) < (least.high or 0) < 0
    assert alone.low == alone.by_language["bn"].low == 0 < (alone.difference or 0) < (alone.high or 0)


def test_seeds_are_averaged_and_their_spread_widens_the_interval() -> None:
    rng = np.random.default_rng(4)
    group, language = [str(i) for i in range(100)], ["bn"] * 100
    base = rng.normal(50, 10, 100)
    a = base + np.array([[-20.0], [0.0], [20.0]]) + rng.normal(0, 1, (3, 100))
    b = base + 5 + rng.normal(0, 1, 100)
    one, three = compare_values(group, language, a[1], b), compare_values(group, language, a, b)
    assert three.difference == pytest.approx(a.mean() - b.mean())
    assert one.p is not None and one.p < 0.001 and three.p is not None and three.p > 0.3
    assert (one.note, three.note) == ("test-sample error only", "seed error of one method only")
    assert compare_values(group, language, a, np.array([b, b, b])).note == "seed error counted"
    assert compare_values(group, language, a, np.array([b, b])).note == TWO_SEEDS


def test_without_probabilities_auc_pr_is_not_defined() -> None:
    """Few-shot ICL says a label and no probability: rows without one are not ranked by chance."""
    values = [(f"g{i}", "bn", "yes" if i % 2 else "no", "yes") for i in range(40)]
    icl, ranked = rows_of(values, 3), [row | {"score": 0.9 if row["targets"] == ["yes"] else 0.1} for row in rows_of(values, 3)]
    for found in (compare([icl], [ranked], "auc_pr", positive="yes"), compare([ranked, icl], [ranked], "auc_pr", positive="yes")):
        for one in (found, found.by_language["bn"]):
            assert (one.difference, one.low, one.high, one.p) == (None, None, None, None)
            assert one.note == "not defined: predictions without probabilities"
    assert from_zero([icl], "auc_pr", positive="yes").difference is None


def test_auc_pr_compares_rankings_and_names_a_language_without_positives() -> None:
    rng = np.random.default_rng(5)
    label = rng.random(600) < 0.2
    frames = []
    for strength in (3.0, 0.3):
        score = expit(strength * label + rng.normal(0, 1, 600))
        frames.append(
            [
                {
                    "id": str(i),
                    "group": str(i // 3),
                    "language": ("bn", "fi", "te")[i % 3],
                    "targets": ["yes" if label[i] and i % 3 else "no"],
                    "prediction": "no",
                    "score": float(score[i]),
                }
                for i in range(600)
            ]
        )
    result = compare([frames[0]], [frames[1]], "auc_pr", positive="yes", replicates=500)
    assert result.difference is not None and result.difference > 20 and result.p is not None and result.p < 0.001
    assert result.by_language["bn"].difference is None and "no positive rows" in result.by_language["bn"].note
    assert result.difference == pytest.approx(np.mean([result.by_language[x].difference for x in ("fi", "te")]))


def labelled(right: float, seed: int, rows: int = 600) -> list[dict[str, object]]:
    """Three labels, the last of them rare; as many rows right as ``right`` tells."""
    chance = np.random.default_rng(seed)
    gold = np.random.default_rng(1).choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1])
    said = np.where(chance.random(rows) < right, gold, chance.choice(["a", "b", "c"], rows))
    about = {"score": None, "status": None}
    return [
        about | {"id": str(i), "group": str(i // 3), "language": ("bn", "fi")[i % 2], "targets": [str(gold[i])], "prediction": str(said[i])}
        for i in range(rows)
    ]


def test_macro_f1_is_resampled_as_a_whole() -> None:
    better, worse = labelled(0.8, 2), labelled(0.4, 3)
    result = compare([better], [worse], "macro_f1", replicates=500)
    means = [
        np.mean(
            [
                100 * f1_score(*zip(*((r["targets"][0], r["prediction"]) for r in rows if r["language"] == x), strict=True), average="macro")
                for x in ("bn", "fi")
            ]
        )  # type: ignore[index]
        for rows in (better, worse)
    ]
    assert result.difference == pytest.approx(means[0] - means[1])
    assert result.low is not None and result.low > 0 and result.p is not None and result.p < 0.001
    same = compare([labelled(0.6, 4)], [labelled(0.6, 5)], "macro_f1", replicates=500)
    assert same.p is not None and same.p > 0.05


def test_a_score_with_its_interval_is_the_difference_from_nothing() -> None:
    rows = labelled(0.8, 2)
    wrong = [row | {"prediction": ""} for row in rows]
    for metric in ("accuracy", "macro_f1"):
        alone, compared = from_zero([rows], metric), compare([rows], [wrong], metric)
        assert alone == compared
    ranked = [row | {"score": 0.9 if row["targets"] == ["c"] else 0.1} for row in rows]
    best = from_zero([ranked], "auc_pr", positive="c")
    assert (best.difference, best.low, best.high) == (100, None, None)


def test_adjusted_p_values_of_a_worked_example() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([]) == benjamini_hochberg([]) == []


@given(P_VALUES)
def test_adjusting_keeps_the_order_and_never_helps(p: list[float]) -> None:
    for adjusted in (holm(p), benjamini_hochberg(p)):
        assert all(q >= raw - 1e-12 and q <= 1 for q, raw in zip(adjusted, p, strict=True))
        assert [adjusted[i] for i in np.argsort(p, kind="stable")] == sorted(adjusted)
    assert all(b <= h + 1e-12 for b, h in zip(benjamini_hochberg(p), holm(p), strict=True))


def test_mcnemar_is_exact_and_says_what_it_ignores() -> None:
    result = mcnemar([True] * 8 + [False, True], [False] * 7 + [True, True, True])
    assert (result.only_a, result.only_b) == (7, 1)
    assert result.p == pytest.approx(2 * (1 + 8) / 2**8)
    assert "pooled" in result.note
    assert mcnemar([True, False], [True, False]).p == 1
