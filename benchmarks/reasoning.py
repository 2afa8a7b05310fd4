"""How near the reasoning stage comes to the engine's own speed. Run by ``make bench-reason``; the last line is one JSON object.

    engine_ratio        rows a second, from the first row's admission until the last one is durable ÷ those of ``vllm.LLM.generate`` on the same
                        prompts in the corpus's order, with the same settings; the engine's start is in neither
    ray_data_llm_ratio  wall time of ``ray.data.llm`` doing the same ÷ that of the reasoning stage; whole processes, start included
    prefix_ratio        prompt tokens computed ÷ the fewest possible (see ``fewest``): of whole prompts or of what follows the exemplars, whichever is
                        worse

192 rows of cross-lingual QA with its four exemplars, 64 new tokens each, the embedded model. Rows are read from the folder that ``FIAT_DATA``
names (default ``../shared/data``); where there is none, generated questions take their place. Each system runs ``ROUNDS`` times, in processes of
their own and alternating; medians count. Texts may differ between systems: rounding depends on which rows share a batch. How many do is told.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fiat_ray import models
from fiat_ray.config import Config
from fiat_ray.engine import ENVIRONMENT, EngineOptions, arguments, set_up_process
from fiat_ray.prepare import make_reasoner, prepare
from fiat_ray.reason.requests import Requests
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store
from fiat_ray.schedule.reasoning import CPU_WINDOW
from fiat_ray.task import Task

DATA = Path(os.environ.get("FIAT_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROWS, NEW_TOKENS = 192, 64
ROUNDS = 3
BLOCK = 32
SEED = 0
REASONER = ReasonerConfig(max_tokens=NEW_TOKENS)

Found = dict[str, Any]
"""What a run says: ``seconds`` of generating alone (with ray.data.llm its engine's start is in them), and key → ``texts``; of the stage also key →
prompt tokens ``computed``."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fiat-bench-reason-") as folder:
        place = Path(folder)
        asked = _ask(place)
        found: dict[str, list[Found]] = {name: [] for name in SYSTEMS}
        for _ in range(ROUNDS):
            for name in SYSTEMS:
                found[name].append(_child(name, place))
                now = found[name][-1]
                print(f"{name}: {now['seconds']:.1f} s for {len(now['texts'])} rows; the whole process {now['process']:.1f} s", flush=True)
    ours, alone, ray_data = ({key: median(run[key] for run in found[name]) for key in ("seconds", "process")} for name in SYSTEMS)
    _compare_texts({name: runs[-1]["texts"] for name, runs in found.items()} | {"stage again": found["stage"][0]["texts"]})
    figures = {
        "engine_ratio": alone["seconds"] / ours["seconds"],
        "ray_data_llm_ratio": ray_data["process"] / ours["process"],
        "prefix_ratio": max(_prefix_ratio(asked, run["computed"]) for run in found["stage"]),
    }
    print(json.dumps(figures))
    return 0


def fewest(prompts: Iterable[tuple[Sequence[int], int]], block: int = BLOCK) -> int:
    """Of prompts (token ids, first position that counts) the least number of tokens that an engine has to compute, with an unbounded prefix cache.

    A cache holds whole blocks, each with all that stands before it. A prompt's last token is computed always, and so is the block it stands in.
    """
    cached: dict[int, int] = {}
    computed: set[int] = set()
    ends = 0
    for ids, start in prompts:
        digest, last = 0, (len(ids) - 1) // block
        for number in range(last):
            digest = hash((digest, tuple(ids[number * block : (number + 1) * block])))
            counting = min(block, max(0, (number + 1) * block - start))
            cached[digest] = max(cached.get(digest, 0), counting)
        ends += len(ids) - max(last * block, start)
        if len(ids) == (last + 1) * block:  # a whole block, which others may find in the cache
            computed.add(hash((digest, tuple(ids[last * block :]))))
    return ends + sum(counting for digest, counting in cached.items() if digest not in computed)


def _ask(place: Path) -> dict[str, tuple[list[int], int]]:
    """Writes the requests, and the prompts in the corpus's order. Key → prompt, and where the row's own tokens start."""
    real = (DATA / "xtreme_up").is_dir()
    task = Task.load("xtreme_up_qa", DATA) if real else Task.load("country_facts")
    chosen = sorted(random.Random(SEED).sample(range(len(task.rows)), ROWS))
    task = replace(task, rows=tuple(task.rows[number] for number in chosen))
    prepared = prepare(Config([task.name], reasoner=REASONER, methods=["icl"]), {task.name: task})
    requests = prepared.requests[task.name]
    own = {row["key"]: row for table in requests.columns("key", "prefix", "ids") for row in table.to_pylist()}
    asked = {}
    for row in task.rows:
        key = requests.keys[row.id]
        prefix = requests.prefixes[own[key]["prefix"]]
        asked[key] = ([*prefix, *own[key]["ids"]], len(prefix))
    (place / "requests.parquet").write_bytes(requests.file.read_bytes())
    (place / "requests.json").write_text(json.dumps({"prefixes": dict(requests.prefixes), "max_length": prepared.reasoner_length}))
    pq.write_table(pa.table({"key": list(asked), "ids": [ids for ids, _ in asked.values()]}), place / "prompts.parquet")
    tokens = sum(len(ids) for ids, _ in asked.values())
    print(
        f"{len(asked)} prompts of {len(task.languages)} languages, {'real' if real else 'generated'} rows (seed {SEED}): {tokens} tokens, "
        f"{fewest((ids, 0) for ids, _ in asked.values())} of them to compute at least; {NEW_TOKENS} new ones each, {os.cpu_count()} CPUs",
        flush=True,
    )
    return asked


