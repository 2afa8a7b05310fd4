"""Prompt, fine-tune, or both: what a run says about it, one sentence a task and tunable; the same in report and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fiat_ray.recipe import PLAIN
from fiat_ray.report.cells import language_name
from fiat_ray.report.results import Results
from fiat_ray.report.section import in_a_sentence, without_headline
from fiat_ray.report.tables import interval_text, signed
from fiat_ray.significance import Comparison


@dataclass(frozen=True)
class Choice:
    to_do: str
    method: str
    tunable: str
    score: float
    title: str


def answers(results: Results) -> list[str]:
    return [_answer(results, task, tunable) for task in results.run.tasks for tunable in results.tunables(task)]


def _answer(results: Results, task: str, tunable: str) -> str:
    where = f"on {task} with tunable {tunable}"
    choices = sorted(_choices(results, task, tunable), key=lambda choice: -choice.score)
    fiat = next((choice for choice in choices if choice.method == "fiat"), None)
    lacking = [] if results.has(task, "fiat", tunable) else [f"FIAT has no score: {results.why_missing(task, 'fiat', tunable)[0]}"]
    lacking += without_headline(results, task, [("fiat", tunable), *results.plain_tunings(task, tunable), ("icl", "")])
    if not choices:
        return f"No answer {where}: {'; '.join(lacking)}."
    best, *others = choices
    metric = results.metrics(task)[0]
    number, undefined = len(results.behind(task, metric, results.averages(task)[0])), results.undefined(task, metric)
    means = (f", means of {number} languages" if number > 1 else "") + (f", not defined in {' '.join(undefined)}" if undefined else "")
    against = " and ".join(f"{choice.score:.1f} for {choice.title}" for choice in others)
    scores = f"{best.score:.1f} {in_a_sentence(metric)} for {best.title}" + (f", against {against}" if against else "") + means
    if not others:
        return "; ".join([f"No answer {where}, for there is nothing to compare with: {scores}", *lacking]) + "."
    first = (fiat, next(choice for choice in choices if choice is not fiat)) if fiat else (best, others[0])
    pairs = [first] if {best, others[0]} == set(first) else [first, (best, others[0])]
    compared = "; ".join([_compared(results, task, *pair)[1] for pair in pairs] + lacking)
    if _compared(results, task, *pairs[-1])[0]:
        return f"{best.to_do}, {where}: {scores}; {compared}."
    return f"No sure choice between {best.to_do.lower()} and {others[0].to_do.lower()}, {where}: {scores}; {compared}."


def _choices(results: Results, task: str, tunable: str) -> list[Choice]:
    """Scores on test of one method of each kind; always the same label is one where it is better than what FIAT combines."""
    choices: list[Choice] = []

    def offer(to_do: str, place: tuple[str, str], title: str, above: float = -1.0) -> None:
        score = results.headline(task, *place)
        if score is not None and score > above:
            choices.append(Choice(to_do, *place, score, title))

    best, split = results.best_tuning(task, tunable)
    if best:
        number = len(results.plain_tunings(task, tunable))
        by = split if split == "validation" else f"{split}, not all having a score on validation"
        of = f", the best of {number} such methods on {by}" if number > 1 else ""
        plain, title = f"{PLAIN.get(best[0], 'fine-tuning')} ({best[0]}", results.title(best[0])
        also = "" if title in (best[0], f"{plain})") else f": {title}"
        offer("Fine-tune alone", best, f"{plain}{also}{of})")
    offer("Prompt alone", ("icl", ""), f"prompting ({results.title('icl').replace('Few', 'few')})")
    offer("Neither", ("majority", ""), "always the majority answer", max((choice.score for choice in choices), default=-1.0))
    offer("Both", ("fiat", tunable), "both (FIAT)")
    return choices


def _compared(results: Results, task: str, a: Choice, b: Choice) -> tuple[bool, str]:
    """Whether the difference holds, and the difference in words."""
    name, other = "FIAT" if a.method == "fiat" else a.title, b.title
    found = results.difference(task, (a.method, a.tunable), (b.method, b.tunable), results.metrics(task)[0])
    size = abs(a.score - b.score)
    languages = _most_and_least(found, is_above=a.score >= b.score)
    if not size:
        return False, f"{name} equals {other}" + (f" on average{languages}" if languages else "")
    beside = f"{name} is {size:.1f} points {'above' if a.score > b.score else 'below'} {other}"
    if found is None or found.p is None:
        return False, f"{beside}, {interval_text(found)}{languages}"
    interval = found.note if found.low is None else f"95 % interval of the difference {interval_text(found)}, {found.note}"
    if not found.holds:
        return False, f"{beside}, which does not hold ({interval}){languages}"
    return True, f"{name} {'beats' if a.score > b.score else 'loses to'} {other} by {size:.1f} points ({interval}){languages}"


def _most_and_least(found: Comparison | None, is_above: bool) -> str:
    """The languages of the largest and the smallest difference, as it points on average; nothing where all are the same.

    Which of them hold is not said: of many languages some differ by luck, and the report's table of languages corrects for that.
    """
    by_language = found.by_language if found else {}
    known = {language: of.difference for language, of in by_language.items() if of.difference is not None}
    shown: dict[str, list[str]] = {}  # languages whose difference reads the same are named together
    for language in sorted(known, key=known.__getitem__, reverse=is_above):
        shown.setdefault(signed(known[language]), []).append(language_name(language))
    if len(shown) < 2:
        return ""
    (most, those_most), *_, (least, those_least) = shown.items()
    return f"; most for {_named(those_most)} ({most}), least for {_named(those_least)} ({least})"


def _named(languages: Sequence[str]) -> str:
    return " and ".join(languages) if len(languages) < 3 else f"{languages[0]} and {len(languages) - 1} others"
