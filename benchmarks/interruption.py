"""Reasoning that is killed again and again: how many rows are answered twice that need not have been.

``python -m benchmarks.interruption FOLDER ROWS`` is one sitting of a driver with a scripted reasoner that takes its time and logs its calls.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

from fiat_ray.reason import requests
from fiat_ray.reason.reasoners import ScriptedReasoner
from fiat_ray.reason.requests import Request, Requests
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store

SCRIPT = """
import random, time
from pathlib import Path

LOG = Path(__file__).with_name("calls")

def reason(row):
    time.sleep(random.Random(row["number"]).uniform(0.02, 0.3))
    with LOG.open("a") as log:
        log.write(f"{row['number']} {time.time()}\\n")
    return f"answer {row['number']}"
"""

FLUSHED_AFTER = 2.0
"""Seconds: what finished earlier than that before a kill must not be answered again."""


def sitting(folder: Path, rows: int) -> subprocess.Popen[bytes]:
    """A driver at work in ``folder``, which goes on where the last one ended."""
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen([sys.executable, "-m", __spec__.name, str(folder), str(rows)], stdout=subprocess.DEVNULL)


def store(folder: Path) -> Store:
    return Store(folder / "rationales")


def killed(folder: Path, rows: int, moments: int, seed: int) -> int:
    """Kill the driver at so many moments drawn by ``seed``, and let a last one finish. Returns how many rows were repeated that need not have been.

    Those need not that had finished ``FLUSHED_AFTER`` seconds before the kill; what was in flight has not finished at all.
    """
    chance, kills = random.Random(seed), []
    for _ in range(moments):
        driver, before = sitting(folder, rows), len(store(folder).parts())
        while len(store(folder).parts()) == before:
            assert driver.poll() is None, "the driver ended before it was killed: take more rows"
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2.5))
        driver.send_signal(signal.SIGKILL)
        kills.append(time.time())
        driver.wait()
    assert sitting(folder, rows).wait() == 0
    return _repeated_over(folder / "calls", kills)


def _repeated_over(log: Path, kills: list[float]) -> int:
    calls = defaultdict(list)
    for line in log.read_text().splitlines():
        number, finished = line.split()
        calls[number].append(float(finished))
    # A driver's workers live on for a moment.
    return sum(
        not any(abs(first - kill) < FLUSHED_AFTER and kill < again for kill in kills)
        for times in calls.values()
        for first, again in zip(times, times[1:], strict=False)
    )


def _drive(folder: Path, rows: int) -> None:
    from fiat_ray.cluster import connect

    connect()
    asked = [Request(hashlib.sha256(str(number).encode()).hexdigest(), row=json.dumps({"number": number})) for number in range(rows)]
    file = folder / "requests.parquet"
    requests.write(file, [asked])
    for _ in reason(Requests(file), store(folder), partial(ScriptedReasoner, str(folder / "script.py"))):
        pass


if __name__ == "__main__":
    _drive(Path(sys.argv[1]), int(sys.argv[2]))
