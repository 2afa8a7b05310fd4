"""Test rows as the example browser shows them: their pieces, which way each is read, and in what language."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_directory import write_run

from fiat_ray import model_card
from fiat_ray.artifact import read_rows
from fiat_ray.length import Lengths
from fiat_ray.report.cells import language_tag
from fiat_ray.report.example_data import example_data
from fiat_ray.report.examples import examples, rows_on_test
from fiat_ray.report.read import read
from fiat_ray.report.results import Results
from fiat_ray.run_folder import RunFolder
from fiat_ray.task import Row, Task

HEBREW, HINDI = "שלום, דוד", "नमस्ते"


def examples_of(run: Path) -> list[dict[str, Any]]:
    results = Results(read(run))
    return examples(results, rows_on_test(results))


def shown(folder: Path, template: str, fields: Mapping[str, str], language: str = "he", removed: int = 0) -> list[dict[str, Any]]:
    """The pieces of a test row with these fields, the last of which is cut by ``removed`` characters; the task is kept as a run keeps it."""
    run = write_run(folder, languages=(language,), rows=2)
    kept = read_rows(run / "task" / "rivers" / "rows.parquet")
    rows = tuple(Row(row["id"], row["split"], language, dict(fields), tuple(row["targets"]), row["group"], row["group"]) for row in kept)
    *_, cut = fields
    task = Task("rivers", template, cut, "f1", (), "Think.", "Say.", (), rows)
    text = task.text({**fields, cut: fields[cut][: len(fields[cut]) - removed].rstrip()})
    lengths = Lengths({row.id: text for row in rows}, {row.id: removed for row in rows})
    RunFolder(run).save_task(task, lengths, {})
    return list(examples_of(run)[0]["input"])


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("sentence1: {sentence1} sentence2: {sentence2}", {"sentence1": HEBREW, "sentence2": f"{HEBREW}?"}),
        ("q: {q} a_name_of_more_than_20_letters: {a_name_of_more_than_20_letters}", {"q": HEBREW, "a_name_of_more_than_20_letters": "Shalom"}),
        ("context: {context} title: {title} text: {text}", {"context": "Shalom", "title": HEBREW, "text": HEBREW}),
        ("{question}\n{passage}", {"question": f"{HEBREW}\n{HEBREW}", "passage": f"passage: {HEBREW}"}),
        ('{{"question": "{question}"}}', {"question": HEBREW}),
    ],
)
def test_each_field_is_a_piece_that_is_read_its_own_way(tmp_path: Path, template: str, fields: dict[str, str]) -> None:
    pieces = shown(tmp_path, template, fields)
    assert [(piece["label"], piece["text"]) for piece in pieces] == list(fields.items())
    assert [piece["dir"] for piece in pieces] == ["ltr" if text[0] in "Sp" else "rtl" for text in fields.values()]


def test_a_passage_is_shown_as_far_as_prompts_hold_it(tmp_path: Path) -> None:
    question, passage = shown(tmp_path, "{question} {passage}", {"question": "What is it?", "passage": "one two three"}, removed=6)
    assert (question["text"], passage["text"]) == ("What is it?", "one two")


def test_a_run_of_an_older_version_shows_each_input_in_one_piece(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for name in ("task.yaml", "test.jsonl"):
        (run / "task" / "rivers" / name).unlink()
    inputs = {row["id"]: row["input"] for row in read_rows(run / "task" / "rivers" / "rows.parquet")}
    for example in examples_of(run):
        assert [(piece["label"], piece["text"]) for piece in example["input"]] == [("", inputs[example["id"]])]


def test_rows_that_are_left_out_are_counted_and_those_shown_stand_evenly_for_all(tmp_path: Path) -> None:
    results = Results(read(write_run(tmp_path, rows=30)))
    whole = example_data(results)
    data = json.loads(whole.json)
    assert (whole.rows, whole.of, len(data["rows"])) == (120, 120, 120)
    assert len(data["texts"]) == len({tuple(text) for text in data["texts"]})  # passages that rows of all languages share stand once
    for part in (example_data(results, most_rows=22), example_data(results, most_bytes=len(whole.json.encode()) // 2)):
        ids = [row["id"] for row in json.loads(part.json)["rows"]]
        languages = Counter(name.split("-")[1] for name in ids)
        numbers = [int(name.split("-")[2]) for name in ids]
        assert part.of == 120 and part.rows == len(set(ids)) and 20 < part.rows < 100
        assert len(languages) == 4 and max(languages.values()) - min(languages.values()) <= 1
        assert max(numbers) > 20  # not only the first rows of a file
    assert len(part.json.encode()) <= len(whole.json.encode()) // 2
    assert example_data(results, most_bytes=50).rows == 0  # not even one, and it ends


TAGS = {"hi": "hi", "zh-Hant": "zh-Hant", "pt_BR": "pt-BR", "hin_Deva": "hin-Deva", "es-419": "es-419", "zh-yue": "zh-yue", "und": "und"}
NAMES = ("Hindi", "Chinese (Simplified)", "Brazilian Portuguese", "english", "a", "hi-", "pt_BR.UTF-8", "हिन्दी")


@pytest.mark.parametrize(("language", "tag"), [*TAGS.items(), *((name, None) for name in NAMES)])
def test_only_a_language_tag_becomes_one(tmp_path: Path, language: str, tag: str | None) -> None:
    """Another ``lang`` than a tag is an error to axe-core, and another ``language`` to model hubs."""
    assert language_tag(language) == tag
    [piece] = shown(tmp_path, "{question}", {"question": HINDI}, language)
    assert piece.get("lang") == tag


def test_a_model_cards_header_names_the_languages_that_have_tags() -> None:
    def languages(*names: str) -> Any:
        return yaml.safe_load(model_card.header("somebody/base", names).strip("-\n")).get("language")

    assert languages("hi", "Hindi", "pt_BR", "pt-BR") == ["hi", "pt-BR"]
    assert languages("no") == ["no"] and languages("Hindi") is None
