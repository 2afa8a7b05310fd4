"""Systems that are compared take turns, step by step: a machine whose speed drifts within minutes is then as fast for each of them.

Each runs in a process of its own, which may start others. All load first; while one makes a step, the others are stopped, with all that they started.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

PLACE = "FIAT_BENCH_TURN"
"""The variable that names a system's socket."""


class Turn:
    """A system's side. Without ``PLACE`` it never waits."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._waited = 0.0
        if place := os.environ.get(PLACE):
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(place)

    def begin(self) -> None:
        """Before a step. What the one before had to do is done."""
        if self._connection:
            start = time.perf_counter()
            self._connection.sendall(b".")
            self._connection.recv(1)
            self._waited += time.perf_counter() - start

    def clock(self) -> float:
        """Seconds, of which those that others took are none."""
        return time.perf_counter() - self._waited

    def end(self) -> None:
        """After the last step."""
        if self._connection:
            self._connection.close()


class Seat:
    """The side of the one who gives turns."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], place: Path, log: Path) -> None:
        """``place``: where its socket goes."""
        place.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        self._listener.settimeout(1)
        self._connection: socket.socket | None = None
        with log.open("w") as file:
            self.process = subprocess.Popen(command, env={**environment, PLACE: str(place)}, stdout=file, stderr=file)

    def loaded(self) -> bool:
        """Wait until it asks for its first turn. False: it ended before."""
        while self._connection is None:
            with contextlib.suppress(TimeoutError):
                self._connection, _ = self._listener.accept()
            if self._connection is None and self.process.poll() is not None:
                return False
        return bool(self._connection.recv(1))

    def turn(self) -> bool:
        """Let it make a step, alone. False: it was the last, or it has died."""
        assert self._connection is not None
        self.resume()
        more = False
        with contextlib.suppress(ConnectionError):  # of one that was killed while others had their turn
            self._connection.sendall(b".")
            more = bool(self._connection.recv(1))
        self.suspend()
        return more

    def suspend(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[Any]:
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []


def take_turns(seats: Sequence[Seat]) -> None:
    """Until all have ended."""
    try:
        playing = [seat for seat in seats if seat.loaded()]
        for seat in playing:
            seat.suspend()
        while playing:
            playing = [seat for seat in playing if seat.turn()]
        for seat in seats:
            seat.resume()
            seat.process.wait()
    finally:
        for seat in seats:
            if seat.process.poll() is None:
                seat.resume()
                seat.process.terminate()
