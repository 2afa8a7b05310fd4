"""Things on disk: whole or not there."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiat_ray import artifact

SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int64()), ("value", pa.float64()), ("texts", pa.list_(pa.string()))])


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    artifact.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), artifact.replacing(path) as temporary:
        temporary.write_text("half of the new")
        assert path.read_text() == "old" and temporary.parent == path.parent
        _ = 1 / 0
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file"]
    with pytest.raises(ZeroDivisionError), artifact.replacing(tmp_path / "never"):
        _ = 1 / 0
    assert os.listdir(tmp_path) == ["deep"]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the system, in order. No test cuts the power: that is what counts."""
    asked: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        found = os.fstat(handle)
        asked.append("fsync of the folder" if stat.S_ISDIR(found.st_mode) else f"fsync of {found.st_size} bytes")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        asked.append(f"rename to {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return asked


def test_a_file_is_durable_before_it_has_its_name_and_its_name_before_the_write_returns(tmp_path: Path, system: list[str]) -> None:
    artifact.write_text(tmp_path / "file", "text")
    assert system == ["fsync of 4 bytes", "rename to file", "fsync of the folder"]


def test_the_files_of_a_folder_are_durable_before_it_has_its_name(tmp_path: Path, system: list[str]) -> None:
    def fill(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "one").write_text("text")
        (folder / "two").write_text("longer text")

    artifact.write_folder(tmp_path / "whole", fill)
    assert sorted(system[:2]) == ["fsync of 11 bytes", "fsync of 4 bytes"] and system[2:] == ["rename to whole"]


def test_a_file_can_be_read_by_colleagues(tmp_path: Path) -> None:
    artifact.write_text(tmp_path / "file", "x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_readers_see_the_old_or_the_new_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    artifact.write_json(path, ["0"] * 1000)
    seen: set[str] = set()
    writing = threading.Event()

    def read() -> None:
        while not writing.is_set():
            values = artifact.read_json(path)
            assert len(values) == 1000 and len(set(values)) == 1
            seen.add(values[0])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(40):
        artifact.write_json(path, [str(number)] * 1000)
    writing.set()
    for reader in readers:
        reader.join()
    assert seen and os.listdir(tmp_path) == ["file.json"]


def test_rows_come_back(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "নদী\u2028 <|im_end|>", "number": 1 << 60, "value": 0.1, "texts": ["a", ""]},
        {"text": None, "number": None, "value": None, "texts": []},
        {"text": "", "number": 0, "value": float("inf"), "texts": None},
    ]
    artifact.write_rows(tmp_path / "rows.parquet", rows, SCHEMA)
    assert artifact.read_rows(tmp_path / "rows.parquet") == rows
    artifact.write_rows(tmp_path / "rows.parquet", [], SCHEMA)
    assert artifact.read_rows(tmp_path / "rows.parquet") == []


def test_folders_named_as_partitions_add_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "split=test" / "rows.parquet"
    artifact.write_rows(path, [{"text": "a"}], SCHEMA)
    assert list(artifact.read_rows(path)[0]) == SCHEMA.names


def test_lone_surrogates_are_question_marks_everywhere(tmp_path: Path) -> None:
    row = {"text": "a\ud800b", "number": 1, "value": 1.0, "texts": ["ok", "\udfff"]}
    artifact.write_rows(tmp_path / "rows.parquet", [row], SCHEMA)
    assert artifact.read_rows(tmp_path / "rows.parquet") == [row | {"text": "a?b", "texts": ["ok", "?"]}]
    artifact.write_json(tmp_path / "value.json", row)
    assert artifact.read_json(tmp_path / "value.json") == row | {"text": "a?b", "texts": ["ok", "?"]}
    artifact.write_text(tmp_path / "text", "a\ud800b")
    assert (tmp_path / "text").read_text("utf-8") == "a?b"
    assert artifact.fingerprint("\ud800") != artifact.fingerprint("?")


def test_json_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert artifact.read_json(tmp_path / "nothing.json") is None


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.lists(st.floats(allow_nan=False))))
def test_a_fingerprint_is_of_values_not_of_order(values: dict[str, object]) -> None:
    assert artifact.fingerprint(values) == artifact.fingerprint(dict(reversed(values.items())))
    assert artifact.fingerprint(values) == artifact.fingerprint(json.loads(json.dumps(values)))
    assert artifact.fingerprint(values, 1) != artifact.fingerprint([values, 1])


def test_tuples_are_lists_in_a_fingerprint_and_order_counts() -> None:
    assert artifact.fingerprint((1, 2)) == artifact.fingerprint([1, 2]) != artifact.fingerprint([2, 1])


def test_a_folder_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    artifact.write_folder(path, lambda folder: (folder / "a").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        artifact.write_folder(path, fail)
    assert (path / "a").read_text() == "old" and os.listdir(tmp_path) == ["adapter"]
    artifact.write_folder(path, lambda folder: (folder / "b").write_text("new"))
    assert os.listdir(path) == ["b"] and os.listdir(tmp_path) == ["adapter"]
