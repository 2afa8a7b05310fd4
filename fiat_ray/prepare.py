"""Everything that is known before anything runs: rows read, every prompt measured and cut, requests keyed, trials listed. Starts nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fiat_ray import augmented, campaign, metrics, models, own_task
from fiat_ray import config as configs
from fiat_ray.artifact import fingerprint
from fiat_ray.campaign import Checkpoint, Measured, NotRun, Trial
from fiat_ray.config import Config, TunableConfig
from fiat_ray.errors import UserError
from fiat_ray.length import Budget, Lengths, measure
from fiat_ray.models import Model
from fiat_ray.reason.openai import OpenAIReasoner
from fiat_ray.reason.reasoners import Reasoner, ScriptedReasoner, VllmReasoner, load_script
from fiat_ray.reason.requests import Requests, openai_requests, scripted_requests, vllm_requests
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.store import Store
from fiat_ray.render import Renderer, plain_tokenizer
from fiat_ray.run_folder import RunFolder, place_for
from fiat_ray.schema import VERSION
from fiat_ray.task import SPLITS, Task, check_splits, count_by_language, in_languages, limited
from fiat_ray.task_folder import reader_options
from fiat_ray.yaml_file import parse_yaml

LONGEST_PROMPT = 8192
"""A reasoner's prompt and output, where the config does not say."""


@dataclass
class Prepared:
    config: Config
    tasks: dict[str, Task]
    lengths: dict[str, Lengths]
    trials: list[Trial]
    not_run: list[NotRun]
    models: dict[str, Any]
    """For the manifest: names and content hashes."""
    requests: dict[str, Requests] = field(default_factory=dict)
    """Empty where no method asks the reasoner."""
    reasoner_length: int = 0
    """Bound on the reasoner's prompt and output, in its tokens."""
    budgets: list[Budget] = field(default_factory=list)
    """What each checkpoint that gets prompts has room for."""
    data: dict[str, str] = field(default_factory=dict)
    """Task → fingerprint of its rows as used."""

    def asked(self, task: str) -> str:
        """What the task's augmented set must have been sealed for."""
        return augmented.asked(self.tasks[task].rows, self.lengths[task], self.requests[task].keys)


def make_reasoner(config: Config, max_length: int) -> Callable[[], Reasoner]:
    """What makes the reasoner, where it is to run. ``max_length``: see ``Prepared.reasoner_length``."""
    reasoner = config.reasoner
    if reasoner.kind == "scripted":
        return partial(ScriptedReasoner, str(Path(reasoner.script or "").resolve()))
    if reasoner.is_remote:
        return partial(OpenAIReasoner, reasoner.base_url or "", reasoner.model, reasoner.max_tokens, tuple(reasoner.stop), reasoner.concurrency)
    gpus = max(1, config.where.gpus or 1)
    model = models.pinned(reasoner.model)
    return partial(VllmReasoner, model, max_length, reasoner.max_tokens, reasoner.dtype, tuple(reasoner.stop), gpus)


def load_tasks(config: Config) -> dict[str, Task]:
    """The config's tasks with their rows. Of several tasks each gets the options (focus, passages) that it knows.

    The config of a run directory asks for the rows that lie in it, unless something that decides about rows was changed.
    """
    tasks: dict[str, Task] = {}
    options = {name: value for name, value in {"focus": config.focus, "passages": config.passages}.items() if value is not None}
    for name, settings in zip(config.task, drawn(config), strict=True):
        task = RunFolder(config.run).drawn_task(settings) if config.run else None
        if task is None:
            known = _known_options(config, name)
            asked = options if len(config.task) == 1 else {option: value for option, value in options.items() if option in known}
            task = Task.load(name, config.data, languages=config.languages, limit=config.limit, **asked)
        if task.name in tasks:
            raise UserError(f"task: two tasks are named '{task.name}'; give one another `name:` in its task.yaml")
        tasks[task.name] = task
    return tasks


