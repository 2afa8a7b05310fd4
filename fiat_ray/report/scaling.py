"""More data: each method's score by the number of train rows, which are nested subsets (the paper looks at 100 to 10,000 examples)."""

from __future__ import annotations

from collections.abc import Mapping

from fiat_ray.recipe import ABLATIONS
from fiat_ray.report.columns import NO_INTERVAL, Rows, adjust, score_interval, tested, why_absent
from fiat_ray.report.figures import DASHES
from fiat_ray.report.intervals import Curve, log_chart
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section, frame
from fiat_ray.report.tables import Table, metric_title
from fiat_ray.significance import holm

NOTES = [
    "A smaller set is part of every larger one; all are scored on the same test rows. Questions: distinct groups of rows; translations are one.",
    "Δ: to the next smaller size. * Holds at 5 % (after Holm's correction over the sizes of a method). " + NO_INTERVAL,
]
MOST = len(DASHES) - 1
"""Methods in one figure, beside ICL: no more lines can be told apart."""


def section(results: Results) -> Section:
    """The curve as a table, and a figure for each task and tunable with more than one size."""
    rows: Rows = []
    figures: list[tuple[str, str]] = []
    for task in results.run.tasks:
        by_size = {size: Results(results.run, size) for size in sorted({t["train_size"] for t in results.run.trials if t["task"] == task})}
        if len(by_size) < 2:
            why = f"one train size only: {', '.join(map(str, by_size)) or 'no'} rows", "train_size"
            rows.append({"task": task, "row": "Score by number of train rows", **why_absent(why)})
            continue
        for tunable in results.tunables(task):
            blocks = {method: _rows(by_size, task, method, tunable) for method in _methods(results, task)}
            rows += [row for block in blocks.values() for row in block]
            figures += _figure(results, task, tunable, blocks)
    table = Table("scaling", "Score by number of train rows", frame(rows, ("task", "tunable", "row")), NOTES if figures else [])
    return Section([], figures, [table])


def _methods(results: Results, task: str) -> list[str]:
    """Methods that tune, the paper's first."""
    there = dict.fromkeys(trial["method"] for trial in results.run.trials if trial["task"] == task)
    return [method for method in dict.fromkeys((*ABLATIONS, *there)) if method in there]


def _rows(by_size: Mapping[int, Results], task: str, method: str, tunable: str) -> Rows:
    """A method's score at each size that it was to be tuned with, and its change from the size before."""
    rows: Rows = []
    before: Results | None = None
    for size, results in by_size.items():
        trials = results.trials(task, method, tunable)
        if not trials:
            continue
        metric, average, which = results.metrics(task)[0], results.averages(task)[0], (task, method, tunable)
        questions = next((trial["train_groups"] for trial in trials if trial["tuned"]), None)
        row = {"task": task, "tunable": tunable, "row": results.title(method), "rows": size, "questions": questions}
        rows.append(row | {"seeds": results.seeds(*which) or None, metric: results.value(*which, metric, average)})
        rows[-1] |= score_interval(metric, results.interval(*which))
        if not results.has(*which):
            rows[-1] |= why_absent(results.why_missing(*which))
            continue
        if before is not None:
            found = results.differences(task, results.predictions(*which), before.predictions(*which), metric)
            rows[-1] |= tested(f"{metric}_change", found.get(average))
        before = results
    adjust(rows, f"{by_size[max(by_size)].metrics(task)[0]}_change", holm)
    return rows


def _figure(results: Results, task: str, tunable: str, blocks: Mapping[str, Rows]) -> list[tuple[str, str]]:
    """One line a method, ICL's level beside them; none where no method has scores at two sizes."""
    metric = results.metrics(task)[0]
    curves: list[Curve] = []
    for method, block in list(blocks.items())[:MOST]:
        known = [row for row in block if row[metric] is not None]
        bars = [None if row.get(f"{metric}_low") is None else (row[f"{metric}_low"], row[f"{metric}_high"]) for row in known]
        if known:
            curves.append(Curve(results.title(method), [(row["rows"], row[metric]) for row in known], style=len(curves), bars=bars))
    sizes = sorted({x for curve in curves for x, _ in curve.points})
    if len(sizes) < 2:
        return []
    icl = results.value(task, "icl", "", metric, results.averages(task)[0])
    if icl is not None:
        curves.append(Curve(f"{results.title('icl')}, which needs no train rows", [(size, icl) for size in sizes], style=len(curves)))
    title = f"{task}, tunable {tunable}: {metric_title(metric)} on test by number of train rows, with 95 % intervals"
    more = ", ".join(map(results.title, list(blocks)[MOST:]))
    title += f" (in the table only: {more})" if more else ""
    return [(f"scaling_{task}_{tunable}", log_chart(title, "train rows", f"{metric_title(metric)} on test", curves))]
