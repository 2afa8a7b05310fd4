"""Test rows for the report's example browser: input, rationale, gold, and each method's answer."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fiat_ray.metrics import exact_match, row_score, scores_positive
from fiat_ray.recipe import UNTUNED
from fiat_ray.report.cells import language_tag
from fiat_ray.report.read import Run
from fiat_ray.report.results import Results
from fiat_ray.report.tables import metric_title
from fiat_ray.run_folder import ID
from fiat_ray.task import template_fields


def rows_on_test(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """(Task, row) of every test row, by language."""
    return [
        (task, row)
        for task in results.run.tasks
        for row in sorted(results.run.rows(task), key=lambda row: str(row["language"]))
        if row["split"] == "test"
    ]


def examples(results: Results, rows: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """These test rows, which stand task by task, as JSON-able dicts; answers are those of each method's first seed.

    Texts are ``{"text", "dir", "lang"}``: the direction of their first strong character, and the row's language where it is a tag and
    they are not Latin.
    """
    return [example for task in results.run.tasks for example in _of_task(results, task, [row for name, row in rows if name == task])]


def _of_task(results: Results, task: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rationales = {row["id"]: row for row in results.run.augmented(task) if row["split"] == "test"}
    answers, labels = _answers(results, task), list(results.run.manifest["tasks"][task]["labels"])
    metric = results.metrics(task)[0]
    of_text, of_label = None if labels else metric, f"P({labels[-1]})" if scores_positive(metric, labels) else "P"
    inputs = _inputs(results.run, task, rows)
    return [
        {
            "task": task,
            "id": row["id"],
            "language": row["language"],
            "input": [{"label": label, **_text(text, row["language"])} for label, text in inputs[row["id"]]],
            "rationale": _text((rationales.get(row["id"]) or {}).get("rationale") or "", row["language"]),
            "status": (rationales.get(row["id"]) or {}).get("status") or "",
            "gold": [_text(target, row["language"]) for target in row["targets"]],
            "answers": [_answer(method, answers[method][row["id"]], row, of_text, of_label) for method in answers if row["id"] in answers[method]],
        }
        for row in rows
    ]


def _answers(results: Results, task: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Method, with its tunable where it has one → row id → prediction."""
    found = {}
    for method in results.methods(task):
        for tunable in results.places(task, method):
            first = results.predictions(task, method, tunable)[:1]
            if first:
                name = results.title(method) if method in UNTUNED else f"{results.title(method)} · {tunable}"
                found[name] = {row["id"]: row for row in first[0]}
    return found


def _answer(method: str, prediction: dict[str, Any], row: dict[str, Any], of_text: str | None, of_label: str) -> dict[str, Any]:
    """``of_text``: the metric of free text, None for labels. ``of_label``: what their probability is of. ``right``: exact match."""
    text, probability = prediction["prediction"], prediction["score"]
    if of_text:
        shown, right = f"{metric_title(of_text)} {row_score(of_text)(row['targets'], text):.0f}", exact_match(row["targets"], text)
    else:
        shown, right = "" if probability is None else f"{of_label} {probability:.2f}", text in row["targets"]
    return {"method": method, **_text(text, row["language"]), "right": right, "score": shown}


def _inputs(run: Run, task: str, rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Row id → its input as (field, text), its passage cut as in prompts; in one piece without a name where an older version made the run."""
    by_id = {row["id"]: row for row in rows}
    found = {row["id"]: [("", row["input"])] for row in rows}
    definition = run.definition(task)
    for raw in run.raw_rows(task, "test"):
        if row := by_id.get(raw.get(ID)):
            texts = {name: raw[name] for name in template_fields(definition["input"])}
            if cut := definition.get("cut"):
                texts[cut] = texts[cut][: len(texts[cut]) - row["cut_characters"]]
            found[row["id"]] = [(name, text.strip()) for name, text in texts.items()]
    return found


def _text(text: str, language: str) -> dict[str, str]:
    letters = Counter(filter(str.isalpha, text))  # a name is looked up once a letter of an alphabet, not of a passage
    strong = next((kind for char in text if (kind := unicodedata.bidirectional(char)) in ("L", "R", "AL")), "L")
    latin = sum(number for char, number in letters.items() if unicodedata.name(char, "").startswith("LATIN"))
    tag = None if 2 * latin >= letters.total() else language_tag(language)
    return {"text": text, "dir": "ltr" if strong == "L" else "rtl", **({"lang": tag} if tag else {})}
