"""Whole files with a few bytes or values changed: a command takes them, or says in one line which file is wrong; exit code 2, and nothing is left."""

from __future__ import annotations

import json
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import config_file, own_task

from fiat_ray.cli import main
from fiat_ray.config import Config

Change = Callable[[bytes], bytes]

ODD = [
    *(b"\0", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n", b"\x1b[31m", b"\xff\xfe", b"\xed\xa0\x80", b"\xe0\xa4", b"\xe2\x80\xa8", b"\\ud800"),
    *(b"{", b"}", b"[", b'"', b"\\", b":", b"- ", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"[" * 2000, b"<|im_start|>", b"../etc"),
]
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
"""Control characters and lone surrogates too."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
often = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def bytes_changed(draw: st.DrawFn) -> Change:
    """A file cut off, or with bytes taken out and others put in, up to three times."""
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(ODD) | st.binary(max_size=6)), min_size=1, max_size=3))
    end = draw(st.none() | st.floats(0, 1))

    def change(content: bytes) -> bytes:
        for at, gone, new in places:
            start = int(at * len(content))
            content = content[:start] + new + content[start + gone :]
        return content if end is None else content[: int(end * len(content))]

    return change


@st.composite
def rows_changed(draw: st.DrawFn) -> Change:
    """A row of a JSONL file whose fields have other values, or names, or are lacking; or that is no object; or that stands twice."""
    at, field, value = draw(st.floats(0, 0.999)), draw(st.integers(0, 3)), draw(VALUES)
    how = draw(st.sampled_from(["value", "missing", "more", "row", "twice"]))

    def change(content: bytes) -> bytes:
        rows: list[Any] = [json.loads(line) for line in content.splitlines()]
        number = int(at * len(rows))
        row: dict[str, Any] = rows[number]
        name = list(row)[field % len(row)]
        if how == "value":
            row[name] = value
        elif how == "missing":
            del row[name]
        elif how == "more":
            row[str(value)] = value
        elif how == "row":
            rows[number] = value
        else:
            rows.append(row)
        return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")

    return change


def check(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code = main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert code in (0, 2), lines
    if code == 2:
        assert len(lines) == 1 and str(folder) in lines[0], lines
        assert not any(unicodedata.category(letter) == "Cc" for letter in lines[0]) and len(lines[0]) < 2000, lines
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def check_task(capsys: pytest.CaptureFixture[str], name: str, change: Change) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = own_task(folder) / name
        path.write_bytes(change(path.read_bytes()))
        check(capsys, folder, "plan", str(config_file(folder, task=str(path.parent), limit={})))


@often
@given(st.sampled_from(["train.jsonl", "test.jsonl", "exemplars.jsonl"]), bytes_changed() | rows_changed())
def test_rows_and_exemplars(capsys: pytest.CaptureFixture[str], name: str, change: Change) -> None:
    check_task(capsys, name, change)


@often
@given(st.sampled_from(["task.yaml", "i_beta.txt", "i_tau.txt"]), bytes_changed())
def test_a_task_s_other_files(capsys: pytest.CaptureFixture[str], name: str, change: Change) -> None:
    check_task(capsys, name, change)


@often
@given(st.sampled_from(sorted({f.name for f in fields(Config)} - {"task", "store", "data"})), VALUES, bytes_changed() | st.none())
def test_configs(capsys: pytest.CaptureFixture[str], key: str, value: Any, change: Change | None) -> None:
    """A key with any value, and bytes that are others."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = config_file(folder, task=str(own_task(folder)), limit={})
        values = yaml.safe_load(path.read_text()) | {key: value}
        path.write_text(json.dumps(values))  # which is YAML, and says what YAML's writer can't
        if change is not None:
            path.write_bytes(change(path.read_bytes()))
        check(capsys, folder, "plan", str(path))


@often
@given(bytes_changed() | rows_changed(), st.booleans())
def test_predictions(capsys: pytest.CaptureFixture[str], change: Change, labels: bool) -> None:
    texts = [
        {"id": "1", "target": "a b", "prediction": "a", "language": "bn"},
        {"id": "2", "target": ["c", "d"], "prediction": "d", "language": "hi"},
    ]
    scores = [{"label": "yes", "score": 0.25, "language": "bn"}, {"label": "no", "score": 0.5, "language": "hi"}]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "predictions.jsonl"
        path.write_bytes(change("".join(json.dumps(row) + "\n" for row in (scores if labels else texts)).encode()))
        check(capsys, path.parent, "score", str(path))


@settings(often, max_examples=25)
@given(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]), bytes_changed())
def test_models(capsys: pytest.CaptureFixture[str], tiny: Path, name: str, change: Change) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = Path(shutil.copytree(tiny, folder / "model"))
        (model / name).write_bytes(change((model / name).read_bytes()))
        tunables = {"xs": {"model": str(model), "max_length": 300}}
        check(capsys, folder, "plan", str(config_file(folder, task=str(own_task(folder)), limit={}, methods=["no_cot"], tunables=tunables)))
