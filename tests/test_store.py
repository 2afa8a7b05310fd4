"""The rationale store: parts that many write, and what counts where a key was tried more than once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiat_ray.errors import UserError
from fiat_ray.reason import merge
from fiat_ray.reason.store import MOST_TRIES, Store
from fiat_ray.schema import RATIONALES

FEW = merge.FEWEST


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def answered(name: str, status: str = "ok", text: str = "because", tries: int = 1, **more: Any) -> dict[str, Any]:
    return {
        **{"key": key(name), "status": status, "text": text, "finish_reason": "stop"},
        **{"prompt_tokens": 3, "cached_tokens": 2, "output_tokens": 4},
        **{"seconds": 0.5, "tries": tries, "error": "", **more},
    }


def read(store: Store, *names: str) -> dict[str, dict[str, Any]]:
    found = store.read(map(key, names))
    return {name: found[key(name)] for name in names if key(name) in found}


def finished(store: Store, *names: str) -> set[str]:
    return {name for name, found in zip(names, store.known().has(pa.array(map(key, names), pa.string())), strict=True) if found}


def files(store: Store) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(store.place).iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "rationales")


def test_what_is_written_is_read(store: Store) -> None:
    assert finished(store, "a") == set() and read(store, "a") == {} and len(store.table()) == 0
    rows = [answered("a", text="নদী"), answered("b", "empty", ""), answered("c", "length")]
    store.write(rows[:1])
    store.write(rows[1:])
    assert read(store, "a", "b", "c", "d") == {name: row for name, row in zip("abc", rows, strict=True)}
    assert read(store, "b") == {"b": rows[1]}
    assert finished(store, "a", "b", "c", "d") == {"a", "b", "c"}
    assert sorted(store.table().to_pylist(), key=str) == sorted(rows, key=str)


def test_a_folder_is_the_same_wherever_a_process_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that runs already starts its workers in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    store = Store("mytask/rationales")
    assert store.place == str(tmp_path / "mytask" / "rationales") == Store(store.place).place
    store.write([answered("a")])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert finished(Store(store.place), "a") == {"a"}


def test_parts_are_parquet_that_anybody_opens(store: Store) -> None:
    store.write([answered("a")])
    (part,) = files(store)
    assert part.suffix == ".parquet" and pq.read_schema(part).names == RATIONALES.names


@pytest.mark.parametrize("other", ["length", "empty", "prompt_too_long", "engine_error"])
def test_ok_comes_before_all_others(store: Store, other: str) -> None:
    store.write([answered("a", other, "not this", tries=MOST_TRIES), answered("b")])
    store.write([answered("a"), answered("b", other, "not this", tries=MOST_TRIES)])
    assert {row["text"] for row in read(store, "a", "b").values()} == {"because"}
    assert finished(store, "a", "b") == {"a", "b"}


@pytest.mark.parametrize("status", ["ok", "length", "empty"])
def test_of_equals_the_first_part_counts_for_ever(store: Store, status: str) -> None:
    store.write([answered("a", status, "first")])
    before = files(store)
    store.write([answered("a", status, "second")])
    assert read(store, "a")["a"]["text"] == "first"
    assert before.items() <= files(store).items()


def test_part_names_decide_and_not_when_they_were_written(store: Store) -> None:
    store.write([answered("a", text="named last")])
    (part,) = files(store)
    part.rename(part.with_name("part-9.parquet"))
    store.write([answered("a", text="named first")])
    assert read(store, "a")["a"]["text"] == "named first"


def test_of_a_part_that_holds_a_key_twice_the_better_row_counts(store: Store) -> None:
    store.write([answered("a", "empty", ""), answered("a", text="first"), answered("a", text="second"), answered("a", "engine_error", "")])
    assert read(store, "a")["a"]["text"] == "first" and len(store.table()) == 1


def test_an_engine_error_is_tried_three_times_in_all(store: Store) -> None:
    for tries in range(1, MOST_TRIES + 1):
        store.write([answered("a", "engine_error", "", tries, error=f"try {tries}")])
        assert store.known().tries == ({} if tries == MOST_TRIES else {key("a"): tries})
        assert finished(store, "a") == ({"a"} if tries == MOST_TRIES else set())
    assert MOST_TRIES == 3 and read(store, "a")["a"]["error"] == "try 3"


def test_an_engine_error_gives_way_to_any_answer(store: Store) -> None:
    store.write([answered("a", "engine_error", "", 2)])
    store.write([answered("a", "empty", "", 3)])
    assert finished(store, "a") == {"a"} and read(store, "a")["a"]["status"] == "empty"


def test_unfinished_files_are_passed_over(store: Store) -> None:
    store.write([answered("a")])
    (part,) = files(store)
    (part.parent / ".part-half.parquet.tmp").write_bytes(part.read_bytes()[:40])
    (part.parent / ".abcd.tmp").write_bytes(b"")
    assert finished(store, "a") == {"a"}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["ok", "length", "engine_error"]), st.integers(1, 3)), max_size=8))
def test_what_counts_is_what_the_rule_says(written: list[tuple[str, str, int]]) -> None:
    """One part a row: ``ok`` before others, final before not, the most tries of failures, then the smallest part name."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for number, (name, status, tries) in enumerate(written):
            store.write([answered(name, status, str(number), tries)])
        expected: dict[str, dict[str, Any]] = {}
        for number, (name, status, tries) in enumerate(written):
            row = answered(name, status, str(number), tries)

            def rank(r: dict[str, Any]) -> tuple[bool, bool, int]:
                return (r["status"] != "ok", r["status"] == "engine_error", -r["tries"] if r["status"] == "engine_error" else 0)

            if name not in expected or rank(row) < rank(expected[name]):
                expected[name] = row
        assert read(store, *"abcd") == expected


