"""A cluster that was started with ``ray start``, with a token: a job submitted to it does what a local run does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import ray
from ports import free_port
from test_break import write_config

from benchmarks.fault_kinds import command_line
from benchmarks.fault_surroundings import MlflowServer, Postgres, expected_runs
from fiat_ray import cluster
from fiat_ray.errors import UserError
from fiat_ray.where import Where

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment that reaches a head node of two CPUs."""
    with started_head(tmp_path, "--num-cpus=2") as environment:
        yield environment


@contextlib.contextmanager
def started_head(tmp_path: Path, *arguments: str, gcs: int = 0, **more: str) -> Iterator[dict[str, str]]:
    """Environment that reaches a head node, started in an empty HOME so that no old token helps. Stopped by its own process id.

    ``arguments``: of ``ray start``; ``gcs``: its port; ``more``: variables of its environment.
    """
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    dashboard = free_port()
    environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    environment |= more
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    gcs = gcs or free_port()
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    with contextlib.ExitStack() as running:
        folder = running.enter_context(tempfile.TemporaryDirectory(prefix="ray", dir="/tmp"))  # socket paths are short
        running.enter_context(node(environment, ["--head", f"--temp-dir={folder}", *ports, *arguments]))
        wait_for(environment)
        yield {**environment, "HEAD": f"127.0.0.1:{gcs}"}


