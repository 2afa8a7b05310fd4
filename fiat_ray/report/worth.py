"""What rationales are worth to the tunable: where their answer is right and where it is wrong, how often it is copied, and which part helps.

Rows whose rationale has the right answer are easy rows, too. So FIAT is compared, on the very same rows, with the same tuning without rationales.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from fiat_ray.metrics import average, normalize_answer, row_score
from fiat_ray.report import rationale_facts
from fiat_ray.report.columns import NO_INTERVAL, Rows, adjust, tested, why_absent
from fiat_ray.report.intervals import forest
from fiat_ray.report.read import records
from fiat_ray.report.results import Frames, Results
from fiat_ray.report.section import Section, frame, in_a_sentence
from fiat_ray.report.tables import AVERAGE_TITLES, Table, metric_title, signed
from fiat_ray.significance import Comparison, benjamini_hochberg, holm

VERDICTS = {"right": "Its answer is right", "wrong": "Its answer is wrong", "none": "It holds no answer"}
PARTS = {"fiat": "whole", "fiat_without_answer": "without its answer", "fiat_answer_only": "its answer only", "no_cot": "nothing"}
"""Method → how much of a rationale its tunable reads."""
MARKED = (
    "* Holds at 5 % (averages: after Holm's correction over the differences of a tunable; "
    "languages: after Benjamini and Hochberg's); stricter than one interval, which may leave out 0 without it. " + NO_INTERVAL
)
MEANS = "Means over languages of the rows that they have of a kind. Gives its answer: the prediction is the rationale's answer, after normalisation."
UNREAD = "W/o rationales: the same tuning without them, which never read that answer."
UNASKED = "What rationales add on these rows the same tuning without them would show: config key methods, with no_cot."

ABOUT = ("task", "tunable", "what", "language")

Gains = dict[str, Comparison]
"""Average and language → FIAT less ``no_cot``."""


def section(results: Results) -> Section:
    """Three tables, each by average and language; a sentence and a figure for each task and tunable."""
    rationales = {task: rationale_facts.judged(results, task) for task in results.run.tasks}
    facts = rationale_facts.table(results, rationales)
    use: Rows = []
    parts: Rows = []
    sentences: list[str] = []
    figures: list[tuple[str, str]] = []
    for task, rows in rationales.items():
        for tunable in results.tunables(task) if rows else ():
            found, gains = _use(results, task, tunable, rows)
            use += found
            parts += _parts(results, task, tunable)
            figures += _figure(results, task, tunable, gains)
            fact = next(row for row in records(facts.frame) if row["task"] == task)  # the average's stands first
            sentences.append(_says(task, tunable, fact, found))
    of_parts = Table("rationale_parts", "How much of a rationale the tunable reads", frame(parts, ABOUT), [MARKED])
    tables = [_use_table(use, is_asked=any(results.shows(task, "no_cot") for task in rationales)), of_parts]
    return Section(sentences, figures, [facts, *(table for table in tables if len(table.frame))])


def _use_table(use: Rows, *, is_asked: bool) -> Table:
    """Of a run without ``no_cot`` it says nothing of a comparison. ``is_asked``: whether ``no_cot`` is; then a row says why it lacks."""
    if any(row.get("no_cot") is not None for row in use):
        title, notes = "FIAT and the same tuning without rationales, on the same rows", [f"{MEANS} {UNREAD}", MARKED]
    else:
        title, notes = "FIAT where its rationale's answer is right, wrong or missing", [MEANS] if is_asked else [MEANS, UNASKED]
    return Table("rationale_use", title, frame(use, ABOUT), notes)


def _use(results: Results, task: str, tunable: str, rationales: Rows) -> tuple[Rows, dict[str, Gains]]:
    """(Rows by average, language and verdict; verdict → gains on its rows)."""
    fiat, plain = (results.predictions(task, method, tunable) for method in ("fiat", "no_cot"))
    lacking = [m for m, frames in (("fiat", fiat), ("no_cot", plain)) if not frames and results.shows(task, m)]
    headline, metric = results.averages(task)[0], results.row_metric(task)
    name = f"{metric}_from_no_cot"
    rows: Rows = []
    gains: dict[str, Gains] = {}
    for verdict in VERDICTS:
        chosen = {row["id"]: row for row in rationales if row["verdict"] == verdict}
        if chosen and fiat:
            mine, theirs = ([[row for row in predictions if row["id"] in chosen] for predictions in frames] for frames in (fiat, plain))
            gains[verdict] = results.differences(task, mine, theirs, metric) if theirs else {}
            scored = [{"task": task, "tunable": tunable, **row} for row in _of_verdict(results, task, chosen, mine, theirs)]
            for row in scored:
                row |= tested(name, gains[verdict].get(row["language"]))
            adjust([row for row in scored if row["language"] != headline], name, benjamini_hochberg)
            rows += scored
    adjust([row for row in rows if row["language"] == headline], name, holm)
    order = {language: number for number, language in enumerate([headline, *results.languages(task)])}
    return sorted(rows, key=lambda row: order[row["language"]]) + [_absent(results, task, tunable, m, results.title(m)) for m in lacking], gains


def _of_verdict(results: Results, task: str, chosen: Mapping[str, dict[str, Any]], fiat: Frames, plain: Frames) -> Rows:
    """Scores, and how often a prediction is the rationale's answer, by average and language. ``chosen``: row id → row, all of one verdict."""
    labels, headline, metric = results.run.manifest["tasks"][task]["labels"], results.averages(task)[0], results.row_metric(task)
    verdict, scored = next(iter(chosen.values()))["verdict"], row_score(metric)

    def score(row: Mapping[str, Any]) -> float:
        return scored(row["targets"], row["prediction"])

    def same(row: Mapping[str, Any]) -> float:
        said, read = row["prediction"], chosen[row["id"]]["answer"]
        return 100.0 * (said == read if labels else normalize_answer(said) == normalize_answer(read))

    columns = {"fiat": _means(fiat, score), "no_cot": _means(plain, score)}
    if verdict != "none":
        columns |= {"same_answer": _means(fiat, same), "same_answer_no_cot": _means(plain, same)}
    counts = Counter(row["language"] for row in chosen.values())
    averaged = [language for language in results.averaged(task, headline) if language in counts]
    for means in columns.values():
        means[headline] = average({language: means.get(language) for language in averaged})
    sizes = ({headline: sum(counts[language] for language in averaged)} if averaged else {}) | counts
    row = {"what": VERDICTS[verdict], "metric": metric}
    return [row | {"language": name, "rows": n} | {column: means.get(name) for column, means in columns.items()} for name, n in sizes.items()]


