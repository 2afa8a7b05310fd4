"""The faults: how each strikes a sitting of a run, at a moment drawn by a seed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_run import Ended, Sitting

WORKERS = {"reason": "ReasonerActor", "tune": "LoneWorker", "evaluate": "Evaluator"}
"""Stage → what stands in the name of the process that does its work."""

MEMORY = Path("/sys/fs/cgroup/memory")
"""Groups of processes with a limit of memory (version 1); the kernel kills what exceeds it."""

PATIENCE = 20
"""Seconds until a stopped worker is taken for dead: much less than a campaign waits, and more than a scripted reasoner or a tiny model needs."""


@dataclass(frozen=True)
class Fault:
    kind: str
    stage: str
    strike: Callable[[Sitting, str], None]
    ends: bool = True
    """Whether the driver ends by it; else the campaign itself goes on."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What the sitting is told that it strikes."""


def moment(sitting: Sitting, stage: str, span: float, chance: random.Random) -> None:
    """Wait for a moment of ``stage``, which takes about ``span`` seconds. Raises ``Ended``."""
    sitting.until(lambda: sitting.begun(stage), stage)
    if stage == "reason" and chance.random() < 0.75:  # else while it starts
        before = sitting.answered()
        sitting.until(lambda: sitting.answered() > before, stage)
        span = 2.5
    span = max(span, 5 * sitting.told.get("fsync", 0.0))
    later = time.monotonic() + chance.uniform(0, span)
    sitting.until(lambda: time.monotonic() >= later, stage)
    if not sitting.begun(stage):
        raise Ended


def kill_driver(sitting: Sitting, stage: str) -> None:
    with sitting.run.struck():
        sitting.process.kill()
        sitting.wait()


def kill_raylet(sitting: Sitting, stage: str) -> None:
    raylet = _found(sitting, "raylet/raylet", stage)
    with sitting.run.struck():
        os.kill(raylet, signal.SIGKILL)
        assert sitting.wait(120) in (0, 1), sitting.said()[-2000:]  # 0: nothing was left to be done by Ray


def kill_worker(sitting: Sitting, stage: str) -> None:
    worker = _found(sitting, WORKERS[stage], stage)
    with sitting.run.struck():
        os.kill(worker, signal.SIGKILL)


def stop_worker(sitting: Sitting, stage: str) -> None:
    """Stopped, it can do nothing itself: somebody must kill it."""
    at_work = ".evaluate" if stage == "evaluate" else ""  # while it starts, patience is greater
    worker = _found(sitting, WORKERS[stage] + at_work, stage)
    with sitting.run.struck():
        os.kill(worker, signal.SIGSTOP)
        sitting.until(lambda: not command_line(worker), seconds=300, every=0.1)


def starve_worker(sitting: Sitting, stage: str) -> None:
    """A limit of memory below what it takes; the kernel does the rest."""
    worker, group = _found(sitting, WORKERS[stage], stage), MEMORY / f"fiat-ray-{os.getpid()}"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text("65536")
    with sitting.run.struck():
        (group / "cgroup.procs").write_text(str(worker))
        sitting.until(lambda: not command_line(worker), seconds=120, every=0.1)
    for _ in range(100):
        with contextlib.suppress(OSError):  # what has no command line any more may still be giving its memory back
            group.rmdir()
            return
        time.sleep(0.1)


def fill_disk(sitting: Sitting, stage: str) -> None:
    """Not a byte is left on the disk of the run directory, until the sitting has ended of it."""
    ballast = sitting.run.out.with_name("ballast")
    with sitting.run.struck():
        try:
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**16))
            if sitting.wait() == 0:
                raise Ended  # it had all written
        finally:
            ballast.unlink(missing_ok=True)


def wait_for_its_end(sitting: Sitting, stage: str) -> None:
    """What it was told is the fault."""
    with sitting.run.struck():
        assert sitting.wait() == 3, sitting.said()[-2000:]


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """``place``, where "disk" is a file system of its own in memory; without root, a folder."""
    disk = place / "disk"
    disk.mkdir(parents=True)
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        yield place
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        shutil.rmtree(place)


BACK = {"clock": -3600.0}
SLOW = {"fsync": 0.3}
"""To seal a set takes milliseconds: too short to be struck, but for a slow disk."""
STOPS = {"patience": PATIENCE, "evaluator": {"patience": PATIENCE}, "environment": {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(PATIENCE)}}


def faults(stage: str) -> list[Fault]:
    """Every kind that can strike ``stage`` of a campaign whose reasoner is a script. Full disks and limits of memory need root."""
    slow = SLOW if stage == "seal" else {}
    found = [Fault("driver killed", stage, kill_driver, told=slow), Fault("clock set back", stage, kill_driver, told={**BACK, **slow})]
    if os.geteuid() == 0:
        found.append(Fault("disk full", stage, fill_disk, told=slow))
    if stage in WORKERS:
        found.append(Fault("raylet killed", stage, kill_raylet))
        found.append(Fault("worker killed", stage, kill_worker, ends=False))
        found.append(Fault("worker stopped", stage, stop_worker, ends=False, told=STOPS))
        if os.access(MEMORY, os.W_OK):
            found.append(Fault("out of memory", stage, starve_worker, ends=False))
    if stage == "evaluate":
        found += [Fault("swap that does not take", stage, wait_for_its_end, told={"evaluator": {"deaf": True}})]
    return found


def _found(sitting: Sitting, name: str, stage: str) -> int:
    """The process of a sitting in whose command line ``name`` stands, as soon as there is one."""

    def look() -> int | None:
        return next((process for process in descendants(sitting.process.pid) if name in command_line(process)), None)

    return int(sitting.until(look, stage, every=0.05))


def command_line(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def descendants(process: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, open_ = [], [process]
    while open_:
        below = children.get(open_.pop(), [])
        found += below
        open_ += below
    return found
