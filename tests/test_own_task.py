"""A task from people's own rows: every form that rows come in, what is drafted, and that nothing stands in two splits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fiat_ray as fiat
from fiat_ray import Task
from fiat_ray.errors import UserError
from fiat_ray.leakage import without_overlap
from fiat_ray.task import SPLITS
from fiat_ray.task_folder import definition_files, read_definition

Rows = list[dict[str, Any]]


def questions(count: int = 30, **changes: Any) -> Rows:
    return [
        {
            "question": f"Which land is town {n} in?",
            "context": f"Towns lie at rivers. Town {n} lies in Land {n}. It has a market. A road leads to it.",
            "answer": f"Land {n}",
            "lang": ("fi", "sw", "bn")[n % 3],
        }
        | changes
        for n in range(count)
    ]


def films(count: int = 24) -> Rows:
    return [{"text": f"Film {n} was {'good' if n % 2 else 'bad'}.", "label": ("no", "yes")[n % 2]} for n in range(count)]


def task(rows: Any = None, **definition: Any) -> Task:
    return Task.from_rows(questions() if rows is None else rows, **({"target": "answer", "language": "lang"} | definition))


class Dataset:
    """What of ``datasets.Dataset`` counts here: iterating gives dicts, and features may have names of classes."""

    def __init__(self, rows: Rows, **features: Any) -> None:
        self._rows, self.features = rows, features

    def __iter__(self) -> Any:
        return iter(self._rows)


def test_every_form_of_rows_gives_the_same_task(tmp_path: Path) -> None:
    rows = questions()
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    expected = task(rows)
    files = [tmp_path / f"rows.{suffix}" for suffix in ("jsonl", "csv", "parquet")]
    for form in (frame, Dataset(rows), iter(rows), *files, str(files[0])):
        assert task(form) == expected


def test_what_is_drafted_for_questions() -> None:
    drafted = task()
    assert (drafted.input, drafted.cut, drafted.metric) == ("question: {question} context: {context}", "context", "f1")
    assert "Answer: " in drafted.i_beta and "English" in drafted.i_beta
    assert "answer alone" in drafted.i_tau
    assert not drafted.built_in
    assert drafted.languages == ["bn", "fi", "sw"]
    for split in SPLITS:
        assert {row.language for row in drafted.split(split)} == {"bn", "fi", "sw"}
    assert (len(drafted.split("validation")), len(drafted.split("test"))) == (6, 6)


def test_the_template_holds_every_text_field_and_neither_target_nor_language_nor_ids() -> None:
    rows = questions(title="Towns", doc_id="d", id="x", year=1999)
    assert task(rows).input == "question: {question} title: {title} context: {context}"
    given = task(rows, input="{context} | {question}", cut="question", i_beta="Think.", i_tau="Say.")
    assert (given.input, given.cut, given.i_beta, given.i_tau) == ("{context} | {question}", "question", "Think.", "Say.")


def test_labels_make_a_classification() -> None:
    drafted = Task.from_rows(films(), target="label", labels=["no", "yes"])
    assert (drafted.metric, drafted.labels, drafted.cut, drafted.languages) == ("accuracy", ("no", "yes"), "text", ["und"])
    assert "no, yes" in drafted.i_beta and "no, yes" in drafted.i_tau
    for split in SPLITS:
        assert {row.targets[0] for row in drafted.split(split)} == {"no", "yes"}
    assert {exemplar.target for exemplar in drafted.exemplars} == {"no", "yes"}
    assert all(drafted.answer(exemplar.answer) == exemplar.target for exemplar in drafted.exemplars)


def test_labels_that_are_numbers_or_classes_are_taken_in_every_form_of_rows() -> None:
    def made(form: Any, *labels: Any, **definition: Any) -> Task:
        return Task.from_rows(form, target="label", labels=labels, **definition)

    numbers = [row | {"label": n % 2} for n, row in enumerate(films())]
    expected = made([row | {"label": str(row["label"])} for row in numbers], "0", "1")
    assert all(made(form, "0", "1") == expected for form in (numbers, pd.DataFrame(numbers), Dataset(numbers)))
    truths = [row | {"label": n % 2 == 1} for n, row in enumerate(films())]
    assert {row.targets for row in made(pd.DataFrame(truths), "false", "true").rows} == {("false",), ("true",)}
    assert made(numbers, 1, 0, positive=1) == made(pd.DataFrame(numbers), *pd.DataFrame(numbers)["label"].unique(), positive=1) == expected
    assert made(truths, False, True, positive=False).labels == ("true", "false")
    features = {"text": SimpleNamespace(dtype="string"), "label": SimpleNamespace(names=["no", "yes"])}
    assert made(Dataset(numbers, **features), "no", "yes") == made(films(), "no", "yes")
    with pytest.raises(UserError, match="row 25: field 'label' must be text, not NoneType"):
        made(Dataset([*numbers, {"text": "Not labelled yet.", "label": -1}], **features), "no", "yes")
    worked = {"text": "It was good.", "rationale": "Good is praise.", "label": 1}
    assert [exemplar.target for exemplar in made(numbers, "0", "1", exemplars=[worked]).exemplars] == ["1"]


def test_the_positive_label_stands_last_in_a_folder_too(tmp_path: Path) -> None:
    rows = [{"text": f"Text {n}.", "label": "ham" if n % 3 else "spam"} for n in range(30)]
    drafted = fiat.Task.from_rows(rows, target="label", labels=["spam", "ham"], positive="spam", metric="auc_pr")
    assert (drafted.metric, drafted.labels) == ("auc_pr", ("ham", "spam"))
    for name, text in definition_files({}, drafted, {}).items():
        (tmp_path / name).write_text(text, "utf-8")
    read = read_definition(tmp_path)
    assert (read.metric, read.labels, read.i_tau) == (drafted.metric, drafted.labels, drafted.i_tau)


def test_drafted_exemplars_are_nobodys_rows() -> None:
    rows = questions() + [questions()[n] | {"lang": "te"} for n in range(30)]  # each question in a second language
    drafted = task(rows)
    assert len(drafted.exemplars) == 4
    shown = {exemplar.fields["question"] for exemplar in drafted.exemplars}
    assert not shown & {row.fields["question"] for row in drafted.rows}
    assert len(drafted.rows) == 60 - 2 * 4
    for exemplar in drafted.exemplars:
        assert exemplar.target in exemplar.rationale and exemplar.target in exemplar.fields["context"]
        assert exemplar.fields["context"].count(".") <= 2, "an exemplar's passage has two sentences at most"
        assert drafted.answer(exemplar.answer) == exemplar.target
    assert all(drafted.exemplars_for(language) == drafted.exemplars for language in drafted.languages)


def test_a_split_column_is_respected() -> None:
    names = ["train"] * 20 + ["validation"] * 4 + ["test"] * 6
    rows = [row | {"split": name} for row, name in zip(questions(), names, strict=True)]
    drafted = task(rows)
    assert [len(drafted.split(split)) for split in SPLITS] == [20 - 4, 4, 6]
    renamed = [{("part" if key == "split" else key): value for key, value in row.items()} for row in rows]
    assert task(renamed, split="part") == drafted
    assert task([row | {"split": "dev"} if row["split"] == "validation" else row for row in rows]) == drafted
    with pytest.raises(UserError, match="split 'unheard'"):
        task([row | {"split": "unheard"} for row in rows])
    without = task([row for row in rows if row["split"] != "validation"])  # what it lacks is drawn from train, what it has stays
    assert {row.fields["question"] for row in without.split("test")} == {row.fields["question"] for row in drafted.split("test")}
    assert len(without.split("validation")) == 4 and len(without.split("train")) == 20 - 4 - 4
    with pytest.raises(UserError, match="also in a later split"):
        task([*rows, rows[0] | {"split": "test"}])


def test_no_test_row_is_lost_to_an_exemplar_that_shows_it() -> None:
    """Most train rows are longer forms of test rows; an exemplar's two sentences of one would show the test row."""
    rows = [row | {"split": ("train", "train", "train", "test", "validation")[n % 5]} for n, row in enumerate(questions())]
    rows += [row | {"split": "train", "context": f"{row['context']} More {n}."} for row in rows if row["split"] == "test" for n in range(9)]
    drafted = task(rows)
    assert len(drafted.split("test")) == 6 and drafted.exemplars


