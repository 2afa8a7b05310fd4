"""The Ray cluster that work runs on: a running one, or a local one started here; and how much of it one engine or one tuning takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from fiat_ray.config import Config
from fiat_ray.errors import RayEnded, UserError
from fiat_ray.progress import Console
from fiat_ray.text import count
from fiat_ray.where import Where


@dataclass(frozen=True)
class Unit:
    """Hardware of one engine or one tuning worker."""

    cpus: float
    gpus: float
    count: int
    """How many of them the cluster holds."""


_connected = False
"""Whether this process is connected to Ray, and that by ``connect``."""


def connect() -> None:
    """Use the running Ray, or start a local one, which ends with this process. Raises ``ConnectionError`` where neither can be had."""
    global _connected
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process less; what a lost machine was at is done again anyway
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else workers with `where.gpus: 0` see, and use, all GPUs
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything else on the machine take the engine's time
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread that still asks Ray for something when this process has left it starts none
    os.environ.setdefault("RAY_enable_metrics_collection", "0")  # of a Ray started here nobody reads them, and Ray Data's took 7 % of a core
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")  # else its workers' threads have heaps that `cpu.keep_memory` does not reach
    import ray

    if ray.is_initialized():
        return
    # Without an address: RAY_ADDRESS, else the cluster that `ray start` started on this machine, else a new one, which has a token and listens on
    # loopback only.
    terminated = signal.getsignal(signal.SIGTERM)
    logs = bool(os.environ.get("FIAT_RAY_WORKER_LOGS"))
    try:
        with _without_what_nobody_asks(logs):
            ray.init(include_dashboard=False, logging_level="error", log_to_driver=logs)
    except Exception as error:  # a raylet that does not start in time is a bare one
        address = os.environ.get("RAY_ADDRESS")
        said = f"Ray at {address} (RAY_ADDRESS) can't be reached" if address else "Ray did not start; its logs lie in /tmp/ray/session_latest/logs"
        raise ConnectionError(f"{said} ({' '.join(str(error).split())[:300]})") from error
    _connected = True
    if terminated is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray has put its own in its place


@contextlib.contextmanager
def _without_what_nobody_asks(logs: bool) -> Iterator[None]:
    """A Ray that is started meanwhile has no autoscaler, and nothing that reads what workers print unless ``logs``; ``ray.init`` has no setting for
    it. They take 1 % of two CPUs from an engine or a tuning, and of Ray's start one second of seven."""
    from ray._private.node import Node

    started = {name: getattr(Node, name) for name in ("start_monitor", *(() if logs else ("start_log_monitor",)))}
    try:
        for name in started:
            setattr(Node, name, lambda _: None)
        yield
    finally:
        for name, start in started.items():
            setattr(Node, name, start)


def leave() -> None:
    """End what this process has at work in a Ray that ``connect`` connected it to. One that somebody else connected it to stays as it is."""
    global _connected
    if _connected:
        import ray

        _connected = False
        ray.shutdown()


class Raylet:
    """A driver's watch on the process through which it reaches Ray: without that, Ray waits for ever, or ends the driver without a word.

    The kernel closes a connection when the process at its other end is gone, at once, and not while anything is busy or stopped.
    """

    def __init__(self) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        [address] = [node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == here]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)

    def watch(self) -> NoReturn:
        """Wait for its end. Raises ``RayEnded``."""
        while True:
            self._check()

    def result(self, reference: Any) -> Any:
        """What ``ray.get`` gives. Raises ``RayEnded`` where the raylet ends before."""
        import ray

        ready: list[Any] = []
        while not ready:
            self._check(socket.MSG_DONTWAIT)
            ready, _ = ray.wait([reference], timeout=0.3)
        return ray.get(reference)

    def close(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)  # wakes `watch`
        self._connection.close()

    def _check(self, flags: int = 0) -> None:
        try:
            if self._connection.recv(1, flags):
                return
        except BlockingIOError:
            return
        except ConnectionResetError:
            pass
        raise RayEnded(
            "Ray's raylet on this machine has ended (killed, as systems do with what takes too much memory?); what is finished is kept, and the same "
            "command goes on from there"
        )


def actor_errors() -> tuple[type[Exception], ...]:
    """What Ray raises for an actor that is gone: of one that its memory monitor killed, whose node died, or that no node has room for any more, no
    ``RayActorError``."""
    from ray.exceptions import ActorUnschedulableError, NodeDiedError, OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError, NodeDiedError, ActorUnschedulableError


