"""``data validate``: what is counted and found in rows, with file and row number, and when a campaign would refuse them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import test_cli
from test_tasks import attriqa_row, attriqa_tree, packed, qa_tree, write

from fiat_ray import Task
from fiat_ray.cli import main
from fiat_ray.data_validate import describe, validate
from fiat_ray.report.published import ROWS
from fiat_ray.task import SPLITS

Rows = list[dict[str, Any]]


def rows(split: str, count: int = 4, **changes: Any) -> Rows:
    return [{"question": f"{split} {n}", "answer": ("no", "yes")[n % 2], "language": ("fi", "sw")[n // 2 % 2]} | changes for n in range(count)]


def own_task(folder: Path, **splits: Rows) -> Path:
    """A task folder with labels; the splits that are not given are in order."""
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text('input: "{question}"\ntarget: answer\nlanguage: language\nlabels: ["no", "yes"]\nexample: question\n')
    (folder / "i_beta.txt").write_text("Think.")
    (folder / "i_tau.txt").write_text("Answer.")
    exemplar = {"question": "any", "rationale": "r", "target": "no", "language": "x-own"}
    return write(folder, {"exemplars.jsonl": [exemplar]} | {f"{split}.jsonl": splits.get(split, rows(split)) for split in SPLITS})


def test_rows_in_order(tmp_path: Path) -> None:
    found = validate(own_task(tmp_path / "mine"))
    assert found["rows"] == {split: {"fi": 2, "sw": 2} for split in SPLITS}
    assert found["labels"]["test"] == {"no": {"fi": 1, "sw": 1}, "yes": {"fi": 1, "sw": 1}}
    assert found["splits"]["train"] == {
        "rows": 4,
        "groups": 4,
        "examples": 4,
        "duplicates": {"rows": 0, "first": []},
        "contradictions": {"rows": 0, "first": []},
        "most_frequent_target": {"no": 2},
    }
    assert [(overlap["of"], overlap["in"], overlap["rows"], overlap["groups"]) for overlap in found["overlaps"]] == [
        ("train", "validation", 0, 0),
        ("train", "test", 0, 0),
        ("validation", "test", 0, 0),
    ]
    assert (found["empty"], found["notes"], found["unfit"], found["paper_rows"]) == ([], [], "", None)
    assert json.loads(json.dumps(found)) == found
    assert "fit for a campaign" in describe(found)


def test_rows_that_stand_twice_or_contradict_each_other(tmp_path: Path) -> None:
    first, second, *_ = rows("train")
    same_question_elsewhere = second | {"language": "sw"}
    train = [first, second, dict(first), second | {"answer": "no"}, dict(first), same_question_elsewhere]
    of_train = validate(own_task(tmp_path / "mine", train=train))["splits"]["train"]
    assert of_train["duplicates"] == {
        "rows": 2,
        "first": [["train.jsonl, row 3", "train.jsonl, row 1"], ["train.jsonl, row 5", "train.jsonl, row 1"]],
    }
    assert of_train["contradictions"] == {"rows": 1, "first": [["train.jsonl, row 4", "train.jsonl, row 2"]]}
    assert of_train["examples"] == 2


def test_overlap_of_own_rows_is_told_whole_and_then_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the first row of the other split, should the example stand there twice."""
    test = [*rows("test"), rows("test")[0]]
    train = [*rows("train"), test[0], test[1] | {"language": "ta"}]
    folder = own_task(tmp_path / "mine", test=test, train=train, validation=[*rows("validation"), test[0]])
    assert main(["data", "validate", str(folder), "--json"]) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    places = {(overlap["of"], overlap["in"]): overlap["first"] for overlap in found["overlaps"]}
    assert places == {
        ("train", "validation"): [["train.jsonl, row 5", "validation.jsonl, row 5"]],
        ("train", "test"): [["train.jsonl, row 5", "test.jsonl, row 1"], ["train.jsonl, row 6", "test.jsonl, row 2"]],
        ("validation", "test"): [["validation.jsonl, row 5", "test.jsonl, row 1"]],
    }
    line = test_cli.one_line(captured.err)
    assert "3 rows of train or validation are also in a later split" in line and "train.jsonl, row 5" in line
    assert found["unfit"] in line and "unfit" in describe(found)
    assert found["removed"] == {split: {} for split in SPLITS}


def test_passages_that_train_and_test_share(tmp_path: Path) -> None:
    [note] = validate(test_cli.own_task(tmp_path))["notes"]
    assert note.startswith("1 of 1 test rows share their context with a train row") and "test.jsonl, row 1" in note


