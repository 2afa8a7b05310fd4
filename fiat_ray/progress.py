"""Progress a person can read: a status line that renews itself on a terminal and in a notebook, and a line a minute elsewhere."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from fiat_ray.text import columns, count, within

LOGGED_EVERY = 60.0
"""Seconds between two lines of a log."""
SENT_AFTER = 300.0
"""Seconds before lines of a log are sent too: to import and open MLflow takes ten seconds of a CPU, and an engine may have but two."""
LOOKED_EVERY = 1.0
"""Seconds between two looks at what is watched, and before the first."""
UNKNOWN_COLUMNS = 80
"""Of a terminal that does not say."""


class Watched(Protocol):
    """Something that goes on, and can be asked how far it is: in words, and in numbers by name."""

    def text(self) -> str: ...

    def numbers(self) -> Mapping[str, float]: ...


@dataclass
class Work:
    """Something that takes a while."""

    what: str
    rows: int = 0
    """All that it is about; 0 where nobody knows yet."""
    done: int = 0
    """Of them; 0 also where nobody counts."""
    start: float = field(default_factory=time.monotonic)

    def text(self) -> str:
        if not self.rows:
            return f"{self.what}: {count(self.done, 'row')} …" if self.done else f"{self.what} …"
        if not self.done:
            return f"{self.what}: 0/{self.rows:,} rows, starting …"
        rate = self.numbers()["rows_per_second"]
        return f"{self.what}: {self.done:,}/{self.rows:,} rows · {rate:.1f} rows/s · ETA {clock((self.rows - self.done) / rate)}"

    def numbers(self) -> Mapping[str, float]:
        if not self.rows:
            return {"rows": self.done} if self.done else {}
        return {"rows": self.done, "missing": self.rows - self.done, "rows_per_second": self.done / (time.monotonic() - self.start)}


class Console:
    """Writes to standard error, so that standard output holds results only. Safe to call from several threads."""

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        """``as_json``: each line is one JSON object, as ``as_object`` makes it, on a terminal too."""
        self._to = sys.stderr  # also while somebody else silences a library
        self._renews = (self._to.isatty() or _in_notebook()) and not as_json
        self._quiet, self._json = quiet, as_json
        self._start = time.monotonic()
        self._last = 0.0
        self._shown = ""
        self._lock = threading.Lock()

    def line(self, text: str, stage: str = "", **counts: float | str) -> None:
        """Something that happened: stays. ``stage`` and ``counts`` are what a JSON line says beside the text."""
        with self._lock:
            self._write(f"{self._erased()}{self._said(text, stage, counts)}\n")

    def status(self, text: str, stage: str = "", **counts: float | str) -> None:
        """How far it is: replaced by the next. Where nothing can be replaced at most once a minute."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < (0.2 if self._renews else LOGGED_EVERY):
                return
            self._last = now
            erased, line = self._erased(), self._said(text, stage, counts)
            self._shown = within(line, _room(self._to)) if self._renews else ""
            self._write(f"{erased}{self._shown}" if self._renews else f"{line}\n")

    @contextmanager
    def watching(self, watched: Watched, stage: str) -> Iterator[None]:
        """Shows the status anew every ``LOOKED_EVERY`` seconds, while a caller waits for something else, and takes it back in the end."""
        done = threading.Event()

        def show() -> None:
            while not done.wait(LOOKED_EVERY):
                self.status(watched.text(), stage, **watched.numbers())

        watcher = threading.Thread(target=show, daemon=True, name="status")
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            with self._lock:
                self._write(self._erased())

    @contextmanager
    def working(self, what: str, stage: str = "", rows: int = 0) -> Iterator[Work]:
        """``watching`` of what the caller does, who counts the rows that are done, where there are some, in what this gives."""
        work = Work(what, rows)
        with self.watching(work, stage):
            yield work

    def _said(self, text: str, stage: str, counts: Mapping[str, float | str]) -> str:
        return as_object(text, stage, **counts) if self._json else f"[{clock(time.monotonic() - self._start)}] {text}"

    def _erased(self) -> str:
        """What takes the status back that is shown: spaces, which work where escape codes are shown as text."""
        shown, self._shown = self._shown, ""
        return f"\r{' ' * min(columns(shown), _room(self._to))}\r" if shown else ""

    def _write(self, text: str) -> None:
        if not self._quiet:
            self._to.write(text)
            self._to.flush()


def _in_notebook() -> bool:
    """Whether standard error goes to Jupyter, which is no terminal, but goes back to a line's start at ``\\r`` as one does."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _room(stream: TextIO) -> int:
    """Columns that a status may fill: on a terminal, where ``\\r`` takes back only the last piece of a line that wraps, one less than it has now."""
    if not stream.isatty():
        return sys.maxsize
    try:
        return (os.get_terminal_size(stream.fileno()).columns or UNKNOWN_COLUMNS) - 1
    except OSError:
        return UNKNOWN_COLUMNS - 1


def as_object(text: str, stage: str, **counts: float | str) -> str:
    """A line of a log as one JSON object: ``time`` (seconds since the epoch), ``stage``, ``message``, and counts by name."""
    return json.dumps({"time": round(time.time(), 3), "stage": stage, "message": text, **counts})


class ProgressLog:
    """JSON lines in a file, one a minute: ``task``, ``numbers`` by name, ``time`` (seconds since the epoch). ``send`` follows each, in a thread, once
    the log is ``SENT_AFTER`` old."""

    def __init__(self, path: Path, send: Callable[[], object]) -> None:
        self._path, self._send = path, send
        self._began = self._last = time.monotonic()
        self._sender: threading.Thread | None = None

    def write(self, task: str, numbers: Callable[[], Mapping[str, float]], last: bool = False) -> None:
        """Does nothing within a minute after the last line, unless these are the last numbers of a stage."""
        if not last and time.monotonic() - self._last < LOGGED_EVERY:
            return
        self._last = time.monotonic()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "task": task, "numbers": dict(numbers())}) + "\n")
        due = not last and self._last - self._began >= SENT_AFTER
        if due and (self._sender is None or not self._sender.is_alive()):
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
