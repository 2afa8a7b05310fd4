"""Rows larger and files longer than anybody has, and an object store of Ray's that holds none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_bad_input import ROW, line, said_of_run
from test_cli import config_file, own_task

from fiat_ray import cli

SMALL_STORE = """
import sys
from pathlib import Path
import ray
import test_reason_stage

ray.init("local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
bench = test_reason_stage.Bench(Path(sys.argv[1]))
requests = bench.requests(*[f"q{n} " + "word " * 100_000 for n in range(300)])
answered = bench.run(requests)
stored = bench.store.read(requests.keys.values())
print(len(answered), sum(len(row["text"]) for row in stored.values()) >> 20)
print(ray._private.internal_api.memory_summary(ray.get_runtime_context().gcs_address, stats_only=True))
"""


def test_a_field_that_is_missing_far_down_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line(ROW, question=f"q{n}") for n in range(9_000)]
    rows[8_136] = json.dumps({name: text for name, text in ROW.items() if name != "context"}) + "\n"
    task = own_task(tmp_path, **{"train.jsonl": "".join(rows)})
    assert "train.jsonl, row 8137: no field 'context'" in said_of_run(capsys, tmp_path, config_file(tmp_path, task=str(task), limit={}))


def test_a_row_of_ten_megabytes_is_cut_as_others_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    rows = line(ROW, question="q7") + line(ROW, question="q8", context="a passage " * (1 << 20))
    task = own_task(tmp_path, **{"train.jsonl": rows})
    tunables = {"xs": {"model": str(tiny), "max_length": 512}}
    assert cli.main(["plan", str(config_file(tmp_path, task=str(task), limit={}, methods=["no_cot"], tunables=tunables))]) == 0
    assert "1 passages cut to fit" in capsys.readouterr().out


def test_rows_and_answers_that_rays_object_store_could_not_hold(tmp_path: Path) -> None:
    """They go from file to file: what passes through Ray is where they stand, and how they ended."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", SMALL_STORE, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[0] == "300 143"
    assert "Spilled" not in done.stdout
