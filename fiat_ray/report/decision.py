"""What to choose: few-shot ICL, fine-tuning or FIAT, by quality, by what tuning took, and by what 1,000 predictions cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from fiat_ray.report.columns import score_interval, why_absent
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section, frame, in_a_sentence, without_headline
from fiat_ray.report.tables import NO_TWIN, Table, interval_text, signed

BASES = {"gpu_seconds": "GPU time", "seconds": "time", "tokens": "tokens, of both models together"}
"""What costs are compared in: the first that was measured of both methods."""


@dataclass(frozen=True)
class Cost:
    """What some rows took, or one trial. None: not measured; no part of it is then shown as if it were the whole."""

    reasoner_tokens_in: float | None = 0.0
    reasoner_tokens_out: float | None = 0.0
    tunable_tokens_in: float | None = 0.0
    tunable_tokens_out: float | None = 0.0
    seconds: float | None = 0.0
    """Wall-clock, rows side by side; without the start of engines and workers."""
    gpu_seconds: float | None = 0.0

    @property
    def tokens(self) -> float | None:
        parts = (self.reasoner_tokens_in, self.reasoner_tokens_out, self.tunable_tokens_in, self.tunable_tokens_out)
        return None if None in parts else sum(part for part in parts if part is not None)

    def __add__(self, other: Cost) -> Cost:
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(Cost)}
        return Cost(**{name: None if None in pair else sum(pair) for name, pair in pairs.items()})

    def __mul__(self, factor: float) -> Cost:
        return Cost(**{name: None if value is None else value * factor for name, value in asdict(self).items()})


def section(results: Results) -> Section:
    rows = [row for task in results.run.tasks for row in _rows(results, task)]
    notes = [
        "Quality on test, with its 95 % interval. tuning: one trial with all learning rates that it tried, mean over seeds; for FIAT with the "
        "rationales of its train and validation rows. 1,000 predictions: by the mean of the test rows.",
        "Seconds are wall-clock with many rows side by side, as in this run. Starting engines and workers is not in them: it costs the same for one "
        "row and for a million. Empty: not measured in this run.",
        *_price_notes(results),
        *(note for task in results.run.tasks if (note := _others(results, task, rows))),
    ]
    said = [says for task in results.run.tasks for tunable in results.tunables(task) if (says := _says(results, task, tunable))]
    about = ("task", "tunable", "method", "row")
    whole = frame(rows, about)
    tokens = [name for name in map(str, whole) if "tokens" in name]
    tables = [
        Table("decision", "Quality, time and price", whole.drop(columns=tokens), notes),
        Table("decision_tokens", "Tokens read and written", whole[[*about, *tokens, "note", "reason", "config_key"]].assign(note="")),
    ]
    return Section(said, [], tables)


def _others(results: Results, task: str, rows: Iterable[dict[str, Any]]) -> str:
    """The methods with scores that are not among the rows."""
    shown = {row["method"] for row in rows if row["task"] == task}
    others = [results.title(method) for method in results.methods(task) if method not in shown]
    return f"{task}: only the tables above have {', '.join(others)}." if others else ""


def _price_notes(results: Results) -> list[str]:
    price, reasoner = _price(results), results.run.reasoner
    notes = [
        f"Prices: GPU time at {price:g} an hour (config key where.gpu_hour_price)."
        if price is not None
        else "No prices: config key where.gpu_hour_price says what an hour of a GPU costs."
    ]
    if reasoner.is_remote:
        what = "The reasoner is a remote endpoint, whose time on GPUs nobody knows. A million tokens"
        keys = "config keys reasoner.price_in and price_out"
        unstated = reasoner.price_in is None or reasoner.price_out is None
        notes.append(f"{what} have no price: {keys}." if unstated else f"{what}: {reasoner.price_in:g} in, {reasoner.price_out:g} out ({keys}).")
    return notes


def _fine_tuning(results: Results, task: str, tunable: str) -> str:
    """The paper's fine-tuning, or without a pretrained twin what comes nearest."""
    return "no_instruction_tuned" if results.has(task, "no_instruction_tuned", tunable) else "no_peft"


def _rows(results: Results, task: str) -> list[dict[str, Any]]:
    rows = [_row(results, task, "icl", "", results.title("icl"))]
    for tunable in results.tunables(task):
        method = _fine_tuning(results, task, tunable)
        title = "fine-tuning" if method == "no_instruction_tuned" else NO_TWIN
        title = title[0].upper() + title[1:] if results.settings else results.title(method)
        rows += [_row(results, task, method, tunable, title), _row(results, task, "fiat", tunable, results.title("fiat"))]
    return [row for row in rows if results.shows(task, row["method"])]


def _row(results: Results, task: str, method: str, tunable: str, title: str) -> dict[str, Any]:
    metric = results.metrics(task)[0]
    row: dict[str, Any] = {"task": task, "tunable": tunable, "method": method, "row": title}
    if not results.has(task, method, tunable):
        return row | why_absent(results.why_missing(task, method, tunable))
    tuning, thousand = _tuning(results, task, method, tunable), _prediction(results, task, method, tunable) * 1000
    supervised = [trial["supervised_tokens"] for trial in results.trials(task, method, tunable) if method != "icl" and trial["tuned"]]
    reasoner = tuning.reasoner_tokens_in, tuning.reasoner_tokens_out
    return row | {
        metric: results.headline(task, method, tunable),
        **score_interval(metric, results.interval(task, method, tunable)),
        "tuning_seconds": tuning.seconds,
        "tuning_tokens": tuning.tunable_tokens_in,
        "tuning_supervised_tokens": fmean(supervised) if supervised else 0.0,
        "tuning_reasoner_tokens": None if None in reasoner else sum(part for part in reasoner if part is not None),
        "tuning_price": _money(results, tuning),
        "per_1000_reasoner_tokens_in": thousand.reasoner_tokens_in,
        "per_1000_reasoner_tokens_out": thousand.reasoner_tokens_out,
        "per_1000_tunable_tokens_in": thousand.tunable_tokens_in,
        "per_1000_tunable_tokens_out": thousand.tunable_tokens_out,
        "per_1000_seconds": thousand.seconds,
        "per_1000_price": _money(results, thousand),
    }


