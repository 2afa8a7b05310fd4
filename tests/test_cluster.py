"""A cluster that was started with ``ray start --head``, with a token: a job submitted to it does what a local run does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from test_break import write_config

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment that reaches a head node, started in an empty HOME so that no old token helps. Stopped by its own process id."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    dashboard = free_port()
    environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # socket paths are short
        ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
        started = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}", *ports], env=started, stdout=subprocess.DEVNULL
        )
        try:
            wait_for(environment)
            yield environment
        finally:
            process.terminate()
            process.wait(60)


def wait_for(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 90
    while subprocess.run([RAY, "job", "list"], env=environment, capture_output=True).returncode:
        assert time.monotonic() < deadline, "the head node did not come up"
        time.sleep(1)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--", sys.executable, str(ROOT / "jobs" / "run.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


START = """
import sys
from fiat_ray import cluster
cluster.connect()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""

JOIN = "import ray, sys; ray.init(address=sys.argv[1], logging_level='error', log_to_driver=False); print(len(ray.nodes()))"


def joins(address: str, environment: dict[str, str]) -> bool:
    """Whether a process becomes a driver of the Ray at an address, as one that runs code there does."""
    try:
        done = subprocess.run([sys.executable, "-c", JOIN, address], env=environment, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and done.stdout.splitlines()[-1:] == ["1"]


def test_a_ray_that_is_started_here_lets_nobody_in_without_its_token(tmp_path: Path) -> None:
    """In an empty HOME, so that no old token helps."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    owner = {**kept, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", START]
    driver = subprocess.Popen(command, env={**owner, "RAY_ADDRESS": "local"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert driver.stdout is not None
        address = driver.stdout.readline().strip()
        assert (tmp_path / ".ray" / "auth_token").is_file(), "it has no token"
        assert joins(address, {**owner, "RAY_AUTH_MODE": "token"})
        assert not joins(address, {**owner, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "guessed"})
    finally:
        driver.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.vllm
def test_a_submitted_job_runs_a_campaign(head: dict[str, str], tiny: Path, tmp_path: Path) -> None:
    config, out = write_config(tmp_path, tiny), tmp_path / "out"
    stranger = subprocess.run([RAY, "job", "list"], env={**head, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert stranger.returncode != 0, "without the token anybody could run code"

    relative = submit(head, str(config), "--out", "out")
    assert relative.returncode != 0 and "give an absolute path" in relative.stdout + relative.stderr

    done = submit(head, str(config), "--out", str(out))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "FIAT" in done.stdout
    assert set(pd.read_parquet(out / "scores.parquet").method) == {"majority", "icl", "fiat", "no_cot", "no_peft"}