def _drawn_from(tasks: Mapping[str, Task], config: Config) -> dict[str, Task]:
    """What the config asks for of tasks that somebody has read. Raises ``UserError`` for keys that would have had to be known before."""
    for key in ("data", "focus", "passages"):
        if getattr(config, key) is not None:
            raise UserError(f"{key}: says how rows are read, and those of a Task that is handed over are there; give it to Task.load")
    return {name: limited(in_languages(task, config.languages), config.limit) for name, task in tasks.items()}


def _known_options(config: Config, task: str) -> list[str]:
    try:
        return reader_options(task)
    except UserError as error:
        if config.run is None:
            raise
        raise UserError(f"{error}; task={config.run / 'task' / Path(task).name} would take the rows of this run") from None


def drawn(config: Config) -> list[dict[str, Any]]:
    """For each task of a config what decides which rows it has; paths absolute, JSON-able."""
    values = parse_yaml(configs.dump(config))
    return [{key: values[key] for key in ("data", "languages", "focus", "passages", "limit")} | {"task": task} for task in values["task"]]


def prepare(config: Config, tasks: Mapping[str, Task] | None = None) -> Prepared:
    """Read, render and measure. ``tasks``: given instead of the config's own (``Task.from_rows``). Raises ``UserError`` for what can't run."""
    tasks = load_tasks(config) if tasks is None else _drawn_from(tasks, config)
    for task in tasks.values():
        check_splits(task)
    if config.store and "://" in config.store:
        Store(config.store).parts()
    elif config.store:
        place_for(config.store, "a store")
    found: dict[str, Model] = {}
    prepared = Prepared(config, tasks, {}, [], [], {})
    budgets = prepared.budgets
    reasoner, model = reasoner_budget(config) if campaign.needs_reasoner(config) else (None, None)
    if reasoner and model:
        budgets.append(reasoner)
        found["reasoner"] = model
        prepared.reasoner_length = reasoner.max_length
    checkpoints = _tunable_budgets(config, tasks, found, budgets)
    for name, task in tasks.items():
        prepared.lengths[name] = measure(task, budgets, config.exemplars)
        if campaign.needs_reasoner(config):
            prepared.requests[name] = requests_of(config, task, prepared.lengths[name], reasoner, model)
    measured = {name: _measured(task, prepared.lengths[name], prepared.requests.get(name)) for name, task in tasks.items()}
    prepared.data = {name: found.rows for name, found in measured.items()}
    prepared.trials, prepared.not_run = campaign.trials(config, measured, {key: value for key, (value, _) in checkpoints.items()})
    prepared.models = {name: {"name": model.name, "hash": model.hash} for name, model in found.items()}
    return prepared


def make_renderer(role: str, folder: Path, instruction_tuned: bool = True) -> Renderer:
    """The renderer of the reasoner, which replies with a rationale, or of a tunable, which replies with the answer."""
    with _usable(folder):
        if not plain_tokenizer(folder):  # else where it is needed, see ``check_models``
            _check_config(folder)
        renderer = Renderer(folder, reply="\n") if role == "reasoner" else Renderer(folder, chat=instruction_tuned)
        renderer.check()
    return renderer


def check_models(prepared: Prepared) -> None:
    """Raises ``UserError`` for a model whose config transformers does not take, and for a tunable that can't be tuned."""
    for budget in prepared.budgets:
        folder = budget.renderer.folder
        with _usable(folder):
            found = _check_config(folder)
        if budget.recipes:
            _check_architecture(budget.role, folder, found)


def _check_config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def _check_architecture(key: str, folder: Path, found: Any) -> None:
    """Tuning packs rows, whose attention only models keep apart that let it be exchanged; and it names some of their parts."""
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM._model_mapping.get(type(found), None)
    exchanged = getattr(causal, "_supports_attention_backend", False)
    parts = getattr(causal, "base_model_prefix", "") == "model" and "lm_head.weight" in (getattr(causal, "_tied_weights_keys", None) or ())
    if not (exchanged and parts and hasattr(found, "intermediate_size")):
        name = models.public_name(str(folder)).name
        raise UserError(f"{key}: {name} is of the kind {found.model_type}, which tuning does not support; choose another, such as a Qwen3 or a Llama")


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what is in somebody's files raises OSError, ValueError, TypeError, jinja's own, and more
        raise UserError(f"model {folder}: its config, tokenizer or chat template can't be used ({' '.join(str(error).split())[:200]})") from None


