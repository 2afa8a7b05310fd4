"""What ``benchmarks.campaigns`` times, each in a process of its own that imports no more than its part needs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def warm(given: Path, made: Path) -> None:
    """Import what either arm does: whichever came first would read all of it from the disk."""
    for module in ("vllm", "trl", "deepspeed", "ray.data", "ray.train.torch"):
        importlib.import_module(module)


def campaign(given: Path, made: Path) -> None:
    """``fiat-ray run``, without report and tracking."""
    from fiat_ray import config as configs
    from fiat_ray import runs
    from fiat_ray.progress import Console

    runs._show = lambda *_: None
    _, outcome = runs.run_config(configs.load(given), made, console=Console(quiet=True))
    if outcome.failed or outcome.broken_off:
        raise SystemExit(str(outcome))


def tune(given: Path, made: Path) -> None:
    """TRL's SFTTrainer."""
    from benchmarks.baselines import LIKELY_BEST, Work, trl

    trl(Work.read(given), LIKELY_BEST, made)


def generate(given: Path, made: Path) -> None:
    """``vllm.LLM.generate`` of all prompts at once."""
    from fiat_ray import models
    from fiat_ray.engine import EngineOptions, arguments, set_up_process

    set_up_process()
    from vllm import LLM, SamplingParams

    asked = json.loads(given.read_text())
    llm = LLM(**arguments(models.find(asked["model"]), EngineOptions(max_length=asked["max_length"])))
    prompts: Any = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=asked["max_tokens"]), use_tqdm=False)
    made.write_text(json.dumps([output.outputs[0].text.strip() for output in outputs]))


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    {"warm": warm, "campaign": campaign, "tune": tune, "generate": generate}[what](*map(Path, paths))