def _parts(results: Results, task: str, tunable: str) -> Rows:
    """FIAT's score with the whole rationale, with parts of it, and without it; differences from the whole."""
    metric, headline = results.metrics(task)[0], results.averages(task)[0]
    name = f"{metric}_from_fiat"
    whole = results.predictions(task, "fiat", tunable)
    rows: Rows = []
    parts = {method: part for method, part in PARTS.items() if results.shows(task, method)}
    for method, part in parts.items() if len(parts) > 1 else ():
        frames = results.predictions(task, method, tunable)
        if not frames:
            rows.append(_absent(results, task, tunable, method, f"Reads {part}"))
            continue
        found = results.differences(task, frames, whole, metric) if whole and method != "fiat" else {}
        of_method = [
            {"task": task, "tunable": tunable, "what": f"Reads {part}", "language": language}
            | {metric: results.value(task, method, tunable, metric, language), **tested(name, found.get(language))}
            for language in (headline, *results.languages(task))
        ]
        adjust(of_method[1:], name, benjamini_hochberg)
        rows += of_method
    adjust([row for row in rows if row.get("language") == headline], name, holm)
    return rows


def _says(task: str, tunable: str, fact: Mapping[str, Any], use: Rows) -> str:
    """From the rows of the averages."""
    of = {verdict: row for row in use for verdict, what in VERDICTS.items() if (row["what"], row.get("language")) == (what, fact["language"])}
    said = [f"{fact['readable']:.0f} % of test rows have a readable rationale, {fact['right']:.0f} % one with the right answer."]
    judged = {verdict: of[verdict] for verdict in ("right", "wrong") if verdict in of}
    scores: list[str] = []
    gains: list[str] = []
    for verdict, row in judged.items():
        name = f"{row['metric']}_from_no_cot"
        scores.append(f"{row['fiat']:.1f} where the answer is {verdict}")
        if row.get(f"{name}_p") is not None:
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            ends = "no interval" if low is None else f"{signed(low)} to {signed(high)}"
            doubt = "" if row[f"{name}_p"] < 0.05 else ", no sure difference"
            gains.append(f"{signed(row[name])} where the answer is {verdict} ({ends}{doubt})")
    if judged:
        against = " against that of the same tuning without rationales, on the same rows:" if gains else " is"
        said.append(f"FIAT's {in_a_sentence(next(iter(judged.values()))['metric'])}{against} {', '.join(gains or scores)}.")
    if "wrong" in of:
        copied, unread = of["wrong"]["same_answer"], of["wrong"]["same_answer_no_cot"]
        beside = "" if unread is None else f"; without having read them, the same tuning gives {unread:.0f} %"
        said.append(f"FIAT repeats {copied:.0f} % of the wrong answers{beside}.")
    return f"{task}, tunable {tunable}: {' '.join(said)}"


def _figure(results: Results, task: str, tunable: str, gains: Mapping[str, Gains]) -> list[tuple[str, str]]:
    drawn = {f"rows whose rationale's answer is {verdict}": gains[verdict] for verdict in ("right", "wrong") if gains.get(verdict)}
    names = [name for name in (results.averages(task)[0], *results.languages(task)) if any(name in one for one in drawn.values())]
    if not names:
        return []
    metric = metric_title(results.row_metric(task))
    title = f"{task}, tunable {tunable}: FIAT's gain in {metric} over tuning without rationales, by language, with 95 % intervals"
    titled = {key: {AVERAGE_TITLES.get(name, name): found for name, found in one.items()} for key, one in drawn.items()}
    svg = forest(title, f"FIAT less tuning without rationales, {metric}", [AVERAGE_TITLES.get(name, name) for name in names], titled)
    return [(f"rationale_use_{task}_{tunable}", svg)]


def _absent(results: Results, task: str, tunable: str, method: str, what: str) -> dict[str, Any]:
    return {"task": task, "tunable": tunable, "what": what, **why_absent(results.why_missing(task, method, tunable))}


def _means(frames: Frames, value: Callable[[Mapping[str, Any]], float]) -> dict[str, float | None]:
    """Language → mean of a value of its rows over seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in (row for rows in frames for row in rows):
        found[row["language"]].append(value(row))
    return {language: fmean(values) for language, values in found.items()}
