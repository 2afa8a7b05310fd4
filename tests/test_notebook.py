"""The example notebook, cell by cell, as it stands in docs/."""

from __future__ import annotations

import json
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
