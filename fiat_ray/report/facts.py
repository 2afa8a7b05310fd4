"""What a run was made of: rows, trials, rationales, costs, and what was not run; as tables, like the scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pandas as pd

from fiat_ray.report import published
from fiat_ray.report.results import Results
from fiat_ray.report.tables import Table, per_language_tables, title_of

STATUSES = ("ok", "length", "prompt_too_long", "empty", "engine_error")
SIZES = {"xor_attriqa": "table4_sizes", "xtreme_up_qa": "table5_sizes"}


def sizes(results: Results, task: str) -> Table:
    """Tables 4 and 5: rows of each split and language, and what was cut or removed."""
    of_task = results.run.manifest["tasks"][task]
    counts = {f"{split} rows": of_task["rows"][split] for split in ("train", "validation", "test") if split in of_task["rows"]}
    counts["passages cut to fit"] = of_task["cut"]
    counts["of these, gold answer cut away"] = of_task["gold_cut"]
    counts["removed: also in a later split"] = Counter(row["language"] for row in of_task["removed"])
    rows = [
        {"what": name, **{language: int(of.get(language, 0)) for language in of_task["languages"]}, "all": sum(of.values())}
        for name, of in counts.items()
    ]
    name = SIZES.get(task) or ("sizes" if len(results.run.tasks) == 1 else f"sizes_{task}")
    return Table(name, f"Rows · {task}", pd.DataFrame(rows))


def trials(results: Results) -> Table:
    """Every current trial, the setting that validation chose, and what it took."""
    columns = ["name", "task", "method", "tunable", "seed", "train_size", "learning_rate", "step", "steps", "kept_step_0"]
    columns += ["selection_metric", "selection_value", "supervised_tokens", "seconds", "learning_rates_tried"]
    rows = []
    for trial in results.run.trials:
        tried = sorted(set(results.run.history(trial["name"])["learning_rate"]))
        rows.append({**trial, "learning_rates_tried": " ".join(f"{rate:g}" for rate in tried)})
    note = "Learning rate and step were chosen on validation only; step 0 is the model before tuning."
    return Table("trials", "Trials and what validation chose", pd.DataFrame(rows, columns=columns), [note])


def curves(results: Results) -> Table:
    """Validation during training of every current trial, all learning rates that were tried."""
    columns = ["task", "method", "tunable", "seed", "train_size", "trial", "chosen"]
    frames = []
    for trial in results.run.trials:
        history = results.run.history(trial["name"])
        of_trial = {**trial, "trial": trial["name"], "chosen": history["learning_rate"] == trial.get("learning_rate")}
        frames.append(history.assign(**{name: of_trial[name] for name in columns})[[*columns, *history.columns]])
    known = [frame for frame in frames if len(frame)]
    return Table("validation_curves", "Validation through training", pd.concat(known) if known else pd.DataFrame(columns=columns))


def rationales(results: Results) -> Table:
    """How the reasoner's outputs ended, by task, split and language: the coverage of the augmented set."""
    rows = []
    for task in results.run.tasks:
        ended: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for row in results.run.augmented(task):
            ended[row["split"], row["language"]][row["status"] or "missing"] += 1
        for (split, language), counts in sorted(ended.items()):
            others = {status: counts[status] for status in (*STATUSES, *sorted(set(counts) - set(STATUSES)))}
            rows.append({"task": task, "split": split, "language": language, "rows": counts.total(), **others})
    note = "length: stopped at the token limit. Only ok and length rows hold a text."
    return Table(
        "rationales", "Rationales and how they ended", pd.DataFrame(rows, columns=None if rows else ["task", "split", "language", "rows"]), [note]
    )


def costs(results: Results) -> Table:
    """Tokens of the reasoner, tokens and seconds of tuning. Seconds are wall-clock of each trial, added up; trials may have run side by side."""
    rows: list[dict[str, Any]] = []
    if stored := results.run.rationales.values():
        prompt, output = (sum(row[name] or 0 for row in stored) for name in ("prompt_tokens", "output_tokens"))
        rows.append({"what": "reasoner: rationales", "count": len(stored), "prompt_tokens": prompt, "output_tokens": output})
    spent: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for trial in results.run.trials:
        if trial["tuned"]:
            spent[trial["task"], trial["method"], trial["tunable"]].append(trial)
    for (task, method, tunable), of in spent.items():
        tokens, seconds = (sum(trial[name] or 0 for trial in of) for name in ("supervised_tokens", "seconds"))
        row = {"what": f"tuning: {title_of(method)} · {tunable} · {task}", "count": len(of), "supervised_tokens": tokens, "seconds": seconds}
        rows.append(row)
    columns = ["what", "count", "prompt_tokens", "output_tokens", "supervised_tokens", "seconds"]
    return Table("costs", "Cost", pd.DataFrame(rows, columns=columns), ["count: rationales, or trials. Empty: not measured in this run."])


def not_run(results: Results) -> Table:
    """What the paper reports and this run does not hold: one row each, with the reason and the config key that adds it."""
    rows = [{key: entry.get(key) or "" for key in ("task", "method", "tunable", "reason", "config_key")} for entry in results.run.manifest["not_run"]]
    rows = [{"what": title_of(row["method"]), **row} for row in rows]
    there = {table.name for table in per_language_tables(results)}
    for setting, title in published.SETTINGS.items():
        number = published.TABLE_OF_LANGUAGES[setting]
        if f"table{number}_per_language" not in there:
            task, _, focus = setting.replace("qa_", "qa ").partition(" ")
            key = f"task: {task}" + (f", focus: {focus}" if focus else "")
            rows.append({"what": f"Table {number}, {title}", "task": task, "reason": "not among this config's tasks", "config_key": key})
    return Table("not_run", "What was not run", pd.DataFrame(rows, columns=["what", "task", "method", "tunable", "reason", "config_key"]).fillna(""))
