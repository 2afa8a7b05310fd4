"""The paper's tables for a run: Table 2 (overall), Table 3 (ablations), Tables 6–8 (per language); the paper's own numbers beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fiat_ray.metrics import NAMED_AVERAGES
from fiat_ray.recipe import ABLATIONS, TITLES, UNTUNED
from fiat_ray.report import published
from fiat_ray.report.read import read, records
from fiat_ray.report.results import Results
from fiat_ray.significance import Comparison, holm

PAPER = "paper (PaLM-2, not comparable)"
METRIC_TITLES = {
    "f1": "F1",
    "exact_match": "Exact match",
    "accuracy": "Accuracy",
    "auc_pr": "AUC-PR",
    "unparsed": "Unparsed %",
    "length": "Cut off %",
}
NO_TWIN = "full fine-tuning, instruction-tuned base (not the paper's baseline: no pretrained twin)"
AVERAGE_TITLES = {"mean": "mean", **{name: f"mean of {name.removeprefix('mean_')}" for name in NAMED_AVERAGES}}


@dataclass(frozen=True)
class Table:
    name: str
    """Stem of its CSV file."""
    title: str
    frame: pd.DataFrame
    """For a score column ``f1`` there may be ``f1_low`` and ``f1_high``, the 95 % interval, and ``f1_p``."""
    footnotes: list[str] = field(default_factory=list)


def title_of(method: str) -> str:
    return TITLES.get(method, method)


def missing(reason: str, config_key: str) -> str:
    """Why something is not there, in words."""
    return f"not run: {reason}" + (f" (config key that adds it: {config_key})" if config_key else "")


def column(metric: str, average: str) -> str:
    return metric if average == "mean" else f"{metric}_{average}"


def score_columns(results: Results, task: str) -> list[tuple[str, str, str]]:
    """(column, metric, average) of a task's overall tables: the headline metrics, then the first one under the other averages."""
    headline, *others = results.averages(task)
    first, second = results.metrics(task)
    return [(column(m, a), m, a) for m, a in [(first, headline), (second, headline), *((first, other) for other in others)]]


def table2_overall(results: Results) -> Table:
    """ICL, majority label, fine-tuning and FIAT of each task and size, and what FIAT gains over the best baseline."""
    rows: list[dict[str, Any]] = []
    for task in results.run.tasks:
        rows += [_scores(results, task, method, "", title_of(method)) for method in UNTUNED]
        for tunable in results.tunables(task):
            baselines = [("icl", ""), ("majority", ""), ("no_instruction_tuned", tunable)]
            rows.append(_scores(results, task, "no_instruction_tuned", tunable, "Fine-tuning (the paper's baseline)"))
            if not results.has(task, "no_instruction_tuned", tunable):
                baselines.append(("no_peft", tunable))
                rows.append(_scores(results, task, "no_peft", tunable, NO_TWIN[0].upper() + NO_TWIN[1:]))
            rows.append(_scores(results, task, "fiat", tunable, title_of("fiat")))
            rows += [_gain(results, task, tunable, baselines, split) for split in ("test", "validation")]
    return Table("table2_overall", "Table 2 · FIAT and the baselines", _frame(rows), _notes(results))


def table3_ablations(results: Results) -> Table:
    """The paper's cumulative ablations, each with its change from the row above; then other methods, with theirs from FIAT."""
    rows: list[dict[str, Any]] = []
    for task in results.run.tasks:
        rows += [_scores(results, task, method, "", title_of(method)) for method in UNTUNED]
        others = [method for method in results.methods(task) if method not in (*UNTUNED, *ABLATIONS)]
        for tunable in results.tunables(task):
            steps = [("fiat", None), *zip(ABLATIONS[1:], ABLATIONS, strict=False), *((method, "fiat") for method in others)]
            block = [_scores(results, task, method, tunable, title_of(method)) for method, _ in steps]
            for row, (method, above) in zip(block, steps, strict=True):
                row["compared_with"] = above or ""
                if above:
                    _compare(results, row, method, above)
            rows += _holm(block, [f"{name}_change_p" for name, _, _ in score_columns(results, task)])
    return Table("table3_ablations", "Table 3 · Ablations: each removal is cumulative with the one above", _frame(rows), _notes(results))


