"""What reasoning costs beside the engine, and whether anything is generated twice. Run by ``make bench-store``; the last line is one JSON object.

    executed_ratio        prompts generated ÷ distinct prompts, where 30 % of the rows repeat another
    rerun_share           wall time of an unchanged ``fiat-ray reason`` ÷ that of the first, with the embedded model; the rerun starts no engine
    repeated_rows_over    rows answered again after kill -9, less those in flight and those finished in the last two seconds
    row_overhead_us       a row's cost with an engine that answers at once, start excluded: the worst over the sizes
    row_growth            that at the largest size ÷ at the smallest
    driver_memory_growth  the driver's peak of resident memory, likewise
    render_us             rendering and keying a row

A stub's row has 1,500 shared and 200 own tokens in, 64 out. Each size runs ``ROUNDS`` times, in processes of their own and sizes alternating; medians
count.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from benchmarks import interruption
from fiat_ray import models, prepare
from fiat_ray.cluster import connect
from fiat_ray.length import measure
from fiat_ray.reason import requests
from fiat_ray.reason.order import blocks
from fiat_ray.reason.reasoners import Answer, ScriptedReasoner
from fiat_ray.reason.requests import Request, Requests, scripted_requests, vllm_requests
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store
from fiat_ray.task import Task

SIZES = (10_000, 100_000, 1_000_000)
ROUNDS = 3
PREFIXES, SHARED, OWN, OUT = 27, 1500, 200, 64
WINDOW = 512
VOCABULARY = 50_000
SEED = 0

COUNTED = """
from pathlib import Path

def reason(row):
    with Path(__file__).with_suffix(".calls").open("a") as calls:
        calls.write(".")
    return "x"
"""


class Stub:
    """An engine that answers at once."""

    async def reason(self, prefix: Any, ids: Any, row: str) -> Answer:
        return Answer("ok", "word " * OUT, "stop", prompt_tokens=len([*prefix, *ids]), output_tokens=OUT)


def main() -> int:
    os.environ["RAY_ADDRESS"] = "local"
    with tempfile.TemporaryDirectory(prefix="fiat-bench-store-") as folder:
        place = Path(folder)
        figures = {
            "executed_ratio": executed_ratio(place),
            "repeated_rows_over": repeated_rows_over(place),
            "render_us": render_us(),
            **stub_rows(place),
            "rerun_share": rerun_share(place),
        }
    print(json.dumps(figures))
    return 0


def executed_ratio(place: Path, rows: int = 1000) -> float:
    script = place / "counted.py"
    script.write_text(COUNTED)
    chance = random.Random(SEED)
    questions = [f"question {number}" for number in range(rows * 7 // 10)]
    questions += chance.choices(questions, k=rows - len(questions))
    chance.shuffle(questions)
    task = Task.from_rows([{"question": question, "answer": "x", "lang": "en"} for question in questions], target="answer", language="lang")
    asked = scripted_requests(task, measure(task, []), script)
    connect()
    for _ in reason(asked, Store(place / "counted"), partial(ScriptedReasoner, str(script))):
        pass
    calls = len(script.with_suffix(".calls").read_text())
    print(f"executed: {calls} prompts for {len(task.rows)} rows, {len(asked)} of them distinct", flush=True)
    return calls / len(asked)


def repeated_rows_over(place: Path, rows: int = 500, kills: int = 3) -> int:
    folder = place / "killed"
    folder.mkdir()
    over = interruption.killed(folder, rows, kills, SEED)
    again = len((folder / "calls").read_text().splitlines()) - rows
    print(f"killed: {kills} times in {rows} rows; {again} answered again, {over} of them without need", flush=True)
    return over


def render_us() -> float:
    """Of the rows of the built-in task, with the embedded model's tokenizer and the exemplars of the row's language."""
    task = Task.load("country_facts")
    renderer = prepare.make_renderer("reasoner", models.find(models.EMBEDDED))
    lengths = measure(task, [])
    start = time.perf_counter()
    asked = vllm_requests(task, lengths, renderer, {"model": "benchmark"}, "row_language", lengths.exemplars)
    took = (time.perf_counter() - start) / len(task.rows) * 1e6
    print(f"rendering and keying: {took:.0f} µs a row ({len(task.rows)} rows, {len(asked)} distinct prompts)", flush=True)
    return took


def stub_rows(place: Path) -> dict[str, float]:
    found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for size in SIZES:
        _child("render", place / f"{size}.parquet", size)
    for _ in range(ROUNDS):
        for size in SIZES:
            found[size].append(json.loads(_child("stub", place / f"{size}.parquet", place / "stubbed")))
            shutil.rmtree(place / "stubbed")
            now = found[size][-1]
            print(f"stub: {size} rows: {now['us']:.0f} µs a row, driver at most {now['bytes'] / 1e6:.0f} MB", flush=True)
    us, memory = ({size: median(one[name] for one in ones) for size, ones in found.items()} for name in ("us", "bytes"))
    small, large = min(SIZES), max(SIZES)
    return {
        "row_overhead_us": max(us.values()),
        "row_growth": us[large] / us[small],
        "driver_memory_growth": memory[large] / memory[small],
    }


def rerun_share(place: Path) -> float:
    """192 rows, 64 tokens each."""
    config = {
        "task": "country_facts",
        "languages": ["bn", "el", "hi", "id", "ru", "sw", "ta", "te"],
        "limit": {"train": 20, "validation": 2, "test": 2},
        "reasoner": {"model": models.EMBEDDED, "max_tokens": 64},
        "methods": ["icl"],
    }
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "fiat_ray", "reason", str(place / "config.yaml"), "--out", str(place / "run")]
    took, stored = [], []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - start)
        stored.append(Store(place / "run" / "rationales").table())
    assert stored[0] == stored[1] and len(stored[0]) > 0, "the rerun generated something"
    print(f"rerun: {took[0]:.1f} s for {len(stored[0])} prompts, {took[1]:.1f} s again, 0 tokens", flush=True)
    return took[1] / took[0]


def _child(*arguments: Any) -> str:
    """A part of this benchmark in a process of its own; the last line it prints."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.store", *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().rpartition("\n")[2]


