"""Progress a person can read: a status line that renews itself on a terminal, and a line a minute elsewhere."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LOGGED_EVERY = 60.0
"""Seconds between two lines of a log."""


class Console:
    """Writes to standard error, so that standard output holds results only. Safe to call from several threads."""

    def __init__(self, quiet: bool = False) -> None:
        self._terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._start = time.monotonic()
        self._last = 0.0
        self._shown = ""
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Something that happened: stays."""
        with self._lock:
            self._clear()
            self._write(f"[{clock(time.monotonic() - self._start)}] {text}\n")

    def status(self, text: str) -> None:
        """How far it is: replaced by the next. Without a terminal at most once a minute."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < (0.2 if self._terminal else LOGGED_EVERY):
                return
            self._last = now
            self._clear()
            line = f"[{clock(now - self._start)}] {text}"
            self._shown = line[:118] if self._terminal else ""
            self._write(self._shown or f"{line}\n")

    def _clear(self) -> None:
        if self._shown:
            self._write("\r" + " " * len(self._shown) + "\r")
            self._shown = ""

    def _write(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(text)
            sys.stderr.flush()


class ProgressLog:
    """JSON lines in a file, one a minute: ``task``, ``numbers`` by name, ``time`` (seconds since the epoch). ``send`` follows each, in a thread."""

    def __init__(self, path: Path, send: Callable[[], object]) -> None:
        self._path, self._send = path, send
        self._last = time.monotonic()
        self._sender: threading.Thread | None = None

    def write(self, task: str, numbers: Callable[[], Mapping[str, float]], last: bool = False) -> None:
        """Does nothing within a minute after the last line, unless these are the last numbers of a stage."""
        if not last and time.monotonic() - self._last < LOGGED_EVERY:
            return
        self._last = time.monotonic()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "task": task, "numbers": dict(numbers())}) + "\n")
        if not last and (self._sender is None or not self._sender.is_alive()):
            self._sender = threading.Thread(target=self._send, daemon=True, name="progress")
            self._sender.start()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a progress log; of a line that a killed process left unfinished nothing."""
    text = path.read_text("utf-8") if path.is_file() else ""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
