"""Killed with SIGKILL at any moment, reasoning goes on row by row: nothing finished is done again, and the store is an undisturbed one's."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import interruption

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
