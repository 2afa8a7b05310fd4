"""The rationale store: Parquet parts in a folder, rows found by a key of content. Any number of writers, each part under a name of its own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fiat_ray.artifact import write_rows
from fiat_ray.errors import UserError
from fiat_ray.schema import RATIONALES

MOST_TRIES = 3
"""``engine_error`` is tried again, at most twice; all other states are final, because greedy decoding would repeat them."""


ADDED = {"cached_tokens"}
"""Columns that parts of older versions lack: nothing but progress depends on them."""


class Store:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, rows: list[dict[str, Any]]) -> None:
        """One new part, durable when this returns."""
        name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet"
        write_rows(self.folder / name, rows, RATIONALES)

    def states(self) -> dict[str, dict[str, Any]]:
        """key → status and tries."""
        return self._rows(["key", "status", "tries"])

    def finished(self) -> set[str]:
        """Keys that need no (further) try."""
        return {key for key, row in self.states().items() if is_final(row)}

    def read(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """key → row, for those of ``keys`` that are stored. A key that stands in several parts: ``ok`` first, then the smallest part name."""
        wanted = set(keys)
        return {key: row for key, row in self._rows(RATIONALES.names).items() if key in wanted}

    def _rows(self, columns: list[str]) -> dict[str, dict[str, Any]]:
        chosen: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            for row in self.part(path, columns):
                before = chosen.get(row["key"])
                if before is None or _rank(row) < _rank(before):
                    chosen[row["key"]] = row
        return chosen

    @staticmethod
    def part(path: Path, columns: list[str]) -> list[dict[str, Any]]:
        """Rows of one part. Raises ``UserError`` where it is damaged or of another version."""
        try:
            with pq.ParquetFile(path) as part:
                absent = set(columns) - set(part.schema_arrow.names)
                lacking = sorted(absent - ADDED)
                rows: list[dict[str, Any]] = [] if lacking else [dict.fromkeys(absent) | row for row in part.read(columns).to_pylist()]
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path}: damaged part of the rationale store ({str(error)[:120]}); delete this file, its rows are generated anew"
            ) from None
        if lacking:
            raise UserError(f"{path}: this part of the rationale store lacks columns {', '.join(lacking)}; it is of another version")
        return rows


def is_final(row: dict[str, Any]) -> bool:
    return bool(row["status"] != "engine_error" or row["tries"] >= MOST_TRIES)


def _rank(row: dict[str, Any]) -> tuple[bool, bool, int]:
    """``ok`` before others, final before not, and of failures the one that was tried most often."""
    return (row["status"] != "ok", row["status"] == "engine_error", -int(row["tries"]) if row["status"] == "engine_error" else 0)
