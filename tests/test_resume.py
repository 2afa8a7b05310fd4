"""Killed with SIGKILL at any moment, reasoning goes on row by row: nothing finished is done again, and the store is an undisturbed one's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks import interruption
from fiat_ray.reason.store import Store

ROWS = 1200


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_ten_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for folder in (broken, whole):
        folder.mkdir()
    assert interruption.killed(broken, ROWS, moments=10, seed=0) == 0
    assert interruption.sitting(whole, ROWS).wait() == 0

    table = interruption.store(broken).table()
    assert len(table) == ROWS and table["status"].to_pylist() == ["ok"] * ROWS
    columns = ["key", "status", "text", "finish_reason", "tries"]
    assert table.select(columns) == interruption.store(whole).table().select(columns)
    assert sum(pq.read_metadata(part).num_rows for part in interruption.store(broken).parts()) == ROWS, "no key is there twice"


SITTING = """
import sys
import numpy as np
from fiat_ray import config, runs
from fiat_ray.reason import stage

blocks = stage.blocks

def shuffled(*asked):
    found = blocks(*asked)
    every = np.random.default_rng(0).permutation(np.concatenate(found)) if found else []
    return [part for part in np.array_split(every, len(found) or 1) if len(part)]

if sys.argv[3] == "shuffled":
    stage.blocks = shuffled
runs.run_config(config.load(sys.argv[1]), sys.argv[2], stages=("reason",))
"""


def sitting(config: Path, out: Path, order: str = "as planned") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    return subprocess.Popen([sys.executable, "-c", SITTING, str(config), str(out), order], env=environment, stderr=subprocess.DEVNULL)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """Key → what is stored. No key stands in two parts."""
    parts = [part for path in Store(out / "rationales").parts() for part in pq.read_table(path).to_pylist()]
    assert len({row["key"] for row in parts}) == len(parts)
    return {row["key"]: row for row in parts}


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_killed_with_a_real_engine(tmp_path: Path) -> None:
    """What was finished stays to the byte. Texts may differ as they do between undisturbed runs: rounding depends on which rows share a batch."""
    values = {"task": "country_facts", "languages": ["el", "sw"], "limit": {"train": 40, "validation": 4, "test": 4}, "methods": ["icl"]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values | {"reasoner": {"max_tokens": 32}}))
    outs = {name: tmp_path / name for name in ("undisturbed", "shuffled", "killed")}
    for name in ("undisturbed", "shuffled"):
        assert sitting(config, outs[name], name).wait() == 0

    driver = sitting(config, outs["killed"])
    while not (outs["killed"] / "rationales").is_dir() or len(rows(outs["killed"])) < 30:
        assert driver.poll() is None
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    time.sleep(3)  # an engine outlives its driver by a moment
    kept = rows(outs["killed"])
    assert sitting(config, outs["killed"]).wait() == 0

    found = {name: rows(out) for name, out in outs.items()}
    assert {key: found["killed"][key] for key in kept} == kept and len(kept) < 96
    assert found["killed"].keys() == found["shuffled"].keys() == found["undisturbed"].keys() and len(found["killed"]) == 96
    differ = {name: sum(row["text"] != found["undisturbed"][key]["text"] for key, row in stored.items()) for name, stored in found.items()}
    print(
        f"of 96 texts, not those of an undisturbed run: {differ['killed']} after kill -9 at {len(kept)} rows, {differ['shuffled']} in another order"
    )
