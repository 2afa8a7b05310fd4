"""Two runs side by side: what differs in what went in, what is the same to the byte, and which differences in scores are real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os.path import commonprefix
from pathlib import Path
from typing import Any

from fiat_ray.recipe import plain_title
from fiat_ray.report.columns import adjust, tested
from fiat_ray.report.read import Run, read
from fiat_ray.report.results import Results
from fiat_ray.report.tables import metric_title, signed
from fiat_ray.significance import compare, holm

WIDTH, BEFORE = 32, 8
"""Columns of a value of one run, and of these how many stand before the first that differs."""

OF_A_TASK = {
    "data": "rows, as they go into prompts (sha256)",
    "prompts": "instructions and exemplars (sha256)",
    "metric": "metric",
    "labels": "labels",
    "languages": "languages",
    "exemplars": "exemplars in the reasoner's prompts",
}
"""What the manifest tells of a task, in words."""

Scored = tuple[str, str, str]
"""Task, method, tunable (empty for methods that tune nothing)."""


def diff(a: str | Path, b: str | Path) -> dict[str, Any]:
    """``tasks``: those of a and those of b. ``inputs``: name → values in a and b, of those that differ. ``rationales``: task → rows, and how many of
    them have other texts.

    ``scores``: a row for each task, method and tunable that either run has, with the headline metric in both, and whether the predictions are the
    ``same``; where both have comparable predictions on the same test rows, ``change`` (b less a) with ``change_low``, ``change_high``, 95 %, and
    ``change_p``, after Holm over all. ``note`` says why there is no change. JSON-able. Raises ``UserError`` for a folder that is no run directory.
    """
    before, after = read(a), read(b)
    ours, theirs = _inputs(before), _inputs(after)
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return {
        "tasks": [before.tasks, after.tasks],
        "inputs": {name: [ours.get(name), theirs.get(name)] for name in names},
        "rationales": {task: found for task in before.tasks if task in after.tasks if (found := _rationales(before, after, task))},
        "scores": _scores(Results(before), Results(after)),
    }


def _inputs(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    tasks = {f"{name}: {said}": task[key] for name, task in manifest["tasks"].items() for key, said in OF_A_TASK.items() if key in task}
    models = {f"model of {role}": f"{model['name']} {model['hash'][:12]}" for role, model in manifest["models"].items()}
    versions = {f"version of {name}": version for name, version in manifest.get("versions", {}).items()}
    return dict(_flat({**tasks, **models, **run.config, **versions}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _rationales(a: Run, b: Run, task: str) -> dict[str, int] | None:
    """None where one of them has no augmented set."""
    ours, theirs = ({row["id"]: row["rationale"] for row in run.augmented(task)} for run in (a, b))
    if not (ours and theirs):
        return None
    both = ours.keys() & theirs.keys()
    return {"rows": len(both), "other_text": sum(ours[row] != theirs[row] for row in both), "in_one_run": len(ours.keys() ^ theirs.keys())}


def _scores(ours: Results, theirs: Results) -> list[dict[str, Any]]:
    rows = [_row(ours, theirs, *scored) for scored in dict.fromkeys((*_scored(ours), *_scored(theirs)))]
    adjust(rows, "change", holm)
    return rows


def _scored(results: Results) -> list[Scored]:
    named = [(task, method, place) for task in results.run.tasks for method in results.methods(task) for place in results.places(task, method)]
    return [scored for scored in named if results.has(*scored)]


def _row(ours: Results, theirs: Results, task: str, method: str, tunable: str) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "method": method, "tunable": tunable, "metric": None, "a": None, "b": None, "same": False}
    row |= {"change": None, "change_low": None, "change_high": None, "change_p": None, "note": ""}
    having = {name: results for name, results in (("a", ours), ("b", theirs)) if task in results.run.tasks and results.has(task, method, tunable)}
    for name, results in having.items():
        row["metric"] = row["metric"] or results.metrics(task)[0]
        row[name] = results.value(task, method, tunable, row["metric"], results.averages(task)[0])
    if len(having) == 1:
        return row | {"note": f"only in {''.join(having).upper()}"}
    scoring = [_scoring(results, task) for results in (ours, theirs)]
    if differing := [what for what in scoring[0] if scoring[0][what] != scoring[1][what]]:
        return row | {"note": f"not compared, because they differ in {', '.join(differing)}"}
    before, after = (results.predictions(task, method, tunable) for results in (ours, theirs))
    if not (before and after):
        return row | {"note": f"no predictions in {_lacking(before, after)}"}
    scored = [row[name] is not None for name in ("a", "b")]
    if not all(scored):
        return row | {"same": before == after, "note": f"no {metric_title(row['metric'])} in {_lacking(*scored)}"}
    if before == after:
        return row | {"same": True, "change": 0.0}
    labels, languages = scoring[0]["labels"], scoring[0]["averaged languages"]
    try:
        found = compare(after, before, row["metric"], positive=labels[-1] if labels else None, languages=languages)
    except ValueError:
        return row | {"note": "not about the same test rows"}
    return row | tested("change", found) | {"note": found.note}


def _lacking(in_a: Any, in_b: Any) -> str:
    """Which run lacks what they do not both have."""
    return "B" if in_a else "A" if in_b else "either"


def _scoring(results: Results, task: str) -> dict[str, Any]:
    """What scores of two runs must have in common to be compared."""
    averaged = results.averaged(task, results.averages(task)[0])
    return {"metric": results.metrics(task)[0], "labels": results.run.manifest["tasks"][task]["labels"], "averaged languages": sorted(averaged)}


def describe(found: Mapping[str, Any]) -> str:
    """``diff`` as text for a terminal. Of runs about other tasks that is all: everything else differs too."""
    ours, theirs = found["tasks"]
    if not set(ours) & set(theirs):
        return f"nothing to compare: A is about {', '.join(ours)}, B about {', '.join(theirs)}"
    lines = ["inputs that differ:" if found["inputs"] else "inputs: all the same"]
    if all(row["note"].startswith("only in") for row in found["scores"]):
        lines.insert(0, "nothing to compare: no method of a task has scores in both")
    for name, (ours, theirs) in found["inputs"].items():
        lines.append(f"  {name}: {_shown(ours, theirs)}")
    for task, counts in found["rationales"].items():
        same = counts["rows"] - counts["other_text"]
        lines.append(f"rationales of {task}: {same} of {counts['rows']} rows the same to the byte; {counts['in_one_run']} rows in one run only")
    lines += ["scores on test, A → B (change, 95 % interval; * holds at 5 % after Holm's correction):", *map(_score, found["scores"])]
    return "\n".join(lines)


def _shown(ours: Any, theirs: Any) -> str:
    """Both values: lists whole, of other long ones what stands around the first place where they differ."""
    texts = ["–" if value is None else f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value) for value in (ours, theirs)]
    if isinstance(ours, list) or isinstance(theirs, list):
        return " → ".join(texts)
    start = max(0, len(commonprefix(texts)) - BEFORE) if max(map(len, texts)) > WIDTH else 0
    return " → ".join(f"{'… ' if start else ''}{text[start : start + WIDTH]}{' …' if text[start + WIDTH :] else ''}" for text in texts)


def _score(row: Mapping[str, Any]) -> str:
    ours, theirs = ("–" if row[name] is None else f"{row[name]:.1f}" for name in ("a", "b"))
    who = " · ".join(filter(None, (row["task"], plain_title(row["method"]), row["tunable"])))
    who = f"  {who}: {metric_title(row['metric'])} {ours} → {theirs}"
    if row["same"]:
        return f"{who}; predictions the same to the byte"
    if row["change"] is None:
        return f"{who}; {row['note']}"
    low, high, p = (row[f"change_{end}"] for end in ("low", "high", "p"))
    interval = "" if low is None else f", {signed(low)} to {signed(high)}"
    return f"{who} ({signed(row['change'])}{interval}){' *' if p is not None and p < 0.05 else ''}; {row['note']}"
