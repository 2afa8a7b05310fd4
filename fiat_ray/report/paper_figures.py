"""The paper's Figures 3 to 6 for every task and tunable of a run: what is drawn as a table, the drawing, and what it shows in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fiat_ray.gain_slope import GainSlopes, Slope, gain_slopes, slope
from fiat_ray.recipe import FIGURE_6
from fiat_ray.report import published
from fiat_ray.report.figures import Line, Mark, line_chart, mark_chart, scatter, stack, validation_lines, words
from fiat_ray.report.read import records
from fiat_ray.report.results import Results
from fiat_ray.report.tables import PAPER, Table, metric_title, missing, not_held, signed, title_of
from fiat_ray.significance import Comparison, compare_values, holm

CLAIM = "the claim that weaker languages gain more"
QA = ("xtreme_up_qa_indic", "xtreme_up_qa_full")


@dataclass(frozen=True)
class Figure:
    table: Table
    """What is drawn; its name is the stem of the files."""
    svg: str
    captions: list[str]


@dataclass
class Panels:
    """A figure in the making: rows of its table, pictures one below the other, captions."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)

    def lacks(self, title: str, row: dict[str, Any]) -> None:
        """Something is not in this run: one row, and one line in the picture."""
        self.rows.append({"row": title, **{name: value for name, value in row.items() if name != "note"}})
        self.pictures.append(words(f"{title}: {missing(row['reason'], row['config_key'])}"))

    def figure(self, stem: str, title: str, results: Results, settings: Iterable[str], sizes: Sequence[str] = published.SIZES) -> Figure:
        """Closes with those of the paper's ``settings`` and ``sizes`` in this figure that the run has not."""
        for what, row in not_held(results, settings):
            if row["tunable"] in ("", *sizes):
                self.lacks(what, row)
        frame = pd.DataFrame(self.rows, columns=None if self.rows else ["row"])
        for name in ("reason", "config_key"):
            frame[name] = frame[name].fillna("") if name in frame else ""
        ordered = [name for name in frame if name not in ("reason", "config_key")] + ["reason", "config_key"]
        return Figure(Table(stem, title, frame[ordered]), stack(title, self.pictures), self.captions)


def figures(results: Results, curves: pd.DataFrame) -> list[Figure]:
    """``curves``: as ``facts.curves``, of trials at the largest train size. A run without the paper's tasks has those that its methods can fill."""
    drawn = [figure3(results), figure4(results), figure5(results, curves), figure6(results)]
    return [figure for figure in drawn if len(figure.table.frame)]


def figure3(results: Results) -> Figure:
    """Gain of CoT by language over the score without it, as the paper plots it and free of regression to the mean."""
    panels = Panels()
    for task, tunable in _places(results, ("fiat", "no_cot")):
        if _start(panels, results, task, tunable, ("fiat", "no_cot")):
            _gain_panel(panels, results, task, tunable)
    return panels.figure("figure3_gain_by_language", "Figure 3 · Gain of CoT by language", results, QA)


def figure4(results: Results) -> Figure:
    """CoT as input against CoT as a second target, and against none."""
    methods, pairs = ("no_cot", "distilled_cot", "fiat"), (("distilled_cot", "no_cot"), ("fiat", "no_cot"), ("fiat", "distilled_cot"))
    panels = Panels()
    for task, tunable in _places(results, methods[1:]):
        _start(panels, results, task, tunable, methods)
        metric = results.metrics(task)[0]
        tested = [(f"{_short(a)} − {_short(b)}", results.difference(task, (a, tunable), (b, tunable), metric)) for a, b in pairs]
        _score_panel(panels, results, task, tunable, {method: results.title(method) for method in methods}, tested)
    return panels.figure("figure4_distilled_cot", "Figure 4 · CoT in the input, or distilled", results, QA[:1], ("xs",))


def figure5(results: Results, curves: pd.DataFrame) -> Figure:
    """Validation through training with and without i_tau, from step 0, and the gain of i_tau before tuning and after; size S first."""
    titles = {"no_cot": "with i_tau (no_cot)", "no_instructions": "without i_tau (no_instructions)"}
    panels = Panels()
    known = curves[curves["chosen"].astype(bool)]
    for task, tunable in sorted(_places(results, ("no_cot", "no_instructions")), key=lambda place: place[1].lower() != "s"):
        of = known[(known["task"] == task) & (known["tunable"] == tunable)].dropna(subset=["value"])
        _start(panels, results, task, tunable, ("no_cot", "no_instructions"), there=set(of["method"]))
        of = pd.concat([of[of["method"] == method] for method in ("no_cot", "no_instructions")])
        if of.empty:
            continue
        metric = of["metric"].iloc[0]
        name = metric_title(metric)
        lines = validation_lines(of, titles.__getitem__)
        panels.pictures.append(line_chart(f"{task}, {tunable}: {name} through training", "optimizer step", f"{name} on validation", lines))
        columns = ["task", "tunable", "method", "seed", "train_size", "step", "metric", "value", "selected"]
        panels.rows += [{"row": results.title(row["method"]), **row} for row in records(of[columns])]
        pair = ("no_cot", tunable), ("no_instructions", tunable)
        tested = [
            (f"gain of i_tau {when}", results.through_training(task, *pair, metric, kept=kept))
            for when, kept in (("before tuning", False), ("at the kept step", True))
        ]
        _difference_panel(panels, {"task": task, "tunable": tunable, "metric": metric}, f"{name} on validation", tested)
    if panels.captions:
        panels.captions.append("Each trial kept the step that is best on these very rows, so the gain there is less sure than its interval says.")
    return panels.figure("figure5_training", "Figure 5 · Validation through training, with and without i_tau", results, QA, ("s",))


