"""A task that leaks: XOR-AttriQA with the annotators' votes in its prompts. And made-up rows in the layouts of the official files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fiat_ray.task_folder import BUILT_IN

ROWS = 8
"""Of each file."""


def write(folder: Path) -> tuple[Path, Path]:
    """(The leaky task's folder, a folder with rows for it and for the two official tasks), both under ``folder``."""
    task = Path(shutil.copytree(BUILT_IN / "xor_attriqa", folder / "leaky"))
    _change(task / "task.yaml", r'(?m)^input: "(.*)"$', r'input: "\1 votes: {votes}"')
    _change(task / "task.py", '"label": ', '"votes": raw["ais_vote"], "label": ')
    _change(task / "exemplars.jsonl", r"(?m)^\{", '{"votes": "3/3", ')
    data = folder / "data"
    for name in ("train", "val", "bn", "fi", "ja", "ru", "te"):
        _write_rows(data / "xor_attriqa" / "in-language" / f"{name}.jsonl", _judged)
    for split in ("train", "validation", "test"):
        _write_rows(data / "xtreme_up" / "qa_cross_lang" / split / "hi.jsonl", _asked)
    return task, data


def _change(path: Path, pattern: str, new: str) -> None:
    text, changes = re.subn(pattern, new, path.read_text("utf-8"))
    assert changes, f"{path}: nothing to change"
    path.write_text(text, "utf-8")


def _write_rows(path: Path, row: Callable[[str], dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{path.parent.name} {path.stem} {number}" for number in range(ROWS)]
    path.write_text("".join(json.dumps(row(name)) + "\n" for name in names), "utf-8")


def _judged(name: str) -> dict[str, Any]:
    """A row of XOR-AttriQA."""
    number = int(name[-1])
    return {
        "query": f"Which town lies at river {name}?",
        "query_language": "bn",
        "prediction": f"Town {name}",
        "passage_in_language": f"Town {name} lies at the river.",
        "passage_en": f"The town of {name} lies at the river.",
        "passage_retrieved_language": "en" if number % 2 else "bn",
        "answers": f"['Town {name}']",
        "prediction_correct": number < 4,
        "intrepetability": True,
        "intrepetability_vote": "3/3",
        "ais": number < 4,
        "ais_vote": f"{3 if number < 4 else 0}/3",
    }


def _asked(name: str) -> dict[str, Any]:
    """A row of cross-lingual QA."""
    return {
        "question": f"Which town lies at river {name}?",
        "title": "Rivers",
        "context": f"Town {name} lies at the river.",
        "target": f"Town {name}",
    }
