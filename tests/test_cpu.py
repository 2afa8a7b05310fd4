"""Memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

STEPS = """
import resource, sys, threading
import torch
from fiat_ray import cpu

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def steps():
    for step in range(4):
        if step == 1:
            before = faults()
        [torch.ones(2**20 * (1 + number % 3)) for number in range(100)]
    print(faults() - before)

if sys.argv[1] == "kept":
    cpu.keep_memory()
thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def test_memory_that_is_kept_costs_few_faults_when_it_is_taken_again() -> None:
    """800 MB in each step, in tensors of 4 to 12."""
    faults = {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", STEPS, how], check=True, capture_output=True, text=True)
        faults[how] = int(done.stdout)
    assert 5 * faults["kept"] < faults["given back"]