def _render(file: Path, rows: int) -> None:
    """Requests of random tokens, spread evenly over the prefixes."""
    chance = np.random.default_rng(SEED)

    def piece(prefix: int, count: int) -> Iterator[Request]:
        for number in range(count):
            key = hashlib.sha256(f"{prefix} {number}".encode()).hexdigest()
            yield Request(key, str(prefix), tuple(chance.integers(0, VOCABULARY, OWN).tolist()), language=str(prefix))

    requests.write(file, (piece(prefix, rows // PREFIXES + (prefix < rows % PREFIXES)) for prefix in range(PREFIXES)))


def _stub(file: Path, folder: Path) -> dict[str, float]:
    """µs a row from the first admission to the end, with what finding out what is missing takes; and this driver's peak of resident memory."""
    chance = np.random.default_rng(SEED)
    asked = Requests(file, {str(prefix): chance.integers(0, VOCABULARY, SHARED).tolist() for prefix in range(PREFIXES)})
    store, rows, begun = Store(folder), 0, float("inf")
    connect()
    start = time.time()
    blocks(asked, store.known(), 1, WINDOW)
    looked = time.time() - start
    for row in reason(asked, store, Stub, cpus=2, window=WINDOW):
        rows, begun = rows + 1, min(begun, row["admitted"])
    took = time.time() - begun + looked
    most = _peak()
    assert rows == len(asked) == len(store.known().finished)
    return {"us": took / rows * 1e6, "bytes": most}


def _peak() -> int:
    """Most resident memory of this process, bytes. ``getrusage`` would count its parent's from before the exec too."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["all"]
    if what == "render":
        _render(Path(rest[0]), int(rest[1]))
    elif what == "stub":
        print(json.dumps(_stub(Path(rest[0]), Path(rest[1]))))
    else:
        sys.exit(main())