def _compare(results: Results, row: dict[str, Any], method: str, above: str) -> None:
    """Adds a row's change from method ``above`` in both headline metrics, with intervals and what they leave out."""
    task, tunable = row["task"], row["tunable"]
    notes = [f"change: from {title_of(above)}"] if method not in ABLATIONS else []
    for name, metric, average in score_columns(results, task)[:2]:
        new, old = (results.value(task, which, tunable, metric, average) for which in (method, above))
        if new is None or old is None:
            continue
        found = results.difference(task, (method, tunable), (above, tunable), metric)
        row |= {f"{name}_change": new - old} | _interval(f"{name}_change", found)
        notes += [found.note] if found and found.note not in notes else []
    row["note"] = "; ".join(filter(None, [row["note"], *notes]))


def per_language(results: Results, task: str) -> Table:
    """Table 6, 7 or 8: every method on every language, the paper's rows below."""
    languages, averages = results.languages(task), results.averages(task)
    rows: list[dict[str, Any]] = []
    for method in results.methods(task):
        for tunable in results.places(task, method):
            for metric in results.metrics(task) if results.has(task, method, tunable) else ():
                row = {"tunable": tunable, "method": method, "row": title_of(method), "metric": metric, "source": "this run"}
                rows.append(row | {name: results.value(task, method, tunable, metric, name) for name in (*languages, *averages)})
    setting = published.setting_of(task, languages)
    name = f"table{published.TABLE_OF_LANGUAGES[setting]}_per_language" if setting else "per_language"
    for metric, table in published.per_language(setting).items() if setting else ():
        for (size, method), values in table.items():
            printed = published.overall(setting or "")[metric][size, method]
            row = {"tunable": size, "method": method, "row": title_of(method), "metric": metric, "source": PAPER}
            rows.append(row | {language: values.get(language) for language in languages} | {averages[0]: printed})
    columns = ["tunable", "method", "row", "metric", "source", *languages, *averages]
    tested = f" · Table {published.TABLE_OF_LANGUAGES[setting]}" if setting else ""
    return Table(name, f"Per language{tested} · {task}", pd.DataFrame(rows, columns=columns), _language_notes(results, task, setting))


def per_language_tables(results: Results) -> list[Table]:
    """One a task; names of further tasks that are not the paper's get the task's name added."""
    tables = [per_language(results, task) for task in results.run.tasks]
    taken: set[str] = set()
    for i, (table, task) in enumerate(zip(tables, results.run.tasks, strict=True)):
        if table.name in taken:
            tables[i] = Table(f"{table.name}_{task}", table.title, table.frame, table.footnotes)
        taken.add(table.name)
    return tables


def paper_overall() -> Table:
    """The paper's own Table 3, which holds Table 2's rows (its fine-tuning is the last of each block) and Figure 4's distilled CoT."""
    columns = [(setting, metric) for setting in published.SETTINGS for metric in published.overall(setting)]
    keys = dict.fromkeys(key for setting, metric in columns for key in published.overall(setting)[metric])
    rows = []
    for size, method in sorted(keys, key=lambda key: ("", "xs", "s").index(key[0])):
        row: dict[str, Any] = {"row": title_of(method), "size": f"PaLM-2 {size.upper()}" if size else "PaLM-2 L"}
        row |= {f"{published.SETTINGS[s]}: {METRIC_TITLES[metric]}": published.overall(s)[metric].get((size, method)) for s, metric in columns}
        rows.append(row)
    gains = {f"{published.SETTINGS[s]}: {METRIC_TITLES[metric]}": published.GAINS[s][metric] for s, metric in columns}
    rows.append({"row": "Gain over the best baseline (Table 2)", "size": "", **gains})
    return Table("paper_table3", f"Tables 2 and 3 as printed · {PAPER}", pd.DataFrame(rows), published.disagreements())


def answers(results: Results) -> list[str]:
    """What the run says about FIAT, one sentence a task and tunable."""
    return [_answer(results, task, tunable) for task in results.run.tasks for tunable in results.tunables(task)]


def _answer(results: Results, task: str, tunable: str) -> str:
    metric, average = results.metrics(task)[0], results.averages(task)[0]
    fine_tune = "no_instruction_tuned" if results.has(task, "no_instruction_tuned", tunable) else "no_peft"
    baseline = results.best(task, [("icl", ""), ("majority", ""), (fine_tune, tunable)], metric, "test")
    fiat = results.value(task, "fiat", tunable, metric, average)
    where = f"{task}, tunable {tunable} ({METRIC_TITLES[metric]}, mean of {len(results.averaged(task, average))} languages)"
    if fiat is None:
        return f"{where}: FIAT has no score here: {results.why_missing(task, 'fiat', tunable)[0]}."
    if baseline is None:
        return f"{where}: FIAT scores {fiat:.1f}; there is no baseline to compare it with."
    score = results.value(task, *baseline, metric, average) or 0.0
    scores = f"{fiat:.1f} against {score:.1f} for {_baseline_title(baseline[0])}"
    found = results.difference(task, ("fiat", tunable), baseline, metric)
    if fiat == score:
        return f"{where}: FIAT equals the best baseline: {scores}."
    size, side = abs(fiat - score), "above" if fiat > score else "below"
    if found is None or found.low is None or found.high is None:
        return f"{where}: FIAT is {size:.1f} points {side} the best baseline: {scores}; {found.note if found else 'no interval'}."
    interval = f"95 % interval of the difference {signed(found.low)} to {signed(found.high)}, {found.note}"
    if found.low <= 0 <= found.high:
        return f"{where}: this run shows no sure difference. FIAT is {size:.1f} points {side} the best baseline: {scores}; {interval}."
    return f"{where}: FIAT {'beats' if fiat > score else 'loses to'} the best baseline by {size:.1f} points: {scores}; {interval}."


