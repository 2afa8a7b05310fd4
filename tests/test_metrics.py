import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sacrebleu import sentence_chrf
from sklearn.metrics import average_precision_score, f1_score

from fiat_ray.errors import UserError
from fiat_ray.metrics import (
    FULL,
    INDIC,
    average,
    average_precision,
    check_metric,
    chrf,
    exact_match,
    f1,
    identity,
    label_scores,
    macro_f1,
    named_averages,
    normalize_answer,
    row_score,
    selecting_metric,
    shown_metrics,
    text_scores,
)

DATA = Path(os.environ.get("FIAT_DATA", Path(__file__).parents[2] / "shared" / "data"))
GOLDEN = DATA / "golden" / "xtreme_up_f1.jsonl"
WORDS = st.lists(st.sampled_from(["a", "the", "An", "x", "X", "y", "z-z", "zz", "...", "é", "দশ"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("target", "prediction", "expected_f1", "expected_match"),
    [
        ("", "", 0.0, True),  # no common token, although equal
        ("an", "The!", 0.0, True),
        ("Lake Victoria", "lake  victoria.", 1.0, True),
        ("10-12", "1012", 1.0, True),  # punctuation leaves no space behind
        ("theory", "ory", 0.0, False),  # articles go as words only
        ("the-ory", "theory", 1.0, True),  # punctuation goes before articles
        ("«yes»", "yes", 0.0, False),  # only ASCII punctuation goes
        ("blue", "blue blue blue blue", 0.4, False),
        ("red red blue", "red blue blue", 2 / 3, False),
        ("one\u00a0two\u2003three", "one two three", 1.0, True),
    ],
)
def test_known_values(target: str, prediction: str, expected_f1: float, expected_match: bool) -> None:
    assert f1(target, prediction) == pytest.approx(expected_f1, abs=1e-12)
    assert exact_match(target, prediction) is expected_match


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden pairs at {GOLDEN}; set FIAT_DATA")
def test_every_golden_pair() -> None:
    rows = [json.loads(line) for line in GOLDEN.read_text("utf-8").splitlines()]
    assert len(rows) == 614
    for row in rows:
        assert f1(row["target"], row["prediction"]) == row["f1"], row
        assert exact_match(row["target"], row["prediction"]) == row["exact_match"], row
    scores = text_scores([row["target"] for row in rows], [row["prediction"] for row in rows])
    assert scores == pytest.approx({"f1": 45.6439653148793, "exact_match": 34.69055374592834}, abs=1e-9)


@given(st.text())
def test_normalizing_twice_changes_nothing_and_leaves_no_punctuation(text: str) -> None:
    plain = normalize_answer(text)
    assert not set(plain) & set(string.punctuation)
    assert plain == " ".join(plain.split())


@given(WORDS, WORDS)
def test_f1_is_symmetric_bounded_and_blind_to_order(target: str, prediction: str) -> None:
    value = f1(target, prediction)
    assert 0 <= value <= 1
    assert value == pytest.approx(f1(prediction, target))
    assert value == pytest.approx(f1(" ".join(reversed(target.split())), prediction))
    if normalize_answer(target):
        assert not exact_match(target, prediction) or value == 1


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_the_best_target_counts(targets: list[str], prediction: str) -> None:
    assert f1(targets, prediction) == max(f1(target, prediction) for target in targets)
    assert exact_match(targets, prediction) == any(exact_match(target, prediction) for target in targets)


RANKED = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), st.integers(0, 3)), min_size=1, max_size=30)


@given(RANKED)
def test_average_precision_equals_scikit_learns_with_ties_and_weights(rows: list[tuple[bool, float, int]]) -> None:
    positive, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    assume((positive * weights).sum() > 0)
    ours = average_precision(positive, scores, np.stack([weights, np.ones(len(rows))]))
    assert ours[0] == pytest.approx(average_precision_score(positive, scores, sample_weight=weights))
    assert ours[1] == pytest.approx(average_precision_score(positive, scores))


@given(RANKED, st.randoms())
def test_average_precision_does_not_depend_on_the_order_of_rows(rows: list[tuple[bool, float, int]], random) -> None:
    shuffled = random.sample(rows, len(rows))
    first, second = (
        average_precision(np.array([p for p, _, _ in order]), np.array([s for _, s, _ in order]), np.ones((1, len(order))))
        for order in (rows, shuffled)
    )
    assert first == pytest.approx(second, nan_ok=True)


def test_label_scores() -> None:
    gold, scores = ["yes", "no", "no", "yes"], [0.9, 0.8, 0.2, 0.4]
    result = label_scores(gold, ["yes", "yes", "no", ""], scores, "yes")
    assert result["accuracy"] == 50
    assert result["auc_pr"] == pytest.approx(100 * average_precision_score([1, 0, 0, 1], scores))
    assert label_scores(gold, gold, None, "yes") == {"accuracy": 100}


def test_auc_pr_without_positives_is_not_defined() -> None:
    assert label_scores(["no", "no"], ["no", "yes"], [0.1, 0.9], "yes") == {"accuracy": 50, "auc_pr": None}


