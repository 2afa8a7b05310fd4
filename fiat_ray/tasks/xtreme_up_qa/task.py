"""XTREME-UP's cross-lingual QA as released: ``qa_cross_lang/{train,validation,test}/<language>.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from fiat_ray.errors import UserError
from fiat_ray.metrics import INDIC
from fiat_ray.rows import Place, parse_rows, source_files, text_field

SPLITS = ("train", "validation", "test")
FIELDS = ("question", "title", "context", "target")


def rows(data: Path, *, focus: str = "full") -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """(place, split, row) with the fields ``question, title, context, target, language``; ``focus``: ``full`` or ``indic``."""
    if focus not in ("full", "indic"):
        raise UserError(f"xtreme_up_qa: focus is {focus!r}, neither full nor indic")
    files = {split: _files(data, split, focus) for split in SPLITS}
    languages = sorted(set().union(*files.values()))
    if not languages:
        raise UserError(f"{data}: holds no qa_cross_lang/<split>/<language>.jsonl{' of an Indic language' if focus == 'indic' else ''}")
    for split in SPLITS:
        for language in languages:
            if language not in files[split]:
                raise UserError(f"{data}: no qa_cross_lang/{split}/{language}.jsonl, though '{language}' stands in another split")
            for place, raw in parse_rows(*files[split][language]):
                yield place, split, {name: text_field(raw, name, place) for name in FIELDS} | {"language": language}


def _files(data: Path, split: str, focus: str) -> dict[str, tuple[str, bytes]]:
    """Language → (path for messages, content)."""
    found: dict[str, tuple[str, bytes]] = {}
    for path, content in source_files(data, f"qa_cross_lang/{split}/[a-z]*.jsonl"):
        language = PurePath(path).stem
        if focus == "indic" and language not in INDIC:
            continue
        if language in found:
            raise UserError(f"{data}: {found[language][0]} and {path} both claim to be {language} of {split}; `data` must hold one copy")
        found[language] = (path, content)
    return found
