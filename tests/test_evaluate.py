"""An engine that stands still while it evaluates; what evaluation does with real engines see in test_overfit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from fiat_ray.evaluate import stalled
from fiat_ray.run_folder import RunFolder

PROGRAM = """
import sys, time
from fiat_ray.evaluate import Evaluator
from fiat_ray.run_folder import RunFolder

class Standing(Evaluator):
    def __init__(self, run):  # to stand still it needs no engine
        self._run = RunFolder(run)
        self._watch(1.0)
        self._watchdog.tell(busy=False)

    def _infer(self, *_):
        time.sleep(15)

evaluator = Standing(sys.argv[1])
time.sleep(2)  # without work it is left alone
print("idle", flush=True)
evaluator.infer(None, None, [])
"""


def test_an_engine_that_stands_still_while_it_evaluates_is_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "idle\n"), done.stderr
    assert stalled(RunFolder(tmp_path)).read_text() == "it made no progress for 1 seconds"
