"""The augmented set: every row with its rationale, sealed. All recipes read the same one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

from fiat_ray import schema
from fiat_ray.artifact import fingerprint_all, read_json, read_rows, write_json, write_rows
from fiat_ray.length import Lengths
from fiat_ray.schema import AUGMENTED, ROWS
from fiat_ray.task import Row

SEAL = "_manifest.json"
"""Written last. Its name starts with ``_``, so that Parquet readers of the folder pass it over."""

PARTITIONS = ("split", "language")
"""Columns that stand in the names of folders, quoted as in a URL; Parquet readers of the whole folder add them."""

READABLE = ("ok", "length")
"""States whose text is shown to the tunable. All other rows get an empty rationale, in training and in test alike; none is dropped."""


AT_ONCE = 4096
"""Rationales that are looked at together."""


@dataclass(frozen=True, slots=True)
class Example:
    """x, y and ŷ_β: a row as the tunable gets it."""

    id: str
    split: str
    language: str
    input: str
    targets: tuple[str, ...]
    group: str
    rationale: str | None = None
    """None where no reasoner was asked."""
    status: str | None = None


def write_rows_of_task(path: Path, rows: Sequence[Row], lengths: Lengths) -> None:
    """Rows as used, their passages cut, without rationales: what trials without CoT read."""
    write_rows(path, [_columns(row, lengths) for row in rows], ROWS)


def read_rows_of_task(path: Path) -> list[Example]:
    return [_example(row) for row in read_rows(path)]


Rationales = Callable[[Sequence[str]], Sequence[Mapping[str, Any]]]
"""Keys → their rationales, in the same order: ``text``, ``status`` and ``finish_reason`` of each."""


def asked(rows: Sequence[Row], lengths: Lengths, keys: Mapping[str, str]) -> str:
    """Fingerprint of what a set is sealed for: rows, their texts and groups, and the keys of their rationales."""
    return fingerprint_all([row.id, row.group, row.targets, lengths.texts[row.id], keys[row.id]] for row in rows)


def read_seal(folder: Path, question: str | None = None) -> dict[str, Any] | None:
    """The seal of a set; None where it is not sealed, or sealed for something else than ``question`` (see ``asked``)."""
    found = read_json(folder / SEAL, **schema.SEAL)
    return found if found is not None and question in (None, found.get("asked")) else None


def seal(folder: Path, rows: Sequence[Row], lengths: Lengths, keys: Mapping[str, str], rationales: Rationales) -> dict[str, Any]:
    """Write ``split=…/language=…/rows.parquet`` and, last, the seal: fingerprint, and rows by language and status. Returns the seal.

    A folder that is sealed with the same fingerprint is left as it is.
    """

    def with_rationales(some: Sequence[Row]) -> Iterator[tuple[Row, Mapping[str, Any]]]:
        for start in range(0, len(some), AT_ONCE):
            piece = some[start : start + AT_ONCE]
            yield from zip(piece, rationales([keys[row.id] for row in piece]), strict=True)

    identity = fingerprint_all([row.id, row.group, keys[row.id], found["status"], found["text"]] for row, found in with_rationales(rows))
    question = asked(rows, lengths, keys)
    sealed = read_seal(folder, question)
    if sealed is not None and sealed["fingerprint"] == identity:
        return sealed
    (folder / SEAL).unlink(missing_ok=True)
    for old in folder.glob("split=*/language=*/*.parquet"):
        old.unlink()
    parts: dict[tuple[str, str], list[Row]] = defaultdict(list)
    status: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        parts[row.split, row.language].append(row)
    columns = pa.schema([column for column in AUGMENTED if column.name not in PARTITIONS])
    for (split, language), some in parts.items():
        content = [
            _columns(row, lengths)
            | {"key": keys[row.id], "rationale": found["text"], "status": found["status"], "finish_reason": found["finish_reason"]}
            for row, found in with_rationales(some)
        ]
        write_rows(folder / f"split={split}" / f"language={quote(language, safe='')}" / "rows.parquet", content, columns)
        status[language].update(row["status"] for row in content)
    seal_ = {
        "fingerprint": identity,
        "asked": question,
        "rows": len(rows),
        "status": {language: dict(counts) for language, counts in sorted(status.items())},
    }
    write_json(folder / SEAL, seal_)
    return seal_


def read(folder: Path) -> list[Example]:
    """All rows of a sealed set. Raises ``FileNotFoundError`` where it is not sealed."""
    if not (folder / SEAL).is_file():
        raise FileNotFoundError(f"{folder}: not sealed")
    examples = []
    for part in sorted(folder.glob("split=*/language=*/*.parquet")):
        values = [unquote(name.partition("=")[2]) for name in part.relative_to(folder).parts[:2]]
        examples += [_example(row | dict(zip(PARTITIONS, values, strict=True))) for row in read_rows(part)]
    return examples


def readable(examples: Iterable[Example]) -> dict[str, str]:
    """Row id → rationale as the tunable sees it: the declared policy for rationales that are missing."""
    return {e.id: (e.rationale or "") if e.status in READABLE else "" for e in examples}


def _columns(row: Row, lengths: Lengths) -> dict[str, Any]:
    return {
        "id": row.id,
        "split": row.split,
        "language": row.language,
        "input": lengths.texts[row.id],
        "targets": list(row.targets),
        "group": row.group,
        "cut_characters": lengths.cut_characters[row.id],
    }


def _example(row: Mapping[str, Any]) -> Example:
    return Example(
        row["id"],
        row["split"],
        row["language"],
        row["input"],
        tuple(row["targets"]),
        row["group"],
        row.get("rationale"),
        row.get("status"),
    )
