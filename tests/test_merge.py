"""Small parts of a rationale store are merged: what a reader sees stays, whenever the merge is killed, and whoever else merges or reads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import FEW, answered, files

from fiat_ray.reason import merge
from fiat_ray.reason.store import Store
from fiat_ray.schema import RATIONALES


class Killed(BaseException):
    pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Enough small parts; some keys stand in several, in better and in worse states."""
    store = Store(tmp_path / "rationales")
    for n in range(FEW + 3):
        store.write([answered(f"own-{n}", text=f"text {n} নদী"), answered("shared", text=str(n)), answered("fails", "engine_error", "", 1 + n % 2)])
    store.write([answered("fails", "empty", "", 3), answered("own-0", text="later")])
    return store


def parquet(store: Store) -> list[str]:
    return sorted(path.name for path in files(store) if path.suffix == ".parquet")


def test_a_merged_store_is_the_same_store_in_one_part(store: Store) -> None:
    before, parts = store.table(), parquet(store)
    merge.merge(store)
    (part,) = store.parts()
    assert store.table() == before == pq.read_table(part, schema=RATIONALES)  # rows copied unchanged, each key once
    assert store.known().tries == {} and len(store.known().finished) == len(before)
    assert set(parts) < set(parquet(store)), "replaced parts stay for readers that listed them before"


def test_replaced_parts_go_after_the_grace_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.table()
    merge.merge(store)
    merge.merge(store)
    assert len(parquet(store)) > FEW
    monkeypatch.setattr(merge, "GRACE_SECONDS", -1.0)
    merge.merge(store)
    assert [path.name for path in files(store)] == [Path(store.parts()[0]).name] and store.table() == before


def test_a_few_parts_are_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n in range(merge.FEWEST - 1):
        store.write([answered(str(n))])
    before = files(store)
    merge.merge(store)
    assert files(store) == before


def test_large_parts_stay_and_what_they_part_is_merged_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a key of a part after a large one would come before it."""
    middle = Path(store.parts()[2])
    rows = [answered("after", text="in the large part"), *(answered(f"large-{n}", text=f"{n}" * 50) for n in range(100))]
    pq.write_table(pa.Table.from_pylist(rows, RATIONALES), middle.with_name(f"{middle.stem}~.parquet"))
    store.write([answered("after", text="in a later part")])
    before = store.table()
    monkeypatch.setattr(merge, "SMALL_BYTES", 6000)
    merge.merge(store)
    assert len(store.parts()) == 5 and store.table() == before


@pytest.mark.parametrize("step", range(4))
def test_a_merge_may_be_killed_at_any_point(store: Store, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before the new part, before the record, before the old parts go, before the record goes: the next merge does the rest."""
    before, count = store.table(), [0]
    monkeypatch.setattr(merge, "GRACE_SECONDS", -1.0)

    def dying(do: Callable[..., None]) -> Callable[..., None]:
        def step_or_die(*arguments: Any) -> None:
            if count[0] == step:
                raise Killed
            count[0] += 1
            do(*arguments)

        return step_or_die

    with monkeypatch.context() as patch:
        for name in ("put", "remove"):  # a part is put too
            patch.setattr(Store, name, dying(getattr(Store, name)))
        with pytest.raises(Killed):
            merge.merge(store)
            merge.merge(store)
    assert store.table() == before
    merge.merge(store)
    assert store.table() == before
    merge.merge(store)
    assert store.table() == before and len(store.parts()) == 1 and len(files(store)) == 1


def test_a_reader_that_listed_parts_before_they_went_lists_them_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "GRACE_SECONDS", -1.0)
    before, looked = store.table(), []

    def work(parts: list[str]) -> pa.Table:
        if not looked:
            merge.merge(store)
            merge.merge(store)
        looked.append(len(parts))
        return store.chosen(parts)

    assert store.over_parts(work) == before
    assert looked == [FEW + 4, 1]


def test_writers_readers_and_mergers_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "GRACE_SECONDS", 0.05)
    before = {row["key"]: row for row in store.table().to_pylist()}
    errors: list[BaseException] = []

    def work(what: Any) -> None:
        try:
            what()
        except BaseException as error:
            errors.append(error)

    def look() -> None:
        seen = {row["key"]: row for row in Store(store.place).table().to_pylist()}
        assert before.items() <= seen.items()

    def add(writer: int) -> None:
        for n in range(40):
            store.write([answered(f"{writer}/{n}"), answered("shared", text="too late")])

    def repeat(what: Any) -> None:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            what()

    jobs = [lambda: add(0), lambda: add(1), *[lambda: repeat(look)] * 2, *[lambda: repeat(lambda: merge.merge(Store(store.place)))] * 2]
    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store.table()) == len(before) + 80


def test_a_record_says_what_it_replaces(store: Store) -> None:
    parts = parquet(store)
    merge.merge(store)
    [record] = [json.loads(content) for path, content in files(store).items() if path.suffix == ".json"]
    assert record["replaces"] == parts and record["part"] == Path(store.parts()[0]).name
