"""The documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