def end_with_raylet() -> None:
    """Called in a worker: end at once when the raylet that started it is gone.

    A driver that is killed takes its local Ray with it, and Ray's own workers notice seconds later. Until then they would write rows and trials that
    the next run is at already.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with raylet").start()


def unit(where: Where, tune: bool = False) -> Unit:
    """What ``where`` means on this cluster. Raises ``UserError`` where it asks for more than any machine has, or to ``tune`` for more workers than
    all have room for: Ray would wait for such machines without end."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most_gpus = max((int(node.get("GPU", 0)) for node in nodes), default=0)
    most_cpus = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    gpus = where.gpus if where.gpus is not None else min(1, most_gpus)
    cpus = where.cpus if where.cpus is not None else 1 if gpus else max(1, most_cpus // where.workers)
    if gpus > most_gpus:
        raise UserError(f"where.gpus: {gpus} asked for, but no machine of this cluster has more than {most_gpus}")
    if cpus > most_cpus:
        raise UserError(f"where.cpus: {cpus} asked for, but no machine of this cluster has more than {most_cpus}")
    found, of_worker = Unit(cpus, gpus, _room(nodes, cpus, gpus)), min(1, gpus)
    if not found.count:
        both = f"where.gpus: {gpus} with where.cpus: {cpus} asked for"
        raise UserError(f"{both}, but no machine of this cluster has both: {_machines(nodes)}; lower where.cpus or where.gpus")
    if tune and (room := _room(nodes, cpus, of_worker)) < where.workers:
        each = " and ".join([count(cpus, "CPU"), *([count(of_worker, "GPU")] if gpus else [])])
        lacking = f"where.workers: {where.workers} asked for, {each} each, but this cluster has room for {room} ({_machines(nodes)})"
        raise UserError(f"{lacking}; lower it, or let machines that are added on demand be waited for with where.wait")
    return found


def _room(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: int) -> int:
    """How many engines or workers of such a size machines hold; none spans two."""
    return sum(int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else 10**6)) for node in nodes)


def _machines(nodes: Sequence[Mapping[str, float]]) -> str:
    kinds = Counter((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes)
    return ", ".join(f"{number} of {count(cpus, 'CPU')} and {count(gpus, 'GPU')}" for (cpus, gpus), number in kinds.items())


def wait_for_machines(where: Where, console: Console) -> None:
    """Ask for room for all ``replicas`` or ``workers``, and wait until it is there, at most ``where.wait`` minutes; an autoscaler adds machines.

    What asks ends with this process, so that no machine is kept, and paid for, beyond that.
    """
    if not where.wait:
        return
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    takes = {"CPU": float(where.cpus or 1), **({"GPU": float(where.gpus)} if where.gpus else {})}
    asked = [placement_group([takes]) for _ in range(max(where.replicas, where.workers))]
    deadline = time.monotonic() + 60 * where.wait
    try:
        while True:
            there = sum(placement_group_table(group)["state"] == "CREATED" for group in asked)
            console.status(f"Ray: room for {there} of {len(asked)}; waiting for machines", "start", there=there, of=len(asked))
            if there == len(asked) or time.monotonic() > deadline:
                return
            time.sleep(1)
    finally:
        for group in asked:
            remove_placement_group(group)


def join(where: Where, folder: Path, key: str, console: Console, tune: bool = False) -> Unit:
    """Connect, wait for machines, and see to it that all of them see a folder. See ``connect``, ``unit`` and ``check_shared`` for what it raises."""
    with console.working("Ray: connecting", "start"):
        connect()
    wait_for_machines(where, console)
    found = unit(where, tune)
    with console.working(f"Ray: do all machines see {folder}?", "start"):
        check_shared(folder, key)
    return found


def resolved(where: Where, found: Unit) -> Where:
    """``where`` with its defaults filled in for this cluster."""
    return replace(where, gpus=int(found.gpus), cpus=int(found.cpus))


def reasoner_unit(config: Config, found: Unit) -> Unit:
    """What one reasoner takes of it. One that asks a remote endpoint only waits, and all else goes on beside it."""
    return Unit(0, 0, 1) if config.reasoner.is_remote else found


def memory_of(found: Unit) -> int | None:
    """Bytes of the cluster's largest GPU, or of what a machine had free when Ray started there, the most; None where that can't be told."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not found.gpus:
        sizes = [int(of["memory"] + of.get("object_store_memory", 0)) for of in (node["Resources"] for node in nodes) if of.get("memory")]
        return max(sizes, default=None)

    @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
    def largest() -> int:
        command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return max(int(line) for line in said.splitlines()) << 20

    with_gpus = [node["NodeID"] for node in nodes if node["Resources"].get("GPU")]
    asked = [largest.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote() for name in with_gpus]
    try:
        return max(ray.get(asked, timeout=30))
    except (ray.exceptions.RayError, ValueError):  # no NVIDIA GPUs, say
        return None


def check_shared(folder: Path, key: str) -> None:
    """Every node writes and reads a probe in a folder. Raises ``UserError`` naming a node that does not see it, and the ``key`` that named it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text("driver")

    @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
    def see(path: str, node: str) -> bool:
        seen = Path(path).is_file()
        if seen:
            Path(f"{path}-{node}").write_text(node)
        return seen

    try:
        for node in nodes:
            name = node["NodeID"]
            here = NodeAffinitySchedulingStrategy(node_id=name, soft=False)
            seen = ray.get(see.options(scheduling_strategy=here).remote(str(probe), name))
            if not seen or not Path(f"{probe}-{name}").is_file():
                raise UserError(f"{folder}: node {node['NodeManagerAddress']} does not see this folder; {key} must lie on storage all nodes share")
    finally:
        for path in folder.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)
