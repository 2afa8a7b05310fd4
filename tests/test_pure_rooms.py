"""Pure rooms stay pure: they import none of the big libraries, so that they load fast and run anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fiat_ray

ROOMS = (
    *("task", "rows", "recipe", "leakage", "schema", "errors", "metrics", "significance", "gain_slope", "scoring", "campaign", "config", "artifact"),
    *("draw", "leaks", "data_fetch", "data_validate"),
    *(f"report.{path.stem}" for path in sorted(Path(fiat_ray.__file__).parent.glob("report/*.py")) if path.stem != "__init__"),
)
HEAVY = ("torch", "ray", "vllm", "deepspeed", "mlflow", "transformers")

# Each room in a process of its own, forked where what the rooms may share is imported already: that takes the second, not the rooms.
FORKED = f"""
import importlib, os, sys
import numpy, pandas, pyarrow.parquet, scipy.stats, yaml
for room in sys.argv[1:]:
    if os.fork() == 0:
        importlib.import_module("fiat_ray." + room)
        print(room, *[name for name in {HEAVY} if name in sys.modules], flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Room → what it imports of the heavy libraries."""
    lines = subprocess.run([sys.executable, "-c", FORKED, *ROOMS], capture_output=True, text=True, check=True).stdout.splitlines()
    return {room: heavy for room, *heavy in map(str.split, lines)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_pure_room_imports_nothing_heavy(imported: dict[str, list[str]], room: str) -> None:
    assert imported[room] == []


def test_importing_the_package_takes_less_than_a_second() -> None:
    code = "import time; start = time.perf_counter(); import fiat_ray; print(time.perf_counter() - start); fiat_ray.Config, fiat_ray.UserError"
    seconds = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(2))
    assert seconds < 1


def test_every_public_name_is_there() -> None:
    for name in fiat_ray.__all__:
        assert getattr(fiat_ray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fiat_ray.nothing