def test_no_label_or_language_loses_its_last_train_row_to_an_exemplar() -> None:
    """A label and a language with one train row each, or with two in a turn that would take both; and rows that have no other like them."""
    splits = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
    rows = [row | {"lang": "fi", "split": split} for row, split in zip(films(), splits, strict=True)]
    for rare in (1, 2):
        own = [row | ({"label": "maybe"} if n < rare else {"lang": "sw"} if n < 2 * rare else {}) for n, row in enumerate(rows)]
        drafted = Task.from_rows(own, target="label", labels=["maybe", "no", "yes"], language="lang")
        train = drafted.split("train")
        assert {row.targets[0] for row in train} == {"maybe", "no", "yes"} and {row.language for row in train} == {"fi", "sw"}
        assert len(drafted.exemplars) == 4 and len(train) == 12
    translated = [row | {"lang": "sw", "text": f"In another language: {row['text']}", "film": 0} for row in rows[:1]]
    own = [row | {"film": n} for n, row in enumerate(rows)] + translated  # whose original would take it along
    for seed in range(8):
        grouped = Task.from_rows(own, target="label", labels=["no", "yes"], language="lang", group="film", seed=seed)
        assert "sw" in {row.language for row in grouped.split("train")} and len(grouped.exemplars) == 4
    alone = [row | {"lang": f"x{n}"} for n, row in enumerate(questions(12))]
    assert task([row | {"split": ("train", "train", "validation", "test")[n % 4]} for n, row in enumerate(alone)]).exemplars


