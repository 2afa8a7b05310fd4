"""A task: its rows, input text, instructions, exemplars, answer parsing and groups. One folder form for built-in and own tasks.

A task folder holds ``task.yaml``, ``i_beta.txt``, ``i_tau.txt``, ``exemplars.jsonl``, and ``task.py`` where reading the rows needs code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import re
import string
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from fiat_ray.errors import UserError
from fiat_ray.rows import SUFFIXES, Place, read_rows, text_field

SPLITS = ("train", "validation", "test")
BUILT_IN = Path(__file__).parent / "tasks"
ANSWER = re.compile(r"(?im)^\s*answer\s*:[ \t]*(.*?)\s*$")
"""A rationale ends with a line ``Answer: …``; the last such line counts."""

Metric = Literal["f1", "accuracy"]
Which = Literal["row_language", "all"]
"""Exemplars in a row's prompt: those of its language, or all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a task, reduced to what may be shown: annotations and gold fields never enter ``fields``."""

    id: str
    split: str
    language: str
    fields: dict[str, str]
    """What the input template reads, and nothing else."""
    targets: tuple[str, ...]
    """Gold answers. The first is trained on; the best match counts in scoring."""
    group: str
    """Rows of one group are not independent: the unit of resampling."""
    example: str
    """Rows that are the same example: must not stand in two splits."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A worked example in the reasoner's prompt, with a hand-written rationale (paper §3, Baselines)."""

    language: str
    fields: dict[str, str]
    rationale: str
    target: str

    @property
    def answer(self) -> str:
        return f"{self.rationale.strip()}\nAnswer: {self.target}"


@dataclass(frozen=True)
class Task:
    name: str
    input: str
    """Template of the input text, such as ``question: {question} context: {context}``; the same in every recipe."""
    cut: str | None
    """The field that gives way when a prompt is too long."""
    metric: Metric
    labels: tuple[str, ...]
    """All labels of a classification task, the positive one last; empty for free text."""
    i_beta: str
    i_tau: str
    exemplars: tuple[Exemplar, ...]
    rows: tuple[Row, ...]
    target: str = "target"
    language: str | None = "language"
    """The field that names a row's language; None: all rows are of one undetermined language, ``und``."""
    removed: tuple[dict[str, str], ...] = ()
    """Rows that the leakage guard took out of train and validation: id, split, language, overlaps."""
    built_in: bool = field(default=True, compare=False)

    @classmethod
    def load(
        cls,
        name: str | Path,
        data: str | Path | None = None,
        *,
        languages: Sequence[str] | None = None,
        limit: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Task:
        """A built-in task by name, or an own one by folder. ``data``: where its rows lie; ``options`` go to its ``rows()``.

        Raises ``UserError`` for a folder, field, language or option that is not there, and for own rows that stand in two splits.
        """
        from fiat_ray.leakage import without_overlap

        folder, built_in = _folder(name)
        task = _definition(folder, built_in)
        data = Path(data) if data is not None else (None if built_in else folder)
        task = replace(task, rows=tuple(_rows(task, folder, data, options)))
        if languages:
            unknown = sorted(set(languages) - {row.language for row in task.rows})
            if unknown:
                known = ", ".join(sorted({row.language for row in task.rows}))
                raise UserError(f"{task.name}: no rows in language {', '.join(unknown)}; its languages are {known}")
            task = replace(task, rows=tuple(row for row in task.rows if row.language in languages))
        return limited(without_overlap(task), limit or {})

    @classmethod
    def from_rows(cls, rows: Any, *, target: str = "target", language: str | None = None, **definition: Any) -> Task:
        """A task from a DataFrame, a ``datasets.Dataset``, dicts or a file; see ``fiat_ray.own_task.from_rows``."""
        from fiat_ray.own_task import from_rows

        return from_rows(rows, target=target, language=language, **definition)

    def text(self, fields: Mapping[str, str]) -> str:
        """The input text of a row: the template, filled."""
        return self.input.format_map(fields)

    def exemplars_for(self, language: str, which: Which = "row_language") -> tuple[Exemplar, ...]:
        """Exemplars in the prompt of a row: those of its language; all where it has none of its own, or where all are asked for."""
        own = tuple(e for e in self.exemplars if e.language == language)
        return own if own and which == "row_language" else self.exemplars

    def answer(self, rationale: str) -> str:
        """ICL's prediction: the answer in a rationale; empty where there is none, or where it is none of the labels."""
        found = ANSWER.findall(rationale)
        answer = found[-1].strip() if found else ""
        if not self.labels:
            return answer
        plain = answer.casefold().strip(string.punctuation + string.whitespace)
        return next((label for label in self.labels if label.casefold() == plain), "")

    def split(self, name: str) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.split == name)

    @property
    def languages(self) -> list[str]:
        return sorted({row.language for row in self.rows})


