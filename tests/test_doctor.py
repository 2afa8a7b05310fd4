"""The doctor on this machine, and on machines that are not well."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fiat_ray import doctor


def test_this_environment_is_fit_and_nothing_is_started() -> None:
    imported = "[name for name in ('ray', 'vllm', 'transformers') if name in sys.modules]"
    code = f"import sys; from fiat_ray import doctor; failed = doctor.check(); print({imported}, failed)"
    start = time.perf_counter()
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert time.perf_counter() - start < 15
    assert lines.pop() == f"[] {sum(line.startswith('FAIL') for line in lines)}"
    assert lines.pop().startswith(f"{len(lines)} checks:")
    assert all(line.startswith(("ok   ", "warn ", "FAIL ")) for line in lines)
    for said in ("Python 3.11", "packages", "CPU core", "memory", "free in", "/dev/shm", "GPU", "embedded model", "Ray", "C compiler"):
        assert any(said in line for line in lines), said


def states(findings: object) -> list[str]:
    return [finding.state for finding in findings]  # type: ignore[attr-defined]


def test_packages_are_compared_with_the_tested_versions() -> None:
    import numpy

    found = list(doctor.packages([f"numpy=={numpy.__version__}", "pandas[all]==0.1", "no-such-package==1.0", 'ruff==0.1; extra == "dev"']))
    assert states(found)[:3] == ["warn", "FAIL", "ok"]
    assert "0.1 is tested" in str(found[0]) and "no-such-package" in str(found[1]) and "1 packages" in str(found[2])


def test_a_cuda_torchvision_beside_a_cpu_torch_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert states(doctor.torchvision()) == ["warn"]
    versions["torchvision"] = "0.28.0+cpu"
    assert states(doctor.torchvision()) == ["ok"]


def test_which_ray_would_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "starts one of its own" in str(*doctor.cluster())
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / doctor.CURRENT_CLUSTER).write_text(address)
        assert states(doctor.cluster()) == ["ok"]
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert states(doctor.cluster()) == ["ok", "warn"]
    gone = list(doctor.cluster())
    assert states(gone) == ["FAIL"] and address in gone[0].what and "ray stop" in gone[0].advice
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert list(doctor.cluster()) == gone, "it means whichever `ray start` started"
    monkeypatch.setenv("RAY_ADDRESS", "ray://autoscaler-head")  # without a port, so that nobody is asked where it is
    assert "Ray at ray://autoscaler-head (RAY_ADDRESS) does not answer" in next(doctor.cluster()).what
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert "RAY_ADDRESS" in next(doctor.cluster()).what
    assert states(doctor.cluster()) == ["FAIL"]


def test_a_full_disk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type(usage)(100 * doctor.GIB, 100 * doctor.GIB, doctor.GIB // 2))
    assert states(doctor.disk()) == ["FAIL", "FAIL", "warn"]
    assert states(doctor.shared_memory()) == ["ok"]


def test_no_embedded_model_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert states(doctor.embedded_model()) == ["ok"]
    assert not list(tmp_path.iterdir()), "nothing is converted"
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    assert states(doctor.embedded_model()) == ["warn"]
