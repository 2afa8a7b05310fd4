"""What reasoning took, added up over the sittings of a run: read by the report's table of costs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fiat_ray import artifact


def measured(run: Path, task: str, gpus: float, answered: Iterable[Mapping[str, Any]]) -> None:
    """Go through what ``stage.reason`` yields, then add to the run's ``reasoning.json``: task → rows answered, seconds, GPU seconds.

    Seconds are wall-clock from the first row that a reasoner admitted to the last answer. Starting engines costs the same for one row and for a
    million, so it is not in them; ``gpus`` of all engines together is. What a killed process answered counts in none of the three.
    """
    rows, begun = 0, math.inf
    try:
        for row in answered:
            rows, begun = rows + 1, min(begun, row["admitted"])
    finally:
        if rows:
            seconds = time.time() - begun
            path = run / "reasoning.json"
            tasks = artifact.read_json(path) or {}
            before = tasks.get(task, {})
            took = {"rows": rows, "seconds": seconds, "gpu_seconds": seconds * gpus}
            artifact.write_json(path, tasks | {task: {name: value + before.get(name, 0) for name, value in took.items()}})
