"""The rationale store: parts that many write, and what counts where a key was tried more than once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiat_ray.errors import UserError
from fiat_ray.reason.store import MOST_TRIES, Store
from fiat_ray.schema import RATIONALES


def answered(key: str, status: str = "ok", text: str = "because", tries: int = 1, **more: Any) -> dict[str, Any]:
    return {
        **{"key": key, "status": status, "text": text, "finish_reason": "stop", "prompt_tokens": 3, "cached_tokens": 2, "output_tokens": 4},
        **{"seconds": 0.5, "tries": tries, "error": "", **more},
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "rationales")


def test_what_is_written_is_read(store: Store) -> None:
    assert store.states() == {} and store.finished() == set() and store.read(["a"]) == {}
    rows = [answered("a", text="নদী"), answered("b", "empty", ""), answered("c", "length")]
    store.write(rows[:1])
    store.write(rows[1:])
    assert store.read(["a", "b", "c", "d"]) == {row["key"]: row for row in rows}
    assert store.read(["b"]) == {"b": rows[1]}
    assert store.states()["c"] == {"key": "c", "status": "length", "tries": 1}
    assert store.finished() == {"a", "b", "c"}


def test_parts_are_parquet_that_anybody_opens(store: Store) -> None:
    store.write([answered("a")])
    (part,) = store.folder.iterdir()
    assert part.suffix == ".parquet" and pq.read_schema(part).names == RATIONALES.names


@pytest.mark.parametrize("other", ["length", "empty", "prompt_too_long", "engine_error"])
def test_ok_comes_before_all_others(store: Store, other: str) -> None:
    store.write([answered("a", other, "not this", tries=MOST_TRIES), answered("b")])
    store.write([answered("a"), answered("b", other, "not this", tries=MOST_TRIES)])
    assert {row["text"] for row in store.read("ab").values()} == {"because"}
    assert store.finished() == {"a", "b"}


@pytest.mark.parametrize("status", ["ok", "length", "empty"])
def test_of_equals_the_first_part_counts_for_ever(store: Store, status: str) -> None:
    store.write([answered("a", status, "first")])
    before = {path: path.read_bytes() for path in store.folder.iterdir()}
    store.write([answered("a", status, "second")])
    assert store.read(["a"])["a"]["text"] == "first"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_part_names_decide_and_not_when_they_were_written(store: Store) -> None:
    store.write([answered("a", text="named last")])
    (part,) = store.folder.iterdir()
    part.rename(part.with_name("part-9.parquet"))
    store.write([answered("a", text="named first")])
    assert store.read(["a"])["a"]["text"] == "named first"


def test_an_engine_error_is_tried_three_times_in_all(store: Store) -> None:
    for tries in range(1, MOST_TRIES + 1):
        store.write([answered("a", "engine_error", "", tries, error=f"try {tries}")])
        assert store.states()["a"]["tries"] == tries
        assert store.finished() == ({"a"} if tries == MOST_TRIES else set())
    assert MOST_TRIES == 3 and store.read(["a"])["a"]["error"] == "try 3"


def test_an_engine_error_gives_way_to_any_answer(store: Store) -> None:
    store.write([answered("a", "engine_error", "", 2)])
    store.write([answered("a", "empty", "", 3)])
    assert store.finished() == {"a"} and store.read(["a"])["a"]["status"] == "empty"


def test_unfinished_files_are_passed_over(store: Store) -> None:
    store.write([answered("a")])
    (part,) = store.folder.iterdir()
    (store.folder / ".part-half.parquet.tmp").write_bytes(part.read_bytes()[:40])
    (store.folder / ".abcd.tmp").write_bytes(b"")
    assert store.finished() == {"a"}


@pytest.mark.parametrize("left", [0, 3, 200])
def test_a_damaged_part_is_named(store: Store, left: int) -> None:
    store.write([answered(str(n)) for n in range(50)])
    store.write([answered("b")])
    part = sorted(store.folder.iterdir())[0]
    part.write_bytes(part.read_bytes()[:left])
    for look in (store.states, store.finished, lambda: store.read(["b"])):
        with pytest.raises(UserError, match=f"{part}: damaged part of the rationale store .*; delete this file"):
            look()


def test_a_part_of_another_version_is_named(store: Store) -> None:
    store.folder.mkdir()
    pq.write_table(pa.table({"key": ["a"], "status": ["ok"]}), store.folder / "part-1.parquet")
    with pytest.raises(UserError, match=r"part-1.parquet: .* lacks columns tries; it is of another version"):
        store.states()


def test_many_threads_write_at_once(store: Store) -> None:
    def work(writer: int) -> None:
        for n in range(10):
            store.write([answered(f"{writer}-{n}"), answered("shared", text=f"{writer}-{n}")])

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.states()  # reading meanwhile sees whole parts only
    for thread in threads:
        thread.join()
    assert store.finished() == {f"{writer}-{n}" for writer in range(4) for n in range(10)} | {"shared"}
    assert len(list(store.folder.iterdir())) == 40
    assert store.read(["shared"]) == store.read(["shared"])


WRITER = """
import sys; from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store import Store, answered
for n in range(5):
    Store(Path(sys.argv[2])).write([answered(f"{sys.argv[3]}-{n}")])
"""


def test_many_processes_write_at_once(store: Store) -> None:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(store.folder)]
    writers = [subprocess.Popen([*command, str(writer)]) for writer in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert store.finished() == {f"{writer}-{n}" for writer in range(3) for n in range(5)}
