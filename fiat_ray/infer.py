"""Algorithm 2 on new rows: the run's reasoner reasons, the trial's tuned model answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiat_ray import campaign, cluster
from fiat_ray import config as configs
from fiat_ray.augmented import Example
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.length import Budget, Lengths, measure
from fiat_ray.models import find, resolve
from fiat_ray.prepare import make_reasoner, make_renderer, max_length, reasoner_budget, requests_of
from fiat_ray.reason.requests import Requests
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store
from fiat_ray.recipe import Recipe
from fiat_ray.rows import Place, text_field
from fiat_ray.runs import Run
from fiat_ray.task import Row, Task, digest, template_fields


def infer_rows(run: Run, rows: Iterable[tuple[Place, dict[str, Any]]], trial: str | None = None) -> list[dict[str, Any]]:
    """Each row with ``prediction`` (and ``score``, P(positive), of a label; ``rationale`` and its ``status`` with CoT) added, in order.

    Rationales go into the run's own store, so a second call generates nothing twice. Raises ``UserError`` for a row without a field of the task,
    or one that does not fit.
    """
    record = run.best_trial(trial)
    config = configs.load(run.path)
    task = run.folder.load_task(record["task"])
    task = replace(task, rows=tuple(_row(task, place, raw) for place, raw in rows))
    if not task.rows:
        return []
    spec = tuned_trial(run, config, record)
    lengths, requests, reasoner_length = _measured(config, task, spec, run)
    cluster.connect()
    unit = cluster.unit(config.where)
    config = replace(config, where=cluster.resolved(config.where, unit))
    rationales = _rationales(config, requests, run, unit, reasoner_length) if requests else {}
    found = [rationales[requests.keys[row.id]] if requests else {} for row in task.rows]
    examples = [
        Example(row.id, "test", row.language, lengths.texts[row.id], row.targets, row.group, f.get("text"), f.get("status"))
        for row, f in zip(task.rows, found, strict=True)
    ]
    predictions = _predict(config, run, spec, task, examples)
    return [
        {**raw, **({"rationale": e.rationale, "status": e.status} if e.rationale is not None else {}), "prediction": p["prediction"]}
        | ({"score": p["score"]} if p["score"] is not None else {})
        for (_, raw), e, p in zip(rows, examples, predictions, strict=True)
    ]


def _row(task: Task, place: Place, raw: dict[str, Any]) -> Row:
    fields = {name: text_field(raw, name, place) for name in template_fields(task.input)}
    language = text_field(raw, task.language, place) if task.language else "und"
    return Row(digest(str(place), *fields.values()), "test", language, fields, ("",), "", "", place)


def tuned_trial(run: Run, config: Config, record: Mapping[str, Any]) -> campaign.Trial:
    """What is needed of a trial to infer with it. Raises ``UserError`` where its weights are gone, or its base model has changed."""
    if run.folder.weights(record["name"]) is None:
        kept = "`keep: best` keeps those of the best on validation; to tune this one again, delete its folder and run with keep=all"
        raise UserError(f"{run.folder.trial(record['name'])}: holds no weights; {kept}")
    recipe = Recipe(**record["recipe"])
    tunable = config.tunables[record["tunable"]]
    model = tunable.model if recipe.instruction_tuned else tunable.pretrained
    assert model is not None, "a trial of a pretrained twin has one"
    if (commit := record.get("base", {}).get("commit")) and not Path(model).is_dir():
        model = f"{model.partition('@')[0]}@{commit}"  # the name alone may mean other files by now
    key = f"tunables.{record['tunable']}{'' if recipe.instruction_tuned else '.pretrained'}"
    _check_hash(run, key, resolve(model).hash)
    length = max_length(key, tunable, find(model))
    who = {key: record[key] for key in ("task", "method", "tunable", "seed", "train_size", "answer_tokens", "fingerprint")}
    tuning: dict[str, Any] = {"learning_rates": (), "batch_size": 1, "epochs": 1, "steps": None, "validations": 1, "validation_rows": 1}
    return campaign.Trial(
        **who,
        **tuning,
        lora=config.lora,
        recipe=recipe,
        model=model,
        language_mix="natural",
        rationale_tokens=config.reasoner.max_tokens,
        max_length=length,
    )


def _measured(config: Config, task: Task, trial: campaign.Trial, run: Run) -> tuple[Lengths, Requests | None, int]:
    """New rows, cut as the run's rows were; what to ask the reasoner about them, if anything; and the bound on its prompts and outputs."""
    renderer = make_renderer(trial.tunable, find(trial.model), trial.recipe.instruction_tuned)
    reserved = trial.answer_tokens + 1 + (trial.rationale_tokens if trial.recipe.cot == "augmented" else 0)
    budgets = [Budget(f"tunables.{trial.tunable}", renderer, trial.max_length, reserved, (trial.recipe,))]
    if trial.recipe.cot != "augmented":
        return measure(task, budgets, config.exemplars), None, 0
    budget, model = reasoner_budget(config)
    if model is not None:
        _check_hash(run, "reasoner", model.hash)
    # As many exemplars as in the prompts of the rationales that the tunable was tuned on.
    lengths = measure(task, [*budgets, *([budget] if budget else [])], config.exemplars, run.folder.exemplars_shown(task.name))
    return lengths, requests_of(config, task, lengths, budget, model), budget.max_length if budget else 0


def _check_hash(run: Run, role: str, found: str) -> None:
    """A tuned adapter means something on the weights it was tuned on only."""
    expected = run.folder.read_manifest()["models"][role]
    if expected["hash"] != found:
        raise UserError(f"{role}: the files of {expected['name']} have changed since this run; put back the ones it was made with")


def _rationales(config: Config, requests: Requests, run: Run, unit: cluster.Unit, length: int) -> dict[str, dict[str, Any]]:
    store, unit = Store(run.folder.rationales), cluster.reasoner_unit(config, unit)
    with requests.shared(run.path) as shared:
        for _ in reason(shared, store, make_reasoner(config, length), cpus=unit.cpus, gpus=unit.gpus):
            pass
    return store.read(requests.distinct())


def _predict(config: Config, run: Run, trial: campaign.Trial, task: Task, examples: list[Example]) -> list[dict[str, Any]]:
    import ray

    from fiat_ray.evaluate import Evaluator

    gpus = config.where.gpus or 0
    actor = ray.remote(num_cpus=config.where.cpus, num_gpus=gpus)(Evaluator).remote(str(run.path), trial.model, trial.max_length, max(1, gpus))
    try:
        predictions: list[dict[str, Any]] = ray.get(actor.infer.remote(trial, replace(task, rows=()), examples))
    finally:
        ray.kill(actor)
    return predictions
