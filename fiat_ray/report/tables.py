"""The paper's overall tables for a run: Table 2, Table 3 and leave-one-out; the paper's own numbers beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fiat_ray.metrics import NAMED_AVERAGES
from fiat_ray.recipe import ABLATIONS, LEAVE_ONE_OUT, PLAIN, TITLES, UNTUNED
from fiat_ray.report import published
from fiat_ray.report.columns import adjust, interval
from fiat_ray.report.results import Results
from fiat_ray.significance import Comparison, holm
from fiat_ray.text import count

PAPER = "paper (PaLM-2, not comparable)"
METRIC_TITLES = {
    "f1": "F1",
    "exact_match": "Exact match",
    "accuracy": "Accuracy",
    "auc_pr": "AUC-PR",
    "macro_f1": "Macro-F1",
    "chrf": "chrF",
    "unparsed": "Unparsed %",
    "length": "Cut off %",
}
NO_TWIN = "full fine-tuning, instruction-tuned base (not the paper's baseline: no pretrained twin)"
UNSTATED = "und"
"""The language of rows that state none."""
NO_STEPS = "no two methods here differ in one ingredient alone, as those of the lists ablations and leave_one_out do"
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


def metric_title(metric: str) -> str:
    """A metric's name as people read it; somebody's own, ``module:function``, by its function."""
    return METRIC_TITLES.get(metric) or metric.rpartition(":")[2]


def missing(reason: str, config_key: str) -> str:
    """Why something is not there, in words."""
    return f"not run: {reason}" + (f" (config key that adds it: {config_key})" if config_key else "")


def numbered(results: Results, number: int) -> str:
    """A title's beginning: a report without any of the paper's tasks has no numbers of its tables."""
    return f"Table {number} · " if results.settings else ""


def absent(name: str, title: str, why: tuple[str, str]) -> Table:
    """A table that this run does not hold: one row with the reason and the config key that adds it."""
    return Table(name, title, pd.DataFrame([why], columns=["reason", "config_key"]))


def column(metric: str, average: str) -> str:
    return metric if average == "mean" else f"{metric}_{average}"


def score_columns(results: Results, task: str) -> list[tuple[str, str, str]]:
    """(column, metric, average) of a task's overall tables: the headline metrics, then the first one under the other averages."""
    headline, *others = results.averages(task)
    first, second = results.metrics(task)
    return [(column(m, a), m, a) for m, a in [(first, headline), (second, headline), *((first, other) for other in others)]]


def table2_overall(results: Results) -> Table:
    """ICL, majority answer, fine-tuning and FIAT of each task and size, and what FIAT gains over the best baseline."""
    rows: list[dict[str, Any]] = []
    for task in results.run.tasks:
        rows += [_scores(results, task, method, "", title_of(method)) for method in UNTUNED if results.shows(task, method)]
        for tunable in results.tunables(task):
            rows += [_scores(results, task, method, tunable, title) for method, title in _tunings(results, task, tunable).items()]
            if results.shows(task, "fiat"):
                rows.append(_scores(results, task, "fiat", tunable, title_of("fiat")))
                rows += _gains(results, task, tunable)
    rows += [{"row": title, **row} for title, row in not_held(results)]
    return Table("table2_overall", f"{numbered(results, 2)}FIAT and the baselines", _frame(rows), [*_notes(results), "* Holds at 5 %."])


def _tunings(results: Results, task: str, tunable: str) -> dict[str, str]:
    """Baselines that are tuned, with their titles: of a paper's task its fine-tuning, and without a twin what comes nearest; of another all."""
    if task not in published.ROWS:
        methods = dict.fromkeys((*PLAIN, *(method for method, _ in results.plain_tunings(task, tunable))))
        titles = {method: _baseline_title(results, task, method) for method in methods if results.shows(task, method)}
    else:
        titles = {"no_instruction_tuned": "fine-tuning (the paper's baseline)"}
        titles |= {} if results.has(task, "no_instruction_tuned", tunable) else {"no_peft": _baseline_title(results, task, "no_peft")}
    return {method: title[0].upper() + title[1:] for method, title in titles.items()}


def _candidates(results: Results, task: str, tunable: str, split: str) -> list[tuple[str, str]]:
    """Of these the best baseline is chosen on a split; of a task that is not the paper's as the answer chooses it."""
    untuned = [(method, "") for method in UNTUNED]
    if task in published.ROWS:
        return [*untuned, ("no_instruction_tuned" if results.has(task, "no_instruction_tuned", tunable) else "no_peft", tunable)]
    if split == "validation":
        return [*untuned, *results.plain_tunings(task, tunable)]
    best, _ = results.best_tuning(task, tunable)
    return [*untuned, best] if best else untuned


