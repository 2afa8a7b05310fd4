"""One row's exact prompt, for people: its pieces, their tokens, which of them are supervised, and what was cut to make it fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fiat_ray import models, prepare
from fiat_ray.augmented import READABLE
from fiat_ray.campaign import Trial, with_reasoner
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.planning import stored
from fiat_ray.recipe import RECIPES, UNTUNED
from fiat_ray.render import Prompt, Renderer, shown_rationale
from fiat_ray.task import Row, Task
from fiat_ray.text import short, visible

NOT_STORED = "(no rationale is stored yet: it will stand here)"

COLORS = {"structure": 90, "instructions": 35, "exemplars": 34, "input": 36, "rationale": 33, "target": 32, "user": 36, "assistant": 34}
"""ANSI foreground of each kind of piece, and of a remote reasoner's messages."""


def show(
    config: Config,
    role: Literal["reasoner", "tunable"] = "reasoner",
    row: int = 0,
    method: str = "fiat",
    color: bool = False,
    *,
    run: str | Path | None = None,
) -> str:
    """The prompt of row ``row``, counted from 0 over all splits (and tasks), as the reasoner or a method's tunable reads it.

    ``run``: a run directory whose rationales are shown where the config names no store. Raises ``UserError`` for a row or recipe that is not there.
    """
    _check_method(config, method)
    if role == "tunable" and method not in config.methods:
        config = replace(config, methods=[*config.methods, method])
    elif role == "reasoner":
        config = with_reasoner(config)
    prepared = prepare.prepare(config)
    chosen = _Chosen(prepared, *chosen_row(prepared, row))
    lines = chosen.reasoner(color) if role == "reasoner" else chosen.tunable(method, run, color)
    return "\n".join([*map(visible, chosen.about(row)), "", *lines])


def _check_method(config: Config, method: str) -> None:
    known = [name for name in dict.fromkeys((*RECIPES, *config.recipes)) if name not in UNTUNED]
    if method not in known:
        raise UserError(f"recipe '{method}' is none that tunes; known are {', '.join(known)}")


def numbered(prepared: prepare.Prepared) -> list[tuple[Task, Row]]:
    """All rows in the order in which they are counted, from 0, over all splits (and tasks)."""
    return [(task, row) for task in prepared.tasks.values() for row in task.rows]


def chosen_row(prepared: prepare.Prepared, number: int) -> tuple[Task, Row]:
    """Row ``number`` of ``numbered``. Raises ``UserError`` where there is none."""
    rows = numbered(prepared)
    if not 0 <= number < len(rows):
        raise UserError(f"row {number}: there is none; the rows of {', '.join(prepared.tasks)} are 0 to {len(rows) - 1}")
    return rows[number]


