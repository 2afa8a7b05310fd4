"""Progress a person can read: a status line that renews itself on a terminal, and a line a minute elsewhere."""

from __future__ import annotations

import sys
import threading
import time


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
            if now - self._last < (0.2 if self._terminal else 60):
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


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