def methods(results: Results) -> pd.DataFrame:
    """The paper's cumulative ablations, each with its change from the row above; then methods of no table, with theirs from FIAT."""
    return _methods(results, results.run.tasks)


def _methods(results: Results, tasks: Iterable[str]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for task in tasks:
        rows += [_scores(results, task, method, "", title_of(method)) for method in UNTUNED if results.shows(task, method)]
        for tunable in results.tunables(task):
            rows += _block(results, task, tunable, [("fiat", None), *zip(ABLATIONS[1:], ABLATIONS, strict=False)], "change")
            rows += _block(results, task, tunable, [(method, "fiat") for method in _others(results, task)], "change")
    return _frame(rows + [{"row": title, **row} for title, row in not_held(results)])


def _others(results: Results, task: str) -> list[str]:
    """Methods of no table of the paper."""
    return [method for method in results.methods(task) if method not in (*UNTUNED, *ABLATIONS, *LEAVE_ONE_OUT)]


def _shows_steps(results: Results, task: str) -> bool:
    """Whether a row of the table of ablations has one that it is compared with."""
    pairs = (*zip(ABLATIONS, ABLATIONS[1:], strict=False), *(("fiat", other) for other in _others(results, task)))
    return any(all(results.shows(task, method) for method in pair) for pair in pairs)


def table3_ablations(results: Results) -> Table:
    """``methods``, of tasks where one of them is compared with another; of others what adds that."""
    tasks = [task for task in results.run.tasks if _shows_steps(results, task)]
    lacking = [task for task in results.run.tasks if task not in tasks and not _shows_leave_one_out(results, task)]
    row = {"tunable": "", "method": "", "row": "Ablations", "note": "", "reason": NO_STEPS, "config_key": "methods"}
    if not tasks:
        return Table("table3_ablations", "Ablations", _frame([{"task": task, **row} for task in lacking]))
    frame, notes = _methods(results, tasks), _notes(results)
    frame = pd.concat([frame, _frame([{"task": task, **row} for task in lacking])]) if lacking else frame
    if any(name.endswith("_change") for name in map(str, frame)):
        notes.append(
            "* Holds at 5 % after Holm's correction over the adjacent differences of a block; differences from FIAT are a block of their own. "
            "Stricter than one interval, which may leave out 0 without it."
        )
    is_ladder = bool(results.settings) or all(_is_ladder(results, task) for task in tasks)
    what = "Ablations: each removal is cumulative with the one above" if is_ladder else "All methods"
    return Table("table3_ablations", f"{numbered(results, 3)}{what}", frame, notes)


def _is_ladder(results: Results, task: str) -> bool:
    """Whether the ablations that are shown leave out none between them."""
    shown = [number for number, method in enumerate(ABLATIONS) if results.shows(task, method)]
    return len(shown) > 1 and shown[-1] - shown[0] == len(shown) - 1


def _shows_leave_one_out(results: Results, task: str) -> bool:
    return any(results.shows(task, method) for method in LEAVE_ONE_OUT[2:])


def leave_one_out(results: Results) -> Table:
    """FIAT less exactly one ingredient each, with its difference from FIAT; of a task that is not the paper's only where one is asked for."""
    rows: list[dict[str, Any]] = []
    for task in (task for task in results.run.tasks if _shows_leave_one_out(results, task)):
        for tunable in results.tunables(task):
            rows += _block(results, task, tunable, [(method, None if method == "fiat" else "fiat") for method in LEAVE_ONE_OUT], "from_fiat")
    rows += [{"row": title, **row} for title, row in not_held(results)]
    holds = "* Holds at 5 % after Holm's correction over the four differences from FIAT."
    return Table("leave_one_out", "Leave one out: FIAT less one ingredient each", _frame(rows), [*_notes(results), holds])


def not_held(results: Results, settings: Iterable[str] = published.SETTINGS) -> list[tuple[str, dict[str, Any]]]:
    """(title, row) of each of the paper's settings, and of its two sizes in a setting, that this run does not hold; none for a run without any."""
    found = []
    for setting in settings if results.settings else ():
        task, title = results.settings.get(setting), published.SETTINGS[setting]
        lacking = published.SIZES if task else ("",)
        there = [tunable.lower() for tunable in results.tunables(task)] if task else []
        for size in lacking:
            if size not in there:
                reason, key = results.why_no_size(size) if task else results.why_no_setting(setting)
                about = f"{title}, size {size.upper()}" if task else title
                found.append((about, {"task": task or setting, "tunable": size, "method": "", "note": "", "reason": reason, "config_key": key}))
    return found


def _block(results: Results, task: str, tunable: str, steps: Iterable[tuple[str, str | None]], suffix: str) -> list[dict[str, Any]]:
    """A row for each (method, what it is compared with); the differences of the block are tested together."""
    rows = []
    for method, other in ((method, other) for method, other in steps if results.shows(task, method)):
        title = results.step_title(method) if suffix == "change" else results.title(method)
        row = _scores(results, task, method, tunable, title) | {"compared_with": other or ""}
        rows.append(row | _compared(results, row, method, other, suffix) if other else row)
    for name, _, _ in score_columns(results, task):
        adjust(rows, f"{name}_{suffix}", holm)
    return rows


def _compared(results: Results, row: dict[str, Any], method: str, other: str, suffix: str) -> dict[str, Any]:
    """A row's change from method ``other`` in both headline metrics, with intervals and, in its note, what they leave out."""
    task, tunable = row["task"], row["tunable"]
    notes = [f"change: from {results.title(other)}"] if suffix == "change" and method not in ABLATIONS else []
    changes: dict[str, Any] = {}
    for name, metric, average in score_columns(results, task)[:2]:
        new, old = (results.value(task, which, tunable, metric, average) for which in (method, other))
        if new is None or old is None:
            continue
        found = results.difference(task, (method, tunable), (other, tunable), metric)
        changes |= {f"{name}_{suffix}": new - old} | interval(f"{name}_{suffix}", found)
        notes += [found.note] if found and found.note not in notes else []
    return changes | {"note": "; ".join(filter(None, [row["note"], *notes]))}


def paper_overall() -> Table:
    """The paper's own Table 3, which holds Table 2's rows (its fine-tuning is the last of each block) and Figure 4's distilled CoT."""
    columns = [(setting, metric) for setting in published.SETTINGS for metric in published.overall(setting)]
    keys = dict.fromkeys(key for setting, metric in columns for key in published.overall(setting)[metric])
    rows = []
    for size, method in sorted(keys, key=lambda key: ("", "xs", "s").index(key[0])):
        row: dict[str, Any] = {"row": title_of(method), "size": f"PaLM-2 {size.upper()}" if size else "PaLM-2 L"}
        row |= {f"{published.SETTINGS[s]}: {metric_title(metric)}": published.overall(s)[metric].get((size, method)) for s, metric in columns}
        rows.append(row)
    gains = {f"{published.SETTINGS[s]}: {metric_title(metric)}": published.GAINS[s][metric] for s, metric in columns}
    rows.append({"row": "Gain over the best baseline (Table 2)", "size": "", **gains})
    return Table("paper_table3", f"Tables 2 and 3 as printed · {PAPER}", pd.DataFrame(rows), published.disagreements())


def signed(value: float) -> str:
    """One decimal, with its sign; a real minus, so that columns align."""
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def interval_text(found: Comparison | None) -> str:
    """The ends of a difference's interval, or why it has none."""
    if found is None:
        return "no interval"
    return found.note if found.low is None or found.high is None else f"{signed(found.low)} to {signed(found.high)}"


def _baseline_title(results: Results, task: str, method: str) -> str:
    if not results.settings or task not in published.ROWS:
        return results.title(method)
    return {"no_peft": NO_TWIN, "no_instruction_tuned": "fine-tuning"}.get(method, title_of(method))


def _scores(results: Results, task: str, method: str, tunable: str, title: str) -> dict[str, Any]:
    """A table row; without scores it holds the reason, and the config key that adds them."""
    row: dict[str, Any] = {"task": task, "tunable": tunable, "method": method, "row": title, "seeds": results.seeds(task, method, tunable) or None}
    row |= {name: results.value(task, method, tunable, metric, average) for name, metric, average in score_columns(results, task)}
    if method == "icl":
        row |= {metric: results.value(task, method, tunable, metric, results.averages(task)[0]) for metric in ("unparsed", "length")}
    setting = published.setting_of(task, results.languages(task))
    of_paper = published.overall(setting) if setting and title[: len(NO_TWIN)].lower() != NO_TWIN.lower() else {}
    row |= {f"{PAPER} {metric}": of_paper[metric].get((tunable.lower(), method)) for metric in results.metrics(task) if metric in of_paper}
    reason, key = ("", "") if results.has(task, method, tunable) else results.why_missing(task, method, tunable)
    return row | {"note": _row_note(results, task, method, tunable), "reason": reason, "config_key": key}


def _row_note(results: Results, task: str, method: str, tunable: str) -> str:
    finished = [trial for trial in results.trials(task, method, tunable) if trial["tuned"]] if method not in UNTUNED else []
    untouched = sum(trial["kept_step_0"] for trial in finished)
    return f"kept step 0 ({untouched} of {len(finished)} seeds): no step of tuning was better on validation" if untouched else ""


def _gains(results: Results, task: str, tunable: str) -> list[dict[str, Any]]:
    """FIAT less the best baseline as test and as validation choose it: one row where they choose the same."""
    gains = [_gain(results, task, tunable, split) for split in ("test", "validation")]
    on_test, on_validation = ([_best(results, task, tunable, metric, split) for metric in results.metrics(task)] for split in ("test", "validation"))
    if on_test != on_validation or None in on_test:
        return gains
    return [gains[0] | {"row": f"{gains[0]['row']}, the same as on validation"}]


def _best(results: Results, task: str, tunable: str, metric: str, split: str) -> tuple[str, str] | None:
    return results.best(task, _candidates(results, task, tunable, split), metric, split)


def _gain(results: Results, task: str, tunable: str, split: str) -> dict[str, Any]:
    """FIAT less the best baseline of each metric, which is chosen on ``split``."""
    is_papers = task in published.ROWS
    title = f"Gain over the best baseline, chosen on {split}" + (" (the paper's way)" if is_papers and split == "test" else "")
    row: dict[str, Any] = {"task": task, "tunable": tunable, "method": "gain", "row": title}
    over: dict[str, list[str]] = {}
    doubts: dict[str, None] = {}
    for name, metric, average in score_columns(results, task)[:2]:
        best = _best(results, task, tunable, metric, split)
        value, base = results.value(task, "fiat", tunable, metric, average), best and results.value(task, *best, metric, average)
        if best is None or value is None or base is None:
            continue
        found = results.difference(task, ("fiat", tunable), best, metric)
        row |= {name: value - base} | interval(name, found)
        over.setdefault(_baseline_title(results, task, best[0]), []).append(metric_title(metric))
        doubts |= {found.note: None} if found and found.note else {}
    setting = published.setting_of(task, results.languages(task))
    if setting and tunable.lower() == "s" and split == "test":
        row |= {f"{PAPER} {metric}": gain for metric, gain in published.GAINS[setting].items()}
    unknown = "not every baseline has a score on validation to choose by" if split == "validation" else "FIAT or a baseline has no score"
    notes = [f"over {title} ({', '.join(metrics)})" for title, metrics in over.items()]
    number, by = len(results.plain_tunings(task, tunable)), results.best_tuning(task, tunable)[1]
    notes += [f"of {number} tunings the best on {by}"] if notes and split == "test" and number > 1 and not is_papers else []
    return row | {"note": "; ".join([*notes, *doubts]) or unknown, "reason": "", "config_key": ""}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Columns in order of first appearance, the paper's and the note last."""
    names = dict.fromkeys(name for row in rows for name in row)
    rank = {name: (name in ("note", "reason", "config_key")) * 3 + name.startswith(PAPER) * 2 + (name in ("unparsed", "length")) for name in names}
    return pd.DataFrame(rows, columns=sorted(names, key=rank.__getitem__))


def scope_notes(results: Results, task: str) -> list[str]:
    """What a task's scores are of: rows without a language; and what not: trials with fewer train rows, languages in which a metric is undefined."""
    notes = []
    there = {trial["train_size"] for trial in results.trials(task)}
    if UNSTATED in results.languages(task):
        notes.append(f"{UNSTATED}: rows whose language is not stated.")
    if fewer := sorted({trial["train_size"] for trial in results.run.trials if trial["task"] == task} - there):
        smaller = ", ".join(f"{size:,}" for size in fewer)
        notes.append(f"Trials with {max(there):,} train rows; the report's section More data has those with {smaller}.")
    if "auc_pr" in results.metrics(task) and (undefined := results.undefined(task, "auc_pr")):
        notes.append(f"AUC-PR is not defined without positive test rows; left out of its mean: {' '.join(undefined)}.")
    return notes


def _notes(results: Results) -> list[str]:
    notes = []
    for task in results.run.tasks:
        for _, metric, average in score_columns(results, task):
            if metric == results.metrics(task)[0]:
                languages = results.behind(task, metric, average)
                absent = [x for x in NAMED_AVERAGES.get(average, ()) if x not in languages]
                lacking = f"; this run lacks {' '.join(absent)}" if absent else ""
                named = metric_title(metric) + (f" ({AVERAGE_TITLES[average]})" if average != "mean" else "")
                notes.append(f"{task}: {named} is the mean of {count(len(languages), 'language')} ({' '.join(languages)}){lacking}.")
        notes += [f"{task}: {note}" for note in scope_notes(results, task)]
    notes.append("Scores are 0–100 on test, means over seeds; intervals are 95 %, from resampled groups of rows.")
    return notes
