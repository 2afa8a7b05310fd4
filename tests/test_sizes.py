"""Rows larger and files longer than anybody has, an object store of Ray's that holds none of them, and models that no machine has room for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_bad_input import ROW, line, said_of_run
from test_cli import config_file, own_task

from fiat_ray import cli, memory, models
from fiat_ray import config as configs
from fiat_ray.errors import UserError
from fiat_ray.prepare import prepare
from fiat_ray.where import Where

START_RAY = """
import sys
from pathlib import Path
import ray

gpus = int(sys.argv[2])
ray.init("local", num_cpus=2, num_gpus=gpus, _memory=100 << 20, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
"""

REASON = """
import test_reason_stage

bench = test_reason_stage.Bench(Path(sys.argv[1]))
requests = bench.requests(*[f"q{n} " + "word " * 100_000 for n in range(200)])
answered = bench.run(requests)
stored = bench.store.read(requests.keys.values())
print(len(answered), sum(len(row["text"]) for row in stored.values()) >> 20)
print(ray._private.internal_api.memory_summary(ray.get_runtime_context().gcs_address, stats_only=True))
"""


RUN = """
from fiat_ray import cli, cluster

print(cluster.memory_of(cluster.Unit(1, 1, 1)))
sys.exit(cli.main(["run", "mine.yaml", "--out", "out", "where.gpus=0"]))
"""


def in_small_ray(script: str, folder: Path, gpus: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", START_RAY + script, str(folder), str(gpus)]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True)


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
    assert "1 passage cut to fit" in capsys.readouterr().out


def test_rows_and_answers_that_rays_object_store_could_not_hold(tmp_path: Path) -> None:
    """They go from file to file: what passes through Ray is where they stand, and how they ended."""
    done = in_small_ray(REASON, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[0] == "200 95"
    assert "Spilled" not in done.stdout


def least(config: configs.Config, where: Where) -> dict[str, int]:
    trials = prepare(config).trials
    return memory.at_least(config, where, reasoning=True, tune=trials, evaluate=trials)


def test_memory_that_models_take_at_least(tiny: Path) -> None:
    """Weights as they are stored; in full tuning 16 bytes a parameter, which ZeRO shares out; in evaluation without GPUs two float32 copies more."""
    limit = {"train": 2, "validation": 1, "test": 2}
    tunables = {"xs": {"model": str(tiny), "max_length": 1024}}
    config = configs.load({"task": "country_facts", "limit": limit, "methods": ["no_peft", "fiat"], "tunables": tunables})
    parameters, stored = models.parameters(tiny).total, models.weight_bytes(tiny)
    whole = {"tunables.xs: full tuning": 16 * parameters, "tunables.xs: LoRA": stored, "tunables.xs: evaluation": stored}
    assert least(config, Where(gpus=1)) == {"reasoner": models.weight_bytes(models.find("embedded")), **whole}
    assert least(config, Where(gpus=0)) == least(config, Where(gpus=1)) | {"tunables.xs: evaluation": stored + 8 * parameters}
    assert least(config, Where(gpus=1, workers=4, zero=2))["tunables.xs: full tuning"] == (2 + 2 / 4 + 12 / 4) * parameters
    shared = least(config, Where(gpus=2, workers=4, zero=3))
    assert shared == {"reasoner": models.weight_bytes(models.find("embedded")) // 2, **{what: size // 4 for what, size in whole.items()}} | {
        "tunables.xs: evaluation": stored // 2
    }
    memory.check(whole, None, "a GPU")
    memory.check(whole, 16 * parameters, "a GPU")
    with pytest.raises(UserError, match=r"tunables.xs: full tuning takes at least .* a GPU has .* where.zero: 3 .*, LoRA, or a smaller"):
        memory.check(whole, 16 * parameters - 1, "a GPU")


def test_a_model_that_no_machine_has_room_for_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    asked = tmp_path / "nvidia-smi"
    asked.write_text("#!/bin/sh\necho 24564\necho 81559\n")
    asked.chmod(0o755)
    config_file(tmp_path, methods=["icl"])
    done = in_small_ray(RUN, tmp_path, gpus=1, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert int(done.stdout.split()[0]) == 81559 << 20
    assert done.returncode == 2, done.stderr[-2000:]
    assert "reasoner takes at least 257 MiB of memory, and a machine has 180 MiB; try where.gpus" in done.stderr.splitlines()[-1]
