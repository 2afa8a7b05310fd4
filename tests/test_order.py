"""Which requests are answered by whom and in which order: shared beginnings together, whole prefixes to one engine, long rows first."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store import answered, key

from fiat_ray.reason import requests
from fiat_ray.reason.order import MOST_ROWS, blocks, missing
from fiat_ray.reason.requests import ROWS_READ_AT_ONCE, Request, Requests
from fiat_ray.reason.store import Known, Store, digests

NOTHING = Known(digests(pa.array([], pa.string())), {})


def asked(folder: Path, sizes: dict[str, int], own: int = 3) -> Requests:
    """Requests under each prefix, that many; those of prefix number n have n tokens more than ``own``."""
    pieces = []
    for number, (prefix, rows) in enumerate(sizes.items()):
        pieces.append([Request(key(f"{prefix} {n}"), prefix, (n % 7, *[n] * (own + number - 1)), language=prefix) for n in range(rows)])
    requests.write(folder / "requests.parquet", pieces)
    return Requests(folder / "requests.parquet", {prefix: [1, 2] for prefix in sizes})


def prefixes(found: Requests, positions: np.ndarray) -> list[str]:
    return [str(row["prefix"]) for row in found.at(np.sort(positions)).to_pylist()]


def test_requests_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = asked(tmp_path, {"a": 2 * ROWS_READ_AT_ONCE + 5, "b": 3})
    assert len(found) == len(set(found.distinct().to_pylist())) == 2 * ROWS_READ_AT_ONCE + 8
    positions = np.array([0, 1, ROWS_READ_AT_ONCE, 2 * ROWS_READ_AT_ONCE + 4, 2 * ROWS_READ_AT_ONCE + 7])
    rows = found.at(positions).to_pylist()
    keys = found.distinct().to_pylist()
    assert [row["key"] for row in rows] == [keys[at] for at in positions]
    for row in rows:
        assert found.of(row["key"]) == row and row["size"] == len(row["ids"]) == (3 if row["prefix"] == "a" else 4)
    with pytest.raises(KeyError):
        found.of(key("none"))


def test_pieces_are_joined_with_each_key_once(tmp_path: Path) -> None:
    """As ``infer`` joins what the pieces of a file ask."""
    pieces = []
    for name, sizes in {"first": {"a": 5, "b": 2}, "second": {"b": 4, "c": 1}, "third": {"a": 5}}.items():
        (tmp_path / name).mkdir()
        pieces.append(asked(tmp_path / name, sizes))
    found = requests.joined(tmp_path / "all.parquet", pieces)
    keys = found.distinct().to_pylist()
    assert len(found) == len(keys) == len(set(keys)) == 5 + 4 + 1 and set(found.prefixes) == {"a", "b", "c"}
    assert set(keys) == {each for piece in pieces for each in piece.distinct().to_pylist()}


def test_rows_with_one_beginning_lie_next_to_each_other(tmp_path: Path) -> None:
    found = asked(tmp_path, {"a": 50})
    ids = [row["ids"] for row in found.at(np.arange(50)).to_pylist()]
    assert ids == sorted(ids)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 40))
def test_every_missing_request_is_in_one_block(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], replicas: int, window: int) -> None:
    found = asked(tmp_path_factory.mktemp("requests"), {str(number): rows for number, rows in enumerate(sizes)})
    todo = blocks(found, NOTHING, replicas, window)
    assert sorted(np.concatenate(todo).tolist()) == list(range(sum(sizes)))
    assert max(map(len, todo)) <= max(1, window // 2, sum(sizes) // (4 * replicas))
    sequence = [prefix for block in todo for prefix in prefixes(found, block)]
    assert len(list(groupby(sequence))) <= len(sizes) + len(todo)


def test_a_prefix_stays_whole_where_that_leaves_every_engine_its_share(tmp_path: Path) -> None:
    """27 languages of 240 rows, as in a real task: four engines, and each prefix is computed by one of them."""
    found = asked(tmp_path, {f"{number:02}": 240 for number in range(27)})
    todo = blocks(found, NOTHING, replicas=4, window=512)
    where = [{prefix for prefix in prefixes(found, block)} for block in todo]
    assert sum(map(len, where)) == 27 and 8 <= len(todo) <= 27
    assert [min(names) for names in where] == sorted((min(names) for names in where), reverse=True), "the longest rows first"


def test_one_large_prefix_is_shared_by_all_engines(tmp_path: Path) -> None:
    found = asked(tmp_path, {"a": 4000})
    sizes = [len(block) for block in blocks(found, NOTHING, replicas=4, window=64)]
    assert len(sizes) == 16 and max(sizes) - min(sizes) <= 1
    assert max(len(block) for block in blocks(found, NOTHING, replicas=1, window=64)) <= MOST_ROWS


def test_blocks_of_many_rows_are_large_and_still_many_for_each_engine(tmp_path: Path) -> None:
    found = asked(tmp_path, {"a": 64 * 1500})
    assert {len(block) for block in blocks(found, NOTHING, replicas=1, window=64)} == {1500}
    assert max(len(block) for block in blocks(found, NOTHING, replicas=2, window=64)) <= MOST_ROWS


def test_only_what_is_missing_is_in_a_block(tmp_path: Path) -> None:
    found, store = asked(tmp_path, {"a": 6, "b": 6}), Store(tmp_path / "store")
    store.write([answered(f"a {n}") for n in range(5)] + [answered("b 0", "engine_error", "", 3), answered("b 1", "engine_error", "", 1)])
    assert missing(found, store.known()) == 6
    [*todo] = blocks(found, store.known(), 1, 64)
    left = {row["key"] for block in todo for row in found.at(np.sort(block)).to_pylist()}
    assert left == {key("a 5"), *(key(f"b {n}") for n in range(1, 6))}
    store.write([answered(name) for name in ("a 5", *(f"b {n}" for n in range(1, 6)))])
    assert blocks(found, store.known(), 1, 64) == []