def context_length(folder: Path) -> int:
    """The sequence length a model was made for, from its config."""
    values = json.loads((folder / "config.json").read_text("utf-8"))
    length = values.get("max_position_embeddings") or values.get("text_config", {}).get("max_position_embeddings") or 2048
    if not isinstance(length, int):
        raise UserError(f"model {folder}: max_position_embeddings in its config.json must be a number, not {length!r}")
    return length


def check_full_attention(key: str, folder: Path, length: int) -> None:
    """Tuning packs rows and attends within each to all of it: refuse models made for a shorter window, capped logits or other layers."""
    values = json.loads((folder / "config.json").read_text("utf-8"))
    values = values.get("text_config", values)
    kinds = set(values.get("layer_types") or ["sliding_attention" if values.get("use_sliding_window", True) else "full_attention"])
    windowed = "sliding_attention" in kinds and (values.get("sliding_window") or length) < length
    capped = values.get("attn_logit_softcapping") or values.get("final_logit_softcapping")
    if windowed or capped or kinds - {"full_attention", "sliding_attention"}:
        raise UserError(f"{key}: {folder.name} has attention windows, capped logits or other layers, which tuning does not support; choose another")


def check_targets(key: str, folder: Path, targets: str) -> None:
    """Refuse adapters on a head that is the embedding too: tuning would add to the one, merged weights to both."""
    if targets == "all-linear":  # which leaves the head out
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    if not model.config.get_text_config().tie_word_embeddings:
        return
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    reached = [name for name, module in model.named_modules() if module in tied and re.fullmatch(targets, name)]
    if reached:
        raise UserError(f"lora.targets: '{targets}' takes in {reached[0]}, whose weights are input and output embedding of {key}; leave it out")


def max_length(key: str, section: ReasonerConfig | TunableConfig, folder: Path) -> int:
    """Prompt and output together, in tokens, of a model that the config's ``key`` describes: what is asked for, or what it was made for."""
    context = context_length(folder)
    if section.max_length is not None and section.max_length > context:
        raise UserError(f"{key}.max_length: {section.max_length} is more than the model's {context} positions")
    return section.max_length or min(context, LONGEST_PROMPT if isinstance(section, ReasonerConfig) else 4096)


def reasoner_budget(config: Config) -> tuple[Budget | None, Model | None]:
    """What the reasoner has room for, and what it is. A script reads no tokens; those of a remote model are another tokenizer's, as an estimate."""
    reasoner = config.reasoner
    if reasoner.kind == "scripted":
        load_script(Path(reasoner.script or ""))
        return None, None
    if reasoner.is_remote:
        model = Model(f"{reasoner.model} at {reasoner.base_url}", models.find(reasoner.tokenizer), "")
    else:
        model = models.resolve(reasoner.model)
    renderer = make_renderer("reasoner", model.folder)
    length = reasoner.max_length or LONGEST_PROMPT if reasoner.is_remote else max_length("reasoner", reasoner, model.folder)
    if reasoner.max_tokens >= length:
        raise UserError(f"reasoner.max_tokens: {reasoner.max_tokens} leaves no room for a prompt in {length} tokens")
    return Budget("reasoner", renderer, length, reasoner.max_tokens), model


Checkpoints = dict[tuple[str, bool], tuple[Checkpoint, Budget]]


def _tunable_budgets(config: Config, tasks: Mapping[str, Task], found: dict[str, Model], budgets: list[Budget]) -> Checkpoints:
    """(tunable, instruction-tuned) → checkpoint and budget, for those that some method tunes and the config names."""
    checkpoints: Checkpoints = {}
    for name, tunable in config.tunables.items():
        for tuned, model_name in ((True, tunable.model), (False, tunable.pretrained)):
            recipes = campaign.recipes(config, tuned)
            if not recipes or model_name is None:
                continue
            key = campaign.role(name, tuned)
            model = found[key] = models.resolve(model_name)
            renderer = make_renderer(name, model.folder, tuned)
            length = max_length(key, tunable, model.folder)
            check_full_attention(key, model.folder, length)
            if any(recipe.peft for recipe in recipes):
                check_targets(key, model.folder, config.lora.targets)
            answers = {task.name: _answer_tokens(task, renderer) for task in tasks.values()}
            reserved = (config.reasoner.max_tokens if any(r.cot != "none" for r in recipes) else 0) + max(answers.values()) + 1
            checkpoints[name, tuned] = (
                Checkpoint(models.pinned(model_name), model.hash, length, answers),
                Budget(key, renderer, length, reserved, recipes),
            )
            budgets.append(checkpoints[name, tuned][1])
    return checkpoints


