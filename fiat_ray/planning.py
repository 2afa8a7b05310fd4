"""What a campaign will take, told before anything runs: rows, prompts, tokens, trials, time. Starts nothing: no Ray, no engine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from fiat_ray import models, prepare
from fiat_ray.campaign import Trial
from fiat_ray.config import Config
from fiat_ray.draw import number_of_steps
from fiat_ray.reason.requests import Request, Requests
from fiat_ray.reason.store import Store, is_final
from fiat_ray.recipe import UNTUNED
from fiat_ray.render import Renderer, shown_rationale
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.trials import evaluated, tuned
from fiat_ray.task import SPLITS, Row, Task

WIDTH = 110
SAMPLED = 500
"""Train rows that are rendered to measure a recipe's prompts; more would change the mean by less than the estimate's error."""

UNKNOWN = "the mean of those stored, or as reasoner.max_tokens"

MEASURED_ON = "2 CPU cores, SmolLM2-135M"
MEASURED_PARAMETERS = 134_515_008
SPEED = {"prefill": 1000.0, "decode": 600.0, "lora": 390.0, "full": 330.0}
"""Tokens a second as measured there. Other models are taken to be slower by their number of parameters."""
START = {"engine": 25.0, "tuning": 15.0}
"""Seconds until an engine answers, and until a tuning worker takes its first step."""

Rationales = dict[str, dict[str, Any]]


def plan(config: Config, tasks: Mapping[str, Task] | None = None, *, run: str | Path | None = None) -> dict[str, Any]:
    """Rows, cuts, reasoner and trials with their tokens, and a rough time; JSON-able.

    ``tasks``: given instead of the config's own. ``run``: a run directory, finished in part or not there yet; what it holds need not be done again.
    Raises ``UserError`` for what can't run, as the run itself would.
    """
    prepared = prepare.prepare(config, tasks)
    found = {name: stored(config, requests, run) for name, requests in prepared.requests.items()}
    planned = prepare.describe(prepared)
    for name, task in prepared.tasks.items():
        planned["tasks"][name]["exemplars_most"] = {x: len(task.exemplars_for(x, config.exemplars)) for x in task.languages}
        requests = prepared.requests.get(name)
        planned["tasks"][name]["reasoner"] = _asked(requests, found[name], config.reasoner.max_tokens) if requests else None
    planned["models"] = {role: model | {"parameters": parameters(models.find(model["name"]))} for role, model in prepared.models.items()}
    planned["trials"] = _trials(prepared, found, RunFolder(run) if run else None)
    planned["untuned"] = [method for method in config.methods if method in UNTUNED]
    planned["time"] = _time(config, planned)
    return planned


def stored(config: Config, requests: Requests, run: str | Path | None) -> Rationales:
    """Key → rationale, of those requests that need no further try: from the config's store, or the run's own."""
    folder = Path(config.store) if config.store else RunFolder(run).rationales if run else None
    return {key: row for key, row in Store(folder).read(requests.distinct).items() if is_final(row)} if folder else {}


def parameters(folder: Path) -> int:
    """Parameters of a checkpoint, from the headers of its safetensors files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def _asked(requests: Requests, found: Rationales, max_tokens: int) -> dict[str, Any]:
    """What the reasoner is asked in all, and what of it is not stored yet."""
    mean = fmean(row["output_tokens"] for row in found.values()) if found else None
    missing = [request for key, request in requests.distinct.items() if key not in found]
    return {
        "prompts": len(requests.distinct),
        "stored": len(found),
        "output_tokens_mean": mean,
        "all": _tokens_asked(requests, list(requests.distinct.values()), max_tokens, mean),
        "missing": _tokens_asked(requests, missing, max_tokens, mean),
    }


