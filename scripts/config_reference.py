"""Writes docs/config.md: every key of a config, from the classes that check it. ``--check`` compares instead, with exit code 1 where it is stale."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from fiat_ray.config import Config, LearningRates, Lora, TunableConfig, ValidationConfig
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.recipe import Recipe
from fiat_ray.where import Throughput, Where

PAGE = Path(__file__).parents[1] / "docs" / "config.md"

SECTIONS: dict[str, tuple[str, type]] = {
    "": ("The campaign", Config),
    "reasoner.": ("`reasoner`: the fixed model β", ReasonerConfig),
    "tunables.NAME.": ("`tunables`: the models τ, each under a name such as `xs`", TunableConfig),
    "learning_rate.": ("`learning_rate`", LearningRates),
    "lora.": ("`lora`: θ_τ^PEFT", Lora),
    "validation.": ("`validation`: what chooses step and learning rate", ValidationConfig),
    "recipes.NAME.": ("`recipes`: methods of your own, by name", Recipe),
    "where.": ("`where`: on what, no part of what is computed", Where),
    "where.throughput.": ("`where.throughput`: for `plan` alone", Throughput),
}

HEAD = """\
# Every key of a config

A config is a YAML file; any key can also be given on the command line: `fiat-ray run CONFIG seeds=[0,1,2] limit.train=100`. Keys that are not in this
list, and values of another type, are refused before anything starts (exit code 2). Paths in a file are relative to its folder, on the command line to
the working directory, as `tracking_uri` always is. This page is made from the code by `scripts/config_reference.py`.
"""


def page() -> str:
    return HEAD + "".join(_section(prefix, title, of) for prefix, (title, of) in SECTIONS.items())


def _section(prefix: str, title: str, of: type) -> str:
    said, types = _attributes(of)
    about = f"\n{_cell(str(inspect.getdoc(of)))}\n" if not str(inspect.getdoc(of)).startswith(f"{of.__name__}(") else ""
    rows = [f"| `{prefix}{f.name}` | {_cell(_type(of, types[f.name]))} | {_default(f)} | {_cell(said.get(f.name, ''))} |" for f in _keys(of)]
    return "\n".join([f"\n## {title}", about, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _keys(of: type) -> Iterator[dataclasses.Field[Any]]:
    return (f for f in dataclasses.fields(of) if f.compare)  # what is not compared comes from the code, not from a file


def _attributes(of: type) -> tuple[dict[str, str], dict[str, str]]:
    """Name → what the string under the attribute says, and its type as written."""
    [body] = [node.body for node in ast.parse(textwrap.dedent(inspect.getsource(of))).body if isinstance(node, ast.ClassDef)]
    said, types, last = dict[str, str](), dict[str, str](), ""
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
            types[last] = ast.unparse(node.annotation)
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            said[last] = inspect.cleandoc(str(node.value.value))
        else:
            last = ""
    return said, types


def _type(of: type, written: str) -> str:
    """A named choice is spelled out."""
    named = vars(sys.modules[of.__module__]).get(written)
    if get_origin(named) is Literal or written.startswith("Literal"):
        values = get_args(named) if named else ast.literal_eval(f"({written.removeprefix('Literal[').removesuffix(']')},)")
        return " | ".join(f"`{value}`" for value in values)
    return f"`{written}`"


def _default(of: dataclasses.Field[Any]) -> str:
    value = of.default_factory() if of.default_factory is not dataclasses.MISSING else of.default
    if value is dataclasses.MISSING:
        return "must be given"
    if dataclasses.is_dataclass(value) or (isinstance(value, dict) and value):
        return "see below"
    return "–" if value is None else f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix(chr(10) + '...' + chr(10)).strip()}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return int(PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
