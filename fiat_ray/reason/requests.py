"""What the reasoner is asked: one request a distinct prompt, under a key of all that decides the answer.

Requests lie in a Parquet file, in the order that a prefix cache likes, and are read from there in pieces: no process holds them all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fiat_ray.artifact import fingerprint
from fiat_ray.length import Lengths
from fiat_ray.reason.store import digests, find
from fiat_ray.render import Renderer, chat_messages, reasoner_turns
from fiat_ray.task import Row, Task, Which, by_language

REQUESTS = pa.schema(
    [
        ("key", pa.string()),
        ("prefix", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("row", pa.string()),
        ("language", pa.string()),
        ("size", pa.int32()),
    ]
)

ROWS_READ_AT_ONCE = 1024
"""Rows in a row group of the file."""


@dataclass(frozen=True)
class Request:
    key: str
    prefix: str = ""
    """Id of the shared beginning in ``Requests.prefixes``."""
    ids: tuple[int, ...] = ()
    """The row's own token ids, after the prefix; empty for a scripted reasoner."""
    row: str = ""
    """JSON: the row, for a scripted reasoner, or the messages, for a remote one, whose token ids are estimates; empty otherwise."""
    language: str = ""

    @property
    def size(self) -> int:
        """How long the row itself is: its tokens, or its characters where the reasoner gets no tokens."""
        return len(self.ids) or len(self.row)


