"""The example browser's test rows as data of the page, as many as it holds, each text once; and the same rows as a table."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from fiat_ray.report.examples import examples, rows_on_test
from fiat_ray.report.results import Results

MOST_ROWS, MOST_BYTES = 10_000, 28_000_000
"""A page of 30 MB opens within seconds."""


@dataclass(frozen=True)
class ExampleData:
    json: str
    rows: int
    of: int
    """Test rows of the run; those that are left out are as many in each language, as far as it has them."""
    table: str
    """The same rows as JSON, each method's answers in a column of its own: MLflow's form of a table, pandas' ``orient="split"``."""


def example_data(results: Results, most_rows: int = MOST_ROWS, most_bytes: int = MOST_BYTES) -> ExampleData:
    """Where not all rows fit in, those that do are drawn at random: the first of a file would say nothing of the others."""
    rows = rows_on_test(results)
    order = _evenly([(task, row["language"]) for task, row in rows])[:most_rows]
    found = dict(zip(sorted(order), examples(results, [rows[i] for i in sorted(order)]), strict=True))
    while (size := len((text := embedded(_packed([found[i] for i in sorted(order)]))).encode())) > most_bytes and order:
        order = order[: len(order) * most_bytes // size]
    return ExampleData(text, len(order), len(rows), _table([_row(found[i]) for i in sorted(order)]))


def embedded(value: Any) -> str:
    """JSON for a script element: no character in it can end the element or start another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _evenly(groups: Sequence[Hashable]) -> list[int]:
    """Indices of ``groups``, at random, but so that the first n of them are as many of each group, for any n."""
    order = list(range(len(groups)))
    random.Random(0).shuffle(order)
    seen: Counter[Hashable] = Counter()
    turns = {}
    for i in order:
        turns[i] = seen[groups[i]]
        seen[groups[i]] += 1
    return sorted(order, key=turns.__getitem__)


def _table(rows: Sequence[dict[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return json.dumps({"columns": columns, "data": [[row.get(name, "") for name in columns] for row in rows]}, ensure_ascii=False)


def _row(example: dict[str, Any]) -> dict[str, str]:
    return {
        "language": str(example["language"]),
        "input": "\n".join(f"{part['label']}: {part['text']}" if part["label"] else part["text"] for part in example["input"]),
        "gold": "\n".join(part["text"] for part in example["gold"]),
        **{answer["method"]: answer["text"] for answer in example["answers"]},
        "rationale": example["rationale"]["text"],
        **{name: str(example[name]) for name in ("task", "id")},
    }


def _packed(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Texts and methods by number: rows share passages, and answers say what gold says."""
    texts: dict[tuple[str, ...], int] = {}
    methods: dict[str, int] = {}

    def number(part: dict[str, Any]) -> int:
        return texts.setdefault(tuple(part[name] for name in ("text", "dir", "lang") if name in part), len(texts))

    def answer(of: dict[str, Any]) -> list[Any]:
        return [methods.setdefault(of["method"], len(methods)), number(of), of["right"], of["score"]]

    rows = [
        {
            **example,
            "input": [[part["label"], number(part)] for part in example["input"]],
            "rationale": number(example["rationale"]),
            "gold": [number(part) for part in example["gold"]],
            "answers": [answer(of) for of in example["answers"]],
        }
        for example in examples
    ]
    return {"methods": list(methods), "texts": list(texts), "rows": rows}