def test_given_exemplars() -> None:
    one = {"question": "Which land is Oulu in?", "context": "Oulu lies in Finland.", "rationale": "It says so.", "answer": "Finland", "lang": "fi"}
    given = task(exemplars=[one, one | {"lang": "sw"}])
    assert [e.language for e in given.exemplars] == ["fi", "sw"]
    assert given.exemplars_for("fi") == given.exemplars[:1]
    assert len(given.rows) == 30, "no row is taken for an exemplar"
    with pytest.raises(UserError, match="exemplars: row 1: no field 'rationale'"):
        task(exemplars=[{key: value for key, value in one.items() if key != "rationale"}])
    with pytest.raises(UserError, match="is also an exemplar"):
        task(exemplars=[questions()[0] | {"rationale": "It says so."}])


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 2), st.integers(0, 40)), min_size=16, max_size=60),
    seed=st.integers(0, 5),
    grouped=st.booleans(),
)
def test_nothing_stands_in_two_splits(numbers: list[tuple[int, int, int]], seed: int, grouped: bool) -> None:
    rows = [questions(26)[n] | {"lang": ("fi", "sw", "bn")[language], "book": f"book {book}"} for n, language, book in numbers]
    try:
        drafted = task(rows, seed=seed, input="{question} {context}", group="book" if grouped else None)
    except UserError as error:
        assert "no rows in split" in str(error)  # hardly any rows that have nothing to do with each other
        return
    book_of = {f"row {n}": row["book"] for n, row in enumerate(rows, 1)}
    for key in (lambda row: row.fields["question"], lambda row: book_of[row.place] if grouped else row.id):
        held = [{key(row) for row in drafted.split(split)} for split in SPLITS]
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    assert without_overlap(drafted).rows == drafted.rows
    assert all(row.fields["question"] not in {e.fields["question"] for e in drafted.exemplars} for row in drafted.rows)