@dataclass(frozen=True)
class Requests:
    file: Path
    """``REQUESTS`` as Parquet."""
    prefixes: Mapping[str, list[int]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    """Row id → key."""
    held: IO[bytes] | None = None
    """The file where it has no name, so that it goes with this process, however that ends."""

    def __len__(self) -> int:
        """How many distinct prompts there are."""
        with pq.ParquetFile(self.file) as file:
            return int(file.metadata.num_rows)

    def columns(self, *names: str) -> Iterator[pa.Table]:
        """Some columns of all requests, a piece at a time."""
        with pq.ParquetFile(self.file) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, list(names), use_threads=False)

    def distinct(self) -> pa.ChunkedArray:
        """All keys, each once."""
        return pa.chunked_array([table["key"].combine_chunks() for table in self.columns("key")], pa.string())

    def of(self, key: str) -> dict[str, Any]:
        """The request with that key."""
        for found in self.having([key]):
            return found
        raise KeyError(key)

    def having(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The requests with those keys, in the file's order, read in one pass."""
        wanted = pa.array(keys, pa.string())
        return [row for table in self.columns(*REQUESTS.names) for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist()]

    def at(self, positions: np.ndarray) -> pa.Table:
        """Requests by where they stand in the file."""
        pieces = [REQUESTS.empty_table()]
        with pq.ParquetFile(self.file) as file:
            for group in np.unique(positions // ROWS_READ_AT_ONCE):
                mine = positions[positions // ROWS_READ_AT_ONCE == group] - group * ROWS_READ_AT_ONCE
                pieces.append(file.read_row_group(int(group), use_threads=False).take(pa.array(mine)))
        return pa.concat_tables(pieces)

    @contextmanager
    def shared(self, run: Path, name: str = "") -> Iterator[Requests]:
        """The same requests in a run directory, where all machines see them, for as long as they are needed.

        ``name``: the file's, of a job that goes on after it was killed, and then takes the place of what it left.
        """
        file = run / f".requests-{name or uuid.uuid4().hex}.tmp"
        file.unlink(missing_ok=True)
        try:
            with file.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)  # until this process ends, a run that starts meanwhile does not sweep it away
                shutil.copyfile(self.file, file)
                yield replace(self, file=file, held=None)
        finally:
            file.unlink(missing_ok=True)


def write(path: Path, pieces: Iterable[Iterable[Request]]) -> None:
    """The file of ``Requests``. Each piece is sorted so that beginnings which several rows share lie next to each other."""

    def tables() -> Iterator[pa.Table]:
        for piece in pieces:
            ordered = sorted(piece, key=lambda request: (request.prefix, request.ids, request.row, request.key))
            yield pa.table({name: [getattr(request, name) for request in ordered] for name in REQUESTS.names}, REQUESTS)

    _write_tables(path, tables())


def _write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(path, REQUESTS) as writer:
        held = REQUESTS.empty_table()
        for table in tables:
            held = pa.concat_tables([held, table])
            if whole := len(held) - len(held) % ROWS_READ_AT_ONCE:  # all row groups but the last are of one size: `at` counts on it
                writer.write_table(held.slice(0, whole), ROWS_READ_AT_ONCE)
                held = held.slice(whole)
        if len(held):
            writer.write_table(held)


def joined(path: Path, pieces: Iterable[Requests]) -> Requests:
    """What several pieces of a task's rows ask, in one file, each key once. Holds 16 bytes for each of them, and no row's key."""
    prefixes: dict[str, list[int]] = {}

    def new() -> Iterator[pa.Table]:
        known = digests(pa.array([], pa.string()))
        for piece in pieces:
            prefixes.update(piece.prefixes)
            for table in piece.columns(*REQUESTS.names):
                found = digests(table["key"])
                fresh = find(known, found) < 0
                known = np.sort(np.concatenate([known, found[fresh]]), kind="stable")
                yield table.filter(pa.array(fresh))

    _write_tables(path, new())
    return Requests(path, prefixes)


Ask = Callable[[Row], Request]
"""What makes a row's request."""


def gather(task: Task, prefixes: Mapping[str, list[int]], ask: Ask) -> Requests:
    """Requests for all rows, those of a language together; equal ones are one."""
    keys: dict[str, str] = {}
    known: set[str] = set()

    def new(rows: Iterable[Row]) -> Iterator[Request]:
        for row in rows:
            request = ask(row)
            keys[row.id] = request.key
            if request.key not in known:
                known.add(request.key)
                yield replace(request, language=row.language)

    held = tempfile.TemporaryFile()  # noqa: SIM115 - whoever has the requests holds it
    path = Path(f"/proc/{os.getpid()}/fd/{held.fileno()}")
    write(path, (new(rows) for rows in by_language(task.rows).values()))
    return Requests(path, prefixes, keys, held)


def vllm_requests(
    task: Task, lengths: Lengths, renderer: Renderer, identity: Mapping[str, Any], which: Which, exemplars: Mapping[str, int]
) -> Requests:
    """Requests for a model in this cluster. ``identity``: model hash, dtype, sampling and stop settings; the key is their hash and the token ids'."""
    return gather(task, *_rendered(task, lengths, renderer, identity, which, exemplars))


def openai_requests(
    task: Task, lengths: Lengths, renderer: Renderer, identity: Mapping[str, Any], which: Which, exemplars: Mapping[str, int]
) -> Requests:
    """Requests for a remote endpoint: as in ``vllm_requests``, but what is asked, and keyed, are messages. ``renderer`` estimates their tokens."""
    prefixes, estimate = _rendered(task, lengths, renderer, identity, which, exemplars)

    def ask(row: Row) -> Request:
        messages = chat_messages(reasoner_turns(task, exemplars[row.language], lengths.texts[row.id], row.language, which))
        return replace(estimate(row), key=fingerprint(identity, messages), row=json.dumps(messages))

    return gather(task, prefixes, ask)


def _rendered(
    task: Task, lengths: Lengths, renderer: Renderer, identity: Mapping[str, Any], which: Which, exemplars: Mapping[str, int]
) -> tuple[Mapping[str, list[int]], Ask]:
    """Prefixes, filled as rows are asked for, and what makes a row's request of token ids."""
    header = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    prefixes: dict[str, list[int]] = {}

    @cache
    def beginning(language: str) -> tuple[str, Any]:
        """Name of a language's prefix, and the hash up to its end."""
        ids = renderer.reasoner_prefix(task, exemplars[language], language, which).ids
        name = hashlib.sha256(_bytes(ids)).hexdigest()[:16]
        prefixes[name] = ids
        digest = header.copy()
        digest.update(_bytes(ids))
        return name, digest

    def ask(row: Row) -> Request:
        name, digest = beginning(row.language)
        own = tuple(token for piece in renderer.row_pieces(lengths.texts[row.id]) for token in piece.ids)
        digest = digest.copy()
        digest.update(_bytes(own))
        return Request(digest.hexdigest(), name, own)

    return prefixes, ask


def _bytes(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def scripted_requests(task: Task, lengths: Lengths, script: Path) -> Requests:
    """Requests for a Python script: the key is the hash of the script and of the row it is given."""
    code = hashlib.sha256(script.read_bytes()).hexdigest()

    def ask(row: Row) -> Request:
        content = json.dumps(script_row(row, lengths.texts[row.id]), sort_keys=True)  # in ASCII: Arrow takes no lone surrogates
        return Request(hashlib.sha256(f"{code}{content}".encode()).hexdigest(), row=content)

    return gather(task, {}, ask)


def script_row(row: Row, text: str) -> dict[str, Any]:
    """What a script's ``reason(row)`` sees. Gold answers are in it: scripts build controls, such as rationales that are right by construction."""
    return {"split": row.split, "language": row.language, "input": text, "fields": row.fields, "targets": list(row.targets)}