def _tokens_asked(requests: Requests, asked: Sequence[Request], max_tokens: int, mean: float | None) -> dict[str, int | None]:
    """Tokens of some requests; 0 in and out where a script answers."""
    prefixes = {name: len(ids) for name, ids in requests.prefixes.items()}
    own = sum(len(request.ids) for request in asked)
    once = sum(prefixes.get(name, 0) for name in {request.prefix for request in asked})
    rendered = len(asked) if prefixes else 0
    return {
        "prompts": len(asked),
        "tokens_in": own + sum(prefixes.get(request.prefix, 0) for request in asked),
        "tokens_in_prefix_once": own + once,
        "tokens_out_most": rendered * max_tokens,
        "tokens_out_estimate": None if mean is None else round(rendered * mean),
    }


def _trials(prepared: prepare.Prepared, found: Mapping[str, Rationales], run: RunFolder | None) -> list[dict[str, Any]]:
    """Trials that differ in their seed alone, together: their prompts are the same."""

    @lru_cache
    def renderer(tunable: str, model: str, instruction_tuned: bool) -> Renderer:
        return prepare.make_renderer(tunable, models.find(model), instruction_tuned)

    planned = []
    for _, same in groupby(prepared.trials, key=lambda t: (t.task, t.tunable, t.method, t.train_size)):
        trials = list(same)
        trial = trials[0]
        task, recipe = prepared.tasks[trial.task], trial.recipe
        tokens, sampled = _prompt_tokens(trial, prepared, found.get(trial.task, {}), renderer(trial.tunable, trial.model, recipe.instruction_tuned))
        steps = number_of_steps(trial.train_size, trial.batch_size, trial.epochs, trial.steps)
        rows = _rows_seen(trial.train_size, trial.batch_size, steps)
        planned.append(
            {
                "task": trial.task,
                "method": trial.method,
                "tunable": trial.tunable,
                "model": f"tunables.{trial.tunable}{'' if recipe.instruction_tuned else '.pretrained'}",
                "peft": recipe.peft,
                "train_size": trial.train_size,
                "seeds": [t.seed for t in trials],
                "tuned": sum(run is not None and tuned(run, t) for t in trials),
                "evaluated": sum(run is not None and evaluated(run, t) for t in trials),
                "learning_rates": len(trial.learning_rates),
                "steps": steps,
                "rows_sampled": sampled,
                "tokens_mean": fmean(tokens),
                "tokens_max": max(tokens),
                "tokens": round(fmean(tokens) * rows * len(trial.learning_rates) * len(trials)),
                "rows_validated": min(trial.validation_rows, len(task.split("validation"))) * (1 + trial.validations * len(trial.learning_rates)),
                "rows_tested": len(task.split("test")),
                "answer_tokens": trial.answer_tokens,
            }
        )
    return planned


