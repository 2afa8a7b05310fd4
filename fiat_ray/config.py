"""A campaign's config: YAML → typed values, every key checked. What is computed, and apart from it (``where``) where it runs."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from fiat_ray.draw import LanguageMix
from fiat_ray.errors import UserError
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.recipe import ABLATIONS, METHOD_LISTS, RECIPES, UNTUNED, Recipe
from fiat_ray.typed import typed
from fiat_ray.where import Where
from fiat_ray.yaml_file import parse_yaml, read_yaml

BUILT_IN = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TunableConfig:
    model: str = "embedded"
    """An instruction-tuned checkpoint."""
    pretrained: str | None = None
    """Its twin without instruction tuning, for the last ablation."""
    max_length: int | None = None
    """Prompt and answer together, in tokens; default: what the model was made for, at most 4,096."""


@dataclass(frozen=True)
class LearningRates:
    """Learning rates tried with LoRA and with full tuning; the best on validation is kept. Equally many for both."""

    lora: list[float] = field(default_factory=lambda: [2e-4])
    """Of methods with parameter-efficient tuning."""
    full: list[float] = field(default_factory=lambda: [2e-5])
    """Of methods that tune all parameters."""


@dataclass(frozen=True)
class Lora:
    rank: int = 16
    """Rows of A and columns of B."""
    alpha: int = 32
    """The update is scaled by alpha ÷ rank."""
    targets: str = "all-linear"
    """Layers that get an adapter, as PEFT's ``target_modules``."""
    rslora: bool = False
    """Scale by alpha ÷ √rank (Kalajdzievski 2023)."""
    dora: bool = False
    """Tune magnitude and direction apart (Liu et al. 2024)."""


@dataclass(frozen=True)
class ValidationConfig:
    times: int = 4
    """Validations after step 0, evenly spaced, the last at the end."""
    rows: int = 64
    """Size of the fixed, stratified subset."""


@dataclass(frozen=True)
class Config:
    task: list[str]
    """Task folders or names of built-in tasks; one may stand without brackets."""
    data: str | None = None
    """Where a task's rows lie, when they are not in its folder; for built-in tasks also the folder of several."""
    languages: list[str] | None = None
    """Of these alone; default: all that the task has."""
    focus: str | None = None
    """An option of `xtreme_up_qa`: ``full`` (27 languages) or ``indic`` (20)."""
    passages: str | None = None
    """An option of `xor_attriqa`: ``retrieved`` (the paper's), ``in_language``, ``english`` or ``both``."""
    limit: dict[str, int] = field(default_factory=dict)
    """Split → most rows of each language, a draw by hash that stays the same."""
    reasoner: ReasonerConfig = ReasonerConfig()
    """The fixed model β."""
    tunables: dict[str, TunableConfig] = field(default_factory=lambda: {"xs": TunableConfig()})
    """Name, such as ``xs`` or ``s`` → a model τ; all methods are run with each."""
    methods: list[str] = field(default_factory=lambda: ["icl", *ABLATIONS])
    """What is compared: names of methods, of lists of them (``ablations``, ``leave_one_out``, ``paper``), or of your own ``recipes``."""
    recipes: dict[str, Recipe] = field(default_factory=dict)
    """Recipes of one's own, by method name."""
    exemplars: Literal["row_language", "all"] = "row_language"
    """Which worked examples the reasoner reads before a row: those of its language, or of all."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of the adapter's start and the order of rows; each method is tuned once with each."""
    learning_rate: LearningRates = LearningRates()
    """What is tried."""
    lora: Lora = Lora()
    """θ_τ^PEFT."""
    train_size: list[int] = field(default_factory=list)
    """Train rows of each trial, for a scaling curve: nested draws by group, as equal over languages as can be. Default: all rows."""
    language_mix: LanguageMix = "natural"
    """``equal``: every language has the same share of an epoch."""
    batch_size: int = 16
    """Rows in one step, over all workers."""
    epochs: float = 1.0
    """How often all train rows are read."""
    steps: int | None = None
    """Instead of epochs."""
    validation: ValidationConfig = ValidationConfig()
    """What chooses step and learning rate."""
    store: str | None = None
    """Folder or object store (``s3://bucket/folder?endpoint_override=…``, credentials from the environment) of the rationale store, to share it
    between campaigns; default: ``rationales`` inside the run."""
    tracking_uri: str | None = None
    """MLflow's store: ``sqlite:///FILE``, ``http://HOST:PORT``, …, passwords from the environment; default: ``mlruns/mlflow.db`` in the working
    directory."""
    max_gpu_hours: float | None = None
    """A run that has taken so many, over all its sittings, starts nothing more. Hours of every engine and tuning worker count, its start included,
    times its GPUs; an hour of one without a GPU counts as one."""
    max_cost: float | None = None
    """The same in money, by ``where.gpu_hour_price``, with what a remote reasoner charges for its answers."""
    keep: Literal["all", "best"] = "all"
    """Whose tuned weights stay in the run at its end: those of all trials, or, of each task, method, tunable and size, of the best on validation."""
    where: Where = Where()
    """On what it runs."""
    notes: list[str] = field(default_factory=list)
    """Said under the main table."""
    run: Path | None = field(default=None, compare=False)
    """No key: the run directory that the config was read from, whose own rows serve where they were drawn with the same settings."""

    def recipe(self, method: str) -> Recipe:
        return self.recipes.get(method) or RECIPES[method]


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A config from a YAML file, the name of a built-in one, a run directory, or a mapping; ``overrides`` are ``key=value`` with dots.

    Paths in a file are relative to the file's folder; in overrides and mappings, to the working directory.
    Raises ``UserError`` naming file and key.
    """
    if isinstance(source, Mapping):
        return _checked(dict(source), overrides, "config")
    path = find(source)
    values = read_yaml(path)
    for key, folder in _paths(values):
        values = _set(values, key, _relative(path, folder))
    is_run = path.name == "config.yaml" and (path.parent / "manifest.json").is_file()
    return dataclasses.replace(_checked(values, overrides, str(path)), run=path.parent if is_run else None)


def find(source: str | Path) -> Path:
    """The config file that a command's CONFIG argument means."""
    if not str(source):
        raise UserError("CONFIG is empty; give a YAML file, a run directory or the name of a built-in config")
    path = Path(source)
    candidates = [path / "config.yaml", path, BUILT_IN / f"{source}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.yaml")))
    raise UserError(f"config '{source}': no such file, run directory or built-in config ({known})")


