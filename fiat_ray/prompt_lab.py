"""A place to try prompts: the reasoner answers some rows while somebody writes its instructions and exemplars, or two versions of them are compared.

One reasoner in this process, no Ray, nothing written. Only validation rows are scored: test rows choose nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiat_ray import prepare
from fiat_ray.campaign import with_reasoner
from fiat_ray.config import Config
from fiat_ray.draw import validation_subset
from fiat_ray.errors import Unfinished, UserError
from fiat_ray.metrics import row_score
from fiat_ray.planning import stored
from fiat_ray.progress import Console
from fiat_ray.prompts import chosen_row, numbered
from fiat_ray.reason.reasoners import Answer, Reasoner, VllmReasoner
from fiat_ray.report.tables import interval_text, metric_title, signed
from fiat_ray.rows import SUFFIXES
from fiat_ray.scoring import score_predictions
from fiat_ray.significance import Comparison, compare
from fiat_ray.task import Row, Task
from fiat_ray.task_folder import BUILT_IN
from fiat_ray.text import line, short, visible

LOOK_EVERY = 0.5
"""Seconds between looks at the files of a task."""

READ = (".txt", ".py", *SUFFIXES)
"""Endings of the files that a task folder is read from, beside its ``task.yaml``. A config may lie there too, which is read once."""

SHOWN = 300
"""Characters of each field of a row that are shown."""

Show = Callable[[str], None]
Asked = tuple[Row, Answer]


class Lab:
    """The reasoner of a config, started at its first question. What it said once it is not asked again."""

    def __init__(self, config: Config, run: str | Path | None = None) -> None:
        self.config = with_reasoner(config)
        self._run = run
        self._loop = asyncio.Runner()
        self._reasoner: Reasoner | None = None
        self._said: dict[str, Answer] = {}
        self._console = Console()

    def prepared(self, i_beta: str | None = None) -> prepare.Prepared:
        """The config's rows and prompts as its files are now, or with other instructions for the reasoner."""
        with self._console.working("reading rows and measuring prompts"):
            if i_beta is None:
                return prepare.prepare(self.config)
            return prepare.prepare(self.config, {name: replace(task, i_beta=i_beta) for name, task in prepare.load_tasks(self.config).items()})

    def ask(self, prepared: prepare.Prepared, task: Task, rows: Sequence[Row]) -> list[Asked]:
        """The reasoner's answers to rows of a task."""
        requests = prepared.requests[task.name]
        keys = {row.id: requests.keys[row.id] for row in rows}
        if missing := [key for key in dict.fromkeys(keys.values()) if key not in self._said]:
            known = stored(self.config, requests, self._run)
            self._said |= {key: Answer(**{name: known[key][name] for name in Answer.__dataclass_fields__}) for key in missing if key in known}
        asked = requests.having([key for key in missing if key not in self._said])
        if asked and (self._reasoner is None or self.config.reasoner.kind == "scripted"):  # a script may have been saved since
            with self._console.working("starting the reasoner"):
                self._reasoner = prepare.make_reasoner(self.config, prepared.reasoner_length)()
        answers = dict(zip((request["key"] for request in asked), self._loop.run(self._answers(prepared, task, asked)), strict=True))
        self._said |= {key: answer for key, answer in answers.items() if answer.status != "engine_error"}
        return [(row, (answers | self._said)[keys[row.id]]) for row in rows]

    def close(self) -> None:
        if isinstance(self._reasoner, VllmReasoner):
            self._reasoner.close()
        self._loop.close()

    async def _answers(self, prepared: prepare.Prepared, task: Task, asked: Sequence[dict[str, Any]]) -> list[Answer]:
        prefixes = prepared.requests[task.name].prefixes
        with self._console.working(f"reason: {task.name}", rows=len(asked)) as work:

            async def answer(request: dict[str, Any]) -> Answer:
                assert self._reasoner is not None, "is started before the first question"
                said = await self._reasoner.reason(prefixes.get(request["prefix"], []), request["ids"], request["row"])
                work.done += 1
                return said

            return await asyncio.gather(*map(answer, asked))


