"""What a campaign will take, told before anything runs: rows, prompts, tokens, trials, time. Starts nothing: no Ray, no engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from fiat_ray import artifact, costs, memory, models, prepare
from fiat_ray.campaign import Trial
from fiat_ray.config import Config
from fiat_ray.disk import disk
from fiat_ray.draw import number_of_steps
from fiat_ray.length import components
from fiat_ray.progress import Console
from fiat_ray.reason.requests import Requests
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.store import Store
from fiat_ray.recipe import UNTUNED
from fiat_ray.render import Renderer, rationale_part, shown_rationale
from fiat_ray.run_folder import RunFolder
from fiat_ray.sample import measure
from fiat_ray.schedule.trials import evaluated, tuned
from fiat_ray.schema import SAMPLE
from fiat_ray.task import Row, Task

SAMPLED = 500
"""Train rows that are rendered to measure a recipe's prompts; more would change the mean by less than the estimate's error."""

Rationales = dict[str, dict[str, Any]]


def plan(
    config: Config, tasks: Mapping[str, Task] | None = None, *, run: str | Path | None = None, sample: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Rows, cuts, reasoner and trials with their tokens, rough time and cost (see ``costs.estimate``); JSON-able.

    ``tasks``: given instead of the config's own. ``run``: a run directory, finished in part or not there yet; what it holds need not be done again.
    ``sample``: measure the reasoner first (see ``sample.py``); nothing else is ever started.
    Raises ``UserError`` for what can't run, as the run itself would.
    """
    console = console or Console(quiet=True)
    with console.working("reading rows and measuring prompts"):
        prepared = prepare.prepare(config, tasks)
        prepare.check_models(prepared)
    if sample:
        measure(prepared, RunFolder(run or ""), console)
    with console.working("counting tokens"):
        return of(prepared, run)


def of(prepared: prepare.Prepared, run: str | Path | None) -> dict[str, Any]:
    """``plan`` of what is prepared already."""
    config, folder = prepared.config, RunFolder(run) if run else None
    found = {name: stored(config, requests, run) for name, requests in prepared.requests.items()}
    planned = prepare.describe(prepared)
    for name, task in prepared.tasks.items():
        planned["tasks"][name]["length"] = components(task, prepared.budgets, prepared.lengths[name], config.exemplars)
        planned["tasks"][name]["exemplars_most"] = {x: len(task.exemplars_for(x, config.exemplars)) for x in task.languages}
        requests = prepared.requests.get(name)
        planned["tasks"][name]["reasoner"] = _asked(requests, found[name], config.reasoner) if requests else None
    planned["models"] = {role: model | (_size(model["name"]) if model["hash"] else {}) for role, model in prepared.models.items()}
    planned["trials"] = _trials(prepared, found, folder)
    planned["untuned"] = [method for method in config.methods if method in UNTUNED]
    planned["disk"] = disk(prepared, folder) if folder else []
    planned["memory"] = memory.at_least(config, config.where, reasoning=bool(prepared.requests), tune=prepared.trials, evaluate=prepared.trials)
    planned["sample"] = _sample(prepared, folder) if folder else None
    planned["time"] = costs.estimate(config, planned)
    return planned


def stored(config: Config, requests: Requests, run: str | Path | None) -> Rationales:
    """Key → rationale, of those requests that need no further try: from the config's store, or the run's own."""
    place = config.store or (RunFolder(run).rationales if run else None)
    if place is None:
        return {}
    store, keys = Store(place), requests.distinct()
    return store.read(keys.filter(pa.array(store.known().has(keys))))


def _sample(prepared: prepare.Prepared, run: RunFolder) -> dict[str, Any] | None:
    """What was measured of this reasoner on so many GPUs (see ``sample.py``); None where nothing was."""
    found: dict[str, Any] | None = artifact.read_json(run.sample, **SAMPLE)
    if found is None or "reasoner" not in prepared.models:
        return None
    same = found["model"] == prepared.models["reasoner"]["hash"] and found["gpus"] == costs.gpus_of(prepared.config.where)
    return found if same else None


def _size(model: str) -> dict[str, int]:
    found = models.parameters(models.find(model))
    return {"parameters": found.total, "active_parameters": found.active}


def _asked(requests: Requests, found: Rationales, reasoner: ReasonerConfig) -> dict[str, Any]:
    """What the reasoner is asked in all, and what of it is not stored yet."""
    mean = fmean(row["output_tokens"] for row in found.values()) if found else None
    to_pay = _tokens_asked(requests, found, reasoner.max_tokens, mean)
    out = to_pay["tokens_out_most"] if to_pay["tokens_out_estimate"] is None else to_pay["tokens_out_estimate"]
    return {
        "prompts": len(requests),
        "stored": len(found),
        "output_tokens_mean": mean,
        "estimated_by": reasoner.tokenizer if reasoner.is_remote else None,
        "charged": reasoner.charged(to_pay["tokens_in"] or 0, out or 0),
        "all": _tokens_asked(requests, {}, reasoner.max_tokens, mean),
        "missing": to_pay,
    }


