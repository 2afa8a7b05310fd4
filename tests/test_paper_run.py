"""``methods: paper`` really run. The models are a tiny random stand-in pair, tunable and pretrained twin: all is there, the numbers mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fiat_ray.recipe import FIGURE_6, PAPER, UNTUNED

STAND_IN = "A tiny random stand-in pair of models plays tunable and pretrained twin: this shows that everything runs, the numbers mean nothing."
SCRIPT = """
def reason(row):
    return "It is about " + row["input"][:20] + ".\\nAnswer: " + row["targets"][0]
"""


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_all_methods_of_the_paper_run_with_a_pretrained_twin(tiny: Path, tiny_pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    values = {
        "task": "country_facts",
        "languages": ["id", "sw", "hi", "ru"],
        "limit": {"train": 8, "validation": 4, "test": 8},
        "reasoner": {"kind": "scripted", "script": "script.py", "max_tokens": 48},
        "tunables": {"xs": {"model": str(tiny), "pretrained": str(tiny_pretrained), "max_length": 1024}},
        "methods": "paper",
        "learning_rate": {"lora": [1e-2], "full": [2e-3]},
        "batch_size": 8,
        "steps": 4,
        "validation": {"times": 2, "rows": 8},
        "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
        "notes": [STAND_IN],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fiat_ray", "run", str(tmp_path / "config.yaml"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "RAY_ADDRESS": "local"})
    assert done.returncode == 0, done.stderr[-2000:]
    report = {path.stem: pd.read_csv(path, keep_default_na=False) for path in (out / "report").glob("*.csv")}
    assert set(report["trials"]["method"]) == set(PAPER) - set(UNTUNED)
    assert report["not_run"].empty
    base = report["figure6_instruction_tuned_base"]
    assert list(base["method"][base["method"] != ""]) == list(FIGURE_6)
    assert (base["row"] == "the first gain − the second").sum() == 1
    for name in ("figure3_gain_by_language", "figure4_distilled_cot", "figure5_training"):
        frame = report[name][report[name]["task"] == "country_facts"]
        assert len(frame) and set(frame["reason"]) == {""}, name
    assert STAND_IN in (out / "report" / "index.html").read_text("utf-8")