def template_fields(template: str) -> list[str]:
    """Names in a template. Only plain names: ``{context}``, not ``{context.x}`` or ``{0}``."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"input template {template!r}: {error}") from None
    for name in names:
        if not name.isidentifier():
            raise UserError(f"input template: {{{name}}} is no field name")
    return names


def without_answer(rationale: str) -> str:
    """A rationale less its answer line (``Recipe.rationale: without_answer``)."""
    return ANSWER.sub("", rationale).strip()


def limited(task: Task, limit: Mapping[str, int]) -> Task:
    """At most ``limit[split]`` rows a language and split, whole groups first, always the same ones.

    Groups are taken in the order of their hash, so a language's draw does not depend on the other languages, translations of one question are
    drawn together, and a smaller draw is a subset of a larger one.
    """
    unknown = sorted(set(limit) - set(SPLITS))
    if unknown:
        raise UserError(f"limit: no split '{unknown[0]}'; splits are {', '.join(SPLITS)}")
    taken: Counter[tuple[str, str]] = Counter()
    keep: set[str] = set()
    for row in sorted(task.rows, key=lambda r: (digest(r.group), r.id)):
        bound = limit.get(row.split)
        if bound is None or taken[row.split, row.language] < bound:
            taken[row.split, row.language] += 1
            keep.add(row.id)
    return replace(task, rows=tuple(row for row in task.rows if row.id in keep))


def digest(*parts: str) -> str:
    """A short stable hash of texts: 16 hexadecimal digits."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def make_rows(task: Task, source: Iterable[tuple[Place, str, dict[str, Any]]], group: Sequence[str], example: Sequence[str]) -> Iterator[Row]:
    """(place, split, raw row) → ``Row``: every field checked, everything the template does not read left behind."""
    names = template_fields(task.input)
    seen: Counter[str] = Counter()
    for place, split, raw in source:
        if split not in SPLITS:
            raise UserError(f"{place}: split '{split}' is none of {', '.join(SPLITS)}")
        fields = {name: text_field(raw, name, place) for name in names}
        targets = _targets(task, raw, place)
        language = text_field(raw, task.language, place) if task.language else "und"
        identity = digest(split, language, *(fields[name] for name in names), *targets)
        seen[identity] += 1
        yield Row(
            id=identity if seen[identity] == 1 else f"{identity}-{seen[identity]}",
            split=split,
            language=language,
            fields=fields,
            targets=targets,
            group=digest(*(_key_text(raw, name, place) for name in group)),
            example=digest(*(_key_text(raw, name, place) for name in example)),
        )


def _targets(task: Task, raw: dict[str, Any], place: Place) -> tuple[str, ...]:
    value = raw.get(task.target)
    targets = tuple(value) if isinstance(value, list) else (text_field(raw, task.target, place),)
    if not targets or not all(isinstance(t, str) for t in targets):
        raise UserError(f"{place}: field '{task.target}' must be text or a list of texts")
    if task.labels and any(t not in task.labels for t in targets):
        raise UserError(f"{place}: field '{task.target}' is {targets[0]!r}, none of the labels {', '.join(task.labels)}")
    if not targets[0].strip():
        raise UserError(f"{place}: field '{task.target}' is empty; there is nothing to learn or score")
    return targets


def _key_text(raw: dict[str, Any], name: str, place: Place) -> str:
    if name not in raw:
        raise UserError(f"{place}: no field '{name}', which groups rows")
    return json.dumps(raw[name], ensure_ascii=False, sort_keys=True)


def _folder(name: str | Path) -> tuple[Path, bool]:
    folder = BUILT_IN / str(name)
    if str(name).isidentifier() and (folder / "task.yaml").is_file():
        return folder, True
    if (Path(name) / "task.yaml").is_file():
        return Path(name), False
    known = ", ".join(sorted(p.parent.name for p in BUILT_IN.glob("*/task.yaml")))
    raise UserError(f"task '{name}': neither a built-in task ({known}) nor a folder with a task.yaml")


