"""The rationale store: Parquet parts in a folder or below an object store's URI, rows found by a key of content. Any number of writers, each part
under a name of its own.

Nothing here holds a Python object for each row of a store: parts are read by columns, one after the other, and a key is 16 bytes of one array.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from fiat_ray.artifact import replacing, table_of
from fiat_ray.errors import UserError
from fiat_ray.schema import RATIONALES

MOST_TRIES = 3
"""``engine_error`` is tried again, at most twice; all other states are final, because greedy decoding would repeat them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """What a store holds, as far as it decides what is still to be generated."""

    finished: np.ndarray
    """Digests of keys that need no (further) try, sorted."""
    tries: dict[str, int]
    """Key → tries so far, of those that failed and may be tried again."""

    def has(self, keys: pa.Array) -> np.ndarray:
        """For each key whether it is finished."""
        return find(self.finished, digests(keys)) >= 0


class Rationales:
    """Stored rows of some keys, in Arrow, to be looked up many at a time."""

    def __init__(self, store: Store, keys: pa.Array) -> None:
        self.table = store.table(keys)
        """``schema.RATIONALES``, sorted by the key's digest."""
        self._digests = digests(self.table["key"])

    def __call__(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of ``keys``, in their order. All must be there."""
        at = find(self._digests, digests(pa.array(keys, pa.string())))
        assert (at >= 0).all(), "rationales are looked up when all of them are stored"
        return self.table.take(pa.array(at)).to_pylist()

    def failed(self) -> set[str]:
        """Keys that have no rationale because the engine failed."""
        return set(self.table["key"].filter(pc.equal(self.table["status"], "engine_error")).to_pylist())


ADDED = {"cached_tokens"}
"""Columns that parts of older versions lack: nothing but progress depends on them."""


class Store:
    def __init__(self, place: str | Path) -> None:
        """``place``: a folder, or a URI such as ``s3://bucket/path?endpoint_override=…`` (credentials come from the environment)."""
        self._files, self._root = _filesystem(str(place))
        self._local = isinstance(self._files, fs.LocalFileSystem)
        self.place = self._root if self._local else str(place)
        """The same for all processes, whatever folder they work in."""

    @property
    def folder(self) -> Path | None:
        """Where the parts lie; None in an object store."""
        return Path(self._root) if self._local else None

    def parts(self) -> list[str]:
        """Paths of all parts, by name: the order in which they count. Those that were merged into another one (see ``merge``) are none any more."""
        return self.over_parts(list)

    def over_parts(self, work: Callable[[list[str]], T]) -> T:
        """What ``work`` makes of the paths of all parts; it starts anew where parts that were merged are removed meanwhile."""
        for _ in range(5):
            try:
                infos = self.files()
                merged = [self.record(info.base_name) for info in infos if is_record(info.base_name)]
                names = {info.base_name for info in infos if is_part(info.base_name)}
                names -= {old for record in merged if record["part"] in names for old in record["replaces"]}
                return work([self.path(name) for name in sorted(names)])
            except FileNotFoundError:
                continue
        raise UserError(f"{self.place}: parts of the rationale store vanish while they are read; is something else deleting them?")

    def path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def files(self) -> list[fs.FileInfo]:
        """All files of the store, whatever they are."""
        infos = self._try(lambda: self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True)))
        return [info for info in infos if info.is_file]

    def record(self, name: str) -> dict[str, Any]:
        """A record of a merge: ``part``, the names it ``replaces``, and when (``at``)."""
        with self._try(lambda: self._files.open_input_stream(self.path(name))) as stream:
            return dict(json.loads(stream.read()))

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there any more are passed over."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._files.delete_file(self.path(name))

    def check_writable(self) -> None:
        """Raises ``UserError`` where nothing can be written, before anything is paid for."""
        probe = f".probe-{uuid.uuid4().hex}"
        self.put(probe, b"")
        self.remove([probe])

    def write(self, rows: list[dict[str, Any]]) -> None:
        """One new part, durable when this returns. Raises ``UserError`` where it can't be written; then there is no part."""
        self.write_table(new_name(), table_of(rows, RATIONALES))

    def add(self, rows: pa.Table) -> None:
        """Copy finished rows of another store, unchanged, in one part; those that are here already stay."""
        new = rows.filter(pa.array(is_final(rows) & ~self.known().has(rows["key"])))
        if len(new):
            self.write_table(new_name(), new)

    def known(self) -> Known:
        """What need not be generated; read when a stage starts, and by each engine when it does."""
        return self.over_parts(self._known)

    def _known(self, parts: Sequence[str]) -> Known:
        finished, tries = bytearray(), dict[str, int]()
        for part in parts:
            table = self.part(part, ["key", "status", "tries"])
            final = is_final(table)
            finished += digests(table["key"].filter(pa.array(final))).tobytes()
            for row in table.select(["key", "tries"]).filter(pa.array(~final)).to_pylist():
                tries[row["key"]] = max(row["tries"], tries.get(row["key"], 0))
        found = np.frombuffer(finished, DIGEST)
        found.sort()
        lacking = find(found, digests(pa.array(tries, pa.string()))) < 0
        return Known(found, {key: number for (key, number), lacks in zip(tries.items(), lacking, strict=True) if lacks})

    def table(self, keys: pa.Array | None = None) -> pa.Table:
        """Stored rows, each key once (of ``keys`` where they are given), sorted by the key's digest.

        Of a key that stands in several parts: ``ok`` first, then what is final, of failures the one that was tried most often, then the smallest
        part name.
        """
        return self.over_parts(partial(self.chosen, keys=keys))

    def read(self, keys: Iterable[str] | pa.ChunkedArray) -> dict[str, dict[str, Any]]:
        """key → row, for those of ``keys`` that are stored."""
        wanted = keys if isinstance(keys, pa.ChunkedArray) else pa.array(keys, pa.string())
        return {row["key"]: row for row in self.table(wanted).to_pylist()}

    def part(self, path: str, columns: Sequence[str]) -> pa.Table:
        """Columns of one part. Raises ``UserError`` where it is damaged or of another version."""

        def read(file: pq.ParquetFile) -> pa.Table:
            absent = set(columns) - set(file.schema_arrow.names)
            if lacking := sorted(absent - ADDED):
                raise UserError(f"{path}: this part of the rationale store lacks columns {', '.join(lacking)}; it is of another version")
            table = file.read([name for name in columns if name not in absent], use_threads=False)
            for name in absent:
                table = table.append_column(RATIONALES.field(name), pa.nulls(len(table), RATIONALES.field(name).type))
            # Other writers of Parquet, such as pandas, choose other types of text.
            return table.select(list(columns)).cast(pa.schema([RATIONALES.field(name) for name in columns]))

        return self._open(path, read)

    def chosen(self, parts: Sequence[str], keys: pa.Array | None = None) -> pa.Table:
        """See ``table``. Two passes: which row of which part counts for a key, then those rows."""
        wanted = digests(keys) if keys is not None else np.concatenate([digests(self.part(p, ["key"])["key"]) for p in parts] or [digests(_NONE)])
        wanted = np.unique(wanted)
        rank, part_of, row_of = np.full(len(wanted), 127, np.int8), np.full(len(wanted), -1, np.int32), np.zeros(len(wanted), np.int64)
        for number, part in enumerate(parts):
            table = self.part(part, ["key", "status", "tries"])
            at, ranks = find(wanted, digests(table["key"])), _ranks(table)
            mine = np.flatnonzero(at >= 0)
            mine = mine[np.lexsort((-mine, -ranks[mine]))]  # what counts most comes last, and so stays
            better = mine[ranks[mine] < rank[at[mine]]]
            rank[at[better]], part_of[at[better]], row_of[at[better]] = ranks[better], number, better
        pieces, places = [RATIONALES.empty_table()], []
        for number in np.unique(part_of[part_of >= 0]):
            mine = np.flatnonzero(part_of == number)
            pieces.append(self.part(parts[number], RATIONALES.names).take(pa.array(row_of[mine])))
            places.append(mine)
        found = pa.concat_tables(pieces)
        return found.take(pa.array(np.argsort(np.concatenate(places)))) if places else found

    def write_table(self, name: str, table: pa.Table) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        self.put(name, buffer.getvalue())

    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """One file, whole and durable when this returns. Raises ``UserError`` where it can't be written; then it is not there."""
        path = self.path(name)
        try:
            if self._local:
                with replacing(Path(path)) as temporary:
                    temporary.write_bytes(content)
            else:  # there is no rename: one PUT, under a name that was never used
                with self._files.open_output_stream(path) as stream:
                    stream.write(content)
        except OSError as error:
            raise UserError(
                f"{self.place}: the rationale store can't be written ({_said(error)}); what is in it stays, and the same command goes on from there"
            ) from None

    def _open(self, path: str, read: Callable[[pq.ParquetFile], T]) -> T:
        # An object is fetched whole, so that a network's error is not taken for a part's.
        source = self._try(lambda: self._files.open_input_file(path) if self._local else pa.BufferReader(self._files.open_input_stream(path).read()))
        try:
            with source, pq.ParquetFile(source) as file:
                return read(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: damaged part of the rationale store ({_said(error)}); delete this file, its rows are generated anew") from None

    def _try(self, look: Callable[[], T]) -> T:
        try:
            return look()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{self.place}: the rationale store can't be read ({_said(error)})") from None


DIGEST = "S16"
"""Half of a key's sha256. Numpy takes zero bytes at the end for padding, and so compares digests rightly, all of them having 16 bytes."""

_NONE = pa.array([], pa.string())


def digests(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Keys as an array of ``DIGEST``."""
    return np.frombuffer(b"".join(hashlib.sha256(key.encode()).digest()[:16] for key in keys.to_pylist()), DIGEST)


def find(digests: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of ``wanted`` stands in the sorted ``digests``; -1 where it does not."""
    if not len(digests):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(digests, wanted), len(digests) - 1)
    return np.where(digests[at] == wanted, at, -1)


def is_final(rows: pa.Table) -> np.ndarray:
    """For each row, given its status and tries, whether it needs no further try."""
    return (rows["status"].to_numpy() != "engine_error") | (rows["tries"].to_numpy() >= MOST_TRIES)


def _ranks(rows: pa.Table) -> np.ndarray:
    """What counts of several rows of a key: the lowest."""
    status, tries = rows["status"].to_numpy(), np.minimum(rows["tries"].to_numpy(), MOST_TRIES)
    return np.where(status == "ok", 0, np.where(status != "engine_error", 1, 2 + MOST_TRIES - tries)).astype(np.int8)


def new_name() -> str:
    return f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet"


def is_part(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".")


def is_record(name: str) -> bool:
    return name.startswith("merged-") and name.endswith(".json")


def _filesystem(place: str) -> tuple[fs.FileSystem, str]:
    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).resolve())
    # Small parts go up in one request, where Arrow would otherwise start an upload in pieces for each.
    option = f"{'&' if '?' in place else '?'}allow_delayed_open=true" if place.startswith("s3://") else ""
    try:
        files, root = fs.FileSystem.from_uri(place + option)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place}: no place for a rationale store ({_said(error)}); give a folder, or a URI such as s3://bucket/folder") from None
    return files, root.rstrip("/")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