def test_groups_and_inputs_are_kept_together_along_chains() -> None:
    """Of four rows the first two have one input, the middle two one author, and the last two one input again."""
    rows = [questions()[n // 2] | {"author": f"{n // 4}-{(n % 4 + 1) // 2}", "answer": f"answer {n}"} for n in range(40)]
    drafted = task(rows, input="{question} {context}", group="author")
    chains = [{(int(row.place.removeprefix("row ")) - 1) // 4 for row in drafted.split(split)} for split in SPLITS]
    assert [len(held) for held in chains] == [3, 2, 2] and len(set.union(*chains)) == 7  # of ten chains three became exemplars
    assert len({row.group for row in drafted.rows}) == 3 * 7 and len({row.example for row in drafted.rows}) == 7
    turned = task(rows[::-1], input="{question} {context}", group="author")
    assert {(row.id, row.example) for row in turned.rows} == {(row.id, row.example) for row in drafted.rows}


def test_questions_about_one_passage_stay_in_one_split() -> None:
    rows = [questions()[n // 3] | {"question": f"Question {n}?"} for n in range(60)]
    drafted = task(rows)
    held = [{row.fields["context"] for row in drafted.split(split)} for split in SPLITS]
    assert all(held) and len(set.union(*held)) == sum(map(len, held)) == len({row.group for row in drafted.rows})
    same = task([row | {"context": questions()[n // 30]["context"]} for n, row in enumerate(rows)])  # too few passages to part rows by
    assert len({row.group for row in same.rows}) == len(same.rows)


def test_questions_about_one_passage_are_no_independent_evidence_in_somebodys_own_splits() -> None:
    rows = [row | {"split": SPLITS[n % 3]} for n, row in enumerate(about_passages())]  # all splits share passages, which is theirs to decide
    drafted = task(rows)
    assert len(drafted.rows) == len(rows) - 4, "four became exemplars"
    for split in SPLITS:
        assert len({row.group for row in drafted.split(split)}) == len({row.fields["context"] for row in drafted.split(split)})
    assert len({row.group for row in drafted.split("test")}) == 40
    with pytest.raises(UserError, match="also in a later split"):
        task([*rows, rows[0] | {"split": "test"}])
    drawn = task([row for row in rows if row["split"] == "train"])  # what is drawn keeps them together
    held = [{row.fields["context"] for row in drawn.split(split)} for split in SPLITS]
    assert len(set.union(*held)) == sum(map(len, held))


def about_passages(count: int = 40, each: int = 5) -> Rows:
    return [questions(count)[n // each] | {"question": f"Question {n}?"} for n in range(count * each)]


@pytest.mark.parametrize("context, count", [("", 40), (" ", 24), ("Our shop is open at all hours. Call us.", 24)], ids=["empty", "blank", "common"])
def test_one_common_or_empty_passage_leaves_the_others_in_one_split(context: str, count: int) -> None:
    """``count`` rows are more than a tenth of all."""
    rows = about_passages() + [row | {"context": context, "question": f"And {n}?"} for n, row in enumerate(questions(count))]
    drafted = task(rows)
    held = [{row.fields["context"] for row in drafted.split(split)} - {context} for split in SPLITS]
    assert all(held) and len(set.union(*held)) == sum(map(len, held))
    common = [row for row in drafted.rows if row.fields["context"] == context]
    assert {row.split for row in common} == set(SPLITS), "rows with nothing else in common are shared out"
    assert len({row.group for row in common}) == (1 if context.strip() else len(common))
    assert len({row.group for row in drafted.rows if row not in common}) == sum(map(len, held))


def test_answers_to_one_input_are_one_group_whatever_its_white_space() -> None:
    rows = [row | {"answer": answer} for row in questions() for answer in ("one", "another")]
    drafted = task(rows)
    assert len({row.group for row in drafted.rows}) == len({row.example for row in drafted.rows}) == len(drafted.rows) // 2
    spaced = [row | {"context": f"  {row['context']}\n", "split": "test"} for row in rows[:1]]
    splits = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    with pytest.raises(UserError, match=r"2 rows of train or validation .*row 1 .* is the same example as row 61"):
        task([row | {"split": split} for row, split in zip(rows, splits, strict=True)] + spaced)


def test_usual_names_count_in_capitals_too() -> None:
    rows = [{"ID": "x", "Context": row["context"], "Question": row["question"] * 9, "answer": row["answer"], "lang": "fi"} for row in questions()]
    drafted = task(rows)
    assert (drafted.input, drafted.cut) == ("Question: {Question} Context: {Context}", "Context")


def test_the_split_follows_the_seed_and_not_the_order_of_rows() -> None:
    assert task() == task()
    split_of = {row.fields["question"]: row.split for row in task().rows}
    assert {row.fields["question"]: row.split for row in task(questions()[::-1]).rows} == split_of
    assert {row.fields["question"]: row.split for row in task(seed=1).rows} != split_of
    assert len(task(test_share=0.5).split("test")) == 15


NO_CHOICE: tuple[list[Any], ...] = ([], ["yes"], ["no", "yes", "no"], ["no", "yes", ""], ["no", 0.5], [["no"], ["yes"]])


@pytest.mark.parametrize(
    ("rows", "definition", "said"),
    [
        (questions(11), {}, "own_task: 11 rows are too few: at least 12"),
        ([*questions(20), {"question": "q", "answer": "a", "lang": "fi"}], {}, "row 21: no field 'context'"),
        ([*questions(20), questions()[0] | {"context": None}], {}, "row 21: field 'context' must be text"),
        (questions(answer=7.5), {}, "row 1: field 'answer' must be text, not float"),
        (questions(answer=" "), {}, "row 1: field 'answer' is empty"),
        (questions(), {"language": "language"}, "row 1: no field 'language'"),
        (questions(), {"target": "gold"}, "row 1: no field 'gold'"),
        (questions(), {"group": "topic"}, "row 1: no field 'topic'"),
        (questions(), {"cut": "passage"}, "cut: 'passage' is no field"),
        (questions(), {"input": "{question} {answer}"}, "holds the target field 'answer'"),
        (questions(), {"labels": ["no", "yes"]}, "row 1: field 'answer' is 'Land 0', none of the labels no, yes"),
        (questions(), {"metric": "accuracy"}, "accuracy goes with labels"),
        *((films(), {"target": "label", "labels": labels}, "own_task: labels: must be two or more different texts") for labels in NO_CHOICE),
        (films(), {"target": "label", "labels": ["no", "yes "]}, "own_task: labels: 'yes ' holds a line break"),
        (films(), {"target": "label", "labels": ["no", "yes"], "positive": 1}, "own_task: positive: '1' is none of the labels no, yes"),
        (questions(), {"metric": "bleu"}, "own_task: metric 'bleu' is none of"),
        (questions(), {"name": "a/b"}, "name 'a/b'"),
        (questions(), {"test_share": 0.9}, "leave something to train on"),
        ([{"a question": "q", "answer": "a", "lang": "fi"}] * 12, {}, "field 'a question' can't stand in a template"),
        ([{"answer": "a", "lang": "fi", "n": 1}] * 12, {}, "no text fields"),
        ([*questions(20), ("q", "a")], {}, "row 21: must be a dict of field and value, not tuple"),
        (["question", "answer"], {}, "row 1: must be a dict of field and value, not str"),
    ],
)
def test_errors_name_row_and_field(rows: Rows, definition: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(rows, **definition)


def test_names_in_a_list_are_no_tasks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'country_facts' in a list is no Task; give Task.load\('country_facts'\), or one name alone"):
        fiat.run([task(), "country_facts"], out=tmp_path / "run")  # type: ignore[list-item]


@pytest.mark.parametrize("key", ["data", "focus", "passages"])
def test_what_reads_rows_is_refused_beside_rows_that_are_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}: says how rows are read, .* give it to Task.load$"):
        fiat.run(task(), out=tmp_path / "run", methods=["majority"], **{key: "english"})
    assert not (tmp_path / "run").exists()


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*questions(20), {"question": "q"}]), "utf-8")
    with pytest.raises(UserError, match="rows.jsonl, row 21: no field 'context'"):
        task(path)