def _tuning(results: Results, task: str, method: str, tunable: str) -> Cost:
    """Of one trial, mean over seeds."""
    if method == "icl":
        return Cost()
    trials = [trial for trial in results.trials(task, method, tunable) if trial["tuned"]]
    own = Cost(
        tunable_tokens_in=_mean(trial.get("tokens") for trial in trials),
        seconds=_mean(trial["seconds"] for trial in trials),
        gpu_seconds=_mean(trial["seconds"] * trial["gpus"] if "gpus" in trial else None for trial in trials),
    )
    read = _mean(trial["train_size"] + trial["validation_rows"] if "validation_rows" in trial else None for trial in trials)
    if method != "fiat":
        return own
    return own + (Cost(None, None, 0.0, 0.0, None, None) if read is None else _reasoning(results, task, ("train", "validation")) * read)


def _prediction(results: Results, task: str, method: str, tunable: str) -> Cost:
    """Of one test row."""
    cost = _reasoning(results, task, ("test",)) if method in ("icl", "fiat") else Cost()
    if method == "icl":
        return cost
    found = [results.run.evaluation(trial["name"]) or {"rows": 0} for trial in results.trials(task, method, tunable)]
    took = {name: _mean(one[name] / one["rows"] if one["rows"] else None for one in found) for name in ("prompt_tokens", "answer_tokens", "seconds")}
    gpu_seconds = _mean(one["seconds"] * one["gpus"] / one["rows"] if one["rows"] else None for one in found)
    return cost + Cost(0.0, 0.0, took["prompt_tokens"], took["answer_tokens"], took["seconds"], gpu_seconds)


def _reasoning(results: Results, task: str, splits: tuple[str, ...]) -> Cost:
    """Of one row's rationale: tokens by the rows of some splits, time by all that were generated in this run."""
    stored = [results.run.rationales.get(row["key"]) for row in results.run.augmented(task) if row["split"] in splits]
    known = [row for row in stored if row and row["prompt_tokens"]]  # a script counts no tokens
    took = results.run.reasoning(task)
    return Cost(
        _mean(row["prompt_tokens"] for row in known),
        _mean(row["output_tokens"] for row in known),
        seconds=took["seconds"] / took["rows"] if took else None,
        gpu_seconds=took["gpu_seconds"] / took["rows"] if took else None,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """None where one is not known, or where there is none."""
    found = list(values)
    return None if not found or None in found else fmean(value for value in found if value is not None)


def _price(results: Results) -> float | None:
    price: float | None = (results.run.config.get("where") or {}).get("gpu_hour_price")
    return price


def _money(results: Results, cost: Cost) -> float | None:
    """GPU time, and what a remote reasoner charges. None where a price that is needed is not stated, or where no GPU was used."""
    price, remote = _price(results), results.run.reasoner.is_remote
    asked = (cost.reasoner_tokens_in, cost.reasoner_tokens_out)
    charged = results.run.reasoner.charged(*asked) if remote and asked != (0.0, 0.0) else 0.0
    if remote and cost.tunable_tokens_in == 0.0:  # nothing ran here
        return charged
    if charged is None or price is None or cost.gpu_seconds is None or (cost.seconds and not cost.gpu_seconds):
        return None
    return charged + price * cost.gpu_seconds / 3600


def _says(results: Results, task: str, tunable: str) -> str:
    """What FIAT costs and gains beside fine-tuning and beside ICL, in one sentence; empty where it has no score."""
    fiat, others = ("fiat", tunable), {(_fine_tuning(results, task, tunable), tunable): "fine-tuning", ("icl", ""): "few-shot ICL"}
    if not results.has(task, *fiat):
        return ""
    scores = {place: score for place in (fiat, *others) if (score := results.headline(task, *place)) is not None}
    compared = [other for other in others if {fiat, other} <= scores.keys()]
    said = [_beside(results, task, fiat, other, others[other], scores[fiat] - scores[other]) for other in compared]
    said += without_headline(results, task, (fiat, *others))
    return f"{task}, tunable {tunable}: {'; '.join(said)}." if said else ""


def _beside(results: Results, task: str, fiat: tuple[str, str], other: tuple[str, str], title: str, gain: float) -> str:
    mine, theirs = _prediction(results, task, *fiat), _prediction(results, task, *other)
    costs = f"what FIAT costs beside {title} was not measured, and it "
    for basis, of_what in BASES.items():
        if basis == "gpu_seconds" and results.run.reasoner.is_remote:
            continue  # nobody knows a remote reasoner's
        a, b = getattr(mine, basis), getattr(theirs, basis)
        if a and b:
            costs = f"FIAT costs {a / b:.1f} times {title} per 1,000 predictions ({of_what}) and "
            break
    metric = results.metrics(task)[0]
    found = results.difference(task, fiat, other, metric)
    points = f"{'gains' if gain >= 0 else 'loses'} {abs(gain):.1f} points of {in_a_sentence(metric)}"
    if found is not None and found.p is not None and not found.holds:
        points = f"shows no sure difference: {signed(gain)} points of {in_a_sentence(metric)}"
    return f"{costs}{points} ({interval_text(found)})"