def _definition(folder: Path, built_in: bool) -> Task:
    """The task without its rows."""
    path = folder / "task.yaml"
    spec = read_task_yaml(path)
    labels = tuple(str(label) for label in spec.get("labels", ()))
    task = Task(
        name=str(spec.get("name", folder.resolve().name)),
        input=spec["input"],
        cut=spec.get("cut"),
        metric=spec.get("metric", "accuracy" if labels else "f1"),
        labels=labels,
        i_beta=_text_file(folder / "i_beta.txt"),
        i_tau=_text_file(folder / "i_tau.txt"),
        exemplars=(),
        rows=(),
        target=spec.get("target", "target"),
        language=spec.get("language"),
        built_in=built_in,
    )
    if task.cut is not None and task.cut not in template_fields(task.input):
        raise UserError(f"{path}: cut: '{task.cut}' is no field of the input template")
    return replace(task, exemplars=tuple(_exemplars(task, folder / "exemplars.jsonl")))


TASK_KEYS = {"name", "input", "cut", "target", "language", "labels", "metric", "group", "example"}


def read_task_yaml(path: Path) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("input"), str):
        raise UserError(f"{path}: needs at least `input:`, the template of the input text")
    unknown = sorted(set(spec) - TASK_KEYS)
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'; known are {', '.join(sorted(TASK_KEYS))}")
    if spec.get("metric", "f1") not in ("f1", "accuracy"):
        raise UserError(f"{path}: metric '{spec['metric']}' is none of f1, accuracy")
    if (spec.get("metric") == "accuracy") != bool(spec.get("labels")):
        raise UserError(f"{path}: metric accuracy goes with labels, f1 with free text")
    return spec


def group_fields(spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(fields whose values make the group, fields that make the example). Without ``group`` each row is its own."""
    default = [*template_fields(spec["input"]), spec.get("target", "target")]
    group = spec.get("group", default)
    group = [group] if isinstance(group, str) else list(group)
    example = spec.get("example", group)
    return group, [example] if isinstance(example, str) else list(example)


def _text_file(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file; it holds the instructions as plain text")
    return path.read_text("utf-8").strip()


def _exemplars(task: Task, path: Path) -> Iterator[Exemplar]:
    for place, raw in read_rows(path):
        target = text_field(raw, "target", place)
        if task.labels and target not in task.labels:
            raise UserError(f"{place}: target {target!r} is none of the labels {', '.join(task.labels)}")
        fields = {name: text_field(raw, name, place) for name in template_fields(task.input)}
        yield Exemplar(str(raw.get("language", "und")), fields, text_field(raw, "rationale", place), target)


def _rows(task: Task, folder: Path, data: Path | None, options: dict[str, Any]) -> Iterator[Row]:
    reader = _reader(folder)
    parameters = inspect.signature(reader).parameters
    if data is None and parameters["data"].default is inspect.Parameter.empty:
        raise UserError(f"{task.name}: `data` is missing; it says in which folder or archive the task's rows lie")
    known = [p for p in parameters if p != "data"]
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"{task.name}: unknown option '{unknown[0]}'; this task knows {', '.join(known) or 'none'}")
    group, example = group_fields(read_task_yaml(folder / "task.yaml"))
    return make_rows(task, reader(data, **options), group, example)


def _reader(folder: Path) -> Callable[..., Iterator[tuple[Place, str, dict[str, Any]]]]:
    """``rows(data, **options)`` of the folder's ``task.py``; without one, ``train.jsonl`` and the like in the data folder."""
    path = folder / "task.py"
    if not path.is_file():
        return split_files
    spec = importlib.util.spec_from_file_location(f"fiat_ray_task_{folder.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    if not hasattr(module, "rows"):
        raise UserError(f"{path}: defines no rows(data)")
    return module.rows


def split_files(data: Path) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """Rows of ``train``, ``validation`` and ``test`` files (``.jsonl``, ``.csv`` or ``.parquet``) in one folder."""
    for split in SPLITS:
        found = [data / f"{split}{suffix}" for suffix in SUFFIXES if (data / f"{split}{suffix}").is_file()]
        if not found:
            raise UserError(f"{data}: no {split} file ({', '.join(split + suffix for suffix in SUFFIXES)})")
        if len(found) > 1:
            raise UserError(f"{data}: {found[0].name} and {found[1].name} both claim to be the {split} split")
        for place, raw in read_rows(found[0]):
            yield place, split, raw


def by_language(rows: Iterable[Row]) -> dict[str, list[Row]]:
    languages: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        languages[row.language].append(row)
    return dict(sorted(languages.items()))
