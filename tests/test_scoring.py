import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from fiat_ray.errors import UserError
from fiat_ray.predict import label_predictions
from fiat_ray.schema import PREDICTIONS, SCORES
from fiat_ray.scoring import length_share, majority_predictions, score_file, score_predictions, unparsed_share
from fiat_ray.task import Row

DATA = Path(os.environ.get("FIAT_DATA", Path(__file__).parents[2] / "shared" / "data"))
GOLDEN = DATA / "golden" / "xtreme_up_f1.jsonl"
BINARY = ("no", "yes")


def predicted(language: str, target: str, prediction: str, score: float | None = None, status: str | None = None) -> dict:
    return {
        "id": f"{language}-{target}-{prediction}",
        "language": language,
        "group": target,
        "targets": [target],
        "prediction": prediction,
        "score": score,
        "status": status,
    }


def values(rows: list) -> dict[tuple[str, str], float | None]:
    return {(row["language"], row["metric"]): row["value"] for row in rows}


def row(language: str, target: str) -> Row:
    return Row(id=f"{language}-{target}", split="test", language=language, fields={}, targets=(target,), group="g", example="g")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows), "utf-8")
    return path


def test_text_scores_are_macro_averaged() -> None:
    frame = [predicted("te", "x y", "x y"), predicted("bn", "x y", "x y"), predicted("bn", "x", "no"), predicted("bn", "z", "")]
    rows = score_predictions("own", "f1", (), frame)
    assert values(rows) == pytest.approx(
        {
            ("bn", "f1"): 100 / 3,
            ("te", "f1"): 100,
            ("mean", "f1"): 200 / 3,
            ("bn", "exact_match"): 100 / 3,
            ("te", "exact_match"): 100,
            ("mean", "exact_match"): 200 / 3,
        }
    )
    assert {row["language"]: row["n"] for row in rows} == {"bn": 3, "te": 1, "mean": 4}
    assert set(rows[0]) <= set(SCORES.names)


def test_named_averages_count_their_own_rows() -> None:
    frame = [predicted("as", "x", "x"), predicted("ar", "x", "no"), predicted("ar", "y", "no")]
    rows = {row["language"]: row for row in score_predictions("xtreme_up_qa", "f1", (), frame) if row["metric"] == "f1"}
    assert (rows["mean_27"]["value"], rows["mean_27"]["n"]) == (50, 3)
    assert (rows["mean_22"]["value"], rows["mean_22"]["n"]) == (100, 1)


def test_label_scores_with_and_without_probabilities() -> None:
    frame = [predicted("bn", "yes", "yes", 0.9), predicted("bn", "no", "no", 0.1), predicted("fi", "no", "yes", 0.6)]
    assert values(score_predictions("xor_attriqa", "accuracy", BINARY, frame)) == {
        ("bn", "accuracy"): 100,
        ("fi", "accuracy"): 0,
        ("mean", "accuracy"): 50,
        ("bn", "auc_pr"): 100,
        ("fi", "auc_pr"): None,
        ("mean", "auc_pr"): 100,
    }
    unscored = [{**row, "score": None} for row in frame]
    assert {row["metric"] for row in score_predictions("xor_attriqa", "accuracy", BINARY, unscored)} == {"accuracy"}
    with pytest.raises(ValueError, match="1 of 3 predictions have no score"):
        score_predictions("xor_attriqa", "accuracy", BINARY, [*frame[:2], unscored[2]])


def test_other_metrics_stand_beside_the_usual_ones() -> None:
    three = ("a", "b", "c")
    frame = [predicted("bn", "a", "a", 0.1), predicted("bn", "b", "a", 0.2), predicted("bn", "c", "c", 0.7)]
    assert values(score_predictions("own", "accuracy", three, frame)) == pytest.approx(
        {("bn", "accuracy"): 200 / 3, ("bn", "macro_f1"): 500 / 9, ("mean", "accuracy"): 200 / 3, ("mean", "macro_f1"): 500 / 9}
    )
    assert {row["metric"] for row in score_predictions("own", "auc_pr", three, frame)} == {"accuracy", "auc_pr"}
    assert {row["metric"] for row in score_predictions("own", "chrf", (), frame)} == {"f1", "exact_match", "chrf"}