def _prefix_ratio(asked: dict[str, tuple[list[int], int]], computed: dict[str, int]) -> float:
    whole = sum(computed.values()) / fewest((ids, 0) for ids, _ in asked.values())
    own = sum(min(computed[key], len(ids) - start) for key, (ids, start) in asked.items()) / fewest(asked.values())
    print(f"prompt tokens computed ÷ fewest possible: {whole:.3f} whole, {own:.3f} after the exemplars", flush=True)
    return max(whole, own)


def _compare_texts(texts: dict[str, dict[str, str]]) -> None:
    first, *others = texts
    for other in others:
        differing = sum(texts[first][key] != text for key, text in texts[other].items())
        print(f"texts of {first} and {other} that differ: {differing} of {len(texts[first])}", flush=True)


def _child(name: str, place: Path) -> Found:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "benchmarks.reasoning", name, str(place)], check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - start
    found: Found = json.loads((place / f"{name}.json").read_text())
    return found | {"process": took}


def _stage(place: Path, max_length: int) -> Found:
    """The reasoning stage, as a campaign runs it."""
    from fiat_ray.cluster import connect

    requests = Requests(place / "requests.parquet", json.loads((place / "requests.json").read_text())["prefixes"])
    create = make_reasoner(Config([], reasoner=REASONER), max_length)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        store, begun = Store(folder), float("inf")
        connect()
        for row in reason(requests, store, create, cpus=os.cpu_count() or 1, window=CPU_WINDOW):
            begun = min(begun, row["admitted"])
        seconds = time.time() - begun
        rows = store.table().to_pylist()
    computed = {row["key"]: row["prompt_tokens"] - row["cached_tokens"] for row in rows}
    return {"seconds": seconds, "texts": {row["key"]: row["text"] for row in rows}, "computed": computed}


def _engine_alone(place: Path, max_length: int) -> Found:
    """``vllm.LLM.generate`` of all prompts at once."""
    set_up_process()
    from vllm import LLM, SamplingParams

    asked = pq.read_table(place / "prompts.parquet")
    llm = LLM(**arguments(models.find(REASONER.model), EngineOptions(max_length=max_length)))
    prompts: Any = [{"prompt_token_ids": ids} for ids in asked["ids"].to_pylist()]
    start = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False)
    seconds = time.perf_counter() - start
    texts = {key: output.outputs[0].text.strip() for key, output in zip(asked["key"].to_pylist(), outputs, strict=True)}
    return {"seconds": seconds, "texts": texts}


def _ray_data_llm(place: Path, max_length: int) -> Found:
    """``ray.data.llm`` from a Parquet file to Parquet files, as its documentation does it; blocks of 32 rows, eight of them at once."""
    from fiat_ray.cluster import connect

    connect()
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    model = models.find(REASONER.model)
    settings = arguments(model, EngineOptions(max_length=max_length))
    del settings["model"]
    config = vLLMEngineProcessorConfig(
        model_source=str(model),
        engine_kwargs=settings,
        batch_size=32,
        concurrency=1,
        log_engine_metrics=False,  # they need ray[serve]
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
        # Ray would give the engine as many threads as it reserves CPUs, and all but one are needed for the stages around it.
        runtime_env={"env_vars": {**ENVIRONMENT, "OMP_NUM_THREADS": str(os.cpu_count())}},
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "key": row["key"],
            "tokenized_prompt": row["ids"],
            "sampling_params": {"temperature": 0, "max_tokens": NEW_TOKENS},
        },
        postprocess=lambda row: {"key": row["key"], "text": row["generated_text"], "output_tokens": row["num_generated_tokens"]},
    )
    with tempfile.TemporaryDirectory(dir=place) as folder:
        start = time.perf_counter()
        processor(ray.data.read_parquet(str(place / "prompts.parquet"))).write_parquet(folder)
        seconds = time.perf_counter() - start  # its engine starts in here
        texts = {row["key"]: row["text"].strip() for row in pq.read_table(folder).to_pylist()}
    return {"seconds": seconds, "texts": texts}


SYSTEMS: dict[str, Callable[[Path, int], Found]] = {"stage": _stage, "engine alone": _engine_alone, "ray.data.llm": _ray_data_llm}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    name, place = sys.argv[1], Path(sys.argv[2])
    length = json.loads((place / "requests.json").read_text())["max_length"]
    (place / f"{name}.json").write_text(json.dumps(SYSTEMS[name](place, length)))
