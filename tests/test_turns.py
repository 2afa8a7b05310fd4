"""Systems that take turns, step by step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.turns import Seat, take_turns

BUSY = """
import sys, time
while True:
    print(time.time(), flush=True)
    time.sleep(0.01)
"""

SYSTEM = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
from benchmarks.turns import Turn
name, steps, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
said = (place / "said").open("ab", buffering=0)
busy = subprocess.Popen([sys.executable, "-c", {BUSY!r}], stdout=(place / (name + ".busy")).open("w"))
if name == "k":
    (place / "k.pid").write_text(str(os.getpid()))
turn = Turn()
start = turn.clock()
for step in range(steps):
    turn.begin()
    began = time.time()
    said.write(name.encode())
    time.sleep(0.3)
    said.write(name.encode())
    if name == "b" and (place / "k.pid").exists():
        os.kill(int((place / "k.pid").read_text()), signal.SIGKILL)
        (place / "k.pid").unlink()
    with (place / (name + ".turns")).open("a") as file:
        print(began, time.time(), file=file)
if name == "d":
    busy.kill()
    sys.exit(1)
turn.end()
busy.kill()
print(turn.clock() - start)
"""


def together(place: Path, **steps: int) -> list[Seat]:
    """Systems by name, after all their turns."""
    seats = []
    for name, number in steps.items():
        command = [sys.executable, "-c", SYSTEM, name, str(number), str(place)]
        seats.append(Seat(command, os.environ, place / f"{name}.turn", place / f"{name}.log"))
    take_turns(seats)
    return seats


def numbers(path: Path) -> list[float]:
    return [float(word) for word in path.read_text().split()]


def test_one_makes_a_step_while_others_and_all_they_started_stand_still(tmp_path: Path) -> None:
    assert [seat.process.returncode for seat in together(tmp_path, a=3, b=2)] == [0, 0]
    assert (tmp_path / "said").read_text() == "aabbaabbaa"
    for name, steps in (("a", 3), ("b", 2)):
        [clock] = numbers(tmp_path / f"{name}.log")
        assert clock == pytest.approx(0.3 * steps, abs=0.2), "what others took is not its own"
    busy, turns = numbers(tmp_path / "a.busy"), numbers(tmp_path / "b.turns")
    for began, ended in zip(turns[::2], turns[1::2], strict=True):
        assert not [at for at in busy if began < at < ended]


def test_one_that_dies_does_not_hold_up_others(tmp_path: Path) -> None:
    assert [seat.process.returncode for seat in together(tmp_path, d=1, b=2)] == [1, 0]
    assert (tmp_path / "said").read_text() == "ddbbbb"


def test_one_that_is_killed_while_others_have_their_turn_does_not_hold_them_up(tmp_path: Path) -> None:
    assert [seat.process.returncode for seat in together(tmp_path, k=3, b=3)] == [-9, 0]
    assert (tmp_path / "said").read_text() == "kkbbbbbb"