@pytest.mark.parametrize("left", [0, 3, 200])
def test_a_damaged_part_is_named(store: Store, left: int) -> None:
    store.write([answered(str(n)) for n in range(50)])
    store.write([answered("b")])
    part = sorted(files(store))[0]
    part.write_bytes(part.read_bytes()[:left])
    for look in (store.known, store.table, lambda: read(store, "b")):
        with pytest.raises(UserError, match=f"{part}: damaged part of the rationale store .*; delete this file"):
            look()


def test_a_part_of_another_version_is_named(store: Store) -> None:
    Path(store.place).mkdir()
    pq.write_table(pa.table({"key": [key("a")], "status": ["ok"]}), Path(store.place) / "part-1.parquet")
    with pytest.raises(UserError, match=r"part-1.parquet: .* lacks columns tries; it is of another version"):
        store.known()


def test_many_threads_write_at_once(store: Store) -> None:
    def work(writer: int) -> None:
        for n in range(10):
            store.write([answered(f"{writer}-{n}"), answered("shared", text=f"{writer}-{n}")])

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.known()  # reading meanwhile sees whole parts only
    for thread in threads:
        thread.join()
    names = {f"{writer}-{n}" for writer in range(4) for n in range(10)} | {"shared"}
    assert finished(store, *names) == names and len(store.table()) == len(names)
    assert len(files(store)) == 40


WRITER = """
import sys; from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store import Store, answered
for n in range(5):
    Store(Path(sys.argv[2])).write([answered(f"{sys.argv[3]}-{n}")])
"""


def test_many_processes_write_at_once(store: Store) -> None:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), store.place]
    writers = [subprocess.Popen([*command, str(writer)]) for writer in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    names = {f"{writer}-{n}" for writer in range(3) for n in range(5)}
    assert finished(store, *names) == names


def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        store, written = Store(small / "rationales"), 0
        with pytest.raises(UserError, match=f"{store.place}: the rationale store can't be written .*No space left on device"):
            for n in range(100):
                store.write([answered(f"{n}-{row}", text=f"{n * row}" * 100) for row in range(50)])
                written = n + 1
        assert 0 < written < 100 and len(store.table()) == 50 * written  # what was written before is whole, and nothing half is left
        assert all(path.suffix == ".parquet" for path in files(store))
    finally:
        subprocess.run(["umount", small], check=True)
