"""What a run was made of: rows, trials, rationales, costs, and what was not run; as tables, like the scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pandas as pd

from fiat_ray import schema
from fiat_ray.recipe import PAPER, UNTUNED
from fiat_ray.report import published
from fiat_ray.report.cells import language_columns
from fiat_ray.report.results import Results
from fiat_ray.report.tables import Table, absent, not_held
from fiat_ray.text import by_language

STATUSES = ("ok", "length", "prompt_too_long", "empty", "engine_error")
CUT_OFF = {"length": "cut_off"}
"""A status whose own word is a score's: percent of rows."""
SIZES = {"xor_attriqa": "table4_sizes", "xtreme_up_qa": "table5_sizes"}


def sizes(results: Results, task: str) -> Table:
    """Table 4 or 5: rows of each split and language, what was cut or removed, and the paper's rows."""
    of_task = results.run.manifest["tasks"][task]
    languages = of_task["languages"]
    columns = language_columns(languages)
    counts = {f"{split} rows": of_task["rows"][split] for split in ("train", "validation", "test") if split in of_task["rows"]}
    counts["passages cut to fit"] = of_task["cut"]
    counts["of these, gold answer cut away"] = of_task["gold_cut"]
    counts["removed: also in a later split"] = Counter(row["language"] for row in of_task["removed"])
    rows = [
        {"what": name, **{column: int(of.get(x, 0)) for x, column in columns.items()}, "all": sum(of.get(x, 0) for x in languages)}
        for name, of in counts.items()
    ]
    for split, of in published.ROWS.get(task, {}).items():
        printed = {column: of.get(x) for x, column in columns.items()}
        rows.append({"what": f"{split} rows in the paper", **printed, "all": sum(of.get(x, 0) for x in languages)})
    name = SIZES.get(task) or ("sizes" if len(results.run.tasks) == 1 else f"sizes_{task}")
    number = {"table4_sizes": "Table 4 · ", "table5_sizes": "Table 5 · "}.get(name, "")
    return Table(name, f"{number}Rows · {task}", pd.DataFrame(rows, columns=["what", *columns.values(), "all"]), _size_notes(languages, task))


def _size_notes(languages: list[str], task: str) -> list[str]:
    of_paper = published.ROWS.get(task, {}).get("train", {})
    lacking = [language for language in of_paper if language not in languages]
    notes = [f"This run lacks {len(lacking)} of the paper's {len(of_paper)} languages: {' '.join(lacking)}."] if lacking else []
    return notes + [f"In the paper: {text}." for text in published.size_disagreements(task)] if of_paper else []


def absent_sizes(results: Results) -> list[Table]:
    """Tables 4 and 5 where the run has only the other's task."""
    lacking = {name: task for task, name in SIZES.items() if results.settings and task not in results.run.tasks}
    titles = {"table4_sizes": "Table 4 · Rows · xor_attriqa", "table5_sizes": "Table 5 · Rows · xtreme_up_qa"}
    return [absent(name, titles[name], (f"{task} is not among this config's tasks", "task")) for name, task in lacking.items()]


def trials(results: Results) -> Table:
    """Every current trial, the setting that validation chose, and what it took."""
    columns = ["name", "task", "method", "tunable", "seed", "train_size", "learning_rate", "step", "steps", "kept_step_0"]
    columns += ["selection_metric", "selection_value", "supervised_tokens", "seconds", "learning_rates_tried"]
    rows = []
    for trial in results.run.trials:
        tried = sorted(set(results.run.history(trial["name"])["learning_rate"]))
        rows.append({**trial, "learning_rates_tried": " ".join(f"{rate:g}" for rate in tried)})
    notes = ["Learning rate and step were chosen on validation only; step 0 is the model before tuning."]
    # Seeds and sizes of one method and tunable read the same.
    cut = {(t["task"], t["tunable"], t["method"]): t["cut_rationales"] for t in results.run.trials if t.get("cut_rationales")}
    for (task, tunable, method), rows_cut in cut.items():
        notes.append(f"{task}, {method}, {tunable}: rationales cut, because they are too long in the tunable's own tokens: {by_language(rows_cut)}.")
    return Table("trials", "Trials and what validation chose", pd.DataFrame(rows, columns=columns), notes)