def test_icl_shares_stand_beside_its_scores() -> None:
    frame = [predicted("bn", "x", "", status="length"), predicted("bn", "x", "x", status="ok"), predicted("te", "x", " ", status="empty")]
    assert unparsed_share(frame) == {"bn": 50, "te": 100}
    assert length_share(frame) == {"bn": 50, "te": 0}
    scores = values(score_predictions("own", "f1", (), frame, icl=True))
    assert scores["mean", "unparsed"] == 75 and scores["mean", "length"] == 25


def test_a_labels_score_is_that_of_the_positive_one_or_else_of_the_answer() -> None:
    logprobs = np.log([[0.1, 0.3], [0.6, 0.2]])
    assert [p.score for p in label_predictions(logprobs, tiny_model.task(labels=BINARY))] == pytest.approx([0.75, 0.25])
    logprobs = np.log([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3]])
    three = tiny_model.task(labels=("a", "b", "c"))
    assert label_predictions(logprobs, three) == [("b", pytest.approx(0.7)), ("a", pytest.approx(0.6))]
    assert [p.score for p in label_predictions(logprobs, replace(three, metric="auc_pr"))] == pytest.approx([0.2, 0.3])


def test_an_unparsed_label_is_wrong() -> None:
    assert values(score_predictions("own", "accuracy", BINARY, [predicted("bn", "no", "")]))["bn", "accuracy"] == 0


def test_majority_is_that_of_train_in_all_languages_alike() -> None:
    train = [row("bn", "no"), row("bn", "no"), row("fi", "yes"), row("fi", "no")]
    frame = majority_predictions(train, [row("fi", "yes"), row("fi", "no"), row("fi", "no")], "accuracy", BINARY)
    assert list(frame[0]) == PREDICTIONS.names
    assert {(r["prediction"], r["score"]) for r in frame} == {("no", 0.25)}
    scores = values(score_predictions("xor_attriqa", "accuracy", BINARY, frame))
    assert scores["fi", "accuracy"] == pytest.approx(200 / 3)
    assert scores["fi", "auc_pr"] == pytest.approx(100 / 3)  # a constant ranks at random
    three = majority_predictions(train, [row("fi", "yes")], "accuracy", (*BINARY, "maybe"))
    assert three[0]["score"] == 0.75, "of several labels the share of the one that is predicted"
    free = majority_predictions([row("bn", "b"), row("bn", "a")], [row("bn", "x")], "f1", ())
    assert (free[0]["prediction"], free[0]["score"]) == ("a", None)
    with pytest.raises(UserError, match="no train rows"):
        majority_predictions([], train, "accuracy", BINARY)


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden pairs at {GOLDEN}; set FIAT_DATA")
def test_golden_file() -> None:
    result = score_file("xtreme_up_qa", GOLDEN)
    assert result["n"] == 614 and list(result["languages"]) == ["all"]
    assert result["mean"] == pytest.approx({"f1": 45.6439653148793, "exact_match": 34.69055374592834}, abs=1e-9)
    json.dumps(result, allow_nan=False)


def test_text_file_with_languages(tmp_path: Path) -> None:
    rows = [{"target": ["u", "x"], "prediction": "x", "language": "ar", "f1": "ignored"}, {"target": "y", "prediction": "x", "language": "as"}]
    result = score_file("xtreme_up_qa", write(tmp_path / "p.jsonl", *rows))
    assert result["languages"] == {"ar": {"f1": 100, "exact_match": 100, "n": 1}, "as": {"f1": 0, "exact_match": 0, "n": 1}}
    assert result["mean"] == {"f1": 50, "exact_match": 50}
    assert result["mean_21"]["f1"] == 0 and "bho" in result["mean_21"]["missing"] and "as" not in result["mean_21"]["missing"]


@pytest.mark.parametrize("task", ["xor_attriqa", None])
def test_label_file(tmp_path: Path, task: str | None) -> None:
    labels = [(1, 0.9, "bn"), (0, 0.6, "bn"), ("no", 0.5, "bn"), (False, 0.0, "fi"), ("FALSE", 1, "fi")]
    path = write(tmp_path / "p.jsonl", *({"label": label, "score": score, "language": x} for label, score, x in labels))
    result = score_file(task, path)
    assert result["languages"]["bn"] == pytest.approx({"accuracy": 200 / 3, "auc_pr": 100, "majority_accuracy": 200 / 3, "n": 3})
    assert result["languages"]["fi"] == {"accuracy": 50, "auc_pr": None, "majority_accuracy": 100, "n": 2}
    assert result["mean"] == pytest.approx({"accuracy": 175 / 3, "auc_pr": 100, "majority_accuracy": 250 / 3})
    assert result["no_positives"] == ["fi"]
    json.dumps(result, allow_nan=False)