def _tokens_asked(requests: Requests, found: Rationales, max_tokens: int, mean: float | None) -> dict[str, int | None]:
    """Tokens of those requests that are not ``found``; 0 in and out where a script answers."""
    prefixes = {name: len(ids) for name, ids in requests.prefixes.items()}
    asked: Counter[str] = Counter()
    own = 0
    for table in requests.columns("key", "prefix", "size"):
        missing = [row for row in table.to_pylist() if row["key"] not in found]
        asked.update(row["prefix"] for row in missing)
        own += sum(row["size"] for row in missing) if prefixes else 0
    rendered = asked.total() if prefixes else 0
    return {
        "prompts": asked.total(),
        "tokens_in": own + sum(prefixes.get(name, 0) * rows for name, rows in asked.items()),
        "tokens_in_prefix_once": own + sum(prefixes.get(name, 0) for name in asked),
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
        stored, writes = found.get(trial.task, {}), renderer(trial.tunable, trial.model, recipe.instruction_tuned)
        shown, cut = _shown(trial, prepared, stored, writes)
        tokens, answers = _row_tokens(trial, prepared, stored, shown, writes)
        steps = number_of_steps(trial.train_size, trial.batch_size, trial.epochs, trial.steps)
        rows = _rows_seen(trial.train_size, trial.batch_size, steps)
        planned.append(
            {
                "task": trial.task,
                "method": trial.method,
                "tunable": trial.tunable,
                "model": trial.role,
                "peft": recipe.peft,
                "train_size": trial.train_size,
                "seeds": [t.seed for t in trials],
                "tuned": sum(run is not None and tuned(run, t) for t in trials),
                "evaluated": sum(run is not None and evaluated(run, t) for t in trials),
                "learning_rates": len(trial.learning_rates),
                "steps": steps,
                "rows_sampled": len(tokens),
                "rationales_sampled": len(shown),
                "rationales_cut": cut,
                "tokens_mean": fmean(tokens),
                "tokens_max": max(tokens),
                "tokens": round(fmean(tokens) * rows * len(trial.learning_rates) * len(trials)),
                "rows_validated": min(trial.validation_rows, len(task.split("validation"))) * (1 + trial.validations * len(trial.learning_rates)),
                "rows_tested": len(task.split("test")),
                "answer_tokens_mean": 0.0 if task.labels else fmean(answers),  # labels are scored, not generated
            }
        )
    return planned


def _rows_seen(rows: int, batch_size: int, steps: int) -> int:
    """Rows in that many steps; an epoch's last batch is as small as it is."""
    epochs, rest = divmod(steps, -(-rows // batch_size))
    return epochs * rows + rest * batch_size


def _sampled(task: Task) -> tuple[Row, ...]:
    rows = task.split("train")
    return rows[:: -(-len(rows) // SAMPLED)]


def _shown(trial: Trial, prepared: prepare.Prepared, found: Rationales, renderer: Renderer) -> tuple[dict[str, str], int]:
    """Row id → what a trial shows of the rationale, of those sampled rows whose rationale is stored; and of how many of them it is cut."""
    if trial.recipe.cot == "none":
        return {}, 0
    task, keys = prepared.tasks[trial.task], prepared.requests[trial.task].keys
    whole = {row.id: found[keys[row.id]]["text"] for row in _sampled(task) if keys[row.id] in found}
    shown = {name: shown_rationale(task, renderer, text, trial.recipe, trial.rationale_tokens) for name, text in whole.items()}
    return shown, sum(shown[name] != rationale_part(task, text, trial.recipe) for name, text in whole.items())


def _row_tokens(
    trial: Trial, prepared: prepare.Prepared, found: Rationales, rationales: Mapping[str, str], renderer: Renderer
) -> tuple[list[int], list[int]]:
    """Tokens of some train rows, prompt and target, in a trial's recipe; and those of their targets alone. ``rationales``: see ``_shown``.

    A rationale that is not stored yet counts as long as the stored ones are on average; where there is none, as long as it may be.
    """
    task, lengths, sample = prepared.tasks[trial.task], prepared.lengths[trial.task], _sampled(prepared.tasks[trial.task])
    expected = round(fmean(r["output_tokens"] for r in found.values())) if found else trial.rationale_tokens

    def tokens(row: Row) -> int:
        text, recipe, shown = lengths.texts[row.id], trial.recipe, rationales.get(row.id)
        total = len(renderer.tunable_prompt(task, text, shown, recipe)) + len(renderer.target(row.targets[0]).ids)
        if recipe.cot == "distilled":
            total += len(renderer.explain_prompt(task, text, recipe)) + (len(renderer.target(shown).ids) if shown else 0)
        return total + (expected if recipe.cot != "none" and shown is None else 0)

    return [tokens(row) for row in sample], [len(renderer.target(row.targets[0]).ids) for row in sample]
