"""What reasoning took, added up over the sittings of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fiat_ray.reason.measured import measured


def answered(rows: int, seconds: float, fails: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of two batches, of which the second was admitted later."""
    start = time.time() - seconds
    for at in range(rows):
        yield {"key": str(at), "status": "ok", "admitted": start + at % 2}
    if fails:
        raise RuntimeError("the engine died")


def test_sittings_and_tasks_add_up(tmp_path: Path) -> None:
    measured(tmp_path, "a", 4, answered(3, 20))
    measured(tmp_path, "b", 0, answered(2, 5))
    with pytest.raises(RuntimeError, match="died"):
        measured(tmp_path, "a", 2, answered(5, 10, fails=True))
    took = json.loads((tmp_path / "reasoning.json").read_text())
    assert took["a"] == {"rows": 8, "seconds": pytest.approx(30, abs=1), "gpu_seconds": pytest.approx(100, abs=4)}
    assert took["b"] == {"rows": 2, "seconds": pytest.approx(5, abs=1), "gpu_seconds": 0}


def test_where_nothing_was_missing_nothing_is_written(tmp_path: Path) -> None:
    measured(tmp_path, "a", 1, iter(()))
    assert not list(tmp_path.iterdir())