def curves(results: Results) -> Table:
    """Validation during training of every current trial, all learning rates that were tried."""
    columns = ["task", "method", "tunable", "seed", "train_size", "trial", "chosen"]
    frames = []
    for trial in results.run.trials:
        history = results.run.history(trial["name"])
        of_trial = {**trial, "trial": trial["name"], "chosen": history["learning_rate"] == trial.get("learning_rate")}
        frames.append(history.assign(**{name: of_trial[name] for name in columns})[[*columns, *history.columns]])
    known = [frame for frame in frames if len(frame)]
    return Table(
        "validation_curves", "Validation through training", pd.concat(known) if known else pd.DataFrame(columns=[*columns, *schema.HISTORY.names])
    )


def rationales(results: Results) -> Table:
    """How the reasoner's outputs ended, by task, split and language: the coverage of the augmented set."""
    rows = []
    for task in results.run.tasks:
        ended: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for row in results.run.augmented(task):
            ended[row["split"], row["language"]][row["status"] or "missing"] += 1
        for (split, language), counts in sorted(ended.items()):
            others = {CUT_OFF.get(status, status): counts[status] for status in (*STATUSES, *sorted(set(counts) - set(STATUSES)))}
            rows.append({"task": task, "split": split, "language": language, "rows": counts.total(), **others})
    note = "Numbers of rows. Cut off: at the token limit; a higher reasoner.max_tokens lets them end. Only rows that are ok or cut off hold a text."
    return Table(
        "rationales", "Rationales and how they ended", pd.DataFrame(rows, columns=None if rows else ["task", "split", "language", "rows"]), [note]
    )


def costs(results: Results) -> Table:
    """Tokens of the reasoner, tokens and seconds of tuning. Seconds are wall-clock of each trial, added up; trials may have run side by side."""
    rows: list[dict[str, Any]] = []
    if stored := results.run.rationales.values():
        prompt, output = (sum(row[name] or 0 for row in stored) for name in ("prompt_tokens", "output_tokens"))
        charged = results.run.reasoner.charged(prompt, output)
        took = [found["seconds"] for task in results.run.tasks if (found := results.run.reasoning(task))]
        row = {"what": "reasoner: rationales", "count": len(stored), "prompt_tokens": prompt, "output_tokens": output, "charged": charged}
        rows.append(row | {"seconds": sum(took) if took else None})
    spent: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for trial in results.run.trials:
        if trial["tuned"]:
            spent[trial["task"], trial["method"], trial["tunable"]].append(trial)
    for (task, method, tunable), of in spent.items():
        tokens, seconds = (sum(trial[name] or 0 for trial in of) for name in ("supervised_tokens", "seconds"))
        row = {"what": f"tuning: {results.title(method)} · {tunable} · {task}", "count": len(of), "supervised_tokens": tokens, "seconds": seconds}
        rows.append(row)
    columns = ["what", "count", "prompt_tokens", "output_tokens", "supervised_tokens", "seconds", "charged"]
    notes = [
        "Number: of rationales, or trials. Empty: not measured in this run. The reasoner's seconds: of rationales that were generated in this run.",
    ]
    if any(row.get("charged") is not None for row in rows):
        notes.append("Charged: by a remote endpoint, at the config's reasoner.price_in and price_out, for the tokens that it counted.")
    return Table("costs", "Cost", pd.DataFrame(rows, columns=columns), notes)


def not_run(results: Results) -> Table:
    """What the paper reports, or the config asks for, and this run does not hold: the reason, and the config key that adds it."""
    columns = ["what", "task", "method", "tunable", "reason", "config_key"]
    rows: list[dict[str, Any]] = []
    for task in results.run.tasks:
        refused = [entry["method"] for entry in results.run.manifest["not_run"] if entry["task"] == task]
        wanted = dict.fromkeys(method for method in (*PAPER, *refused) if method not in UNTUNED)
        for tunable, methods in (("", UNTUNED), *((tunable, tuple(wanted)) for tunable in results.tunables(task))):
            lacking: dict[tuple[str, str], list[str]] = defaultdict(list)
            for method in (method for method in methods if results.shows(task, method) and not results.has(task, method, tunable)):
                lacking[results.why_missing(task, method, tunable)].append(method)
            for why, those in lacking.items():
                rows.append(dict(zip(columns, (", ".join(map(results.title, those)), task, " ".join(those), tunable, *why), strict=True)))
    for title, row in not_held(results):
        number = next((published.TABLE_OF_LANGUAGES[setting] for setting in published.SETTINGS if setting == row["task"]), None)
        rows.append({"what": f"Table {number}, {title}" if number else title, **{name: row[name] for name in columns[1:]}})
    return Table("not_run", "What was not run", pd.DataFrame(rows, columns=columns).fillna(""))
