"""Memory that a process keeps."""

from __future__ import annotations

import os
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


WORKER = """
import resource, threading
import ray, torch
from fiat_ray import cluster, cpu

class Worker:
    def __init__(self):
        cpu.keep_memory()

    def steps(self):
        for step in range(40):
            if step == 36:  # by when the heap is as large as it has to be
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            [torch.ones(30 * 2**20) for _ in range(2)]
        assert threading.current_thread() is not threading.main_thread()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

cluster.connect()
print(ray.get(ray.remote(max_concurrency=2)(Worker).remote().steps.remote()))
"""


def test_a_worker_of_ray_keeps_what_its_threads_take() -> None:
    """Tensors of 120 MB, which no thread's own heap holds: 30,000 pages each."""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | {"RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, "-c", WORKER], check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 30_000