@contextmanager
def _opened(config: Config, run: str | Path | None) -> Iterator[Lab]:
    """A lab, closed in the end. Ctrl-C is ``SystemExit(130)`` here: the message of other commands, that what is finished is kept, would be untrue."""
    with closing(Lab(config, run)) as lab:
        try:
            yield lab
        except KeyboardInterrupt:
            print("\nfiat-ray: interrupted; the lab keeps no answers, and the task's files are as you saved them", file=sys.stderr, flush=True)
            raise SystemExit(130) from None


def watch(config: Config, row: int = 0, sample: int | None = None, *, once: bool, show: Show = print, run: str | Path | None = None) -> None:
    """Ask about row ``row`` (counted from 0 over all splits and tasks), or about ``sample`` validation rows of each task, and show the answers.

    Unless ``once``, or where the config is a run's: again whenever a file of a task is saved, until interrupted (``SystemExit``). What is wrong with
    a saved file is said, and the next save awaited. Raises ``UserError`` for what can't be asked to begin with, and ``Unfinished`` where, at
    ``once``, rows got no answer.
    """
    if config.run and not once:
        show("asked once: a run's prompts are a record, and nothing is saved there; to try others, give the config of a task folder that you edit")
        once = True
    with _opened(config, run) as lab:
        seen = _stamps(config)
        asked = _ask(lab, row, sample, show)
        if once:
            return _check_answered(asked)
        while True:
            show("waiting for a file of the task to be saved (the config is read once); Ctrl-C ends …")
            while (now := _stamps(config)) == seen:
                time.sleep(LOOK_EVERY)
            seen = now
            try:
                _ask(lab, row, sample, show)
            except (UserError, FileNotFoundError) as error:  # an editor that saves by renaming takes a file away for a moment
                show(visible(str(error)))


def _ask(lab: Lab, row: int, sample: int | None, show: Show) -> list[Asked]:
    """Ask about what the files hold now, and show the answers."""
    prepared = lab.prepared()
    asked = [(task, lab.ask(prepared, task, rows)) for task, rows in _chosen(prepared, row, sample)]
    numbers = {(task.name, row.id): number for number, (task, row) in enumerate(numbered(prepared))}
    for task, answers in asked:
        for of, answer in answers:
            for text in _answered(task, numbers[task.name, of.id], of, answer):
                show(text)
        if sample:
            show(line("mean", _means(task, answers)))
    return [answer for _, answers in asked for answer in answers]


def _check_answered(asked: Sequence[Asked]) -> None:
    """Raise ``Unfinished`` where rows got no answer: a score would be about the endpoint's or script's troubles."""
    if errors := _errors(asked):
        raise Unfinished(f"{len(errors)} of {len(asked)} rows got no answer (engine_error; the first: {errors[0]})")


def _errors(asked: Sequence[Asked]) -> list[str]:
    """Why rows got no answer."""
    return [answer.error for _, answer in asked if answer.status == "engine_error"]


def _chosen(prepared: prepare.Prepared, row: int, sample: int | None) -> list[tuple[Task, list[Row]]]:
    if sample is not None:
        return [(task, validation_subset(task.split("validation"), sample)) for task in prepared.tasks.values()]
    task, chosen = chosen_row(prepared, row)
    return [(task, [chosen])]


def _stamps(config: Config) -> dict[str, int]:
    """When the files of the tasks, and the script of a scripted reasoner, were saved."""
    folders = [folder for name in config.task for folder in (Path(name), BUILT_IN / name)]
    script = [Path(config.reasoner.script)] if config.reasoner.script else []
    stamps = {}
    for path in (*script, *(path for folder in folders for path in folder.glob("*") if path.suffix in READ or path.name == "task.yaml")):
        with suppress(FileNotFoundError):  # renamed since it was listed, or an editor's lock, a link to nowhere
            stamps[str(path)] = path.stat().st_mtime_ns
    return stamps