@contextlib.contextmanager
def node(environment: dict[str, str], arguments: list[str], before: str = "") -> Iterator[None]:
    """``ray start`` with its processes below it, which end with it. ``before``: commands that go first, in a mount namespace of its own."""
    command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", *arguments]
    if before:
        command = ["unshare", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    started = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=started, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def wait_for(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 90
    while subprocess.run([RAY, "job", "list"], env=environment, capture_output=True).returncode:
        assert time.monotonic() < deadline, "the head node did not come up"
        time.sleep(1)


def submit(environment: dict[str, str], *arguments: str, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--", sys.executable, str(ROOT / "jobs" / "run.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)


@pytest.mark.parametrize(("address", "said"), [("", "Ray did not start; its logs"), ("10.0.0.1:6379", r"Ray at 10.0.0.1:6379 \(RAY_ADDRESS\)")])
def test_a_ray_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out\nduring startup.")  # as Ray does

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConnectionError, match=rf"^{said}.*\(The current node timed out during startup.\)$"):
        cluster.connect()


def test_a_worker_without_gpus_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """``where.gpus: 0`` on a machine with GPUs. Asked of what a worker of Ray calls, in the environment of a Ray that is started here."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "restored")
    monkeypatch.delenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cluster.connect()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_accelerator_ids=lambda: {"GPU": []}))
    ray._private.utils.set_visible_accelerator_ids()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


HEAD_AND_GPUS = [(64, 0), (8, 1), (8, 1)]
"""CPUs and GPUs of each machine."""


@pytest.mark.parametrize(
    ("machines", "where", "count"),
    [
        (HEAD_AND_GPUS, {"gpus": 1, "workers": 2}, 2),
        ([(8, 4)], {"gpus": 4, "workers": 4}, 1),  # a worker takes one GPU, whatever an engine takes
        ([(2, 0)], {"workers": 2}, 2),
        (
            HEAD_AND_GPUS,
            {"gpus": 1, "cpus": 16},
            "where.gpus: 1 with where.cpus: 16 asked for, .* has both: 1 of 64 CPUs and 0 GPUs, 2 of 8 .* 1 GPU;",
        ),
        ([(32, 4)], {"workers": 8}, r"where.workers: 8 asked for, .* room for 4 \(1 of 32 CPUs and 4 GPUs\); lower it, or .*where.wait"),
        ([(4, 0)], {"workers": 3, "cpus": 2}, "where.workers: 3 asked for, .* room for 2"),
    ],
)
def test_what_the_machines_never_have_room_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, machines: list[tuple[int, int]], where: dict[str, int], count: int | str
) -> None:
    """Ray would wait for it without end and without a word."""
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}} for cpus, gpus in machines]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    if isinstance(count, int):
        assert cluster.unit(Where(**where), tune=True).count == count  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=count):
        cluster.unit(Where(**where), tune=True)  # type: ignore[arg-type]
    if "workers" in where:
        assert cluster.unit(Where(**where)).count  # type: ignore[arg-type]  # nothing is to be tuned


GROWING = """
from fiat_ray import cluster
from fiat_ray.errors import UserError
from fiat_ray.progress import Console
from fiat_ray.where import Where

cluster.connect()
where = Where(gpus=0, cpus=1, wait=3)
try:
    print(cluster.unit(where))
except UserError as error:
    print(error)
cluster.wait_for_machines(where, Console(quiet=True))
print(cluster.unit(where).count)
"""


@pytest.mark.slow
def test_a_cluster_that_grows_is_waited_for(tmp_path: Path) -> None:
    """With Ray's autoscaler, whose machine that comes is a process on this one."""
    gcs = free_port()
    groups = {"head": {"resources": {"CPU": 0}, "max_workers": 0}, "worker": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 1}}
    settings: dict[str, object] = {
        "cluster_name": "growing",
        "max_workers": 1,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1.0,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{gcs}"},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "head_node_type": "head",
        "available_node_types": {name: {**group, "node_config": {}} for name, group in groups.items()},
        **{f"{who}{what}_commands": [] for who in ("head_", "worker_") for what in ("setup", "start_ray")},
        **{f"{what}_commands": [] for what in ("initialization", "setup")},
    }
    config = tmp_path / "autoscaler.yaml"
    config.write_text(json.dumps(settings))
    arguments = ["--num-cpus=0", f"--autoscaling-config={config}"]
    with started_head(tmp_path, *arguments, gcs=gcs, AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_FAKE_CLUSTER="1") as environment:
        driver = {**environment, "RAY_ADDRESS": environment["HEAD"]}
        done = subprocess.run([sys.executable, "-c", GROWING], env=driver, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines() == ["where.cpus: 1 asked for, but no machine of this cluster has more than 0", "1"], done.stderr[-2000:]


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


@pytest.mark.parametrize(("logs", "running"), [("", {"raylet", "gcs_server"}), ("1", {"raylet", "gcs_server", "log_monitor.py"})])
def test_a_ray_that_is_started_here_runs_nothing_that_nobody_asks(logs: str, running: set[str]) -> None:
    known = {"raylet", "gcs_server", "log_monitor.py", "monitor.py"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = {**kept, "RAY_ADDRESS": "local", "FIAT_RAY_WORKER_LOGS": logs}
    driver = subprocess.Popen([sys.executable, "-c", START], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert driver.stdout is not None and driver.stdout.readline()
        found = {Path(word).name for process in psutil.Process(driver.pid).children(recursive=True) for word in command_line(process.pid).split()}
        assert found & known == running
    finally:
        driver.communicate(timeout=60)


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    """As a raylet does that is killed: its workers would write on beside the next run's."""
    worker = "import os, time; from fiat_ray.cluster import end_with_raylet; end_with_raylet(); print(os.getpid(), flush=True); time.sleep(60)"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert command_line(number)
        process.kill()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and command_line(number):
        time.sleep(0.05)
    assert not command_line(number)


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


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1500)
@pytest.mark.skipif(os.geteuid() != 0 or not Postgres.programs(), reason="needs root, for a mount of its own, and Debian's postgresql")
def test_the_demo_on_two_nodes_tracked_in_postgresql(head: dict[str, str], tmp_path: Path) -> None:
    """The second node sees another folder where the head sees ``private``."""
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir()
    ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
    second = node(head, [f"--address={head['HEAD']}", "--num-cpus=2", *ports], before=f"mount -t tmpfs tmpfs {private}")
    with second, contextlib.ExitStack() as running:
        wait_for_nodes(head, 2)
        with pytest.raises(urllib.error.HTTPError) as stranger:
            urllib.request.urlopen(f"{head['RAY_ADDRESS']}/api/jobs/")
        assert stranger.value.code == 401

        database = Postgres()
        running.callback(database.remove)
        server = MlflowServer(tmp_path, database.uri)
        running.callback(server.stop)
        for key, places in {"--out": (private / "demo", shared / "store"), "store": (shared / "unseen", private / "store")}.items():
            unseen = submit(head, "demo", "--out", str(places[0]), f"store={places[1]}", f"tracking_uri={server.uri}")
            assert unseen.returncode != 0 and f"does not see this folder; {key} must lie on storage all nodes share" in unseen.stdout

        done = submit(head, "demo", "--out", str(shared / "demo"), f"tracking_uri={server.uri}", seconds=1100)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert "FIAT" in done.stdout
        assert server.runs() == expected_runs(shared / "demo")


def wait_for_nodes(environment: dict[str, str], count: int) -> None:
    token = (Path(environment["HOME"]) / ".ray" / "auth_token").read_text().strip()
    asked = urllib.request.Request(f"{environment['RAY_ADDRESS']}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 90
    while urllib.request.urlopen(asked).read().count(b'"ALIVE"') < count:
        assert time.monotonic() < deadline, "the second node did not come up"
        time.sleep(1)
