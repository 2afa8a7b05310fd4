"""What must not leak: an example into a second split, an exemplar into the rows. See test_leaks for gold in prompts."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from test_tasks import DATA, attriqa_row, attriqa_tree, qa_tree, real_data, write

from fiat_ray.errors import UserError
from fiat_ray.leakage import without_overlap
from fiat_ray.task import Exemplar, Row, Task


def row(split: str, example: str, number: int = 0) -> Row:
    return Row(f"{split}-{example}-{number}", split, "bn", {"text": f"{split} {example} {number}"}, ("y",), "g", example)


def task_of(*rows: Row, built_in: bool = True, exemplars: tuple[Exemplar, ...] = ()) -> Task:
    return Task("t", "{text}", None, "f1", (), "", "", exemplars, rows, built_in=built_in)


def test_overlap_is_removed_from_the_earlier_split() -> None:
    a, b, c = row("train", "a"), row("train", "b"), row("train", "c")
    b_val, c_val, d_val = row("validation", "b"), row("validation", "c"), row("validation", "d")
    a_test, b_test = row("test", "a"), row("test", "b")
    task = without_overlap(task_of(a, b, c, b_val, c_val, d_val, a_test, b_test))
    assert task.rows == (c_val, d_val, a_test, b_test)
    assert [(r["id"], r["overlaps"]) for r in task.removed] == [
        ("train-a-0", "test"),
        ("train-b-0", "test"),
        ("train-c-0", "validation"),
        ("validation-b-0", "test"),
    ]
    again = without_overlap(task)
    assert again.rows == task.rows


def test_repetition_inside_a_split_stays() -> None:
    rows = (row("train", "a", 0), row("train", "a", 1), row("test", "b", 0), row("test", "b", 1))
    assert without_overlap(task_of(*rows)).rows == rows


def test_own_task_with_overlap_is_an_error() -> None:
    with pytest.raises(UserError, match=r"1 row of train or validation .*train-a-0 \(train, language bn\) is the same example as test-a-0"):
        without_overlap(task_of(row("train", "a"), row("test", "a"), built_in=False))


@pytest.mark.parametrize("built_in", [True, False])
def test_exemplar_that_is_a_row_is_an_error(built_in: bool) -> None:
    exemplar = Exemplar("bn", {"text": "test a 0"}, "because", "z")
    with pytest.raises(UserError, match=r"test-a-0 \(test, language bn\) is also an exemplar, number 1"):
        without_overlap(task_of(row("test", "a"), built_in=built_in, exemplars=(exemplar,)))
    without_overlap(task_of(row("test", "b"), built_in=built_in, exemplars=(exemplar,)))


def test_exemplar_that_is_a_row_with_its_passage_cut_is_an_error() -> None:
    fields = {"question": "Which town?", "context": "It is Ambra. Many roads meet there.  It has a river."}
    rows = (Row("r", "test", "bn", fields, ("Ambra",), "r", "r"),)
    for context, refused in (("It is Ambra. Many roads meet there.", True), ("It is Birka.", False)):
        exemplar = Exemplar("bn", {**fields, "context": context}, "because", "Ambra")
        task = replace(task_of(exemplars=(exemplar,)), input="{question} {context}", cut="context", rows=rows)
        if refused:
            with pytest.raises(UserError, match="is also an exemplar, number 1"):
                without_overlap(task)
        else:
            without_overlap(task)


def test_guard_sees_the_rows_as_they_are_read(tmp_path: Path) -> None:
    """A validation row of XOR-AttriQA that stands in test goes; one that shares only its question stays."""
    tree = attriqa_tree()
    first = tree["xor_attriqa/in-language/fi.jsonl"][0]
    tree["xor_attriqa/in-language/val.jsonl"] = [first, first | {"prediction": "another"}, attriqa_row(99)]
    tree["xor_attriqa/in-language/train.jsonl"] = [attriqa_row(99), attriqa_row(98)]
    task = Task.load("xor_attriqa", write(tmp_path, tree))
    assert [(r["split"], r["language"], r["overlaps"]) for r in task.removed] == [("train", "bn", "validation"), ("validation", "fi", "test")]
    assert len(task.split("validation")) == 2 and len(task.split("train")) == 1 and len(task.split("test")) == 10


def test_guard_looks_across_languages(tmp_path: Path) -> None:
    """A translation of a test question is no training row."""
    tree = qa_tree()
    tree["xtreme_up/qa_cross_lang/train/hi.jsonl"][0] |= {
        name: tree["xtreme_up/qa_cross_lang/test/ur.jsonl"][1][name] for name in ("context", "target")
    }
    task = Task.load("xtreme_up_qa", write(tmp_path, tree))
    assert [(r["split"], r["language"], r["overlaps"]) for r in task.removed] == [("train", "hi", "test")]


@real_data
@pytest.mark.parametrize("name", ["xor_attriqa", "xtreme_up_qa"])
def test_exemplars_are_nobodys_rows(name: str) -> None:
    """Neither a question nor a passage of an exemplar is, holds or is held by a row's, in any split."""
    task = Task.load(name, DATA)
    asked, read = ("query", "passage") if name == "xor_attriqa" else ("question", "context")
    for which in (asked, read):
        texts = {plain(row.fields[which]) for row in task.rows}
        for exemplar in task.exemplars:
            own = plain(exemplar.fields[which])
            assert not [text for text in texts if text and (own in text or text in own)]


def plain(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c)[0] in "LMN")


def test_a_short_text_within_a_longer_one_is_another_row() -> None:
    exemplar = Exemplar("bn", {"text": "Not bad"}, "because", "yes")
    longer = replace(row("test", "a"), fields={"text": "Not bad at all, said the man who had seen it."})
    task = replace(task_of(longer, exemplars=(exemplar,)), cut="text")
    without_overlap(task)
    part = Exemplar("bn", {"text": "Not bad at all, said the man who had"}, "because", "yes")
    for shown in (part, replace(part, fields=longer.fields)):
        with pytest.raises(UserError, match="is also an exemplar"):
            without_overlap(replace(task, exemplars=(shown,)))
