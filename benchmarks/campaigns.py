"""What a whole campaign takes beside a straightforward script. Run by ``make bench-campaign``; the last line is one JSON object.

    campaign_ratio   wall time of the campaign ÷ that of the script

One task, ``LANGUAGES`` with 4 train and 5 test rows each, 4 recipes × 2 seeds, the embedded model in both parts. The script asks the reasoner by
``vllm.LLM.generate``, then takes one trial after the other: TRL's SFTTrainer with its fastest settings, then a fresh vLLM for the predictions, each
in a process of its own. It is given all prompts ready as token ids. Both validate on one row, before the first step and after the last: the script
takes the loss of its answer, our trials generate one too. Tracking and report are in neither, but for the progress that MLflow is sent of a campaign
after five minutes. Rows are read from the folder that ``FIAT_DATA`` names (default ``../shared/data``); where there is none, generated questions take
their place. Texts may differ between the two: rounding depends on which rows share a batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.baselines import LIKELY_BEST, environment
from benchmarks.reasoning import DATA
from benchmarks.tuning import examples_of, work_of
from fiat_ray import config as configs
from fiat_ray import models
from fiat_ray.campaign import Trial
from fiat_ray.config import Config
from fiat_ray.predict import Prediction, prediction_rows, shown_rationales
from fiat_ray.prepare import Prepared, prepare
from fiat_ray.render import Renderer
from fiat_ray.run_folder import RunFolder
from fiat_ray.scoring import score_predictions

ROUNDS = 1
TRAIN, TEST = 4, 5
"""Rows of each language."""
LANGUAGES = ("as", "bho", "gu", "hi", "kn", "ml", "mr", "ta")
METHODS, SEEDS = ("fiat", "no_cot", "no_instructions", "no_peft"), (0, 1)
NEW_TOKENS = 64
"""Of a rationale, at most."""
MODEL = models.EMBEDDED


def main(trl: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="fiat-bench-campaign-") as folder:
        place = Path(folder)
        config = config_of(place)
        prepared = prepare(config)
        [task] = prepared.tasks.values()
        print(
            f"{len(prepared.trials)} trials, {len(task.split('train'))} train and {len(task.split('test'))} test rows of {task.name} in "
            f"{len(task.languages)} languages, {NEW_TOKENS} tokens a rationale, TRL with {LIKELY_BEST}, {os.cpu_count()} CPUs",
            flush=True,
        )
        (place / "config.yaml").write_text(configs.dump(config))
        _timed("warm", place / "config.yaml", place / "warm", trl)
        campaigns, scripts = [], []
        for number in range(ROUNDS):
            campaigns.append(_timed("campaign", place / "config.yaml", place / f"run-{number}"))
            print(f"campaign: {campaigns[-1]:.0f} s, mean F1 {_mean_f1(RunFolder(place / f'run-{number}'), prepared.trials):.1f}", flush=True)
            scripts.append(script(prepared, place / f"script-{number}", trl))
    print(json.dumps({"campaign_ratio": median(campaigns) / median(scripts)}))
    return 0


def config_of(place: Path) -> Config:
    values: dict[str, Any] = {
        "methods": list(METHODS),
        "seeds": list(SEEDS),
        "reasoner": {"model": MODEL, "max_tokens": NEW_TOKENS},
        "tunables": {"xs": {"model": MODEL, "max_length": 2048}},
        "limit": {"train": TRAIN, "validation": 1, "test": TEST},
        "validation": {"times": 1, "rows": 1},
        "tracking_uri": f"sqlite:///{place}/mlflow.db",
    }
    if (DATA / "xtreme_up").is_dir():
        return configs.load(values | {"task": "xtreme_up_qa", "data": str(DATA), "focus": "indic", "languages": list(LANGUAGES)})
    return configs.load(values | {"task": "country_facts", "languages": ["bn", "el", "hi", "id", "ru", "sw", "ta", "te"]})


def script(prepared: Prepared, place: Path, trl: Path) -> float:
    """Seconds of its processes; what is done between them is not counted."""
    place.mkdir()
    [(name, task)] = prepared.tasks.items()
    requests = prepared.requests[name]
    asked = {
        row["key"]: [*requests.prefixes[row["prefix"]], *row["ids"]]
        for table in requests.columns("key", "prefix", "ids")
        for row in table.to_pylist()
    }
    seconds = {"reason": 0.0, "tune": 0.0, "evaluate": 0.0}
    answers, seconds["reason"] = _generate(place, MODEL, list(asked.values()), NEW_TOKENS, prepared.reasoner_length)
    texts = dict(zip(asked, answers, strict=True))
    rationales = {row.id: texts[requests.keys[row.id]] for row in task.rows}
    test, scores = examples_of(prepared, name, "test", rationales), []
    for trial in prepared.trials:
        work, tuned = place / f"{trial.name}.json", place / trial.name
        work_of(prepared, trial, rationales, validate=True).write(work)
        seconds["tune"] += _timed("tune", work, tuned, trl)
        renderer = Renderer(models.find(trial.model))
        shown = shown_rationales(task, renderer, trial.recipe, test, trial.rationale_tokens)
        prompts = [renderer.tunable_prompt(task, e.input, shown.get(e.id), trial.recipe).ids for e in test]
        found, took = _generate(place, str(tuned), prompts, trial.answer_tokens, trial.max_length)
        seconds["evaluate"] += took
        scores.append(_f1(score_predictions(name, "f1", (), prediction_rows(test, [Prediction(text, None) for text in found]))))
    parts = ", ".join(f"{part} {took:.0f} s" for part, took in seconds.items())
    print(f"script: {sum(seconds.values()):.0f} s ({parts}), mean F1 {mean(scores):.1f}", flush=True)
    return sum(seconds.values())


def _generate(place: Path, model: str, prompts: Sequence[Sequence[int]], max_tokens: int, max_length: int) -> tuple[list[str], float]:
    given, found = place / "prompts.json", place / "texts.json"
    given.write_text(json.dumps({"model": model, "prompts": prompts, "max_tokens": max_tokens, "max_length": max_length}))
    seconds = _timed("generate", given, found)
    texts: list[str] = json.loads(found.read_text())
    return texts, seconds


def _timed(what: str, given: Path, made: Path, trl: Path | None = None) -> float:
    """Seconds of a process that makes one thing from another."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.campaign_arms", what, str(given), str(made)]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment(trl), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} {given.name}: failed; its output: {done.stderr[-4000:]}")
    return time.perf_counter() - start


def _mean_f1(run: RunFolder, trials: Sequence[Trial]) -> float:
    return mean(_f1(json.loads((run.trial(trial.name) / "scores.json").read_text())) for trial in trials)


def _f1(scores: Sequence[Any]) -> float:
    return next(float(score["value"]) for score in scores if (score["metric"], score["language"]) == ("f1", "mean"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
