"""The plan that was made before a run against what the run took: prompts, tokens, seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd

from fiat_ray.report.read import Run, read, records
from fiat_ray.report.results import Results
from fiat_ray.report.tables import Table, absent
from fiat_ray.text import WIDTH

NAME, TITLE = "estimates", "Planned and measured"
COLUMNS = ["what", "count_planned", "count", "stored_before", "tokens_planned", "tokens", "seconds_planned", "seconds", "times_planned"]
NOTES = [
    "Planned: by fiat-ray plan, before the first part of the run. Seconds are those of one engine or tuning worker, without its start; the last row "
    "has the starts, and everything that was broken off and done again.",
    "Times planned: measured seconds ÷ planned ones, for equally many prompts or trials. Tokens of a reasoner: those it wrote; its rationales that "
    "were in the store before count too. Found in the store: those of another run, or of a process that was killed.",
]
HEADS = [
    ("", "number", "number", "found in", "tokens", "tokens", "seconds", "seconds", "times"),
    ("", "planned", "done", "the store", "planned", "measured", "planned", "measured", "planned"),
]
SAID = f"{TITLE} (numbers of prompts, trials or rows; seconds of one engine or worker):"


def table(results: Results) -> Table:
    planned = results.run.plan
    if planned is None:
        return absent(NAME, TITLE, ("an older version made this run, without a plan", ""))
    rows = [*_reasoning(results.run, planned), *_tuning(results, planned), *_evaluation(results.run, planned), _all(results.run, planned)]
    for row in rows:
        row["times_planned"] = _times(row)
    return Table(NAME, TITLE, pd.DataFrame(rows, columns=COLUMNS), NOTES)


def console_table(run_dir: str | Path) -> str:
    """The same for a terminal, at most 110 columns wide; empty where nothing was planned, or nothing is measured yet."""
    found = table(Results(read(run_dir)))
    if "what" not in found.frame or found.frame["seconds"].isna().all():
        return ""
    lines = [*HEADS, *(tuple(_text(row, name) for name in COLUMNS) for row in records(found.frame))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(width + 2 for width in widths[1:]))
    return "\n".join([*wrap(SAID, WIDTH), *(text for line in lines for text in _lines(line, widths))])


def _lines(line: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    """A row; a label that is too wide goes on below it."""
    first, *others = wrap(line[0], widths[0], subsequent_indent="  ") or [""]
    numbers = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
    return iter(["  ".join([first.ljust(widths[0]), *numbers]).rstrip(), *others])


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, str) or pd.isna(value):
        return value if isinstance(value, str) else "–"
    return f"{value:.2f}" if name == "times_planned" else f"{value:,.0f}"


def _reasoning(run: Run, planned: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task in run.tasks:
        asked = (planned["tasks"].get(task) or {}).get("reasoner")
        if not asked:
            continue
        stored = [run.rationales[key] for key in {row["key"] for row in run.augmented(task)} if key in run.rationales]
        written, took = asked["all"]["tokens_out_estimate"], run.reasoning(task)
        yield {
            "what": f"reasoner: {task}",
            "count_planned": asked["prompts"],
            "count": took["rows"] if took else 0,
            "stored_before": max(0, len(stored) - (took["rows"] if took else 0)),
            "tokens_planned": asked["all"]["tokens_out_most"] if written is None else written,
            "tokens": sum(row["output_tokens"] or 0 for row in stored),
            "seconds_planned": planned["time"]["prompts"].get(task, {}).get("all"),
            "seconds": _of_one(took["seconds"], took["gpu_seconds"], planned) if took else None,
        }


def _tuning(results: Results, planned: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row a method, tunable and task, over seeds and train sizes."""
    for which in dict.fromkeys((of["method"], of["tunable"], of["task"]) for of in planned["trials"]):
        method, tunable, task = which
        of_plan = [(of, one) for of, one in _planned_trials(planned) if (of["method"], of["tunable"], of["task"]) == which]
        done = [t for t in results.run.trials if t["tuned"] and (t["method"], t["tunable"], t["task"]) == which]
        yield {
            "what": f"tuning: {results.title(method)} · {tunable} · {task}",
            "count_planned": sum(len(of["seeds"]) for of, _ in of_plan),
            "count": len(done),
            "tokens_planned": sum(of["tokens"] for of, _ in of_plan),
            "tokens": sum(trial["tokens"] for trial in done),
            "seconds_planned": _sum(len(of["seeds"]) * one["tuning"] if one else None for of, one in of_plan),
            "seconds": sum(trial["seconds"] * max(1, trial["gpus"]) for trial in done) if done else None,
        }


def _evaluation(run: Run, planned: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    done = [found for trial in run.trials if trial["tuned"] and (found := run.evaluation(trial["name"]))]
    if planned["trials"]:
        yield {
            "what": "evaluation: test rows",
            "count_planned": sum(len(of["seeds"]) * of["rows_tested"] for of in planned["trials"]),
            "count": sum(found["rows"] for found in done),
            "seconds_planned": _sum(len(of["seeds"]) * one["evaluation"] if one else None for of, one in _planned_trials(planned)),
            "seconds": sum(found["seconds"] for found in done) if done else None,
        }


def _all(run: Run, planned: Mapping[str, Any]) -> dict[str, Any]:
    spent = run.gpu_seconds
    return {
        "what": "all, with starts and what was done again",
        "seconds_planned": planned["time"]["seconds"],
        "seconds": None if spent is None else spent / max(1, planned["time"]["gpus"]),
    }


def _planned_trials(planned: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, float] | None]]:
    """Each with its seconds; None where no speed was known."""
    trials = planned["trials"]
    return list(zip(trials, planned["time"]["trials"] or [None] * len(trials), strict=True))


def _of_one(seconds: float, gpu_seconds: float, planned: Mapping[str, Any]) -> float:
    """Seconds of one engine, where several shared the work."""
    return gpu_seconds / planned["time"]["gpus"] if gpu_seconds and planned["time"]["gpus"] else seconds


def _sum(parts: Iterator[float | None]) -> float | None:
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def _times(row: Mapping[str, Any]) -> float | None:
    planned, measured = row["seconds_planned"], row["seconds"]
    if not planned or measured is None:
        return None
    share = row["count"] / row["count_planned"] if row.get("count_planned") else 1.0
    return float(measured / planned / share) if share else None
