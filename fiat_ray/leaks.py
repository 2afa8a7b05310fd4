"""The leakage guard's metamorphic check: whatever a row's gold answers and annotations are, its prompts stay the same, token by token."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fiat_ray.errors import UserError
from fiat_ray.length import Budget, measure
from fiat_ray.recipe import Recipe
from fiat_ray.rows import parse_rows, source_files
from fiat_ray.task import Row, Task
from fiat_ray.task_folder import gold_fields, read_task

if TYPE_CHECKING:
    from fiat_ray.render import Renderer

Raw = dict[str, Any]
Scramble = Callable[[Raw], Raw]


def leaking_rows(name: str | Path, data: str | Path | None, renderer: Renderer, max_length: int, *, seed: int = 0) -> list[Row]:
    """Rows of a task with another prompt where their gold is replaced by random values; none in a task that keeps its gold to itself.

    Gold is the target and what ``task.yaml`` lists as ``annotations``. It is replaced in the JSONL files that the task's reader is given, for it may
    pass them on under another name, and in the rows that it gives (all there is where rows are generated, or read from CSV or Parquet).
    Prompts are measured and cut for ``max_length`` tokens, as in a run: the reasoner's, and the tunable's without its rationale.
    Raises ``UserError`` where the reader's choice of rows depends on gold.
    """
    chance = random.Random(seed)
    task, gold = read_task(name, data, {}), gold_fields(name)

    def scramble(raw: Raw) -> Raw:
        return raw | {field: _noise(raw.get(field), task.labels, chance) for field in gold}

    with TemporaryDirectory() as folder:
        source = data if data is not None else None if task.built_in else name
        copy = None if source is None else _scrambled_files(Path(source), Path(folder), scramble)
        other = read_task(name, copy, {}, scramble)
    if len(task.rows) != len(other.rows):
        raise UserError(
            f"{task.name}: {len(task.rows)} rows, but {len(other.rows)} with other gold answers and annotations; no row may depend on them"
        )
    both = zip(task.rows, _prompts(task, renderer, max_length), _prompts(other, renderer, max_length), strict=True)
    return [row for row, prompts, with_other_gold in both if prompts != with_other_gold]


def _noise(value: Any, labels: tuple[str, ...], chance: random.Random) -> Any:
    """A random value of the same kind; one of the labels for a label."""
    if isinstance(value, list):
        return [_noise(part, labels, chance) for part in value]
    if isinstance(value, bool):
        return chance.random() < 0.5
    if isinstance(value, int | float):
        return chance.randrange(10**6)
    return chance.choice(labels) if value in labels else f"noise {chance.getrandbits(64):x}"


def _scrambled_files(data: Path, folder: Path, scramble: Scramble) -> Path:
    """A copy of a folder or an archive of rows under ``folder``, with gold replaced in its JSONL files."""
    root = folder.resolve() / data.resolve().name
    for name, content in source_files(data, "*"):
        path = (root / name.removeprefix(str(data)).lstrip("/:")).resolve()
        if not path.is_relative_to(root):  # an archive may name any path
            continue
        if path.suffix == ".jsonl":
            content = "".join(json.dumps(scramble(raw)) + "\n" for _, raw in parse_rows(name, content)).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def _prompts(task: Task, renderer: Renderer, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each row's prompts: the reasoner's, and the tunable's."""
    recipe = Recipe()
    lengths = measure(task, [Budget("reasoner", renderer, max_length, 0), Budget("tunable", renderer, max_length, 0, (recipe,))])
    for row in task.rows:
        text = lengths.texts[row.id]
        asked = renderer.reasoner_prompt(task, lengths.exemplars[row.language], text, row.language)
        yield asked.ids, renderer.tunable_prompt(task, text, None, recipe).ids
