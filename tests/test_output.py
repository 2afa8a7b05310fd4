"""Files of answered rows: what is read from them is what was written, in Parquet with the columns of the rows."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiat_ray.errors import UserError
from fiat_ray.output import columns, writing
from fiat_ray.rows import jsonl, read_rows
from fiat_ray.schema import INFERRED

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = {"number": st.integers(-(2**53), 2**53), "share": st.floats(allow_nan=False), "parts": st.lists(TEXT, max_size=2)}
ROWS = st.lists(st.fixed_dictionaries({"text": TEXT}, optional={name: st.none() | of for name, of in VALUES.items()}), min_size=1)


def answered(source: Path, output: Path) -> list[dict[str, Any]]:
    schema = columns(source, INFERRED) if output.suffix == ".parquet" else None
    rows = [{**row, "prediction": "p", "score": None, "rationale": None, "status": None} for _, row in read_rows(source)]
    with writing(output, schema) as write:
        write(rows[:1])
        write(rows[1:])
    return rows


@given(rows=ROWS)
def test_what_is_written_is_read(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rows")
    source = folder / "rows.jsonl"
    source.write_text(jsonl(rows))
    expected = answered(source, folder / "out.jsonl")
    assert [row for _, row in read_rows(folder / "out.jsonl")] == expected
    answered(source, folder / "out.parquet")
    names = {name for row in expected for name in row}
    assert [row for _, row in read_rows(folder / "out.parquet")] == [{name: row.get(name) for name in names} for row in expected]


def test_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    fields = [("at", pa.timestamp("ms")), ("few", pa.int16()), ("label", pa.int64()), ("score", pa.string())]
    table = pa.Table.from_pylist([{"at": datetime(2026, 1, 2), "few": 3, "label": 1, "score": "of old"}], schema=pa.schema(fields))
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "rows.parquet")
    answered(tmp_path / "rows.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.equals(pa.schema([*fields[:2], ("label", pa.string()), *INFERRED]))
    assert found.to_pylist() == [
        {"at": datetime(2026, 1, 2), "few": 3, "label": "good", "prediction": "p", "score": None, "rationale": None, "status": None}
    ]


def test_a_field_with_values_of_several_types_is_no_column(tmp_path: Path) -> None:
    rows = [{"text": "a", "mine": 1}] * 2000
    for wrong in ("b", [1], {"a": 1}):
        (tmp_path / "rows.jsonl").write_text(jsonl([*rows, {"text": "a", "mine": wrong}]))
        with pytest.raises(UserError, match=r"rows.jsonl, rows 1025 to 2001: do not make columns of a Parquet file .*ends in .jsonl"):
            columns(tmp_path / "rows.jsonl", INFERRED)


def test_a_lone_surrogate_comes_back_from_json_lines_and_is_a_question_mark_in_parquet(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(jsonl([{"text": "a\ud800"}]))
    for suffix, text in ((".jsonl", "a\ud800"), (".parquet", "a?")):
        answered(source, tmp_path / f"out{suffix}")
        assert [row["text"] for _, row in read_rows(tmp_path / f"out{suffix}")] == [text]
