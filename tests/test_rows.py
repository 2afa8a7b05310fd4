"""Files of rows: every format, every way in which one can be wrong, with the row's number."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiat_ray import rows
from fiat_ray.errors import UserError
from fiat_ray.rows import Place, one_file, parse_rows, placed_rows, read_rows, source_files, text_field

ROWS = [{"question": 'নদী?\u2028\x85 "quoted", {braces}', "target": "two\nlines"}, {"question": "", "target": "x"}]


def file(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_all_formats_give_the_same_rows_with_their_places(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, name, ROWS)
    found = list(read_rows(path))
    assert [row for _, row in found] == ROWS
    assert [place for place, _ in found] == [f"{path}, row 1", f"{path}, row 2"]


def test_what_editors_add_is_no_row(tmp_path: Path) -> None:
    assert [row for _, row in parse_rows("a.jsonl", b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": "2"}')] == [{"a": "1"}, {"a": "2"}]
    assert [row for _, row in parse_rows("a.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n")] == [{"a": "1", "b": "2"}]
    assert list(parse_rows("A.JSONL", b"")) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', r"a.jsonl, row 2: not JSON \(Expecting value at column 7\)"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl, row 2: a row must be a JSON object, not list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a.jsonl, line 2: not UTF-8 \(byte 16\); save the file as UTF-8"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv, line 2: not UTF-8"),
        ("a.csv", b'a,b\n1,2\n3,"x\n4,5\n', r"a.csv, line 3: not CSV \(unexpected end of data\)"),
        ("a.parquet", b"PAR1 but not really", "a.parquet: not a Parquet file"),
        ("a.txt", b"a", "a.txt: rows are read from .jsonl, .csv, .parquet files, not from '.txt'"),
        ("a", b"a", "a: rows are read from .* not from 'a name without suffix'"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(parse_rows(name, content))


def test_a_cut_parquet_file_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.parquet", [{"a": str(n)} for n in range(1000)])
    content = path.read_bytes()
    damaged = content[:200] + bytes(300) + content[500:]
    for wrong in (content[:500], damaged):
        with pytest.raises(UserError, match=r"rows.parquet: not a Parquet file"):
            list(parse_rows("rows.parquet", wrong))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.jsonl: no such file"):
        list(read_rows(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"b": "x", "c": "y"}, r"rows.csv, row 7: no field 'a' \(this row has: b, c\)"),
        ({}, r"rows.csv, row 7: no field 'a' \(this row has: none\)"),
        ({"a": None}, "rows.csv, row 7: field 'a' must be text, not NoneType"),
        ({"a": 3}, "rows.csv, row 7: field 'a' must be text, not int"),
    ],
)
def test_a_field_that_is_no_text_is_named_with_its_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        text_field(row, "a", Place("rows.csv, row 7"))
    assert text_field({"a": ""}, "a", Place("")) == ""


def test_a_csv_field_may_be_long() -> None:
    assert [row for _, row in parse_rows("a.csv", b"a,b\n3," + b"x" * 200_000 + b"\n")] == [{"a": "3", "b": "x" * 200_000}]


@pytest.mark.parametrize("line", ["1", "1,2,3"])
def test_csv_lines_have_the_headers_columns(line: str) -> None:
    """A comma that nobody quoted would shift fields into wrong columns."""
    with pytest.raises(UserError, match="a.csv, row 2: not as many columns as the header's 2"):
        list(parse_rows("a.csv", f"a,b\n1,2\n{line}\n".encode()))
    with pytest.raises(UserError, match="same name"):
        list(parse_rows("a.csv", b"a,a\n1,2\n"))


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_the_header_says_what_separates_the_columns_of_a_csv_file(delimiter: str) -> None:
    def found(*lines: tuple[str, ...]) -> list[dict[str, Any]]:
        return [row for _, row in parse_rows("a.csv", "\r\n".join(delimiter.join(line) for line in lines).encode("utf-8-sig"))]

    row = {"text": f'Yes, no; or\tboth{delimiter} "maybe"\nnot.', "label": "a,b"}
    quoted = tuple(f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values())
    assert found(("text", "label"), quoted) == found(('"text"', '"label"'), quoted) == [row]
    assert found(('"text, or what is said"', "label"), ("x", "y")) == [{"text, or what is said": "x", "label": "y"}]
    with pytest.raises(UserError, match=f"row 1: not as many columns as the header's 2; quote fields that hold {rows.DELIMITERS[delimiter]}"):
        found(("text", "label"), ("one", "two", "three"))


@pytest.mark.parametrize("header", ['"a;b"', '"a\tb"', '"a;b",c', "a;b,c", "a\tb,c", "a", "a,b"])
def test_what_a_header_quotes_or_has_beside_commas_separates_nothing(header: str) -> None:
    values = ["1;2\t3"] + ["4"] * header.count(",")
    (row,) = (row for _, row in parse_rows("a.csv", f"{header}\n{','.join(values)}\n".encode()))
    assert list(row) == header.replace('"', "").split(",") and list(row.values()) == values


def test_parquet_columns_of_one_name_are_named() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table([["x"], ["y"]], names=["a", "a"]), buffer)
    with pytest.raises(UserError, match=r"a.parquet: two columns have the same name \(a, a\)"):
        list(parse_rows("a.parquet", buffer.getvalue()))


@pytest.mark.parametrize("depth", [101, 300])
def test_json_nested_deeper_than_any_table_is_named(depth: int) -> None:
    text = '{"b": "' + "[" * 500 + '", "a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
    with pytest.raises(UserError, match="a.jsonl, row 1: values nested more than 100 deep"):
        list(parse_rows("a.jsonl", text.encode()))
    assert len(list(parse_rows("a.jsonl", text.replace("[" * (depth - 1), "[" * 99).replace("]" * (depth - 1), "]" * 99).encode()))) == 1


def test_json_that_no_reader_takes_is_named() -> None:
    for text in ("[" * 100_000, '{"a": ' + "1" * 5000 + "}"):
        with pytest.raises(UserError, match="a.jsonl, row 1: not JSON"):
            list(parse_rows("a.jsonl", text.encode()))


def test_rows_keep_the_place_they_have() -> None:
    row = {"a": "1"}
    assert placed_rows([(Place("file, row 7"), row), row, pd.Series(row)]) == [("file, row 7", row), ("row 2", row), ("row 3", row)]
    for wrong in (("file", row), (), "text", ["a"], None):
        with pytest.raises(UserError, match="row 2: must be a dict of field and value, not"):
            placed_rows([row, wrong])


def test_classes_that_datasets_stores_as_numbers_have_their_names() -> None:
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "stars": {"dtype": "int64", "_type": "Value"}}
    table = pa.table({"label": [1, 0, -1, None], "stars": [1, 0, 5, 2]})
    named = [{"label": "good", "stars": 1}, {"label": "bad", "stars": 0}, {"label": None, "stars": 5}, {"label": None, "stars": 2}]
    for metadata, expected in (({"info": {"features": features}}, named), ({"info": None}, table.to_pylist())):
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(metadata)}), buffer)
        assert [row for _, row in parse_rows("a.parquet", buffer.getvalue())] == expected


def packed(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The files as a folder, a zip archive or a tar archive."""
    path = folder / ("data" if kind == "folder" else f"data.{kind}")
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_file_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed(tmp_path, kind, {"in/a.jsonl": bytes(10**6), "in/b.jsonl": b"{}"})
    monkeypatch.setattr(rows, "MOST_BYTES", 10**5)
    with pytest.raises(UserError, match=r"data.*:in/a.jsonl: 1,000,000 bytes unpacked, more than the 100,000 that are read of one file"):
        list(source_files(data, "*.jsonl"))
    assert one_file(data, "b.jsonl")[1] == b"{}", "it is nobody's"


