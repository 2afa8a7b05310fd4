"""``fiat-ray init``: somebody's labelled rows → a task folder, and a config that fits the hardware."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import yaml

from fiat_ray import artifact, planning
from fiat_ray import config as configs
from fiat_ray.errors import UserError
from fiat_ray.hub import HUB, source_rows
from fiat_ray.own_task import PASSAGES, Placed, common_passages, drafts, from_rows, row_keys, tidied
from fiat_ray.rows import Place, jsonl, text_field
from fiat_ray.run_folder import make, new_place
from fiat_ray.task import SPLITS, Task, count_by_language, template_fields
from fiat_ray.task_folder import BUILT_IN, check_labels, definition_files, task_name
from fiat_ray.text import size_of

Hardware = Literal["cpu", "gpu24", "gpu80", "api"]

TARGETS = ("answer", "answers", "target", "label", "output")
LABELS = ("label",)
"""Those of ``TARGETS`` that name a class, not free text."""
LANGUAGES = ("language", "lang")
INPUTS = ("instruction", "question", "query", "title", "sentence", "input", *PASSAGES)
"""In the order in which they stand in the template: the passage last, where it can be cut."""
MOST_LABELS = 50
OFTEN = 10
"""Rows of each answer, on average, from which on free text may well be labels that nobody has called so."""

PLANNED_SECONDS = 300
"""What a campaign on CPUs may take by its plan, which on slow cores is a third of what it takes."""
LEAST = {"train": 8, "validation": 8, "test": 20}
"""Rows of all languages together that a draw for CPUs keeps, where there are so many: fewer select and tell nothing."""


@dataclass(frozen=True)
class Started:
    """What was written, and what its author should know of it."""

    folder: Path
    task: Task
    source: str
    """Where its rows are from; of a data set on the hub with the commit, which stands in the config too."""
    unlabelled: dict[str, int]
    """Splits that are left out because no row of theirs has a target, and their rows."""
    same: dict[str, list[str]]
    """See ``own_task.row_keys``; empty where only rows with the same input have something to do with each other."""
    common: int
    """Passages that may stand in several of the splits that were drawn, because so many rows share each."""
    like_labels: list[str]
    """All different answers of free text that are so few, and so often the same, that ``--labels`` may be meant; else empty."""
    like_exemplars: int
    """Rows that are left out of every split because they share an input, passage or group with a drafted exemplar."""
    limit: dict[str, int]
    """Rows a language and split that a CPU has time for; empty where all are used."""
    takes: str
    """What those rows take by their plan, in words; empty of other hardware, whose speed nobody has stated yet."""
    warning: str
    """Why the config may not run on this machine; empty where nothing says so."""
    drafted: list[str]
    """Files that nobody has written yet who knows the task."""


def init(
    name: str | Path,
    train: str | Path,
    *,
    target: str | None = None,
    language: str | None = None,
    input: str | None = None,
    labels: Sequence[str] | None = None,
    positive: str | None = None,
    metric: str | None = None,
    group: Sequence[str] | None = None,
    exemplars: str | Path | None = None,
    seed: int = 0,
    hardware: Hardware | None = None,
) -> Started:
    """Write the folder ``name``: ``task.yaml``, instructions, exemplars, three splits and ``config.yaml``.

    ``train``: a ``.jsonl``, ``.csv`` or ``.parquet`` file, a folder of such files or one that ``datasets`` saved, or ``hf:owner/name``, a data set on
    the Hugging Face hub. A field ``split`` in it, or the files' names, decide about splits; without them they are drawn with ``seed``. Fields are
    known by usual names, unless they are given; for ``input``, ``metric``, ``group`` and ``exemplars`` see ``own_task.from_rows``. ``positive``: the
    label that AUC-PR is about. Raises ``UserError`` before anything is written.
    """
    folder = new_place(name, "a task")
    if (BUILT_IN / task_name(folder.name, "NAME")).is_dir():
        raise UserError(f"{folder.name}: a built-in task has that name; give another")
    placed, source = source_rows(train)
    if not placed:
        raise UserError(f"{train}: holds no rows")
    fields = list(dict.fromkeys(str(field) for _, raw in placed for field in raw))
    target = _field(target, TARGETS, fields, train, "--target")
    language = language if language is not None else next(iter(_known(LANGUAGES, fields)), None)
    split = next(iter(_known(("split",), fields)), None)
    placed, unlabelled = _labelled(tidied(placed, target, split), target, split)
    labels = _labels(placed, target, labels, positive, train)
    known = [field for field in _known(INPUTS, fields) if field not in (target, language)]
    template = input if input is not None else " ".join(f"{field}: {{{field}}}" for field in known) or None
    task = from_rows(
        placed,
        target=target,
        language=language,
        input=template,
        labels=labels,
        positive=positive,
        metric=metric,
        group=group,
        exemplars=exemplars,
        name=folder.name,
        split=split,
        seed=seed,
    )
    same = row_keys(placed, task.input, task.cut, group, split)
    common = 0 if group or split or task.cut is None else len(common_passages(placed, task.cut))
    like_exemplars = 0 if exemplars is not None else len(placed) - len(task.rows) - len(task.exemplars)
    chosen, models, warning = _chosen(hardware)
    limit, takes = _limit(task) if chosen == "cpu" else ({}, "")
    texts = definition_files({}, task, {"group": template_fields(task.input)} | same)
    texts["config.yaml"] = _config(task.name, chosen, models, limit, takes, source if source.startswith(HUB) else "")
    make(folder.parent, "a task")
    artifact.write_folder(folder, lambda path: _write(path, texts, task, dict(placed)))
    return Started(folder, task, source, unlabelled, same, common, _like_labels(task), like_exemplars, limit, takes, warning, drafts(task))


# What the fields are


def _known(names: Sequence[str], fields: Sequence[str]) -> list[str]:
    """Those fields that have one of the usual names, in the order of ``names``; capitals do not matter."""
    return sorted((field for field in fields if field.lower() in names), key=lambda field: names.index(field.lower()))


def _field(given: str | None, names: Sequence[str], fields: Sequence[str], file: str | Path, option: str) -> str:
    found = [given] if given is not None else _known(names, fields)
    if not found or found[0] not in fields:
        raise UserError(f"{file}: no field {given or ', '.join(names)}; its fields are {', '.join(fields)}: say which with {option}")
    return found[0]


def _labelled(placed: Placed, target: str, split: str | None) -> tuple[Placed, dict[str, int]]:
    """Rows less those of splits, but train, in which none has a target: answers that somebody keeps to themselves. And how many those are."""

    def name(raw: dict[str, Any]) -> str:
        return str((raw.get(split) if split else None) or "no split")

    labelled = {"train", *(name(raw) for _, raw in placed if raw.get(target) not in (None, "", []))}
    kept = [(place, raw) for place, raw in placed if name(raw) in labelled]
    return (kept, dict(Counter(name(raw) for _, raw in placed if name(raw) not in labelled))) if kept else (placed, {})


def _labels(placed: Placed, target: str, given: Sequence[str] | None, positive: str | None, file: str | Path) -> list[str] | None:
    """All labels; None of free text."""
    if given is None and target.lower() not in LABELS:
        if positive is not None:
            raise UserError(f"--positive {positive}: '{target}' is free text; give all labels with --labels")
        return None
    labels = list(given) if given is not None else sorted({_label(raw, target, place) for place, raw in placed})
    if not 2 <= len(labels) <= MOST_LABELS:
        raise UserError(f"{file}: '{target}' has {len(labels)} different values; labels are 2 to {MOST_LABELS}, free text has another name (answer)")
    check_labels(labels, file)
    if positive is not None and positive not in labels:
        raise UserError(f"--positive {positive}: is none of the labels {', '.join(labels)}")
    return labels


def _label(raw: dict[str, Any], target: str, place: Place) -> str:
    label = text_field(raw, target, place)
    if not label.strip():
        raise UserError(f"{place}: field '{target}' is empty; give the row a label, or leave it out")
    return label


def _like_labels(task: Task) -> list[str]:
    """See ``Started``. None that ``--labels`` can't name: it separates them by commas."""
    targets = [row.targets for row in task.rows] + [(exemplar.target,) for exemplar in task.exemplars]
    found = sorted({target for target, *_ in targets})
    named = not any("," in target or target != target.strip() for target in found) and all(len(of) == 1 for of in targets)
    few = 2 <= len(found) <= min(MOST_LABELS, len(targets) // OFTEN)
    return found if few and named and not task.labels else []


# What the hardware can do


FP8 = (8, 9)
"""Compute capability of the first GPUs that compute in it."""
LARGE, SMALL = 60 << 30, 20 * 10**9
"""Bytes of a GPU from which on it has room for the models of ``gpu80``, and below which it may have none for those of ``gpu24``."""


def _chosen(hardware: Hardware | None) -> tuple[Hardware, str, str]:
    """``hardware``, or what this machine has; its models; and why they may not run here."""
    memory, capability = _gpu() if hardware in (None, "gpu80") else (0, FP8)
    chosen: Hardware = hardware or ("gpu80" if memory >= LARGE else "gpu24" if memory else "cpu")
    models, warning = MODELS[chosen], ""
    if chosen == "gpu80" and memory >= LARGE and capability < FP8:
        models = models.replace("-FP8", "")  # its twin in bf16, which has room there
    if chosen == "gpu24" and 0 < memory < SMALL:
        warning = f"the models are for a GPU of 24 GB, and may not fit into this one's {size_of(memory)}; plan says what they take at least"
    if chosen == "cpu" and any(not found.version.endswith("+cpu") for found in importlib.metadata.distributions(name="vllm")):
        warning = "where.gpus: 0 does not run here, where vLLM is its build for GPUs; it does where `make setup` found no GPU"
    return chosen, models, warning


def _gpu() -> tuple[int, tuple[int, int]]:
    """Bytes and compute capability of this machine's first GPU; no bytes where there is none."""
    import torch

    if not torch.cuda.is_available():
        return 0, FP8
    found = torch.cuda.get_device_properties(0)
    return found.total_memory, (found.major, found.minor)


MODELS: dict[Hardware, str] = {
    "cpu": """\
# One 135 M model, which comes with this project, plays both parts: it shows that everything works, not what FIAT gains.
reasoner: {model: embedded, max_tokens: 80, max_length: 2048}
tunables: {xs: {model: embedded, max_length: 1024}}
learning_rate: {lora: [5.0e-4], full: [5.0e-5]}
batch_size: 8
validation: {times: 2, rows: 24}
where: {gpus: 0}
""",
    "gpu24": """\
reasoner: {model: Qwen/Qwen3-4B-Instruct-2507, max_tokens: 256}
tunables: {xs: {model: Qwen/Qwen3-0.6B, pretrained: Qwen/Qwen3-0.6B-Base}}
learning_rate: {lora: [1.0e-4, 2.0e-4, 4.0e-4], full: [1.0e-5, 2.0e-5, 4.0e-5]}
epochs: 3                                # the best step is chosen on validation
validation: {times: 6, rows: 200}
""",
    "gpu80": """\
reasoner: {model: Qwen/Qwen3-30B-A3B-Instruct-2507-FP8, max_tokens: 256}
tunables: {s: {model: Qwen/Qwen3-1.7B, pretrained: Qwen/Qwen3-1.7B-Base}}
learning_rate: {lora: [1.0e-4, 2.0e-4, 4.0e-4], full: [1.0e-5, 2.0e-5, 4.0e-5]}
epochs: 3                                # the best step is chosen on validation
validation: {times: 6, rows: 200}
""",
    "api": """\
# Any OpenAI-compatible endpoint; its key is OPENAI_API_KEY in the environment. Prices are for a million tokens: plan and report tell the cost.
reasoner: {kind: openai, model: gpt-4.1-mini, base_url: "https://api.openai.com/v1", max_tokens: 256, price_in: 0.4, price_out: 1.6}
tunables: {xs: {model: Qwen/Qwen3-0.6B}}
learning_rate: {lora: [1.0e-4, 2.0e-4, 4.0e-4], full: [1.0e-5, 2.0e-5, 4.0e-5]}
epochs: 3                                # the best step is chosen on validation
validation: {times: 6, rows: 200}
""",
}
TOY = "An English model of 135 M parameters is reasoner and tunable: it shows that everything works, and little about what larger models gain."
"""What the report says of what ``cpu`` chooses."""
METHODS = "methods: [majority, icl, no_peft, fiat]   # or ablations: what does each ingredient buy?\n"


def _limit(task: Task) -> tuple[dict[str, int], str]:
    """All splits halved until the plan fits or they are down to ``LEAST``, empty where all rows do; and what they take, in words."""
    counts = {split: count_by_language(task.split(split)) for split in SPLITS}
    least = {split: _least(list(of.values()), LEAST[split]) for split, of in counts.items()}
    most = {split: max(of.values()) for split, of in counts.items()}
    limit: dict[str, int] = {}
    while True:
        seconds = _planned(task, limit)
        smaller = {split: max(least[split], rows // 2) for split, rows in most.items()}
        if seconds <= PLANNED_SECONDS or smaller == most:
            return limit, _takes(limit, seconds)
        limit = most = smaller


def _least(rows: Sequence[int], wanted: int) -> int:
    """The lowest bound on the rows of each language that leaves as many as ``wanted`` in all, or as there are."""
    return next(bound for bound in count(1) if sum(min(bound, of) for of in rows) >= min(wanted, sum(rows)))


def _planned(task: Task, limit: Mapping[str, int]) -> float:
    values = {"task": task.name, "limit": limit, **yaml.safe_load(MODELS["cpu"] + METHODS)}
    try:
        return float(planning.plan(configs.load(values), {task.name: task})["time"]["seconds"])
    except UserError as error:
        said, advice, _ = str(error).partition("; raise max_length")  # of a config that is not written yet
        if not advice:
            raise
        raise UserError(f"{said}; shorten its other fields or the exemplars, or give --hardware gpu24, whose models have room for more") from None


def _takes(limit: Mapping[str, int], seconds: float) -> str:
    rows = f"{', '.join(f'{rows} {split}' for split, rows in limit.items())} rows a language are drawn" if limit else "all rows are used"
    long = f"; longer than the {PLANNED_SECONDS // 60} min aimed at, but fewer rows would tell nothing" if seconds > PLANNED_SECONDS else ""
    return f"{rows}: about {math.ceil(seconds / 60)} min on two CPU cores by the plan, three times that on slow ones{long}"


# What is written


def _write(folder: Path, texts: Mapping[str, str], task: Task, raws: Mapping[str, dict[str, Any]]) -> None:
    rows = {f"{split}.jsonl": jsonl(raws[row.place] for row in task.split(split)) for split in SPLITS}
    for name, text in {**texts, **rows}.items():
        (folder / name).write_text(text, "utf-8", errors="replace")


def _config(name: str, hardware: Hardware, models: str, limit: Mapping[str, int], takes: str, source: str) -> str:
    head = f"# fiat-ray plan {name}/config.yaml tells what it takes; fiat-ray run {name}/config.yaml --out runs/{name} carries it out.\n"
    said = f"# Rows: {takes}.\n" if takes else ""
    drawn = f"limit: {{{', '.join(f'{split}: {rows}' for split, rows in limit.items())}}}\n" if limit else ""
    told = [f"Rows: {source}."] if source else []
    told += [TOY] if hardware == "cpu" else []
    notes = f"notes: {json.dumps(told)}\n" if told else ""
    return f"{head}task: .\n{notes}{said}{drawn}{models}{METHODS}"
