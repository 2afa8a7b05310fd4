"""The sealed augmented set: one for all recipes, readable as one Parquet data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_model

from fiat_ray import augmented
from fiat_ray.length import Lengths
from fiat_ray.schema import AUGMENTED
from fiat_ray.task import Row

ROWS = tuple(
    tiny_model.row(n, split, language, targets=("yes", "ja"))
    for split in ("train", "validation", "test")
    for language in ("bn", "no", "zh/TW & HK", "..", "12")  # as people name languages
    for n in range(2)
)
LENGTHS = Lengths(texts={row.id: f"text of {row.id}" for row in ROWS}, cut_characters={row.id: n for n, row in enumerate(ROWS)})
KEYS = {row.id: f"key of {row.id}" for row in ROWS}


def rationales(**changes: Any) -> augmented.Rationales:
    return lambda keys: [{"text": f"because of {key}", "status": "ok", "finish_reason": "stop"} | changes for key in keys]


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_rows_come_back_with_their_rationales(tmp_path: Path) -> None:
    seal = augmented.seal(tmp_path / "set", ROWS, LENGTHS, KEYS, rationales())
    assert seal["rows"] == len(ROWS) and seal["status"]["bn"] == {"ok": 6}
    found = {example.id: example for example in augmented.read(tmp_path / "set")}
    assert len(found) == len(ROWS)
    for row in ROWS:
        e = found[row.id]
        assert (e.split, e.language, e.input, e.targets, e.group) == (row.split, row.language, LENGTHS.texts[row.id], row.targets, row.group)
        assert (e.rationale, e.status) == (f"because of {KEYS[row.id]}", "ok")


def test_rows_without_rationales_come_back(tmp_path: Path) -> None:
    augmented.write_rows_of_task(tmp_path / "rows.parquet", ROWS, LENGTHS)
    found = augmented.read_rows_of_task(tmp_path / "rows.parquet")
    assert [(e.id, e.split, e.language) for e in found] == [(row.id, row.split, row.language) for row in ROWS]
    assert all(e.rationale is None and e.status is None for e in found)


def test_pandas_reads_the_whole_folder(tmp_path: Path) -> None:
    augmented.seal(tmp_path / "augmented" / "task=towns", ROWS, LENGTHS, KEYS, rationales())
    table = pd.read_parquet(tmp_path / "augmented" / "task=towns")
    assert sorted(table.columns) == sorted(AUGMENTED.names)  # split and language are there, and once
    table = table.set_index("id").loc[[row.id for row in ROWS]]
    assert list(table["split"]) == [row.split for row in ROWS] and list(table["language"]) == [row.language for row in ROWS]
    assert list(table["rationale"]) == [f"because of {KEYS[row.id]}" for row in ROWS]
    assert set(pd.read_parquet(tmp_path / "augmented")["task"]) == {"towns"}


def test_what_is_not_sealed_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        augmented.read(tmp_path)
    augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales())
    (tmp_path / augmented.SEAL).unlink()
    with pytest.raises(FileNotFoundError):
        augmented.read(tmp_path)


def test_the_same_set_is_left_as_it_is(tmp_path: Path) -> None:
    seal = augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales())
    before = files(tmp_path)
    assert augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales()) == seal
    assert files(tmp_path) == before


def test_another_set_replaces_it_whole(tmp_path: Path) -> None:
    first = augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales())
    fewer = augmented.seal(tmp_path, ROWS[:2], LENGTHS, KEYS, rationales())
    assert fewer["fingerprint"] != first["fingerprint"]
    assert [e.id for e in augmented.read(tmp_path)] == [row.id for row in ROWS[:2]]


def test_a_seal_is_for_what_was_asked(tmp_path: Path) -> None:
    seal = augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales())
    assert augmented.read_seal(tmp_path) == augmented.read_seal(tmp_path, augmented.asked(ROWS, LENGTHS, KEYS)) == seal
    cut = replace(LENGTHS, texts=LENGTHS.texts | {ROWS[0].id: "cut"})
    for other in (augmented.asked(ROWS[1:], LENGTHS, KEYS), augmented.asked(ROWS, cut, KEYS)):
        assert augmented.read_seal(tmp_path, other) is None
    assert augmented.read_seal(tmp_path / "nothing") is None


@pytest.mark.parametrize("change", ["text", "status", "key", "group"])
def test_whatever_differs_is_sealed_anew(tmp_path: Path, change: str) -> None:
    augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales(text="", status="engine_error"))
    rows: list[Row] = [replace(row, group="another") for row in ROWS] if change == "group" else list(ROWS)
    keys = {name: f"{key}, again" for name, key in KEYS.items()} if change == "key" else KEYS
    given = rationales(text="now there" if change == "text" else "", status="empty" if change == "status" else "engine_error")
    augmented.seal(tmp_path, rows, LENGTHS, keys, given)
    found = augmented.read(tmp_path)
    assert {e.status for e in found} == {"empty" if change == "status" else "engine_error"}
    assert {e.rationale for e in found} == {"now there" if change == "text" else ""}
    assert ({e.group for e in found} == {"another"}) == (change == "group")


def test_one_policy_for_missing_rationales_and_no_row_is_dropped(tmp_path: Path) -> None:
    states = ("ok", "length", "empty", "engine_error", "prompt_too_long")
    given = {key: {"text": "some text", "status": states[n % 5], "finish_reason": ""} for n, key in enumerate(KEYS.values())}
    seal = augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, lambda keys: [given[key] for key in keys])
    examples = augmented.read(tmp_path)
    shown = augmented.readable(examples)
    assert shown == {e.id: "some text" if e.status in ("ok", "length") else "" for e in examples} and len(shown) == len(ROWS)
    assert sum(count for counts in seal["status"].values() for count in counts.values()) == len(ROWS)
    assert augmented.readable([replace(examples[0], rationale=None, status=None)]) == {examples[0].id: ""}


def test_an_interrupted_reseal_is_not_taken_for_the_old_set(tmp_path: Path) -> None:
    augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales())
    with pytest.raises(KeyError):
        augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, lambda keys: [{"text": "other", "status": "ok"} for _ in keys])  # lacks finish_reason
    with pytest.raises(FileNotFoundError):
        augmented.read(tmp_path)
    augmented.seal(tmp_path, ROWS, LENGTHS, KEYS, rationales())
    assert len(augmented.read(tmp_path)) == len(ROWS)