def figure6(results: Results) -> Figure:
    """What i_tau brings to an instruction-tuned base and to a pretrained one; without CoT, all parameters tuned."""
    bases = [f"{start} i_tau, {base} base" for base in ("instruction-tuned", "pretrained") for start in ("with", "without")]
    panels = Panels()
    for task, tunable in _places(results, FIGURE_6[:2]):
        _start(panels, results, task, tunable, FIGURE_6)
        metric = results.metrics(task)[0]
        gains = [results.difference(task, (FIGURE_6[i], tunable), (FIGURE_6[i + 1], tunable), metric) for i in (0, 2)]
        tested = [
            ("gain of i_tau, instruction-tuned base", gains[0]),
            ("gain of i_tau, pretrained base", gains[1]),
            ("the first gain − the second", _difference_of_gains(results, task, tunable)),
        ]
        _score_panel(panels, results, task, tunable, dict(zip(FIGURE_6, bases, strict=True)), tested)
    return panels.figure("figure6_instruction_tuned_base", "Figure 6 · i_tau and the instruction-tuned base", results, published.SETTINGS)


def _places(results: Results, methods: Iterable[str]) -> list[tuple[str, str]]:
    tasks = [task for task in results.run.tasks if all(results.shows(task, method) for method in methods)]
    return [(task, tunable) for task in tasks for tunable in results.tunables(task)]


def _start(panels: Panels, results: Results, task: str, tunable: str, methods: Sequence[str], there: set[str] | None = None) -> bool:
    """A panel's heading, and what it lacks of these methods; whether it is complete. ``there``: default, those with scores."""
    panels.pictures.append(words(f"{task} · tunable {tunable}", bold=True))
    known = {method for method in methods if results.has(task, method, tunable)} if there is None else there
    for method in (method for method in methods if method not in known):
        reason, key = results.why_missing(task, method, tunable)
        panels.lacks(method, {"task": task, "tunable": tunable, "method": method, "reason": reason, "config_key": key})
    return known >= set(methods)


def _gain_panel(panels: Panels, results: Results, task: str, tunable: str) -> None:
    metric, of = results.row_metric(task), {"task": task, "tunable": tunable}
    baseline, method = (results.row_values(task, name, tunable) for name in ("no_cot", "fiat"))
    found = results.by_language(task, ("fiat", tunable), ("no_cot", tunable), metric)
    if baseline is None or method is None or not found:
        panels.lacks("fiat, no_cot", {**of, "method": "", "reason": "their predictions are not there", "config_key": ""})
        return
    points = [(x, results.value(task, "no_cot", tunable, metric, x) or 0.0, found[x].difference or 0.0) for x in results.languages(task)]
    slopes = gain_slopes(baseline.groups, baseline.languages, baseline.values, method.values)
    for x, score, gain in points:
        interval = {"gain_low": found[x].low, "gain_high": found[x].high}
        panels.rows.append({"row": "language", **of, "language": x, "metric": metric, "baseline": score, "gain": gain, **interval})
    named = [("slope as the paper plots it", slopes.plotted), ("slope free of regression to the mean", slopes.split)]
    setting = published.setting_of(task, results.languages(task))
    printed = published.per_language(setting)[metric] if setting else {}
    if ("xs", "fiat") in printed and tunable.lower() in published.SIZES:
        weak, strong = (printed[tunable.lower(), name] for name in ("no_cot", "fiat"))
        number = published.TABLE_OF_LANGUAGES[setting or ""]
        named.append((f"slope in Table {number} as printed, {PAPER}", slope(list(weak.values()), [strong[x] - weak[x] for x in weak])))
    panels.rows += [{"row": title, **of, "metric": metric, "slope": s.value, "slope_low": s.low, "slope_high": s.high} for title, s in named]
    lines = [_trend(points, title, s.value, i) for i, (title, s) in enumerate(named[:2]) if s.value is not None]
    name = metric_title(metric)
    panels.pictures.append(scatter(f"{task}, {tunable}", f"{name} without CoT (no_cot)", f"gain of CoT in {name} (fiat − no_cot)", points, lines))
    values = "; ".join(f"{title} {_slope_text(s)}" for title, s in named)
    luck = "" if len(baseline.values) > 1 else " With one seed the luck of its tuning is still in both score and gain."
    panels.captions.append(f"{task}, {tunable}: {verdict(slopes)}. In points of gain by point of {name}: {values}.{luck}")


