"""Rationales of test rows as texts: how many can be read, how long they are, in which script, and whether their answer is right."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from fiat_ray.augmented import READABLE
from fiat_ray.metrics import average, exact_match
from fiat_ray.report.columns import Rows, why_absent
from fiat_ray.report.results import Results
from fiat_ray.report.section import frame
from fiat_ray.report.tables import Table
from fiat_ray.task import parse_answer

SHOWN_SCRIPTS, SHOWN_SHARE = 3, 0.5
"""Of a language's scripts: how many, and from what percentage of its letters on."""
NOTES = [
    "Readable: ended by itself or at the token limit, and not empty. Lengths and letters are those of readable rationales; the rest counts all rows.",
    "Right: exact match, or the label, as few-shot ICL is scored; no answer is not right.",
    f"Scripts: at most the {SHOWN_SCRIPTS} most frequent, from {SHOWN_SHARE} % of the letters on.",
]


def judged(results: Results, task: str) -> Rows:
    """Test rows of the augmented set, each with its rationale's ``answer`` and ``verdict``: ``right``, ``wrong`` or ``none``."""
    labels = results.run.manifest["tasks"][task]["labels"]
    rows = [dict(row) for row in results.run.augmented(task) if row["split"] == "test"]
    for row in rows:
        row["answer"] = answer = parse_answer(row["rationale"] or "", labels)
        is_right = answer == row["targets"][0] if labels else exact_match(row["targets"], answer)
        row["verdict"] = "none" if not answer else "right" if is_right else "wrong"
    return rows


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Script → percent of the letters of all texts, most frequent first; a script is the first word of a letter's Unicode name."""
    letters: Counter[str] = Counter()
    for character, count in Counter(character for text in texts for character in text).items():
        if character.isalpha():
            script = unicodedata.name(character, "Unknown").split()[0]
            letters[script if script == "CJK" else script.capitalize()] += count
    return {script: 100 * count / letters.total() for script, count in letters.most_common()}


def table(results: Results, rationales: Mapping[str, Rows]) -> Table:
    """By task, average and language. ``rationales``: task → its rows as ``judged``."""
    rows = [row for task, of_task in rationales.items() for row in (_of_task(results, task, of_task) if of_task else [_none(results, task)])]
    return Table("rationale_worth", "Rationales of test rows", frame(rows, ("task", "what", "language")), NOTES)


def _none(results: Results, task: str) -> dict[str, Any]:
    return {"task": task, "what": "Rationales", **why_absent(results.why_missing(task, "fiat", next(iter(results.tunables(task)), "")))}


def _of_task(results: Results, task: str, rationales: Rows) -> Rows:
    by_language: dict[str, Rows] = defaultdict(list)
    for row in rationales:
        by_language[row["language"]].append(row)
    facts = {language: _facts(results, of) for language, of in sorted(by_language.items())}
    headline = results.averages(task)[0]
    averaged = [language for language in results.averaged(task, headline) if language in facts]
    mean = {name: average({language: facts[language][name] for language in averaged}) for name in next(iter(facts.values()))}
    all_of = [row for language in averaged for row in by_language[language]]
    rows = [{"task": task, "what": "Rationales", "language": headline, "rows": len(all_of), **mean, "scripts": _scripts(all_of)}]
    for language, of_language in facts.items():
        of = by_language[language]
        rows.append({"task": task, "language": language, "rows": len(of), **of_language, "scripts": _scripts(of)})
    return rows


def _facts(results: Results, rows: Rows) -> dict[str, float | None]:
    readable = _readable(rows)
    texts = [row["rationale"] for row in readable]
    stored = [results.run.rationales.get(row["key"]) or {} for row in readable]
    tokens = [kept["output_tokens"] for kept in stored if kept.get("output_tokens")]  # a script's are not counted
    verdicts = Counter(row["verdict"] for row in rows)
    return {
        "readable": 100 * len(texts) / len(rows),
        "tokens": fmean(tokens) if tokens else None,
        "characters": fmean(map(len, texts)) if texts else None,
        "latin": scripts(texts).get("Latin", 0.0) if texts else None,
        "answered": 100 - 100 * verdicts["none"] / len(rows),
        "right": 100 * verdicts["right"] / len(rows),
    }


def _readable(rows: Rows) -> Rows:
    return [row for row in rows if row["status"] in READABLE and (row["rationale"] or "").strip()]


def _scripts(rows: Rows) -> str:
    shares = list(scripts(row["rationale"] for row in _readable(rows)).items())[:SHOWN_SCRIPTS]
    return ", ".join(f"{script} {share:.0f} %" for script, share in shares if share >= SHOWN_SHARE)
