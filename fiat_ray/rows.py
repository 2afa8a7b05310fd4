"""Files of rows → dicts, each knowing its file and row number. JSONL, CSV and Parquet; folders, zip and tar archives."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fiat_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".jsonl", ".csv", ".parquet")

MOST_NESTED = 100
"""How deep a JSON value may be nested: what Python reads it may yet fail to write, deeper down its own stack."""

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""Of CSV files, with their names."""

READ_AT_ONCE = 1024
"""Rows of a Parquet file that are Python objects at one time."""


MOST_BYTES = 4 << 30
"""Of one file in an archive, unpacked; what is more is no table of rows, but something that fills the memory."""


class Place(str):
    """Where a row stands, as people look it up: ``train.jsonl, row 12`` (rows count from 1, a CSV header is no row)."""


def read_rows(path: str | Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of one ``.jsonl``, ``.csv`` or ``.parquet`` file, in order, each with its place. JSONL and Parquet are never in memory as a whole.

    Raises ``UserError`` for a missing file, an unknown suffix, bytes that are not UTF-8, and lines that are no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        yield from _file_rows(str(path), file)


def placed_rows(rows: Any) -> list[tuple[Place, dict[str, Any]]]:
    """Rows from a path or ``hf:`` name, a DataFrame, a ``datasets.Dataset`` or dicts, each with its place; rows that have one keep it."""
    if isinstance(rows, (str, Path)):
        from fiat_ray.hub import source_rows

        return source_rows(rows)[0]
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = rows.to_dict("records")
    placed = [_placed(row, number) for number, row in enumerate(rows, 1)]
    features = getattr(rows, "features", None)  # of a datasets.Dataset; its ClassLabels have names
    classes = {name: of.names for name, of in features.items() if hasattr(of, "names")} if isinstance(features, Mapping) else {}
    _name_classes((row for _, row in placed), classes)
    return placed


def _placed(row: Any, number: int) -> tuple[Place, dict[str, Any]]:
    if isinstance(row, tuple) and row and isinstance(row[0], Place):
        return row[0], row[1]
    if not hasattr(row, "keys"):
        raise UserError(f"row {number}: must be a dict of field and value, not {type(row).__name__}")
    return Place(f"row {number}"), dict(row)


def parse_rows(name: str, content: bytes) -> Iterator[tuple[Place, dict[str, Any]]]:
    """``read_rows`` for a file that is already in memory, such as a member of an archive; ``name`` tells its format."""
    yield from _file_rows(name, io.BytesIO(content))


def _file_rows(name: str, file: IO[bytes]) -> Iterator[tuple[Place, dict[str, Any]]]:
    suffix = Path(name).suffix.lower()
    if suffix == ".jsonl":
        rows = _jsonl_rows(name, file)
    elif suffix == ".csv":
        rows = _csv_rows(name, file.read())
    elif suffix == ".parquet":
        rows = _parquet_rows(name, file)
    else:
        raise UserError(f"{name}: rows are read from {', '.join(SUFFIXES)} files, not from '{suffix or 'a name without suffix'}'")
    for number, row in enumerate(rows, 1):
        yield Place(f"{name}, row {number}"), row


def source_files(data: str | Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Files of ``data`` (a folder, or a zip or tar archive of one) whose path matches ``*/pattern``, sorted by path; a folder's own name counts.

    Yields (path for messages, content). Archive members are read in memory, never unpacked to disk.
    """
    data = Path(data)
    if data.is_dir():
        for path in sorted(p for p in data.rglob("*") if p.is_file()):
            if _matches(f"{data.resolve().name}/{path.relative_to(data).as_posix()}", pattern):
                yield str(path), path.read_bytes()
    elif data.is_file() and (zipfile.is_zipfile(data) or tarfile.is_tarfile(data)):
        try:
            members = list((_zip_members if zipfile.is_zipfile(data) else _tar_members)(data, pattern))
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise UserError(f"{data}: cannot be read to its end ({error}); fetch the archive again") from None
        yield from members
    elif data.exists():
        raise UserError(f"{data}: neither a folder nor a zip or tar archive; if it should be one, fetch it again")
    else:
        raise UserError(f"{data}: no such folder or archive; `data` in the config says where the task's rows lie")


def one_file(data: str | Path, pattern: str) -> tuple[str, bytes]:
    """The only file of ``data`` that ``source_files`` finds; ``UserError`` where there is none, or another copy of it."""
    found = list(source_files(data, pattern))
    if not found:
        raise UserError(f"{data}: holds no {pattern}")
    if len(found) > 1:
        raise UserError(f"{data}: {found[0][0]} and {found[1][0]} both claim to be {pattern}; `data` must hold one copy")
    return found[0]


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines; what JSON has no form for, such as dates, as text. A lone surrogate, no UTF-8, is escaped, so that it comes back."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def no_field(row: Mapping[str, Any], field: str, place: Place) -> UserError:
    has = ", ".join(map(str, row)) or "none"
    return UserError(f"{place}: no field '{field}' (this row has: {has if len(has) < 300 else has[:300] + ' …'})")


def text_field(row: dict[str, Any], field: str, place: Place) -> str:
    """``row[field]`` as text; ``UserError`` naming file, row and field where it is absent or no text."""
    if field not in row:
        raise no_field(row, field, place)
    value = row[field]
    if not isinstance(value, str):
        raise UserError(f"{place}: field '{field}' must be text, not {type(value).__name__}")
    return value


def _zip_members(data: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(data) as archive:
        for member in sorted(archive.infolist(), key=lambda m: m.filename):
            if _matches(member.filename, pattern):
                _check_size(f"{data}:{member.filename}", member.file_size)
                yield f"{data}:{member.filename}", archive.read(member)  # never more than the size that it states


def _tar_members(data: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(data) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if member.isfile() and _matches(member.name, pattern):
                _check_size(f"{data}:{member.name}", member.size)
                content = archive.extractfile(member)
                assert content is not None  # isfile() holds
                yield f"{data}:{member.name}", content.read()
        while archive.fileobj is not None and archive.fileobj.read(1 << 20):
            pass  # gzip's checksum stands at its end, where tarfile does not look


def _check_size(name: str, size: int) -> None:
    if size > MOST_BYTES:
        raise UserError(f"{name}: {size:,} bytes unpacked, more than the {MOST_BYTES:,} that are read of one file; share its rows out over several")


def _matches(path: str, pattern: str) -> bool:
    return fnmatch("/" + path, "*/" + pattern)


def utf8(name: str, content: bytes) -> str:
    """Bytes of a file as text, without a byte order mark; ``UserError`` naming the line where they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {row}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None


def _jsonl_rows(name: str, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    number = 0
    # Only \n separates rows, as in binary files: str.splitlines() would also split at U+2028 and others that are legal inside JSON strings.
    for line in _utf8_lines(name, file):
        if not line.strip():
            continue
        number += 1
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name}, row {number}: not JSON ({error.msg} at column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested by the thousand
            raise UserError(f"{name}, row {number}: not JSON that can be read ({str(error)[:100]})") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}, row {number}: a row must be a JSON object, not {type(row).__name__}")
        if line.count("[") + line.count("{") > MOST_NESTED and _depth(row) > MOST_NESTED:
            raise UserError(f"{name}, row {number}: values nested more than {MOST_NESTED} deep; a row is a table's")
        yield row


def _utf8_lines(name: str, file: IO[bytes]) -> Iterator[str]:
    """``utf8``, a line at a time."""
    start = 0
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: not UTF-8 (byte {start + error.start}); save the file as UTF-8") from None
        start += len(line)


def _depth(value: Any) -> int:
    """How deep lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


def _csv_rows(name: str, content: bytes) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # 128 KiB by default, which a passage may exceed
    file = io.StringIO(utf8(name, content), newline="")
    delimiter = _delimiter(file)
    lines = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        header = list(lines.fieldnames or [])
        _check_columns(name, header)
        for number, row in enumerate(lines, 1):
            if None in row or None in row.values():
                advice = f"quote fields that hold {DELIMITERS[delimiter]}"
                raise UserError(f"{name}, row {number}: not as many columns as the header's {len(header)}; {advice}")
            yield row
    except csv.Error as error:
        raise UserError(f"{name}, line {lines.line_num + 1}: not CSV ({error})") from None


def _delimiter(file: IO[str]) -> str:
    """A comma, unless it makes one column of the header, and a semicolon or a tab several: many a spreadsheet writes those."""
    columns = {}
    for delimiter in DELIMITERS:
        file.seek(0)
        columns[delimiter] = len(next(csv.reader(file, delimiter=delimiter), []))
    file.seek(0)
    return next((delimiter for delimiter, number in columns.items() if number > 1), ",")


def _check_columns(name: str, header: list[str]) -> None:
    if len(set(header)) < len(header):
        raise UserError(f"{name}: two columns have the same name ({', '.join(header)})")


def _parquet_rows(name: str, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            _check_columns(name, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(READ_AT_ONCE):
                yield from table_rows(pa.Table.from_batches([batch]).replace_schema_metadata(parquet.schema_arrow.metadata))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # dates beyond Python's, among others
        raise UserError(f"{name}: not a Parquet file, or a damaged one ({' '.join(str(error).split())[:200]})") from None


def table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of an Arrow table; classes that ``datasets`` stores as numbers by their names, and None where a number is none of them (-1)."""
    rows: list[dict[str, Any]] = table.to_pylist()
    _name_classes(rows, class_names(table.schema))
    return rows


def _name_classes(rows: Iterable[dict[str, Any]], names: Mapping[str, Sequence[str]]) -> None:
    classes = {name: dict(enumerate(of)) for name, of in names.items()}
    if classes:
        for row in rows:
            row |= {name: of.get(row[name]) for name, of in classes.items() if name in row}


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column that ``datasets`` stores as numbers → the names of its classes."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (described.get("info") or {}).get("features") or {}
    return {name: of["names"] for name, of in features.items() if isinstance(of, dict) and of.get("_type") == "ClassLabel"}