@dataclass(frozen=True)
class _Chosen:
    prepared: prepare.Prepared
    task: Task
    row: Row

    @property
    def text(self) -> str:
        """The row's text as it goes into every prompt."""
        return self.prepared.lengths[self.task.name].texts[self.row.id]

    def about(self, number: int) -> Iterator[str]:
        row, targets = self.row, self.row.targets
        yield f"{self.task.name}, row {number}: {row.split}, language {row.language}, id {row.id}, target {' | '.join(targets)}"
        cut = self.prepared.lengths[self.task.name].cut_characters[row.id]
        if not cut or self.task.cut is None:
            yield "cut: nothing"
            return
        passage = row.fields[self.task.cut]
        gold = ", the gold answer with it" if any(t in passage for t in targets) and not any(t in self.text for t in targets) else ""
        yield f"cut: the last {cut:,} of {len(passage):,} characters of {self.task.cut}{gold}: …{short(passage[len(passage) - cut :], 60)}"

    def reasoner(self, color: bool) -> Iterator[str]:
        config = self.prepared.config
        requests, language = self.prepared.requests[self.task.name], self.row.language
        if config.reasoner.kind == "scripted":
            yield f"the script {config.reasoner.script} is called with this row, under key {requests.keys[self.row.id]}:"
            yield requests.of(requests.keys[self.row.id])["row"]
            return
        remote = config.reasoner.is_remote
        renderer = prepare.make_renderer("reasoner", models.find(config.reasoner.tokenizer if remote else config.reasoner.model))
        shown, most = self.prepared.lengths[self.task.name].exemplars[language], len(self.task.exemplars_for(language, config.exemplars))
        prompt = renderer.reasoner_prompt(self.task, shown, self.text, language, config.exemplars)
        shared = len(renderer.reasoner_prefix(self.task, shown, language, config.exemplars))
        yield f"reasoner {self.prepared.models['reasoner']['name']}, key {requests.keys[self.row.id]}"
        yield f"exemplars: {shown} of {most}; the first {shared:,} tokens are the same for all rows of this language"
        if remote:
            yield f"tokens are an estimate, by the tokenizer and template of {config.reasoner.tokenizer}; the messages are exact"
        yield ""
        if remote:
            for message in json.loads(requests.of(requests.keys[self.row.id])["row"]):
                text = message["content"]
                yield from _block(message["role"], len(renderer.content("input", text).ids), text, color)
        else:
            yield from _pieces(prompt, renderer, color)
        yield ""
        yield _total(len(prompt), config.reasoner.max_tokens, "for the rationale", self.prepared.reasoner_length)

    def tunable(self, method: str, run: str | Path | None, color: bool) -> Iterator[str]:
        trial = self._trial(method)
        renderer = prepare.make_renderer(trial.tunable, models.find(trial.model), trial.recipe.instruction_tuned)
        rationale, said = self._rationale(trial, renderer, run)
        yield f"tunable {trial.tunable} ({trial.model}), recipe {method}; ┃ marks supervised tokens: loss is on them alone"
        yield said
        yield ""
        prompt = renderer.tunable_prompt(self.task, self.text, rationale, trial.recipe)
        target = renderer.target(self.row.targets[0])
        yield from _pieces(prompt + [target], renderer, color)
        yield ""
        kept = max(0, trial.answer_tokens + 1 - len(target.ids)) + (trial.rationale_tokens if rationale is NOT_STORED else 0)
        what = "more for rationale and answer" if rationale is NOT_STORED else "more for a longer answer"
        yield _total(len(prompt) + len(target.ids), kept, what, trial.max_length, supervised=len(target.ids))
        if trial.recipe.cot == "distilled" and rationale:
            explain = renderer.explain_prompt(self.task, self.text, trial.recipe) + [renderer.target(rationale)]
            supervised = len(explain.pieces[-1].ids)
            yield from ("", "and, in training, the rationale as a second target:", "", *_pieces(explain, renderer, color), "")
            yield _total(len(explain), 0, "more", trial.max_length, supervised)

    def _trial(self, method: str) -> Trial:
        """Of a method's trials the first: tunables differ in their tokenizer, seeds not at all."""
        for trial in self.prepared.trials:
            if (trial.task, trial.method) == (self.task.name, method):
                return trial
        missing = next(m for m in self.prepared.not_run if (m.task, m.method) == (self.task.name, method))
        raise UserError(f"recipe {method} can't run: it {missing.reason}; config key {missing.config_key}")

    def _rationale(self, trial: Trial, renderer: Renderer, run: str | Path | None) -> tuple[str | None, str]:
        """What the tunable reads of the rationale, and a line about it."""
        if trial.recipe.cot == "none":
            return None, "rationale: none in this recipe"
        requests = self.prepared.requests[self.task.name]
        found = stored(self.prepared.config, requests, run).get(requests.keys[self.row.id])
        if found is None:
            return NOT_STORED, "rationale: none is stored yet, a placeholder stands in its place"
        said = f"rationale: stored, status {found['status']}, {found['output_tokens']} tokens; shown: {trial.recipe.rationale.replace('_', ' ')}"
        if found["status"] not in READABLE:
            return "", f"{said}; an unreadable one is empty, in training and in test"
        return shown_rationale(self.task, renderer, found["text"], trial.recipe, trial.rationale_tokens), said


def _pieces(prompt: Prompt, renderer: Renderer, color: bool) -> Iterator[str]:
    """Kind, tokens and text of each piece; ``⏎`` is a line break of the prompt."""
    for piece in prompt.pieces:
        text = piece.text + (str(renderer.tokenizer.decode([renderer.eos])) if piece.kind == "target" else "")
        yield from _block(piece.kind, len(piece.ids), text, color)


def _block(kind: str, tokens: int, text: str, color: bool) -> Iterator[str]:
    bar = "┃" if kind == "target" else "│"
    for number, line in enumerate(_lines(text)):
        head = f"{kind:<12} {tokens:>6}" if number == 0 else " " * 19
        yield f"{head} {bar} {_colored(line, kind, color)}"


def _lines(text: str) -> Sequence[str]:
    *ended, last = text.split("\n")
    return [f"{line}⏎" for line in ended] + ([last] if last or not ended else [])


def _colored(line: str, kind: str, color: bool) -> str:
    return f"\033[{COLORS[kind]}m{visible(line)}\033[0m" if color else visible(line)


def _total(tokens: int, kept: int, for_what: str, max_length: int, supervised: int | None = None) -> str:
    of_them = "" if supervised is None else f" ({tokens - supervised:,} prompt, {supervised:,} target, supervised)"
    return f"{tokens:,} tokens{of_them}, {kept:,} {for_what}: {tokens + kept:,} of max_length {max_length:,}"