def test_a_few_places_stand_for_many(tmp_path: Path) -> None:
    found = validate(own_task(tmp_path / "mine", train=rows("train", 1) * 100))
    twice = found["splits"]["train"]["duplicates"]
    assert (twice["rows"], len(twice["first"])) == (99, 3)
    assert "row 4 = train.jsonl, row 1; …)" in describe(found).replace("\n" + " " * 13, " ")


def test_an_exemplar_that_is_a_row(tmp_path: Path) -> None:
    found = validate(own_task(tmp_path / "mine", test=[*rows("test"), *rows("test", 1, question="any")]))
    assert "test.jsonl, row 5 (test, language fi) is also an exemplar" in found["unfit"]


def test_a_split_without_rows(tmp_path: Path) -> None:
    found = validate(own_task(tmp_path / "mine", validation=[]))
    assert "no rows in split validation" in found["unfit"]
    assert "0 rows" in describe(found)


def test_what_is_odd_about_languages_and_fields(tmp_path: Path) -> None:
    test = [*rows("test"), *rows("some", 2, language="klingon", answer="no"), *rows("more", 2, language="x-own"), *rows("our", 1, language="zh-Hant")]
    test[1] |= {"question": "  "}
    found = validate(own_task(tmp_path / "mine", test=test))
    assert found["empty"] == [{"split": "test", "field": "question", "rows": 1, "first": ["test.jsonl, row 2"]}]
    assert found["notes"] == [
        "language klingon: no rows in train and validation",
        "language klingon: no code that CLDR knows, and no exemplar's language (first: test.jsonl, row 5)",
        "language klingon: no test row is 'yes', so its AUC-PR is not defined",
        "language x-own: no rows in train and validation",
        "language zh-Hant: no rows in train and validation",
        "language zh-Hant: no test row is 'yes', so its AUC-PR is not defined",
    ]
    assert not found["unfit"]
    said = describe(found)
    assert "rows of test without question: 1 (test.jsonl, row 2)" in said and "klingon" in said


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"question": 3}, "field 'question' must be text"),
        ({"answer": "maybe"}, "'maybe', none of the labels no, yes"),
        ({"answer": " "}, "none of the labels"),
        ({"language": "mean"}, "no name for a language"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: dict[str, Any], said: str) -> None:
    folder = own_task(tmp_path / "mine", validation=[*rows("validation"), rows("bad")[0] | bad])
    assert main(["data", "validate", str(folder)]) == 2
    captured = capsys.readouterr()
    line = test_cli.one_line(captured.err)
    assert f"{folder}/validation.jsonl, row 5: " in line and said in line
    assert not captured.out