def _rows_seen(rows: int, batch_size: int, steps: int) -> int:
    """Rows in that many steps; an epoch's last batch is as small as it is."""
    epochs, rest = divmod(steps, -(-rows // batch_size))
    return epochs * rows + rest * batch_size


def _prompt_tokens(trial: Trial, prepared: prepare.Prepared, found: Rationales, renderer: Renderer) -> tuple[list[int], int]:
    """Tokens of train rows, prompt and target, in a trial's recipe; and how many rows were sampled.

    A rationale that is not stored yet counts as long as the stored ones are on average; where there is none, as long as it may be.
    """
    task, lengths = prepared.tasks[trial.task], prepared.lengths[trial.task]
    rows = task.split("train")
    sample = rows[:: -(-len(rows) // SAMPLED)]
    expected = round(fmean(r["output_tokens"] for r in found.values())) if found else trial.rationale_tokens

    def tokens(row: Row) -> int:
        text, recipe = lengths.texts[row.id], trial.recipe
        kept = found.get(prepared.requests[trial.task].keys[row.id]) if recipe.cot != "none" else None
        shown = shown_rationale(task, renderer, kept["text"], recipe, trial.rationale_tokens) if kept else None
        total = len(renderer.tunable_prompt(task, text, shown, recipe)) + len(renderer.target(row.targets[0]).ids)
        if recipe.cot == "distilled":
            total += len(renderer.explain_prompt(task, text, recipe)) + (len(renderer.target(shown).ids) if shown else 0)
        return total + (expected if recipe.cot != "none" and shown is None else 0)

    return [tokens(row) for row in sample], len(sample)


# Time


def _time(config: Config, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of each part, one after the other on one machine like the one measured; none where a GPU does the work."""
    if _on_gpu(config):
        return {"seconds": None, "parts": {}, "note": "no throughput was measured on a GPU: count the tokens above"}
    parts = {"reasoning": _reasoning_seconds(planned), "tuning": _tuning_seconds(planned), "evaluation": _evaluation_seconds(planned)}
    note = f"measured with {MEASURED_ON}; scaled by parameters for other models, not scaled for other processors"
    return {"seconds": sum(parts.values()), "parts": parts, "note": note}


def _on_gpu(config: Config) -> bool:
    import torch

    return bool(config.where.gpus) if config.where.gpus is not None else torch.cuda.is_available()


def _speed(what: str, of_parameters: int) -> float:
    return SPEED[what] * MEASURED_PARAMETERS / of_parameters


def _reasoning_seconds(planned: Mapping[str, Any]) -> float:
    if "reasoner" not in planned["models"]:
        return 0.0
    size = planned["models"]["reasoner"]["parameters"]
    missing = [task["reasoner"]["missing"] for task in planned["tasks"].values() if task["reasoner"]]
    seconds = 0.0
    for part in missing:
        out = part["tokens_out_most"] if part["tokens_out_estimate"] is None else part["tokens_out_estimate"]
        seconds += part["tokens_in_prefix_once"] / _speed("prefill", size) + out / _speed("decode", size)
    return seconds + START["engine"] if any(part["prompts"] for part in missing) else 0.0


def _tuning_seconds(planned: Mapping[str, Any]) -> float:
    seconds = 0.0
    for trials in planned["trials"]:
        size = planned["models"][trials["model"]]["parameters"]
        to_do = len(trials["seeds"]) - trials["tuned"]
        seconds += to_do * trials["tokens"] / len(trials["seeds"]) / _speed("lora" if trials["peft"] else "full", size)
        seconds += to_do * trials["rows_validated"] * _answer_seconds(trials, size)
    return seconds + START["tuning"] if seconds else 0.0


def _evaluation_seconds(planned: Mapping[str, Any]) -> float:
    to_do = [trials for trials in planned["trials"] if trials["evaluated"] < len(trials["seeds"])]
    seconds = START["engine"] * len({trials["model"] for trials in to_do})
    for trials in to_do:
        rows = trials["rows_tested"] * (len(trials["seeds"]) - trials["evaluated"])
        seconds += rows * _answer_seconds(trials, planned["models"][trials["model"]]["parameters"])
    return seconds


def _answer_seconds(trials: Mapping[str, Any], size: int) -> float:
    """One row read and answered by the tunable, its prompt as long as a train row's."""
    return trials["tokens_mean"] / _speed("prefill", size) + trials["answer_tokens"] / _speed("decode", size)


# For the terminal


def describe(planned: Mapping[str, Any]) -> str:
    """A plan as text, at most ``WIDTH`` columns wide."""
    lines = [line for name, task in planned["tasks"].items() for line in (*_describe_task(name, task, planned["models"]), "")]
    lines += _describe_trials(planned)
    return "\n".join([*lines, "", *_describe_time(planned["time"])])


def _describe_time(time: Mapping[str, Any]) -> Iterable[str]:
    if time["seconds"] is None:
        yield _line("time", time["note"])
        return
    parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in time["parts"].items() if seconds)
    yield _line("time", f"roughly {_duration(time['seconds'])}: {parts}" if parts else "nothing is left to do")
    yield _line("", time["note"])


def _describe_task(name: str, task: Mapping[str, Any], of_models: Mapping[str, Any]) -> Iterable[str]:
    yield f"{name} ({task['metric']}), {len(task['languages'])} languages"
    for split in SPLITS:
        yield _line(split, f"{sum(task['rows'][split].values()):,} rows: {_counts(task['rows'][split])}")
    if task["removed"]:
        yield _line("removed", f"{len(task['removed']):,} rows of train or validation, because they stand in a later split too")
    cut = f"{sum(task['cut'].values()):,} passages cut to fit: {_counts(task['cut'])}" if task["cut"] else "no passage is cut"
    gold = {language: rows for language, rows in task["gold_cut"].items() if rows}
    yield _line("length", cut + (f"; {sum(gold.values()):,} of them lost their gold answer: {_counts(gold)}" if gold else ""))
    if not task["reasoner"]:
        return
    fewer = {x: shown for x, shown in task["exemplars"].items() if shown < task["exemplars_most"][x]}
    most = max(task["exemplars_most"].values())
    yield _line("exemplars", f"fewer than {most} fit in {_counts(fewer)}" if fewer else f"{most} in every prompt")
    yield from _describe_reasoner(task["reasoner"], of_models.get("reasoner"))


def _describe_reasoner(asked: Mapping[str, Any], model: Mapping[str, Any] | None) -> Iterable[str]:
    who = f"{model['name']}, {_size(model['parameters'])} parameters" if model else "a script"
    missing = asked["missing"]
    yield _line("reasoner", f"{who}: {asked['prompts']:,} distinct prompts, {asked['stored']:,} stored, {missing['prompts']:,} to generate")
    if not model:
        return
    for what, part in (("in all", asked["all"]), *([("to generate", missing)] if asked["stored"] and missing["prompts"] else [])):
        tokens_in = f"{part['tokens_in']:,} tokens in ({part['tokens_in_prefix_once']:,} with each shared beginning counted once)"
        estimate = part["tokens_out_estimate"]
        by_store = "" if estimate is None else f" (about {estimate:,} by the mean of those stored, {asked['output_tokens_mean']:.0f})"
        yield _line("", f"{what}: {tokens_in}, at most {part['tokens_out_most']:,} out{by_store}")


def _describe_trials(planned: Mapping[str, Any]) -> Iterable[str]:
    trials = planned["trials"]
    yield f"{sum(len(t['seeds']) for t in trials)} trials" + (f"; without tuning: {', '.join(planned['untuned'])}" if planned["untuned"] else "")
    if trials:
        wide = min(34, max(len(t["method"]) for t in trials))
        yield f"  {'method':<{wide}}  {'tunable':<8}  seeds  done  rates  steps  tokens a row: mean    max  tokens trained on"
        for t in trials:
            yield (
                f"  {t['method']:<{wide}.{wide}}  {t['tunable']:<8.8}  {len(t['seeds']):>5}  {t['evaluated']:>4}  {t['learning_rates']:>5}"
                f"  {t['steps']:>5}  {t['tokens_mean']:>18,.0f}  {t['tokens_max']:>5,}  {t['tokens']:>17,}"
            )
        yield _line("", f"tokens a row: prompt and target, of at most {SAMPLED} train rows; a rationale not stored yet counts as {UNKNOWN}")
        yield _line("", "tokens trained on: rows × epochs × learning rates × seeds; done: trials that are tuned and evaluated")
    for missing in planned["not_run"]:
        where = f"{missing['method']} on {missing['task']} ({missing['tunable']})"
        yield _line("not run", f"{where}: {missing['reason']}; config key {missing['config_key']}")


def _line(label: str, text: str) -> str:
    return fill(text, WIDTH, initial_indent=f"  {label:<10} ", subsequent_indent=" " * 13, break_on_hyphens=False)


def _counts(by_language: Mapping[str, int]) -> str:
    return ", ".join(f"{language} {count:,}" for language, count in sorted(by_language.items()))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _duration(seconds: float) -> str:
    """Two figures at most: it is an estimate."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
