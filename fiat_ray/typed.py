"""Plain values, as YAML gives them, into dataclasses: every key and every type checked."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, get_args, get_origin

from fiat_ray.errors import UserError


def typed(kind: Any, value: Any, key: str) -> Any:
    """``value`` as ``kind``, a type annotation: a dataclass, or what its fields are made of. Raises ``UserError`` naming the key."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, key)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else typed(next(a for a in arguments if a is not type(None)), value, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise UserError(f"{key}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            hint = f"; write [{value}]" if isinstance(value, (str, int)) else ""
            raise UserError(f"{key}: must be a list, not {value!r}{hint}")
        return [typed(arguments[0], part, f"{key}[{at}]") for at, part in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{key}: must be a mapping, not {value!r}")
        return {str(name): typed(arguments[1], part, f"{key}.{name}") for name, part in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key}: must be {_kind_name(kind)}, not {value!r}")
    return value


def _dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{key}: must be a mapping, not {value!r}")
    hints = typing.get_type_hints(kind)
    annotations = {item.name: hints[item.name] for item in dataclasses.fields(kind) if item.compare}  # others are no settings
    for name in value:
        if name not in annotations:
            near = difflib.get_close_matches(str(name), list(annotations), 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(annotations)}"
            raise UserError(f"unknown key '{key + '.' if key else ''}{name}'; {hint}")
    for item in dataclasses.fields(kind):
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and item.name not in value:
            raise UserError(f"key '{key + '.' if key else ''}{item.name}' is missing")
    prefix = f"{key}." if key else ""
    return kind(**{name: typed(annotations[name], part, f"{prefix}{name}") for name, part in value.items()})


def _kind_name(kind: Any) -> str:
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, str(kind))