def _answer_tokens(task: Task, renderer: Renderer) -> int:
    """Bound on a generated answer: half as long again as the longest one that may be looked at (not test's)."""
    longest = max((len(renderer.answer_ids(target)) for row in task.rows if row.split != "test" for target in row.targets), default=0)
    return max(8, longest * 3 // 2)


def requests_of(config: Config, task: Task, lengths: Lengths, budget: Budget | None, model: Model | None) -> Requests:
    """What the reasoner is asked about a task's rows. ``budget``, ``model``: see ``reasoner_budget``."""
    if budget is None or model is None:
        return scripted_requests(task, lengths, Path(config.reasoner.script or ""))
    ask = openai_requests if config.reasoner.is_remote else vllm_requests
    return ask(task, lengths, budget.renderer, _identity(config.reasoner, model), config.exemplars, lengths.exemplars)


def _identity(reasoner: ReasonerConfig, model: Model) -> dict[str, Any]:
    """All besides the prompt that decides what a reasoner says."""
    if reasoner.is_remote:
        who = {"base_url": (reasoner.base_url or "").rstrip("/"), "model": reasoner.model}
    else:
        who = {"model": model.hash, "dtype": reasoner.dtype}
    return {"version": VERSION, "kind": reasoner.kind, **who, "temperature": 0, "max_tokens": reasoner.max_tokens, "stop": reasoner.stop}


def _measured(task: Task, lengths: Lengths, requests: Requests | None) -> Measured:
    return Measured(
        rows=fingerprint([[row.id, lengths.texts[row.id], row.targets, row.group] for row in task.rows]),
        rationales=fingerprint(sorted(requests.keys.items())) if requests else "",
        i_tau=task.i_tau,
        labels=task.labels,
        metric=metrics.identity(task.metric),
        train_size=len(task.split("train")),
    )


def describe(prepared: Prepared) -> dict[str, Any]:
    """The part of a run's manifest that says what is computed."""
    return {
        "tasks": {name: {"data": prepared.data[name], **_describe_task(task, prepared.lengths[name])} for name, task in prepared.tasks.items()},
        "models": prepared.models,
        "reserved": {budget.role: budget.reserved for budget in prepared.budgets},
        "trials": [_describe_trial(trial) for trial in prepared.trials],
        "not_run": [asdict(missing) for missing in prepared.not_run],
        "notes": [*prepared.config.notes, *(note for task in prepared.tasks.values() for note in _drafted(task))],
    }


def _drafted(task: Task) -> list[str]:
    files = own_task.drafts(task)
    said = f"{task.name}: drafts, which nobody has read who knows the task: {', '.join(files)}. Better ones may change every number."
    return [said] if files else []


def _describe_trial(trial: Trial) -> dict[str, Any]:
    return {key: getattr(trial, key) for key in ("name", "task", "method", "tunable", "seed", "train_size", "fingerprint")}


def _describe_task(task: Task, lengths: Lengths) -> dict[str, Any]:
    return {
        "languages": task.languages,
        "metric": task.metric,
        "labels": list(task.labels),
        "rows": {split: count_by_language(task.split(split)) for split in SPLITS},
        "groups": {split: len({row.group for row in task.split(split)}) for split in ("train", "validation", "test")},
        "removed": list(task.removed),
        "cut": dict(lengths.cut),
        "gold_cut": dict(lengths.gold_cut),
        "exemplars": lengths.exemplars,
        "prompts": fingerprint(task.i_beta, task.i_tau, [asdict(e) for e in task.exemplars]),
    }