def dump(config: Config, folder: Path | None = None) -> str:
    """YAML from which ``load`` makes the same config, wherever the file lies. Paths are absolute, but those below ``folder``, which is the file's
    own and may be moved as a whole."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key != "run"}
    for key, named in _paths(values):
        path = Path(named).resolve()
        below = folder is not None and path.is_relative_to(folder)
        values = _set(values, key, f"./{path.relative_to(folder)}" if below and folder else str(path))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _paths(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys of a config that hold paths, with their values. Task and model names are paths only where they look like one."""
    found = [(key, values[key]) for key in ("data", "store") if _is_path(values.get(key), always=True)]
    reasoner = values.get("reasoner")
    if isinstance(reasoner, Mapping):
        named = ("script", "tokenizer", *(["model"] if reasoner.get("kind") != "openai" else []))  # an endpoint's name of a model is no path
        found += [(f"reasoner.{key}", reasoner[key]) for key in named if _is_path(reasoner.get(key), always=key == "script")]
    for name, tunable in (values.get("tunables") or {}).items() if isinstance(values.get("tunables"), Mapping) else ():
        if isinstance(tunable, Mapping) and "." not in str(name):  # a name with a dot is refused later
            found += [(f"tunables.{name}.{key}", tunable[key]) for key in ("model", "pretrained") if _is_path(tunable.get(key))]
    tasks = values.get("task")
    for at, task in enumerate([tasks] if isinstance(tasks, str) else tasks if isinstance(tasks, list) else []):
        if _is_path(task):
            found.append((f"task.{at}" if isinstance(tasks, list) else "task", task))
    return found


def _is_path(value: Any, always: bool = False) -> bool:
    return isinstance(value, str) and value != "" and "://" not in value and (always or value.startswith((".", "/", "~")))


def _relative(path: Path, folder: str) -> str:
    """A path that the file at ``path`` names, and that still looks like one: a folder may be called as a built-in task is."""
    found = str(path.parent / os.path.expanduser(folder))
    return found if os.sep in found or found.startswith(".") else f".{os.sep}{found}"


def _checked(values: dict[str, Any], overrides: Sequence[str], origin: str) -> Config:
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"{override!r}: an override has the form key=value, such as limit.train=100")
        try:
            values = _set(values, key, parse_yaml(_number(text)))
        except (ValueError, RecursionError):
            raise UserError(f"{override[:200]!r}: the value is not valid YAML") from None
    if isinstance(values.get("task"), str):
        values = {**values, "task": [values["task"]]}
    methods = values.get("methods")
    if isinstance(methods, str) or (isinstance(methods, list) and all(isinstance(method, str) for method in methods)):
        values = {**values, "methods": _methods([methods] if isinstance(methods, str) else methods)}
    for key, path in _paths(values):
        if "\0" in path:
            raise UserError(f"{origin}: {key}: {path!r} is no path")
        if path.startswith("~"):
            values = _set(values, key, os.path.expanduser(path))
    try:
        config: Config = typed(Config, _floats(values), "")
        _check(config)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return config


def _methods(names: Sequence[str]) -> list[str]:
    """With the methods of a list in place of its name, each once."""
    found: list[str] = []
    for name in names:
        found += [one for one in METHOD_LISTS[name] if one not in (*names, *found)] if name in METHOD_LISTS else [name]
    return found


