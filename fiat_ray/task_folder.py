"""Task folders: ``task.yaml``, ``i_beta.txt``, ``i_tau.txt``, ``exemplars.jsonl`` and ``task.py`` → a ``Task``. Built-in and own tasks alike."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fiat_ray.errors import UserError
from fiat_ray.metrics import check_metric
from fiat_ray.rows import SUFFIXES, Place, jsonl, read_rows, text_field, utf8
from fiat_ray.task import SPLITS, Exemplar, Row, Task, joined, make_rows, template_fields
from fiat_ray.yaml_file import read_yaml

Reader = Callable[..., Iterator[tuple[Place, str, dict[str, Any]]]]
"""``rows(data, **options)``: place, split and raw row of each row."""

Change = Callable[[dict[str, Any]], dict[str, Any]]

BUILT_IN = Path(__file__).parent / "tasks"


def read_task(name: str | Path, data: str | Path | None, options: dict[str, Any], change: Change | None = None) -> Task:
    """A task with all rows that its folder, or ``data``, holds. See ``Task.load``, which also guards against leakage and draws the limit.

    ``change``: what becomes of each raw row before it is checked (see ``leaks``).
    """
    folder, built_in = _folder(name)
    task = replace(read_definition(folder), built_in=built_in)
    data = Path(data) if data is not None else (None if built_in else folder)
    return replace(task, rows=tuple(_rows(task, folder, data, options, change)))


def _folder(name: str | Path) -> tuple[Path, bool]:
    folder = BUILT_IN / str(name)
    if str(name).isidentifier() and (folder / "task.yaml").is_file():
        return folder, True
    if (Path(name) / "task.yaml").is_file():
        return Path(name), False
    known = ", ".join(sorted(p.parent.name for p in BUILT_IN.glob("*/task.yaml")))
    raise UserError(f"task '{name}': neither a built-in task ({known}) nor a folder with a task.yaml")


def read_definition(folder: Path) -> Task:
    """The task of a folder without its rows."""
    path = folder / "task.yaml"
    spec = read_task_yaml(path)
    labels = tuple(spec.get("labels") or ())
    template_fields(spec["input"], f"{path}: ")
    task = Task(
        name=task_name(spec.get("name", folder.resolve().name), path),
        input=spec["input"],
        cut=spec.get("cut"),
        metric=spec["metric"],
        labels=labels,
        i_beta=text_file(folder / "i_beta.txt"),
        i_tau=text_file(folder / "i_tau.txt"),
        exemplars=(),
        rows=(),
        target=spec.get("target", "target"),
        language=spec.get("language"),
    )
    check_fields(task, path, _annotations(spec))
    return replace(task, exemplars=tuple(_exemplars(task, folder / "exemplars.jsonl")))


def check_fields(task: Task, origin: str | Path, annotations: Sequence[str] = ()) -> None:
    """Raise ``UserError`` where the input can't be cut as asked, or would hold the answer."""
    fields = template_fields(task.input)
    if task.cut is not None and task.cut not in fields:
        raise UserError(f"{origin}: cut: '{task.cut}' is no field of the input template {task.input!r}")
    if task.target in fields:
        raise UserError(f"{origin}: input: the template holds the target field '{task.target}': the answer would stand in the question")
    if shown := [name for name in fields if name in annotations]:
        raise UserError(f"{origin}: input: the template holds '{shown[0]}', which is among the annotations: no prompt may depend on them")


def definition_files(before: Mapping[str, Any], task: Task, after: Mapping[str, Any]) -> dict[str, str]:
    """Name → text of the files that ``read_definition`` reads. ``before``, ``after``: more of ``task.yaml``, above and below what a task knows."""
    spec = {key: getattr(task, key) for key in ("input", "cut", "target", "language", "metric") if getattr(task, key) is not None}
    spec |= {"labels": list(task.labels)} if task.labels else {}
    spec |= {"positive": task.labels[-1]} if task.metric == "auc_pr" else {}
    worked = ({"language": e.language, **e.fields, "rationale": e.rationale, "target": e.target} for e in task.exemplars)
    return {
        "task.yaml": yaml.safe_dump({**before, **spec, **after}, sort_keys=False, allow_unicode=True, width=1000),
        "i_beta.txt": f"{task.i_beta}\n",
        "i_tau.txt": f"{task.i_tau}\n",
        "exemplars.jsonl": jsonl(worked),
    }