LABELLED = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd"), st.integers(1, 3)), min_size=1, max_size=30)


@given(LABELLED)
def test_macro_f1_equals_scikit_learns_with_weights(rows: list[tuple[str, str, int]]) -> None:
    gold, said, weights = (list(column) for column in zip(*rows, strict=True))
    ours = macro_f1(gold, said, np.stack([weights, np.ones(len(rows))]))
    assert ours[0] == pytest.approx(f1_score(gold, said, average="macro", sample_weight=weights, zero_division=0))
    assert ours[1] == pytest.approx(f1_score(gold, said, average="macro", zero_division=0))


def test_macro_f1_of_what_can_not_be_read_or_is_not_drawn() -> None:
    assert macro_f1(["a", "b"], ["a", ""], np.ones((1, 2)))[0] == 0.5  # "" is no third label
    found = macro_f1(["a", "b"], ["a", "a"], np.array([[1, 0], [0, 0]]))
    assert found[0] == 1 and np.isnan(found[1])  # label b is not in the first drawing, and the second is empty


@given(st.lists(WORDS, min_size=1, max_size=3), WORDS)
def test_chrf_is_sacrebleus(targets: list[str], prediction: str) -> None:
    assert chrf(targets, prediction) == pytest.approx(max(sentence_chrf(prediction, [target]).score for target in targets) / 100)
    assert row_score("chrf")(targets, prediction) == pytest.approx(100 * chrf(targets, prediction))


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_scores.py"
    module.write_text("def halves(targets, prediction):\n    return 50 if prediction else float(targets[0])\nnot_one = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    scores = text_scores(["0", "100"], ["x", ""], "own_scores:halves")
    assert scores == {"f1": 0, "exact_match": 0, "own_scores:halves": 75}
    assert identity("own_scores:halves").startswith("own_scores:halves ") and identity("f1") == "f1"
    for text in ("nan", "101", "no number"):
        with pytest.raises(UserError, match="metric own_scores:halves: .*" + text):
            row_score("own_scores:halves")([text], "")
    for name, said in (
        ("own_scores:none", "has no attribute 'none'"),
        ("nowhere:f", "No module named 'nowhere'"),
        ("own_scores:not_one", "no function"),
    ):
        with pytest.raises(UserError, match=f"metric {name}: .*{said}"):
            row_score(name)


def test_which_metrics_are_shown_and_which_selects() -> None:
    two, three = ("no", "yes"), ("a", "b", "c")
    assert shown_metrics("accuracy", two) == ("accuracy", "auc_pr") and selecting_metric("accuracy", two) == "auc_pr"
    assert shown_metrics("accuracy", three) == ("accuracy", "macro_f1") and selecting_metric("accuracy", three) == "accuracy"
    assert shown_metrics("own_scores:halves", ()) == ("own_scores:halves", "f1") and selecting_metric("chrf", ()) == "chrf"


@pytest.mark.parametrize(
    ("metric", "labels", "positive", "said"),
    [
        ("bleu", (), None, "metric 'bleu' is none of f1, exact_match, chrf, accuracy, auc_pr, macro_f1, nor a function of yours"),
        ("f1", ("no", "yes"), None, "metric f1 goes without labels"),
        ("scores:own", ("no", "yes"), None, "metric scores:own goes without labels"),
        ("macro_f1", (), None, "metric macro_f1 goes with labels"),
        ("auc_pr", ("a", "b", "c"), None, ".*name it with `positive:`"),
        ("auc_pr", ("a", "b", "c"), "d", "positive: 'd' is none of the labels a, b, c"),
    ],
)
def test_metrics_that_do_not_fit_a_task(metric: str, labels: tuple[str, ...], positive: str | None, said: str) -> None:
    with pytest.raises(UserError, match=f"task.yaml: {said}"):
        check_metric(metric, labels, positive, "task.yaml")


def test_average_leaves_out_languages_without_a_score() -> None:
    assert average({"bn": 10.0, "fi": None, "te": 20.0}) == 15
    assert average({"fi": None}) is None


def test_named_averages_name_what_a_run_lacks() -> None:
    averages = named_averages("xtreme_up_qa", {"ar": 0.0, "as": 10.0, "bn": 30.0, "hi": 50.0})
    assert {name: value for name, (value, _) in averages.items()} == {"mean": 22.5, "mean_27": 22.5, "mean_22": 30, "mean_21": 20}
    missing = {name: languages for name, (_, languages) in averages.items()}
    assert missing["mean"] == []
    assert [len(missing[name]) for name in ("mean_27", "mean_22", "mean_21")] == [23, 19, 19]


def test_only_full_has_named_averages() -> None:
    assert len(INDIC) == 20 and len(FULL) == 27
    assert list(named_averages("xtreme_up_qa", dict.fromkeys(INDIC, 1.0))) == ["mean"]
    assert list(named_averages("xor_attriqa", {"bn": 1.0, "ja": None})) == ["mean"]
    assert named_averages("xor_attriqa", {"bn": 1.0, "ja": None})["mean"] == (1.0, ["ja"])
    assert list(named_averages("xtreme_up_qa", {"all": 1.0})) == ["mean"]
