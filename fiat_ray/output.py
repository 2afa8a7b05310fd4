"""A file of answered rows, written a few at a time: JSON lines, or Parquet with the columns of the file that the rows come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fiat_ray.artifact import table_of, valid
from fiat_ray.errors import UserError
from fiat_ray.rows import READ_AT_ONCE, class_names, jsonl, read_rows

SUFFIXES = (".jsonl", ".parquet")

Write = Callable[[list[dict[str, Any]]], None]


def columns(source: Path, added: pa.Schema) -> pa.Schema:
    """The columns of ``source``, those of Parquet with their types, then ``added``. Raises ``UserError`` for one with values of several types."""
    if source.suffix.lower() == ".parquet":
        schema = pq.read_schema(source)
        names = class_names(schema)
        found = pa.schema([pa.field(one.name, pa.string()) if one.name in names else one for one in schema])
    else:
        found = _found(source)
    return pa.schema([*(one for one in found if one.name not in added.names), *added])


def _found(source: Path) -> pa.Schema:
    rows, schema, start = read_rows(source), pa.schema([]), 1
    while piece := [valid(row) for _, row in islice(rows, READ_AT_ONCE)]:
        try:
            # Not from_pylist without a schema: it has the columns of the first row only.
            names = dict.fromkeys(name for row in piece for name in row)
            more = pa.schema([(name, pa.array([row.get(name) for row in piece]).type) for name in names])
            schema = pa.unify_schemas([schema, more], promote_options="permissive")
        except (pa.ArrowException, OverflowError) as error:
            where = f"{source}, rows {start} to {start + len(piece) - 1}"
            raise UserError(f"{where}: do not make columns of a Parquet file ({error}); give --output a name that ends in .jsonl") from None
        start += len(piece)
    return schema


@contextmanager
def writing(path: Path, schema: pa.Schema | None) -> Iterator[Write]:
    """Appends rows to ``path``: as Parquet with ``schema``, or without one as JSON lines."""
    if schema is None:
        with path.open("w", encoding="utf-8") as file:
            yield lambda rows: print(jsonl(rows), end="", file=file)
    else:
        with pq.ParquetWriter(path, schema) as parquet:
            yield lambda rows: parquet.write_table(table_of(rows, schema))