def _answered(task: Task, number: int, row: Row, answer: Answer) -> Iterator[str]:
    """A row, the beginning of its input, rationale, parsed answer and gold. A row without an answer has no score."""
    failed = f" ({answer.error})" if answer.error else ""
    yield visible(f"{task.name}, row {number}: {row.split}, language {row.language}, id {row.id}, {answer.status}{failed}")
    yield line("input", visible(task.text({name: short(text, SHOWN) for name, text in row.fields.items()})))
    gold = visible(" | ".join(row.targets))
    if answer.status == "engine_error":
        yield line("gold", gold)
        return
    said = task.answer(answer.text)
    yield from (line("rationale" if at == 0 else "", visible(text)) for at, text in enumerate(answer.text.splitlines() or ["–"]))
    yield line("answer", visible(said) or "– (no line “Answer: …” that can be read)")
    yield line("gold", f"{gold} · {_score(task, row, said)}")


def _score(task: Task, row: Row, said: str) -> str:
    if task.labels:
        return "right" if said == row.targets[0] else "wrong"
    return f"{metric_title(task.metric)} {row_score(task.metric)(row.targets, said):.0f}"


def _means(task: Task, asked: Sequence[Asked]) -> str:
    if errors := _errors(asked):
        return f"no score: {len(errors)} of {len(asked)} validation rows got no answer"
    scores = [s for s in score_predictions(task.name, task.metric, task.labels, _frame(task, asked), icl=True) if s["language"] == "mean"]
    means = ", ".join(f"{metric_title(s['metric'])} {s['value']:.1f}" for s in scores if s["value"] is not None)
    return f"{len(asked)} validation rows: {means}"


def _frame(task: Task, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """As rows of ``schema.PREDICTIONS``: few-shot ICL's."""
    about = [{"id": row.id, "language": row.language, "group": row.group, "targets": list(row.targets)} for row, _ in asked]
    return [of | {"prediction": task.answer(a.text), "score": None, "status": a.status} for of, (_, a) in zip(about, asked, strict=True)]


def compared(config: Config, a: str, b: str, sample: int, *, run: str | Path | None = None) -> dict[str, Comparison]:
    """Task → the score of few-shot ICL with instructions ``b`` less that with ``a``, on ``sample`` validation rows.

    Raises ``Unfinished`` where rows got no answer.
    """
    frames: list[dict[str, list[dict[str, Any]]]] = []
    with _opened(config, run) as lab:
        for text in (a, b):
            prepared = lab.prepared(text)
            asked = [(task, lab.ask(prepared, task, rows)) for task, rows in _chosen(prepared, 0, sample)]
            _check_answered([answer for _, answers in asked for answer in answers])
            frames.append({task.name: _frame(task, answers) for task, answers in asked})
    before, after = frames
    metrics = {name: "accuracy" if task.metric == "auc_pr" else task.metric for name, task in prepared.tasks.items()}  # ICL has no probabilities
    return {name: compare([after[name]], [before[name]], metric) for name, metric in metrics.items()}


def describe_compared(found: dict[str, Comparison]) -> str:
    """``compared`` as text."""
    return "\n".join(_verdict(name, comparison) for name, comparison in found.items())


def _verdict(task: str, found: Comparison) -> str:
    if found.difference is None or found.p is None:
        return line(task, f"{found.n_rows} validation rows: no difference that can be judged ({found.note})")
    real = "the difference is real" if found.holds else "no sure difference"
    interval = found.note if found.low is None else f"95 % interval {interval_text(found)}"
    return line(task, f"B less A on {found.n_rows} validation rows: {signed(found.difference)}, {interval}: {real}")