def signed(value: float) -> str:
    """One decimal, with its sign; a real minus, so that columns align."""
    return f"{value:+.1f}".replace("-", "−")


def _baseline_title(method: str) -> str:
    return {"no_peft": NO_TWIN, "no_instruction_tuned": "fine-tuning"}.get(method, title_of(method))


def _scores(results: Results, task: str, method: str, tunable: str, title: str) -> dict[str, Any]:
    """A table row; without scores its note says why, and which config key adds it."""
    row: dict[str, Any] = {"task": task, "tunable": tunable, "method": method, "row": title, "seeds": results.seeds(task, method, tunable) or None}
    row |= {name: results.value(task, method, tunable, metric, average) for name, metric, average in score_columns(results, task)}
    if method == "icl":
        row |= {metric: results.value(task, method, tunable, metric, results.averages(task)[0]) for metric in ("unparsed", "length")}
    setting = published.setting_of(task, results.languages(task))
    of_paper = published.overall(setting) if setting and title[: len(NO_TWIN)].lower() != NO_TWIN.lower() else {}
    row |= {f"{PAPER} {metric}": of_paper[metric].get((tunable.lower(), method)) for metric in results.metrics(task) if metric in of_paper}
    return row | {"note": _row_note(results, task, method, tunable)}


def _row_note(results: Results, task: str, method: str, tunable: str) -> str:
    if not results.has(task, method, tunable):
        return missing(*results.why_missing(task, method, tunable))
    finished = [trial for trial in results.trials(task, method, tunable) if trial["tuned"]] if method not in UNTUNED else []
    untouched = sum(trial["kept_step_0"] for trial in finished)
    return f"kept step 0 ({untouched} of {len(finished)} seeds): no step of tuning was better on validation" if untouched else ""


def _gain(results: Results, task: str, tunable: str, baselines: Iterable[tuple[str, str]], split: str) -> dict[str, Any]:
    """FIAT less the best baseline of each metric, which is chosen on ``split``."""
    title = f"Gain over the best baseline, chosen on {split}" + (" (the paper's way)" if split == "test" else "")
    row: dict[str, Any] = {"task": task, "tunable": tunable, "method": "gain", "row": title}
    over: dict[str, list[str]] = {}
    doubts: dict[str, None] = {}
    for name, metric, average in score_columns(results, task)[:2]:
        best = results.best(task, baselines, metric, split)
        value, base = results.value(task, "fiat", tunable, metric, average), best and results.value(task, *best, metric, average)
        if best is None or value is None or base is None:
            continue
        found = results.difference(task, ("fiat", tunable), best, metric)
        row |= {name: value - base} | _interval(name, found)
        over.setdefault(_baseline_title(best[0]), []).append(METRIC_TITLES[metric])
        doubts |= {found.note: None} if found and found.note else {}
    setting = published.setting_of(task, results.languages(task))
    if setting and tunable.lower() == "s" and split == "test":
        row |= {f"{PAPER} {metric}": gain for metric, gain in published.GAINS[setting].items()}
    missing = "not every baseline has a score on validation to choose by" if split == "validation" else "not run"
    notes = [f"over {title} ({', '.join(metrics)})" for title, metrics in over.items()]
    return row | {"note": "; ".join([*notes, *doubts]) or missing}


