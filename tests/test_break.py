"""Interrupted in every stage, by Ctrl-C and by kill -9: the next run goes on, nothing is done twice, and the result is an undisturbed run's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from run_directory import note_as_tuned

from benchmarks.fault_kinds import descendants
from fiat_ray import config as configs
from fiat_ray import runs
from fiat_ray.progress import Console
from fiat_ray.reason.store import Store

SCRIPT = """
import time
def reason(row):
    time.sleep(1.0)
    return "It is about " + row["input"][:20] + ".\\nAnswer: " + row["targets"][0]
"""


def write_config(folder: Path, tiny: Path, **changes: Any) -> Path:
    (folder / "script.py").write_text(SCRIPT)
    values = {
        "task": "country_facts",
        "languages": ["id", "sw"],
        "limit": {"train": 12, "validation": 6, "test": 8},
        "reasoner": {"kind": "scripted", "script": "script.py", "max_tokens": 48},
        "tunables": {"xs": {"model": str(tiny), "max_length": 1024}},
        "methods": ["majority", "icl", "fiat", "no_cot", "no_peft"],
        "learning_rate": {"lora": [1e-2], "full": [2e-3]},
        "batch_size": 8,
        "steps": 12,
        "validation": {"times": 2, "rows": 8},
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(config: Path, out: Path, stage: str = "run") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fiat_ray", stage, str(config), "--out", str(out)]
    # A process group of its own: Ctrl-C of a terminal reaches the driver, and not the test. A shell's background job ignores it, unlike a driver that
    # somebody looks at.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "RAY_ADDRESS": "local"},
    )


def finish(config: Path, out: Path, stage: str = "run") -> None:
    process = start(config, out, stage)
    stdout, stderr = process.communicate(timeout=480)
    assert process.returncode == 0, stderr.decode()[-2000:]
    assert b"change: to the row above" in stdout or stage != "run"


def interrupt(config: Path, out: Path, when: Callable[[], bool], how: signal.Signals, stage: str = "run") -> int:
    process = start(config, out, stage)
    deadline = time.monotonic() + 400
    while not when():
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline, "the moment to interrupt never came"
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=240)
    return process.returncode


def raylet_of(driver: int) -> int:
    """Ray's own process, below the driver that started it."""
    return next(child for child in descendants(driver) if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet"))


def stored(out: Path) -> pd.DataFrame:
    """All rows of the parts that count: those that were merged into another one stay for a while."""
    parts = [pd.read_parquet(path) for path in Store(out / "rationales").parts()]
    return pd.concat(parts).sort_values("key", ignore_index=True) if parts else pd.DataFrame(columns=["key"])


def comparable(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "scores.parquet").sort_values(["method", "language", "split", "metric"], ignore_index=True)


KILLED, INTERRUPTED = (signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)
"""(signal, exit code)"""

BEGUN = {"reasoning": "rationales/*.parquet", "tuning": "trials/*/trial.json", "evaluating": "trials/*/scores.json"}
"""Stage → what is there as soon as some of its work is done."""


def test_killed_while_it_tunes(tmp_path: Path, tiny: Path, ray_local: None) -> None:
    """The short form of what follows: nothing but tuning, broken off between two trials."""
    config, out, undisturbed = write_config(tmp_path, tiny, methods=["no_cot", "no_peft"]), tmp_path / "broken", tmp_path / "undisturbed"
    runs.run_config(configs.load(config), undisturbed, stages=("tune",), console=Console(quiet=True))

    assert interrupt(config, out, lambda: any(out.glob(BEGUN["tuning"])), signal.SIGKILL, "tune") == -signal.SIGKILL
    [tuned] = out.glob(BEGUN["tuning"])
    content = tuned.read_bytes()
    finish(config, out, "tune")

    assert tuned.read_bytes() == content, "a finished trial was tuned again"
    expected = {path.relative_to(undisturbed): path for path in undisturbed.glob("trials/*/*/*.safetensors")}
    assert len(expected) == 2
    for path, other in expected.items():
        assert (out / path).read_bytes() == other.read_bytes()
    for path in undisturbed.glob("trials/*/validation.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(out / path.relative_to(undisturbed)), pd.read_parquet(path), check_exact=True)


def test_what_stops_a_cluster_s_job_ends_it_as_ctrl_c_does(tmp_path: Path, tiny: Path) -> None:
    config, out = write_config(tmp_path, tiny, methods=["icl"]), tmp_path / "out"
    assert interrupt(config, out, lambda: any(out.glob(BEGUN["reasoning"])), signal.SIGTERM, "reason") == 130


@pytest.mark.parametrize("stage", ["reason", "tune", "evaluate"])
def test_a_raylet_that_is_killed_ends_the_command_at_once(tmp_path: Path, tiny: Path, stage: str) -> None:
    """Ray alone would wait for ever while an engine evaluates, and end the driver without a word in the other stages."""
    config, out = write_config(tmp_path, tiny, methods=["icl" if stage == "reason" else "no_cot"]), tmp_path / "out"
    if stage == "evaluate":
        runs.run_config(configs.load(config), out, stages=(), console=Console(quiet=True))
        note_as_tuned(out, cot="none")
    process = start(config, out, stage)
    assert process.stderr is not None
    try:
        assert any(b"starting " in line for line in process.stderr), "it ended before it was struck"
        time.sleep(1)
        os.kill(raylet_of(process.pid), signal.SIGKILL)
        assert process.wait(60) == 1
        assert process.stderr.read().count(b"fiat-ray: Ray's raylet on this machine has ended") == 1
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "breaks",
    [
        {"reasoning": KILLED, "tuning": INTERRUPTED, "evaluating": KILLED},
        {"reasoning": INTERRUPTED, "tuning": KILLED, "evaluating": INTERRUPTED},
    ],
    ids=["every stage", "the other way"],
)
def test_broken_off(tmp_path: Path, tiny: Path, breaks: dict[str, tuple[signal.Signals, int]]) -> None:
    config, out, undisturbed = write_config(tmp_path, tiny), tmp_path / "broken", tmp_path / "undisturbed"
    finish(config, undisturbed)

    tuned: dict[Path, bytes] = {}
    seen: list[pd.DataFrame] = []
    for stage, (how, code) in breaks.items():
        assert interrupt(config, out, lambda stage=stage: any(out.glob(BEGUN[stage])), how) == code
        seen.append(stored(out))
        if stage == "reasoning":
            assert 0 < len(seen[-1]) < 52
        tuned |= {path: path.read_bytes() for path in out.glob("trials/*/trial.json")}
    finish(config, out)

    rows, expected = stored(out), stored(undisturbed)
    assert rows.key.is_unique and rows.key.tolist() == expected.key.tolist()
    assert rows.text.tolist() == expected.text.tolist()
    before = pd.concat(seen)
    kept = rows.merge(before, on="key", suffixes=("", "_before"))
    assert len(kept) == len(before) and (kept.seconds == kept.seconds_before).all(), "a finished row was generated again"
    assert all(path.read_bytes() == content for path, content in tuned.items()), "a finished trial was tuned again"
    pd.testing.assert_frame_equal(comparable(out), comparable(undisturbed), check_exact=True)
    for path in undisturbed.glob("trials/*/predictions.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(out / path.relative_to(undisturbed)), pd.read_parquet(path), check_exact=True)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_real_reasoner_killed_while_it_generates(tmp_path: Path, tiny: Path) -> None:
    """What was finished is kept to the byte, every key comes once, and only what is missing is generated."""
    limit = {"train": 30, "validation": 10, "test": 10}
    config = write_config(tmp_path, tiny, reasoner={"model": "embedded", "max_tokens": 48, "max_length": 2048}, methods=["icl"], limit=limit)
    out = tmp_path / "out"
    for wanted in (1, 40):
        assert interrupt(config, out, lambda wanted=wanted: len(stored(out)) >= wanted, signal.SIGKILL) == -signal.SIGKILL
    before = {path: path.read_bytes() for path in (out / "rationales").glob("*.parquet")}
    first = stored(out)
    assert 0 < len(first) < 100

    finish(config, out)
    rows = stored(out)
    assert rows.key.is_unique and len(rows) == 100 and (rows.tries == 1).all()
    assert {path: path.read_bytes() for path in before} == before
    assert set(first.key) < set(rows.key)
