"""The documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_of_config_keys_is_the_code_s() -> None:
    """Where it is not: python scripts/config_reference.py writes it anew."""
    assert subprocess.run([sys.executable, "scripts/config_reference.py", "--check"], cwd=ROOT).returncode == 0


def test_every_config_key_has_a_meaning() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]*) \|$", (ROOT / "docs" / "config.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 50 and [key for key, meaning in rows if not meaning.strip()] == []


def test_messages_that_are_explained_are_said() -> None:
    """Text between placeholders, in the sources as they are written."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "fiat_ray").rglob("*.py"))
    explained = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert len(explained) > 15 and [message for message in explained if message not in sources] == []


def test_tests_that_the_promises_name_are_there() -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "promises.md").read_text("utf-8"))
    assert len(named) > 20 and [name for name in named if f"def {name}(" not in tests] == []


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "cluster").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


PAGES = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "cluster" / "README.md")


def shown(command: str) -> list[str]:
    """What stands after ``command`` in the lines of pages that show it, without comments."""
    lines = [line for page in PAGES for line in re.findall(rf"^\$ (?:\S*/)?{command} (.+)$", page.read_text("utf-8"), re.MULTILINE)]
    return [line.split("#")[0].split("&&")[0].strip() for line in lines]


def test_commands_that_pages_show_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fiat-ray command in a page is parsed as it stands there."""
    from fiat_ray.arguments import parse

    monkeypatch.chdir(tmp_path)
    for name in ("old.txt", "new.txt"):  # of `prompt --compare`, which reads them at once
        (tmp_path / name).write_text("instructions")
    assert len(shown("fiat-ray")) > 20
    for line in shown("fiat-ray"):
        assert parse(line.split()).command.startswith(line.split()[0]), line


def test_targets_that_pages_show_are_targets() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "controls", "setup"} == set(shown("make")) and set(shown("make")) <= set(targets)
