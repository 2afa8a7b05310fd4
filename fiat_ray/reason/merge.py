"""Small parts of a rationale store become one: engines write a part a second, and every reader opens them all.

In this order, so that it may be killed at any point: the new part; a record naming what it replaces, from which on readers pass over the old parts;
after ``GRACE_SECONDS``, at the next merge, the old parts go, and then the record. Rows are copied unchanged, each key once.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import PurePosixPath

from fiat_ray.reason.store import Store, is_part, is_record

FEWEST = 32
"""Fewer small parts than this are not worth a merge."""

SMALL_BYTES, MOST_BYTES = 8 << 20, 64 << 20
"""What counts as a small part, and how much goes into one that is merged."""

GRACE_SECONDS = 600.0
"""How long replaced parts stay, for readers that listed them before."""


def merge(store: Store) -> None:
    """Merge what is worth it, and delete what was merged long ago. Any number of processes may do so at once."""
    _delete_replaced(store)
    for names in store.over_parts(lambda parts: list(_small(store, [PurePosixPath(part).name for part in parts]))):
        try:
            rows = store.chosen([store.path(name) for name in names])
        except FileNotFoundError:  # somebody else merged them before
            continue
        # It sorts where its first part did, so that of two equal rows the same one counts as before.
        part = f"{names[0].removesuffix('.parquet')}-{uuid.uuid4().hex[:12]}.parquet"
        store.write_table(part, rows)
        record = {"part": part, "replaces": names, "at": time.time()}
        store.put(f"merged-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.json", json.dumps(record, indent=1).encode())


def _small(store: Store, names: list[str]) -> Iterator[list[str]]:
    """Runs of small parts that follow each other by name, with no other part between them: then nothing changes in the order that counts."""
    sizes = {info.base_name: info.size for info in store.files() if is_part(info.base_name)}
    run: list[str] = []
    for name in [*names, None]:
        size = MOST_BYTES if name is None else sizes.get(name, MOST_BYTES)
        if size > SMALL_BYTES or sum(sizes[n] for n in run) + size > MOST_BYTES:
            if len(run) >= FEWEST:
                yield run
            run = []
        if name is not None and size <= SMALL_BYTES:
            run.append(name)


def _delete_replaced(store: Store) -> None:
    names = sorted(info.base_name for info in store.files())  # oldest records first: parts of a later one may replace those of an earlier one
    for name in filter(is_record, names):
        try:
            record = store.record(name)
        except FileNotFoundError:  # somebody else has done it
            continue
        if time.time() - record["at"] > GRACE_SECONDS:
            if record["part"] in names:
                store.remove(record["replaces"])
            store.remove([name])
