"""Something finished on disk: written under a temporary name, made durable, renamed. What has its final name is whole."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fiat_ray.errors import UserError


def fingerprint(*parts: Any) -> str:
    """sha256 of JSON-able parts, independent of the order of mapping keys: the identity of an artifact's content."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint_all(items: Iterable[Any]) -> str:
    """``fingerprint(list(items))`` without the list."""
    digest = hashlib.sha256(b"[[")
    for number, item in enumerate(items):
        text = json.dumps(item, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(f"{',' if number else ''}{text}".encode("utf-8", "surrogatepass"))
    digest.update(b"]]")
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes ``path`` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a run from colleagues
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Text as UTF-8; lone surrogates, which are no text, become question marks."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8", errors="replace")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def read_json(path: Path, **kinds: type | tuple[type, ...]) -> Any:
    """The JSON in ``path``, or None where it is not there (yet). ``kinds``: keys that it holds, and of which type their values are."""
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else None
        whole = value is None or all(isinstance(value[key], kind) for key, kind in kinds.items())
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged; delete it and run again")
    return value


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table. Lone surrogates, which are no text, become question marks."""
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:
        return pa.Table.from_pylist([valid(row) for row in rows], schema=schema)


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Rows as one Parquet file."""
    with replacing(path) as temporary:
        pq.write_table(table_of(rows, schema), temporary)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of one Parquet file."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
    except pa.ArrowInvalid:
        raise UserError(f"{path}: damaged; delete it and run again") from None
    return rows


def valid(value: Any) -> Any:
    """A JSON-able value; lone surrogates in it, which are no text, become question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {name: valid(part) for name, part in value.items()}
    return [valid(part) for part in value] if isinstance(value, list) else value


def write_folder(path: Path, fill: Callable[[Path], Any]) -> None:
    """A folder that is there whole or not at all: ``fill`` writes into a temporary one."""
    import shutil

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix="."))
    try:
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes 0600
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        temporary.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