def _interval(name: str, found: Comparison | None) -> dict[str, float | None]:
    return {f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": found.p} if found else {}


def _holm(block: list[dict[str, Any]], columns: Iterable[str]) -> list[dict[str, Any]]:
    """The p values of one block's adjacent differences, adjusted together."""
    for name in columns:
        tested = [row for row in block if row.get(name) is not None]
        for row, adjusted in zip(tested, holm([row[name] for row in tested]), strict=True):
            row[name] = adjusted
    return block


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Columns in order of first appearance, the paper's and the note last."""
    names = dict.fromkeys(name for row in rows for name in row)
    rank = {name: (name == "note") * 3 + name.startswith(PAPER) * 2 + (name in ("unparsed", "length")) for name in names}
    return pd.DataFrame(rows, columns=sorted(names, key=rank.__getitem__))


def _notes(results: Results) -> list[str]:
    notes = []
    for task in results.run.tasks:
        for _, metric, average in score_columns(results, task):
            if metric == results.metrics(task)[0]:
                languages = results.averaged(task, average)
                absent = [x for x in NAMED_AVERAGES.get(average, ()) if x not in languages]
                lacking = f"; this run lacks {' '.join(absent)}" if absent else ""
                named = METRIC_TITLES[metric] + (f" ({AVERAGE_TITLES[average]})" if average != "mean" else "")
                notes.append(f"{task}: {named} is the mean of {len(languages)} languages ({' '.join(languages)}){lacking}.")
    notes.append("Scores are 0–100 on test, means over seeds; intervals are 95 %, from resampled groups of rows.")
    notes.append("* Holds at 5 % (Table 3: after Holm's correction over the adjacent differences of a block).")
    return notes


def _language_notes(results: Results, task: str, setting: str | None) -> list[str]:
    notes = []
    undefined = [x for x in results.languages(task) if results.value(task, "fiat", (results.tunables(task) or [""])[0], "auc_pr", x) is None]
    if "auc_pr" in results.metrics(task) and undefined and len(undefined) < len(results.languages(task)):
        notes.append(f"AUC-PR is not defined without positive test rows; left out of its mean: {' '.join(undefined)}.")
    if setting:
        of_paper = next(iter(next(iter(published.per_language(setting).values())).values()))
        absent = [language for language in of_paper if language not in results.languages(task)]
        notes += [f"This run lacks {len(absent)} of the paper's {len(of_paper)} languages: {' '.join(absent)}."] if absent else []
        number = f"Table {published.TABLE_OF_LANGUAGES[setting]} "
        notes += [f"In the paper: {text}." for text in published.disagreements() if text.startswith(number)]
    return notes


def console_table(run_dir: str | Path) -> str:
    """Table 3 as plain text of at most 110 columns, for a terminal; what was not run, and the run's notes, below."""
    results = Results(read(run_dir))
    frame = table3_ablations(results).frame
    blocks = [_console_block(results, task, frame[frame["task"] == task]) for task in results.run.tasks]
    notes = [textwrap.fill(note, 110) for note in (*answers(results), *results.run.manifest["notes"])]
    return "\n\n".join((*blocks, "\n".join(notes))) + "\n"


def _console_block(results: Results, task: str, frame: pd.DataFrame) -> str:
    columns = score_columns(results, task)[:2]
    lines = [["method", "tunable", *(text for _, metric, _ in columns for text in (METRIC_TITLES[metric], "change")), "seeds", ""]]
    footnotes: dict[str, int] = {}
    for row in records(frame):
        cells = [row["row"], row["tunable"] or "–"]
        for name, _, _ in columns:
            change, p = row.get(f"{name}_change"), row.get(f"{name}_change_p")
            cells.append("–" if pd.isna(row[name]) else f"{row[name]:.1f}")
            cells.append("" if pd.isna(change) else signed(change) + (" " if pd.isna(p) or p >= 0.05 else "*"))
        notes = [row["note"]] if row["note"] else []
        if row["method"] == "icl" and not pd.isna(row["unparsed"]):
            notes.append(f"{row['unparsed']:.0f} % unparsed, {row['length']:.0f} % cut off at the token limit")
        marks = "".join(f"[{footnotes.setdefault(note, len(footnotes) + 1)}]" for note in notes)
        lines.append([*cells, "–" if pd.isna(row["seeds"]) else f"{row['seeds']:.0f}", marks])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [text.ljust(w) if i in (0, 1, len(widths) - 1) else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    text = ["  ".join(line).rstrip() for line in aligned]
    rule = "─" * max(map(len, text))
    average = results.averages(task)[0]
    languages = results.averaged(task, average)
    heading = textwrap.fill(
        f"{task}: means of {len(languages)} languages on test ({' '.join(languages)}); change: to the row above, * holds at 5 %", 110
    )
    notes = [textwrap.fill(f"[{number}] {note}", 110, subsequent_indent="    ") for note, number in footnotes.items()]
    return "\n".join([heading, "", text[0], rule, *text[1:], rule, *notes])
