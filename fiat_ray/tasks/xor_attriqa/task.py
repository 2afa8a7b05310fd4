"""XOR-AttriQA as google-research released it: ``in-language/{train,val}.jsonl`` hold all languages, test is one file a language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiat_ray.errors import UserError
from fiat_ray.rows import Place, one_file, parse_rows, text_field

FILES = {"train": "train", "val": "validation", "bn": "test", "fi": "test", "ja": "test", "ru": "test", "te": "test"}
PASSAGES = ("retrieved", "in_language", "english", "both")


def rows(data: Path, *, passages: str = "retrieved") -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """(place, split, row) with the fields ``query, prediction, passage, language, label``; the annotations stay behind.

    ``passages``: ``retrieved`` (the paper's) is English where the passage was found in English, else in the question's language;
    ``in_language`` and ``english`` take that version always, ``both`` joins them.
    """
    if passages not in PASSAGES:
        raise UserError(f"xor_attriqa: passages is {passages!r}, none of {', '.join(PASSAGES)}")
    for name, split in FILES.items():
        for place, raw in parse_rows(*one_file(data, f"in-language/{name}.jsonl")):
            row = {
                "query": text_field(raw, "query", place),
                "prediction": text_field(raw, "prediction", place),
                "passage": _passage(raw, place, passages),
                "language": text_field(raw, "query_language", place),
                "label": _label(raw, place),
            }
            yield place, split, row


def _passage(raw: dict[str, Any], place: Place, passages: str) -> str:
    if passages == "both":
        return "\n".join((text_field(raw, "passage_in_language", place), text_field(raw, "passage_en", place)))
    english = passages == "english" or (passages == "retrieved" and text_field(raw, "passage_retrieved_language", place) == "en")
    return text_field(raw, "passage_en" if english else "passage_in_language", place)


def _label(raw: dict[str, Any], place: Place) -> str:
    attributable = raw.get("ais")
    if not isinstance(attributable, bool):
        raise UserError(f"{place}: field 'ais', the label, must be true or false, not {attributable!r}")
    return "yes" if attributable else "no"
