"""YAML files that people write: safely loaded, a key once, one clear line for what is wrong."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from fiat_ray.errors import UserError

MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_document(self, node: yaml.Node) -> Any:
        return self.construct_object(node, deep=True)  # which refuses a node that holds itself


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        values = parse_yaml(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys to values")
    return values


def parse_yaml(text: str) -> Any:
    """A YAML value. Raises ``ValueError`` with one line for whatever is wrong with the text."""
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    # Aliases of aliases: a few lines that stand for billions of values.
    if next(islice(_parts(value), MOST_VALUES, None), None) is not None:
        raise ValueError(f"holds more than {MOST_VALUES:,} values, aliases counted as what they stand for")
    return value


def _parts(value: Any) -> Iterator[bool]:
    """One item for each value in ``value``."""
    yield True
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(part)
