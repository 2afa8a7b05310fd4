"""What evaluating many trials in one engine costs beside their predictions. Run by ``make bench-evaluate``; the last line is one JSON object.

    swap_ratio   (8 trials in one engine, from its process's start − its start to the first token − the same prompts in the warm engine) ÷
                 (8 × a fresh engine's process, to the first token)
    total_ratio  the whole of the first ÷ 8 × (a fresh engine to the first token + one trial's prompts)

40 rows of cross-lingual QA for each trial, LoRA adapters with random numbers, the embedded model. Rows are read from the folder that ``FIAT_DATA``
names (default ``../shared/data``); where there is none, generated questions take their place. Both run ``ROUNDS`` times, in processes of their own
and alternating; medians count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reasoning import DATA
from fiat_ray import config as configs
from fiat_ray import models, runs
from fiat_ray.campaign import Trial
from fiat_ray.config import Config
from fiat_ray.prepare import prepare
from fiat_ray.progress import Console
from fiat_ray.run_folder import ADAPTER, RunFolder

TRIALS, ROWS, ROUNDS = 8, 40, 3
MAX_LENGTH = 1024

Found = dict[str, Any]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fiat-bench-evaluate-") as folder:
        place = Path(folder)
        _make(place)
        ours, fresh = [], []
        for _ in range(ROUNDS):
            ours.append(_child("ours", place))
            print("one engine: " + ", ".join(f"{name} {value:.1f} s" for name, value in ours[-1].items()), flush=True)
            fresh.append(_child("fresh", place)["first_token"])
            print(f"fresh engine, process start to first token: {fresh[-1]:.1f} s", flush=True)
    swaps = median(run["total"] - run["first_token"] - run["warm"] for run in ours)
    alone, warm, total = median(fresh), median(run["warm"] for run in ours), median(run["total"] for run in ours)
    print(f"a swap: {swaps / TRIALS:.2f} s", flush=True)
    print(json.dumps({"swap_ratio": swaps / (TRIALS * alone), "total_ratio": total / (TRIALS * alone + warm)}))
    return 0


def _config() -> Config:
    values: dict[str, Any] = {
        "methods": ["no_cot"],
        "seeds": list(range(TRIALS)),
        "tunables": {"xs": {"model": "embedded", "max_length": MAX_LENGTH}},
    }
    if (DATA / "xtreme_up").is_dir():
        values |= {"task": "xtreme_up_qa", "data": str(DATA), "focus": "indic", "limit": {"train": 1, "validation": 1, "test": ROWS // 20}}
    else:
        eight = ["bn", "el", "hi", "id", "ru", "sw", "ta", "te"]
        values |= {"task": "country_facts", "limit": {"train": 1, "validation": 1, "test": ROWS // 8}, "languages": eight}
    return configs.load(values)


def _make(place: Path) -> None:
    """A run whose trials have adapters that nobody tuned."""
    import torch

    from fiat_ray.tune import model as checkpoints
    from fiat_ray.tune.adapter import add_lora

    config = _config()
    runs.run_config(config, place / "run", stages=("reason",), console=Console(quiet=True))
    base = models.find(models.EMBEDDED)
    run, trials = RunFolder(place / "run"), prepare(config).trials
    for trial in trials:
        model = add_lora(checkpoints.load(base, torch.float32), trial.lora, trial.seed)
        state = {name: torch.randn_like(p) * 0.01 for name, p in model.named_parameters() if p.requires_grad}
        checkpoints.save(model, state, True, torch.float32, run.trial(trial.name) / ADAPTER)
    rows = len([row for row in run.examples(trials[0].task, with_rationales=False) if row.split == "test"])
    print(f"{len(trials)} trials of {rows} test rows of {trials[0].task}, {os.cpu_count()} CPUs", flush=True)


def _child(what: str, place: Path) -> Found:
    """Runs in a process of its own; ``start`` is when that was asked for."""
    command = [sys.executable, "-m", "benchmarks.evaluation", what, str(place), str(time.time())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: Found = json.loads((place / f"{what}.json").read_text())
    return found


def _ours(place: Path, start: float) -> Found:
    from fiat_ray.engine import set_up_process

    set_up_process()
    from fiat_ray.evaluate import Evaluator

    run = RunFolder(place / "run")
    trials: list[Trial] = prepare(configs.load(run.path)).trials
    evaluator = Evaluator(str(run.path), trials[0].model, MAX_LENGTH)
    evaluator.engine.generate([[1, 2, 3]], 1)
    first_token = time.time() - start
    spent = warm = 0.0
    for trial in trials:
        begun = time.time()
        evaluator.evaluate(trial)
        spent += time.time() - begun
        warm += _warm(evaluator, run, trial)
    return {"first_token": first_token, "total": first_token + spent, "warm": warm}


def _warm(evaluator: Any, run: RunFolder, trial: Trial) -> float:
    """Seconds of one trial's predictions without its swap; prompts are not in the prefix cache, as they are not after a swap."""
    from fiat_ray.predict import EngineTuned, predict
    from fiat_ray.render import Renderer

    evaluator.engine.forget_prefixes()
    task, renderer = run.load_task(trial.task), Renderer(models.find(trial.model))
    examples = [e for e in run.examples(trial.task, with_rationales=False) if e.split == "test"]
    start = time.time()
    predict(EngineTuned(evaluator.engine, renderer, task, trial.recipe, trial.answer_tokens), examples, {}, trial.recipe)
    return time.time() - start


def _fresh(place: Path, start: float) -> Found:
    """What a script does for each trial: a process with an engine of its own."""
    from fiat_ray.engine import EngineOptions, arguments, set_up_process

    set_up_process()
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments(models.find(models.EMBEDDED), EngineOptions(max_length=MAX_LENGTH)))
    llm.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return {"first_token": time.time() - start}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    what, place = sys.argv[1], Path(sys.argv[2])
    (place / f"{what}.json").write_text(json.dumps({"ours": _ours, "fresh": _fresh}[what](place, float(sys.argv[3]))))
