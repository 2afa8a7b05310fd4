"""The example notebook, cell by cell, as it stands in docs/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def cells() -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs_and_its_task_is_made(tmp_path: Path) -> None:
    stored = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert all(cell["outputs"] == [] for cell in stored if cell["cell_type"] == "code")
    names: dict[str, Any] = {}
    for source in cells()[:2]:
        exec(source, names)
    sizes = {split: len(names["task"].split(split)) for split in ("train", "validation", "test")}
    assert min(sizes.values()) >= 4 and sum(sizes.values()) + len(names["task"].exemplars) == len(names["rows"]) == 50


@pytest.mark.slow
def test_a_cell_that_is_interrupted_leaves_nothing_at_work_and_goes_on_when_it_is_run_again(tmp_path: Path, tiny: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("notebook_sitting.py")), str(tmp_path), str(tiny)]
    done = subprocess.run(command, env=os.environ | {"RAY_ADDRESS": "local"}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    interrupted, later, ended = map(int, done.stdout.split())
    assert 10 < later == interrupted < 50, "rows were reasoned about after the interruption"
    assert 50 <= ended <= 60 + 26, "what was stored is not asked again"


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_all_of_it_runs_and_leaves_a_running_ray_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None) -> None:
    import ray

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for source in cells():
        exec(source, names)
    assert ray.is_initialized()
    run = names["run"]
    assert set(run.scores.query("split == 'test'").method) >= {"icl", "no_peft", "fiat"}
    assert run.compare("fiat", "no_peft").n_rows == len(names["task"].split("test"))
    [answer] = run.infer([{"question": "Which letter follows q in the alphabet?", "lang": "en"}])
    assert isinstance(answer["prediction"], str) and answer["rationale"]
    assert (tmp_path / "runs" / "alphabet" / "report" / "index.html").is_file()