def verdict(slopes: GainSlopes) -> str:
    """Which of the slopes supports the paper's claim, in words."""
    plotted, split = slopes.plotted.is_negative, slopes.split.is_negative
    if slopes.split.low is None or slopes.plotted.low is None:
        return f"there are too few languages or groups here to test {CLAIM}"
    if plotted and split:
        return f"both slopes support {CLAIM}"
    if plotted:
        return f"only the slope as plotted supports {CLAIM}; free of regression to the mean nothing is sure, so the plot is no evidence for it"
    if split:
        return f"only the slope free of regression to the mean supports {CLAIM}"
    opposite = "; the one free of regression to the mean says that stronger languages gain more" if slopes.split.is_positive else ""
    return f"neither slope supports {CLAIM}{opposite}"


def _slope_text(of: Slope) -> str:
    if of.value is None or of.low is None or of.high is None:
        return "without an interval" if of.value is None else f"{of.value:+.2f}, without an interval".replace("-", "−")
    return f"{of.value:+.2f} ({of.low:+.2f} to {of.high:+.2f})".replace("-", "−")


def _trend(points: Sequence[tuple[str, float, float]], title: str, value: float, style: int) -> Line:
    """A line of this slope through the middle of the points, as far as they reach."""
    xs, ys = np.array([x for _, x, _ in points]), np.array([y for _, _, y in points])
    low, high = xs.min(), xs.max()
    if value:
        ends = sorted(float(xs.mean() + (y - ys.mean()) / value) for y in (min(ys.min(), 0), max(ys.max(), 0)))
        low, high = max(low, ends[0]), min(high, ends[1])
    return Line(title, [(float(x), float(ys.mean() + value * (x - xs.mean()))) for x in (low, high)], style=style)


def _difference_of_gains(results: Results, task: str, tunable: str) -> Comparison | None:
    """(i_tau − none) of the instruction-tuned base less that of the pretrained one."""
    of = [results.row_values(task, method, tunable) for method in FIGURE_6]
    averaged = results.averaged(task, results.averages(task)[0])
    known = [rows.only(averaged) for rows in of if rows]
    if len(known) < len(FIGURE_6):
        return None
    seeds = min(len(rows.values) for rows in known)
    a, b, c, d = (rows.values[:seeds] for rows in known)
    return compare_values(known[0].groups, known[0].languages, a + d, b + c)


def _score_panel(
    panels: Panels, results: Results, task: str, tunable: str, titles: dict[str, str], tested: Sequence[tuple[str, Comparison | None]]
) -> None:
    """Scores of methods, and below them their differences with intervals, adjusted together (Holm)."""
    metric, average = results.metrics(task)[0], results.averages(task)[0]
    setting = published.setting_of(task, results.languages(task))
    printed = published.overall(setting)[metric] if setting else {}
    of = {"task": task, "tunable": tunable, "metric": metric}
    scores = []
    for i, (method, title) in enumerate(titles.items()):
        value, paper = results.value(task, method, tunable, metric, average), printed.get((tunable.lower(), method))
        if value is not None:
            panels.rows.append({"row": title, **of, "method": method, "value": value, PAPER: paper})
            scores.append(Mark(title, f"{value:.1f}" + (f" (paper {paper})" if paper else ""), value, style=i))
    name = metric_title(metric)
    panels.pictures += [mark_chart(f"{task}, {tunable}: {name}", f"{name} on test", scores)] if scores else []
    _difference_panel(panels, of, name, tested)


def _difference_panel(panels: Panels, of: dict[str, Any], name: str, tested: Sequence[tuple[str, Comparison | None]]) -> None:
    """Differences with intervals, adjusted together (Holm). ``of``: task, tunable and metric; ``name``: the metric in words."""
    known = [(title, found) for title, found in tested if found and found.difference is not None]
    adjusted = iter(holm([found.p for _, found in known if found.p is not None]))
    marks = []
    for title, found in known:
        p, value = next(adjusted) if found.p is not None else None, found.difference or 0.0
        panels.rows.append({"row": title, **of, "difference": value, "low": found.low, "high": found.high, "p": p, "note": found.note})
        interval = "no interval" if found.low is None or found.high is None else f"{signed(found.low)} to {signed(found.high)}"
        marks.append(Mark(title, f"{signed(value)}{'*' if p is not None and p < 0.05 else ''} ({interval})", value, found.low, found.high))
    if marks:
        where = f"{of['task']}, {of['tunable']}"
        panels.pictures.append(mark_chart(f"{where}: differences in {name}", f"difference in {name}, 95 % interval", marks))
        notes = "; ".join(dict.fromkeys(found.note for _, found in known))
        holds = ", ".join(f"{mark.title} {mark.text}" for mark in marks if "*" in mark.text) or "none"
        panels.captions.append(f"{where}: differences that hold at 5 % after Holm's correction: {holds}. Intervals: {notes}.")


def _short(method: str) -> str:
    return {"no_cot": "without CoT"}.get(method, title_of(method))