def _number(text: str) -> str:
    """YAML 1.1 reads ``2e-4`` as text."""
    try:
        return repr(float(text)) if "e" in text.lower() else text
    except ValueError:
        return text


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _floats(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_floats(part) for part in value]
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _set(values: Any, key: str, value: Any) -> Any:
    """A copy of nested mappings and lists with the dotted ``key`` set."""
    first, _, rest = key.partition(".")
    if isinstance(values, list) and first.isdigit() and int(first) < len(values):
        copy = list(values)
        copy[int(first)] = _set(values[int(first)], rest, value) if rest else value
        return copy
    inner = values if isinstance(values, Mapping) else {}
    return {**inner, first: _set(inner.get(first), rest, value) if rest else value}


def _check(config: Config) -> None:
    known = [*UNTUNED, *RECIPES, *config.recipes]
    for method in config.methods:
        if method not in known:
            near = difflib.get_close_matches(method, known, 1)
            raise UserError(f"methods: unknown method '{method}'; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(known)}")
    for key, names in (("recipes", list(config.recipes)), ("tunables", list(config.tunables))):
        for name in names:  # folders are named after them
            if name in (*UNTUNED, *METHOD_LISTS) or not re.fullmatch(r"\w[\w-]{0,49}", name):
                reserved = ", ".join((*UNTUNED, *METHOD_LISTS))
                raise UserError(f"{key}: '{name[:60]}' is no name for one; take letters, digits, _ - and none of {reserved}")
    _check_numbers(config)
    if len(config.learning_rate.lora) != len(config.learning_rate.full):
        raise UserError("learning_rate: lora and full need equally many rates, so that no method gets more tries than another")
    config.reasoner.check()
    if config.max_cost is not None and config.where.gpu_hour_price is None and not config.reasoner.has_price:
        raise UserError("max_cost: needs where.gpu_hour_price, what a GPU costs an hour, or the prices of an endpoint (reasoner.price_in, price_out)")
    try:
        re.compile(config.lora.targets)
    except re.error as error:
        raise UserError(f"lora.targets: '{config.lora.targets}' is neither all-linear nor a regular expression ({error})") from None
    if config.where.wait and config.where.gpus is None:
        raise UserError("where.wait: needs where.gpus, as nobody knows what machines will come")
    for seed in config.seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"seeds: {seed} is none; take whole numbers from 0 to 2^32 - 1")
    if config.languages == []:
        raise UserError("languages: is empty; leave it out for all")
    if "" in (config.data, config.store):
        raise UserError(f"{'data' if config.data == '' else 'store'}: is empty; name a folder, or leave it out")
    if config.epochs > 10**6:
        raise UserError(f"epochs: {config.epochs} is more than anybody can wait for")
    if config.tracking_uri is not None:
        from fiat_ray.tracking_store import check_uri

        check_uri(config.tracking_uri)
    if "@" in urlsplit(config.store or "").netloc:
        raise UserError("store: holds credentials, which would be written into the run; leave them to the environment")
    for key, parts in (("task", config.task), ("methods", config.methods), ("seeds", config.seeds), ("tunables", list(config.tunables))):
        if not parts or len(set(map(str, parts))) != len(parts):
            raise UserError(f"{key}: {'is empty' if not parts else 'names something twice'}")


def _check_numbers(config: Config) -> None:
    positive = {
        "reasoner.max_tokens": config.reasoner.max_tokens,
        "reasoner.max_length": config.reasoner.max_length,
        "reasoner.concurrency": config.reasoner.concurrency,
        "reasoner.price_in": config.reasoner.price_in,
        "reasoner.price_out": config.reasoner.price_out,
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "train_size": min(config.train_size, default=1),
        "steps": config.steps,
        "lora.rank": config.lora.rank,
        "lora.alpha": config.lora.alpha,
        "where.cpus": 1 if config.where.cpus is None else config.where.cpus,
        "where.gpus": 1 if not config.where.gpus else config.where.gpus,
        "validation.times": config.validation.times,
        "validation.rows": config.validation.rows,
        "where.replicas": config.where.replicas,
        "where.workers": config.where.workers,
        "where.wait": config.where.wait or 1,
        "where.tunings_per_gpu": config.where.tunings_per_gpu,
        "where.gpu_hour_price": config.where.gpu_hour_price,
        "max_gpu_hours": config.max_gpu_hours,
        "max_cost": config.max_cost,
        **{f"where.throughput.{key}": rate for key, rate in (dataclasses.asdict(config.where)["throughput"] or {}).items()},
        **{f"limit.{split}": rows for split, rows in config.limit.items()},
        **{f"tunables.{name}.max_length": tunable.max_length for name, tunable in config.tunables.items()},
        **{f"learning_rate.{kind}": min(rates, default=0) for kind, rates in dataclasses.asdict(config.learning_rate).items()},
    }
    for key, number in positive.items():
        if number is not None and not 0 < number < math.inf:
            raise UserError(f"{key}: must be above 0 and finite, not {number}")