def test_an_archive_that_states_too_little_is_not_read_beyond_that(tmp_path: Path) -> None:
    data = packed(tmp_path, "zip", {"a.jsonl": bytes(1000)})
    data.write_bytes(data.read_bytes().replace(struct.pack("<L", 1000), struct.pack("<L", 10)))
    with pytest.raises(UserError, match="cannot be read to its end"):
        list(source_files(data, "a.jsonl"))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_files_are_found_by_the_end_of_their_path(tmp_path: Path, kind: str) -> None:
    data = packed(tmp_path, kind, {"deep/qa/test/b.jsonl": b"b", "deep/qa/test/a.jsonl": b"a", "qa/test/c.txt": b"c", "xqa/test/d.jsonl": b"d"})
    assert [content for _, content in source_files(data, "qa/test/*.jsonl")] == [b"a", b"b"]
    assert one_file(data, "xqa/test/d.jsonl")[1] == b"d"
    with pytest.raises(UserError, match=r"data.*: holds no e.jsonl"):
        one_file(data, "e.jsonl")
    with pytest.raises(UserError, match=r"a.jsonl and .*b.jsonl both claim to be"):
        one_file(data, "qa/test/?.jsonl")


def test_a_folder_counts_by_its_own_name(tmp_path: Path) -> None:
    data = packed(tmp_path, "folder", {"test/a.jsonl": b"a"})
    assert [content for _, content in source_files(data, "data/test/a.jsonl")] == [b"a"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str) -> None:
    data = packed(tmp_path, kind, {"a.jsonl": random.Random(0).randbytes(50_000)})
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 255
    for wrong in (content, content[: len(content) // 2]):
        data.write_bytes(wrong)
        with pytest.raises(UserError, match=r"data.*: (cannot be read to its end .*; fetch the archive again|neither a folder)"):
            list(source_files(data, "a.jsonl"))


def test_data_that_is_not_there_or_no_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: no such folder or archive; `data` in the config"):
        list(source_files(tmp_path / "nothing", "*"))
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="text: neither a folder nor a zip or tar archive"):
        list(source_files(tmp_path / "text", "*"))