def task_name(name: str, origin: str | Path) -> str:
    """``name``, or ``UserError`` where folders can't be named by it."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(f"{origin}: name {name[:100]!r} is no name for a task; give it a `name` of letters, digits, _ . and -")
    return name


TASK_KEYS = {"name", "input", "cut", "target", "language", "labels", "positive", "metric", "group", "example", "annotations"}


def read_task_yaml(path: Path) -> dict[str, Any]:
    """The values of a ``task.yaml``, their keys and types checked."""
    spec = read_yaml(path)
    if not isinstance(spec.get("input"), str):
        raise UserError(f"{path}: needs at least `input:`, the template of the input text")
    unknown = sorted(str(key) for key in spec if key not in TASK_KEYS)
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'; known are {', '.join(sorted(TASK_KEYS))}")
    for key in ("name", "cut", "target", "language", "metric", "positive"):
        if not isinstance(spec.get(key, ""), str):
            raise UserError(f"{path}: {key}: must be text, not {spec[key]!r}")
    for key in ("group", "example", "labels", "annotations"):
        parts = [spec[key]] if isinstance(spec.get(key), str) and key != "labels" else spec.get(key, ["", "-"])
        if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
            raise UserError(f"{path}: {key}: must be a list of texts, not {spec[key]!r}; write words such as no and yes in quotes")
    if "labels" in spec:
        check_labels(spec["labels"], path)
    spec.setdefault("metric", "accuracy" if "labels" in spec else "f1")
    check_metric(spec["metric"], spec.get("labels", ()), spec.get("positive"), path)
    if "positive" in spec:
        spec["labels"] = with_positive_last(spec["labels"], spec["positive"])
    return spec


def with_positive_last(labels: Sequence[str], positive: str) -> list[str]:
    return [*(label for label in labels if label != positive), positive]


def check_labels(labels: Sequence[str], origin: str | Path) -> None:
    """Raise ``UserError`` for labels that are no choice, and for one that no answer, which is one line, can be."""
    if not all(isinstance(label, str) and label for label in labels) or not 2 <= len(set(labels)) == len(labels):
        raise UserError(f"{origin}: labels: must be two or more different texts, not {list(labels)!r}")
    if odd := [label for label in labels if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", label) or label != label.strip()]:
        raise UserError(f"{origin}: labels: {odd[0]!r} holds a line break, a control character or white space at an end; rename it")


def group_fields(spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(fields whose values make the group, fields that make the example). Without ``group``, rows with the same input are one."""
    group = spec.get("group", template_fields(spec["input"]))
    group = [group] if isinstance(group, str) else list(group)
    example = spec.get("example", group)
    return group, [example] if isinstance(example, str) else list(example)


def gold_fields(name: str | Path) -> list[str]:
    """Fields of a task's raw rows that no prompt may depend on: the target and the annotations."""
    spec = read_task_yaml(_folder(name)[0] / "task.yaml")
    return [spec.get("target", "target"), *_annotations(spec)]


def _annotations(spec: Mapping[str, Any]) -> list[str]:
    names = spec.get("annotations", [])
    return [names] if isinstance(names, str) else list(names)


def text_file(path: Path) -> str:
    """Instructions. Raises ``UserError`` where there are none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; it holds the instructions as plain text")
    text = utf8(str(path), path.read_bytes()).strip()
    if not text:
        raise UserError(f"{path}: is empty; it holds the instructions as plain text")
    return text


def _exemplars(task: Task, path: Path) -> Iterator[Exemplar]:
    for place, raw in read_rows(path):
        target = text_field(raw, "target", place)
        if task.labels and target not in task.labels:
            raise UserError(f"{place}: target {target!r} is none of the labels {', '.join(task.labels)}")
        fields = {name: text_field(raw, name, place) for name in template_fields(task.input)}
        yield Exemplar(exemplar_language(task, place, raw), fields, text_field(raw, "rationale", place), target)


def exemplar_language(task: Task, place: Place, raw: dict[str, Any]) -> str:
    """Whose exemplar it is: by the name that rows have for it, or ``language``. ``und``, nobody's own, where it does not say."""
    is_shown = task.language in template_fields(task.input)  # then it is there as text, whatever the exemplar's language
    names = ("language", task.language) if is_shown else (task.language, "language")
    said = (text_field(raw, name, place).strip() for name in names if name is not None and name in raw)
    return next(filter(None, said), "und")


def _rows(task: Task, folder: Path, data: Path | None, options: dict[str, Any], change: Change | None) -> Iterable[Row]:
    reader = _reader(folder)
    parameters = inspect.signature(reader).parameters
    if data is None and parameters["data"].default is inspect.Parameter.empty:
        raise UserError(f"{task.name}: `data` is missing; it says in which folder or archive the task's rows lie")
    known = [p for p in parameters if p != "data"]
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"{task.name}: unknown option '{unknown[0]}'; this task knows {', '.join(known) or 'none'}")
    spec = read_task_yaml(folder / "task.yaml")
    source = split_files(data or folder) if reader is split_files else _guarded(folder / "task.py", reader, data, options)
    rows = make_rows(task, ((place, split, change(raw)) for place, split, raw in source) if change else source, *group_fields(spec))
    return rows if "example" in spec else joined(rows)  # who names `example` has said what is the same


def _guarded(path: Path, reader: Reader, data: Path | None, options: dict[str, Any]) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """What ``rows()`` gives; whatever goes wrong in somebody's own code is one line that names their file."""
    try:
        for row in reader(data, **options):
            place, split, raw = row
            if not isinstance(raw, dict):
                raise TypeError(f"a row must be a dict, not {type(raw).__name__}")
            yield place, split, raw
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: rows(): {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None


def reader_options(name: str | Path) -> list[str]:
    """Names of the options that a task's ``rows()`` takes."""
    return [p for p in inspect.signature(_reader(_folder(name)[0])).parameters if p != "data"]


def _reader(folder: Path) -> Reader:
    """``rows(data, **options)`` of the folder's ``task.py``; without one, ``train.jsonl`` and the like in the data folder."""
    path = folder / "task.py"
    if not path.is_file():
        return split_files
    spec = importlib.util.spec_from_file_location(f"fiat_ray_task_{folder.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: {type(error).__name__} when loaded: {' '.join(str(error).split())[:300]}") from None
    rows = getattr(module, "rows", None)
    if not callable(rows) or "data" not in inspect.signature(rows).parameters:
        raise UserError(f"{path}: defines no function rows(data)")
    return rows


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
