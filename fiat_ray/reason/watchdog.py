"""An engine that makes no progress is killed from outside: by a process of its own, which a stopped or hanging engine can't keep from it.

This file is that process's program too, and so imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PATIENCE = 900.0
"""Seconds without a finished row after which an engine is killed."""

START = 4.0
"""An engine may take so many times as long to start: it may have to fetch its model first, and to compile it."""


def patience_for(max_tokens: int) -> float:
    """``PATIENCE`` with rows of so many tokens, of which the slowest engine that is of use writes one a second."""
    return PATIENCE + max_tokens


class Watchdog:
    """Watches the process that creates it, from then on. It ends with that process."""

    def __init__(self, patience: float, note: Path) -> None:
        """``patience``: seconds without progress, above which the process is killed; ``note`` then says so."""
        command = [sys.executable, "-S", "-E", __file__, str(os.getpid()), str(patience), str(note)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def tell(self, busy: bool) -> None:
        """There was progress; ``busy``: and more is to come."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed the watchdog: the work goes on without
            os.write(self._process.stdin.fileno(), b"+" if busy else b"-")


def why_killed(note: Path, otherwise: str) -> str:
    """Why a process died: what its watchdog has noted, which is then forgotten; ``otherwise`` where that did not kill it."""
    why = note.read_text() if note.is_file() else otherwise
    note.unlink(missing_ok=True)
    return why


def watch(engine: int, patience: float, note: Path) -> None:
    allowed: float | None = START * patience
    while select.select([0], [], [], allowed)[0]:
        told = os.read(0, 4096)
        if not told:  # the engine's process has ended
            return
        allowed = patience if told.endswith(b"+") else None
    if os.getppid() != engine:
        return
    note.write_text(f"it made no progress for {allowed:g} seconds")
    for process in [engine, *_descendants(engine)]:  # an engine over several GPUs has processes of its own
        if process != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _descendants(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found += [int(folder.name), *_descendants(int(folder.name))]
    return found


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
