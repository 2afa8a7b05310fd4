"""Rows in folders and on the hub: splits by names, classes by names, a pinned commit, and what is said where there are none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import COMMIT
from test_cli import refused

from fiat_ray import Task, UserError, config
from fiat_ray.cli import main
from fiat_ray.hub import HubName, folder_rows, hub_rows, split_of
from fiat_ray.task import SPLITS


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """As ``datasets`` writes it: classes are numbers, and their names stand in the file's metadata."""
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def reviews(start: int, count: int) -> list[dict[str, Any]]:
    return [{"text": f"Review {n} of it.", "label": n % 2} for n in range(start, start + count)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DATA_SETS = {
    "somebody/reviews": {
        ".gitattributes": b"",
        "README.md": b"# Reviews",
        "data/train-00000-of-00002.parquet": parquet(reviews(0, 30)),
        "data/train-00001-of-00002.parquet": parquet(reviews(30, 10)),
        "data/dev-00000-of-00001.parquet": parquet(reviews(40, 12)),
        "data/test-00000-of-00001.parquet": parquet(reviews(60, 14)),
        "csv/train.csv": b"text,label\nthe same rows once more,1\n",
    },
    "somebody/many": {"en/train.jsonl": lines(reviews(0, 20)), "fi/train.jsonl": lines(reviews(20, 16)), "fi/test.jsonl": lines(reviews(90, 4))},
    "somebody/hidden": {
        "train.parquet": parquet(reviews(0, 30)),
        "validation.parquet": parquet(reviews(40, 8)),
        "test.parquet": parquet([row | {"label": -1} for row in reviews(60, 9)]),
        "unsupervised.parquet": parquet([row | {"label": -1} for row in reviews(80, 50)]),
    },
    "somebody/pictures": {"a.png": b"", "train/b.png": b""},
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with hub_server.serving(DATA_SETS) as found:
        yield found


@pytest.fixture
def hub(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)  # what HF_ENDPOINT sets, when its package is imported
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_init_from_the_hub(address: str, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "fiat_ray", "init", "mine", "--train", "hf:somebody/reviews@v1", "--hardware", "gpu24"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"from: hf:somebody/reviews@{COMMIT}" in done.stdout
    task = Task.load(tmp_path / "mine")
    assert task.labels == ("bad", "good")
    assert [len(task.split(split)) for split in ("validation", "test")] == [12, 14]
    assert len(task.split("train")) + len(task.exemplars) == 40
    assert {row.targets[0] for row in task.rows} == {"bad", "good"}
    written = tmp_path / "mine" / "config.yaml"
    assert config.load(written).notes == [f"Rows: hf:somebody/reviews@{COMMIT}."] == yaml.safe_load(written.read_text())["notes"]


def test_one_of_several_data_sets(hub: None) -> None:
    rows, source = hub_rows("hf:somebody/many/fi")
    assert source == f"hf:somebody/many/fi@{COMMIT}"
    assert Counter(row["split"] for _, row in rows) == {"train": 16, "test": 4}
    assert rows[0][0] == "hf:somebody/many/fi/test.jsonl, row 1" and hub_rows("hf:somebody/many/fi@v1") == (rows, source)
    assert len(Task.from_rows("hf:somebody/reviews", target="label", labels=["bad", "good"]).split("validation")) == 12


def test_splits_whose_answers_nobody_tells_are_left_out(hub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "mine"), "--train", "hf:somebody/hidden", "--hardware", "gpu24"]) == 0
    assert "left out: 9 rows of test, 50 rows of no split, none of which has a label\n" in capsys.readouterr().out
    task = Task.load(tmp_path / "mine")
    assert task.labels == ("bad", "good") and len(task.split("validation")) == 8
    assert len(task.split("train")) + len(task.split("test")) + len(task.exemplars) == 30 and len(task.split("test")) == 6


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"test": [0]}, "test.jsonl, row 1: field 'label'"),
        ({"train": range(20)}, "train.jsonl, row 1:"),
        ({"validation": [4]}, "validation.jsonl, row 5"),
    ],
)
def test_rows_without_an_answer_among_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: dict[str, Any], said: str
) -> None:
    for start, split in enumerate(SPLITS):
        rows = [{"text": row["text"], "label": None if n in lacking.get(split, ()) else str(n % 2)} for n, row in enumerate(reviews(20 * start, 20))]
        path = tmp_path / "rows" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lines(rows))
    assert said in refused(capsys, "init", str(tmp_path / "mine"), "--train", str(tmp_path / "rows"), "--hardware", "gpu24")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:somebody/many", r"hf:somebody/many: holds several data sets \(en, fi\); name one: hf:somebody/many/en$"),
        ("hf:somebody/many@v1", r"hf:somebody/many@v1: holds several data sets \(en, fi\); name one: hf:somebody/many/en@v1$"),
        ("hf:somebody/many/sv", "hf:somebody/many/sv: has no folder sv with rows; its files are en/train.jsonl, fi/test.jsonl"),
        ("hf:somebody/pictures", "hf:somebody/pictures: holds no .parquet, .jsonl, .csv file"),
        ("hf:somebody/else", "hf:somebody/else: the hub did not give it .*; a file with its rows will do too"),
        ("hf:somebody/reviews@v2", "hf:somebody/reviews@v2: the hub did not give it .*v2"),
        ("hf:not a name", "hf:not a name: no name of a data set; give hf:owner/name"),
        ("hf:", "hf:: no name of a data set"),
    ],
)
def test_what_the_hub_has_not(hub: None, source: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        hub_rows(source)
    assert "\n" not in str(caught.value)


def test_without_internet(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = "hf:somebody/reviews: the hub did not give it ("
    assert said in refused(capsys, "init", str(tmp_path / "mine"), "--train", "hf:somebody/reviews")  # HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert said in refused(capsys, "init", str(tmp_path / "mine"), "--train", "hf:somebody/reviews")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_files(tmp_path: Path) -> None:
    for name, content in DATA_SETS["somebody/reviews"].items():
        path = tmp_path / "reviews" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    rows = folder_rows(tmp_path / "reviews")
    assert Counter(row["split"] for _, row in rows) == {"train": 40, "validation": 12, "test": 14}
    assert {row["label"] for _, row in rows} == {"bad", "good"}
    task = Task.from_rows(tmp_path / "reviews", target="label", labels=["bad", "good"])
    assert len(task.split("test")) == 14
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no .parquet, .jsonl, .csv file"):
        folder_rows(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/train-00000-of-00001-0a1b2c3d.parquet", "train"),
        ("validation/0000.parquet", "validation"),
        ("dev.jsonl", "validation"),
        ("en/Test.csv", "test"),
        ("my_test_file.csv", "test"),
        ("train/part-eval.parquet", "test"),
        ("latest.jsonl", None),
        ("trained/0.parquet", None),
        ("data/rows.csv", None),
    ],
)
def test_splits_by_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_names() -> None:
    assert HubName.read("hf:squad") == HubName("squad", "", None)
    assert HubName.read("hf:a/b/c@main") == HubName("a/b", "c", "main")