def test_an_own_tasks_labels_are_understood(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text('input: "{text}"\nlabels: [ham, spam]\nmetric: accuracy\n', "utf-8")
    result = score_file(str(tmp_path), write(tmp_path / "p.jsonl", {"label": "spam", "score": 0.7}, {"label": "ham", "score": 0.2}))
    assert result["mean"]["accuracy"] == 100


GOOD = {"target": "x", "prediction": "x"}
SCORED = {"label": 1, "score": 0.5}


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (None, [], "no rows"),
        (None, [GOOD, {"target": "x", "prediction": None}], "row 2: field 'prediction'"),
        (None, [GOOD, {"target": "x", "prediction": 7}], "row 2: field 'prediction'"),
        (None, [{"target": None, "prediction": "x"}], "row 1: field 'target'"),
        (None, [{"target": [], "prediction": "x"}], "row 1: field 'target'"),
        (None, [{"target": ["x", 1], "prediction": "x"}], "row 1: field 'target'"),
        (None, [GOOD, {"target": "x"}], "row 2: no field 'prediction'"),
        (None, [{"label": 1}], "row 1: no field 'score'"),
        (None, [{"text": "x"}], "row 1: no field 'target'"),
        (None, [SCORED, {"label": 2, "score": 0.5}], "row 2: field 'label'"),
        (None, [SCORED, {"label": None, "score": 0.5}], "row 2: field 'label'"),
        (None, ['{"label": 1, "score": NaN}'], "row 1: field 'score'"),
        (None, ['{"label": 1, "score": Infinity}'], "row 1: field 'score'"),
        (None, [{"label": 1, "score": 1.2}], "row 1: field 'score'"),
        (None, [{"label": 1, "score": True}], "row 1: field 'score'"),
        (None, [{"label": 1, "score": None}], "row 1: field 'score'"),
        (None, [{"label": 1, "score": "0.5"}], "row 1: field 'score'"),
        (None, [GOOD, SCORED], "row 2: holds 'label' and 'score'"),
        (None, [{**GOOD, **SCORED}], "row 1: holds 'label' and 'score'"),
        (None, [{**GOOD, "language": "bn"}, GOOD], "row 2: no field 'language'"),
        (None, [{**GOOD, "language": None}], "row 1: field 'language'"),
        ("xor_attriqa", [GOOD], "row 1: holds 'target' and 'prediction', but task xor_attriqa is scored from 'label' and 'score'"),
        ("xtreme_up_qa", [SCORED], "row 1: holds 'label' and 'score', but task xtreme_up_qa"),
        ("no_such_task", [GOOD], "task 'no_such_task'"),
        (None, [GOOD, "[1]"], "row 2"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, task: str | None, rows: list, message: str) -> None:
    path = write(tmp_path / "predictions.jsonl", *rows)
    with pytest.raises(UserError) as caught:
        score_file(task, path)
    assert message in str(caught.value)
    assert task == "no_such_task" or "predictions.jsonl" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        score_file(None, tmp_path / "none.jsonl")


def test_validation_scores_of_a_trial_keep_their_average() -> None:
    """A baseline is chosen on validation by the average that the report puts first."""
    from fiat_ray.collect import _validation

    who = {"task": "xtreme_up_qa", "method": "fiat", "tunable": "xs", "seed": 0, "train_size": 8, "validation_rows": 54}
    rows = _validation({**who, "validation": {"f1": 30.0, "f1/mean_22": 20.0, "exact_match": None}})
    assert {(row["metric"], row["language"]): row["value"] for row in rows} == {
        ("f1", "mean"): 30.0,
        ("f1", "mean_22"): 20.0,
        ("exact_match", "mean"): None,
    }
    assert {(row["split"], row["n"]) for row in rows} == {("validation", 54)}