def test_what_can_be_wrong_with_the_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["nothing"], "neither a built-in task"),
        (["xor_attriqa"], "`data` is missing"),
        (["xor_attriqa", "--data", str(tmp_path / "gone")], "no such folder or archive"),
    ):
        assert main(["data", "validate", *arguments]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("form", ["folder", "zip", "tgz"])
def test_places_in_folders_and_archives(tmp_path: Path, form: str) -> None:
    tree = attriqa_tree()
    test = tree["xor_attriqa/in-language/fi.jsonl"]
    tree["xor_attriqa/in-language/val.jsonl"].append(test[1])
    found = validate("xor_attriqa", packed(write(tmp_path / "data", tree), form))
    [[place, other]] = found["overlaps"][2]["first"]
    assert place.endswith("xor_attriqa/in-language/val.jsonl, row 3") and other.endswith("in-language/fi.jsonl, row 2")
    assert place.startswith("xtreme-up-v1.1/xor_attriqa" if form == "tgz" else "xor_attriqa")


@pytest.mark.parametrize("name", ["xor_attriqa", "xtreme_up_qa"])
def test_removed_is_what_the_guard_removes(tmp_path: Path, name: str) -> None:
    """Train rows in validation and test, validation rows in test, and one in all three, which counts once."""
    if name == "xor_attriqa":
        tree, files = attriqa_tree(), ["train.jsonl", "val.jsonl", "te.jsonl"]
        paths = [f"xor_attriqa/in-language/{file}" for file in files]
        new = [attriqa_row(900 + n, "te") for n in range(4)]
    else:
        tree = qa_tree()
        paths = [f"xtreme_up/qa_cross_lang/{split}/hi.jsonl" for split in SPLITS]
        new = [{"question": f"new {n}", "title": "t", "context": f"new {n}", "target": f"t {n}"} for n in range(4)]
    train, validation, test = (tree[path] for path in paths)
    train += [new[0], new[1], new[2]]
    validation += [new[0], new[2], new[3]]
    test += [new[1], new[2], new[3]]
    data = write(tmp_path, tree)
    found = validate(name, data)
    removed = Task.load(name, data).removed
    assert found["removed"] == {split: dict(Counter(row["language"] for row in removed if row["split"] == split)) for split in SPLITS}
    assert {split: sum(counts.values()) for split, counts in found["removed"].items()} == {"train": 3, "validation": 2, "test": 0}
    assert [overlap["rows"] for overlap in found["overlaps"]] == [2, 2, 2]
    assert "every campaign leaves out 3 rows of train" in describe(found) and not found["unfit"]


def test_the_papers_sizes() -> None:
    """Cells of Tables 4 and 5, and their sums."""
    totals = {task: [sum(counts.values()) for counts in splits.values()] for task, splits in ROWS.items()}
    assert totals == {"xor_attriqa": [262, 1256, 9462], "xtreme_up_qa": [21706, 12964, 16424]}
    assert ROWS["xtreme_up_qa"]["test"]["hi"] == 1049 and ROWS["xtreme_up_qa"]["validation"]["te"] == 468
    assert ROWS["xtreme_up_qa"]["train"]["ar"] == 3159 and ROWS["xor_attriqa"]["validation"]["ja"] == 578


def test_real_attriqa(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "validate", "xor_attriqa", "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {
        "train": dict.fromkeys(["bn", "fi", "ja", "ru", "te"], 50),
        "validation": dict.fromkeys(["bn", "fi", "ja", "ru", "te"], 100),
        "test": {"bn": 1407, "fi": 659, "ja": 954, "ru": 634, "te": 1066},
    }
    assert found["splits"]["test"]["groups"] == 1068
    assert [(overlap["rows"], overlap["groups"]) for overlap in found["overlaps"]] == [(0, 140), (0, 0), (22, 22)]
    assert found["removed"] == {"train": {}, "validation": {"bn": 1, "fi": 9, "te": 12}, "test": {}}
    assert found["overlaps"][2]["first"][0] == ["xor_attriqa/in-language/val.jsonl, row 100", "xor_attriqa/in-language/bn.jsonl, row 1"]
    assert found["splits"]["test"]["contradictions"]["rows"] == 4
    said = describe(found)
    assert "every campaign leaves out 22 rows of validation" in said
    assert all(len(line) <= 110 for line in said.splitlines())
    assert [line.split() for line in said.splitlines() if line.startswith("  bn ")] == [["bn", "50", "100", "1,407", "40", "218", "2,822", "228"]]


def test_real_cross_lingual_qa(data: Path) -> None:
    found = validate("xtreme_up_qa", data)
    assert {split: of["rows"] for split, of in found["splits"].items()} == {"train": 2664, "validation": 1427, "test": 2448}
    assert len(found["rows"]["test"]) == 27 and found["rows"]["train"]["mni"] == 99
    assert all((overlap["rows"], overlap["groups"]) == (0, 0) for overlap in found["overlaps"])
    assert found["splits"]["test"]["duplicates"]["first"] == [[f"xtreme_up/qa_cross_lang/test/gom.jsonl, row {row}" for row in (75, 37)]]
    assert {(empty["split"], empty["field"]): empty["rows"] for empty in found["empty"]} == {
        ("train", "question"): 1,
        ("train", "title"): 665,
        ("validation", "question"): 2,
        ("validation", "title"): 227,
        ("test", "title"): 448,
    }
    assert (found["notes"], found["unfit"]) == ([], "")


def test_the_papers_sizes_stand_beside_the_papers_tasks_only(tmp_path: Path) -> None:
    found = validate(own_task(tmp_path / "xor_attriqa"))
    assert found["task"] == "xor_attriqa" and not found["paper_rows"] and not found["notes"]


def test_languages_of_the_paper_that_are_not_there(tmp_path: Path) -> None:
    [note] = validate("xtreme_up_qa", write(tmp_path, qa_tree()))["notes"]
    assert note.startswith("24 of the paper's 27 languages are not there: ar as bho brx fi")


def test_a_task_that_reads_nothing() -> None:
    found = validate("country_facts")
    assert found["data"] is None and found["splits"]["test"]["rows"] == 780 and not found["unfit"]
