"""The length budget: every row is measured before the first token is generated.

A passage is cut at its end, once per row, for the longest prompt any recipe will make of it; where an empty passage is still too long the
reasoner's last exemplars give way, the same number for all rows of a language; where one exemplar is too many the row can't be run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from fiat_ray.errors import UserError
from fiat_ray.recipe import Recipe
from fiat_ray.render import Prompt, Renderer
from fiat_ray.task import Row, Task, Which, by_language


@dataclass(frozen=True)
class Budget:
    """What one checkpoint has room for, in its own tokens."""

    role: str
    """``reasoner`` or a tunable's name, for messages."""
    renderer: Renderer
    max_length: int
    """Prompt and output together."""
    reserved: int
    """Tokens kept for what is not known yet: the reasoner's output; or the rationale and the answer."""
    recipes: tuple[Recipe, ...] = ()
    """The recipes a tunable is rendered in; empty for the reasoner."""


@dataclass
class Lengths:
    """Texts as they go into prompts, and what had to give way."""

    texts: dict[str, str] = field(default_factory=dict)
    """Row id → input text, its passage cut where it had to be."""
    cut_characters: dict[str, int] = field(default_factory=dict)
    exemplars: dict[str, int] = field(default_factory=dict)
    """Language → exemplars in the reasoner's prompt."""
    cut: Counter[str] = field(default_factory=Counter)
    """Language → rows whose passage was cut."""
    gold_cut: Counter[str] = field(default_factory=Counter)
    """Language → rows whose gold answer stood in the passage, but not in what is left of it."""


def measure(task: Task, budgets: Sequence[Budget], which: Which = "row_language", at_most: Mapping[str, int] | None = None) -> Lengths:
    """Cut every row of a task to what all ``budgets`` allow. Raises ``UserError`` for a row that fits in no way.

    ``at_most``: language → exemplars that its prompts may hold, where that was decided before (new rows of an old run).
    """
    shown, lengths = _most(task, which, at_most), Lengths()
    for language, rows in by_language(task.rows).items():
        fits = [_fit(task, budget, language, rows, which, shown[language]) for budget in budgets]
        lengths.exemplars[language] = min((fit.exemplars for fit in fits), default=shown[language])
        for row in rows:
            text, removed = _cut(task, row, fits)
            lengths.texts[row.id] = text
            lengths.cut_characters[row.id] = removed
            if removed:
                lengths.cut[language] += 1
                lengths.gold_cut[language] += _gold_lost(task, row, removed)
    return lengths


def _most(task: Task, which: Which, at_most: Mapping[str, int] | None) -> dict[str, int]:
    """Language → exemplars in its prompts where its rows leave room for them."""
    own = {language: len(task.exemplars_for(language, which)) for language in by_language(task.rows)}
    return {language: min(count, (at_most or own).get(language, count)) for language, count in own.items()}


def alike(task: Task, budgets: Sequence[Budget], which: Which, at_most: Mapping[str, int] | None) -> list[tuple[Task, Lengths]]:
    """Rows measured in parts, so that a prompt's exemplars give way for its own row alone: an answer must not depend on the rows beside it.

    ``at_most``: see ``measure``. All rows are one part, but for languages with rows so long that they leave room for fewer exemplars.
    """
    whole = measure(task, budgets, which, at_most)
    fewer = {language for language, most in _most(task, which, at_most).items() if whole.exemplars[language] < most}
    if not fewer:
        return [(task, whole)]
    others = tuple(row for row in task.rows if row.language not in fewer)
    parts = [replace(task, rows=rows) for rows in (others, *((row,) for row in task.rows if row.language in fewer)) if rows]
    return [(part, measure(part, budgets, which, at_most)) for part in parts]


def components(task: Task, budgets: Sequence[Budget], lengths: Lengths, which: Which = "row_language") -> list[dict[str, Any]]:
    """What the longest prompts are made of, in tokens: a row for each checkpoint and language. JSON-able.

    ``instructions`` (the chat template with them), ``exemplars``, the rows' own text (``input_mean``, ``input_max``), ``reserved`` for output;
    ``most``: all of them for the longest row, of ``max_length``.
    """
    found = []
    for budget in budgets:
        for language, rows in by_language(task.rows).items():
            shown = 0 if budget.recipes else lengths.exemplars[language]
            prompt = _longest_empty(task, budget, language, shown, which)
            exemplars = sum(len(piece.ids) for piece in prompt.pieces if piece.kind == "exemplars")
            own = budget.renderer.counts([lengths.texts[row.id] for row in rows])
            found.append(
                {
                    "role": budget.role,
                    "language": language,
                    "rows": len(rows),
                    "instructions": len(prompt) - exemplars,
                    "exemplars": exemplars,
                    "input_mean": fmean(own),
                    "input_max": max(own),
                    "reserved": budget.reserved,
                    "most": len(prompt) + max(own) + budget.reserved,
                    "max_length": budget.max_length,
                }
            )
    return found


@dataclass(frozen=True)
class _Fit:
    """How many tokens of input text a budget allows the rows of one language, and how to count them."""

    allowed: int
    exemplars: int
    count: Callable[[str], int]


def _fit(task: Task, budget: Budget, language: str, rows: Sequence[Row], which: Which, exemplars: int) -> _Fit:
    """The first number of ``exemplars``, from all of them down to one, that leaves room for the longest row without its passage."""
    renderer = budget.renderer

    def count(text: str) -> int:
        return len(renderer.content("input", text).ids)

    needed, longest = max(((count(_text(task, row, 0)), row.id) for row in rows), default=(0, ""))
    while True:
        allowed = budget.max_length - budget.reserved - len(_longest_empty(task, budget, language, exemplars, which))
        if allowed >= needed:
            return _Fit(allowed, exemplars, count)
        if budget.recipes or exemplars <= 1:
            row = next(row for row in rows if row.id == longest)
            raise UserError(
                f"{task.name}: {row} does not fit the {budget.role} even with an empty {task.cut or 'passage'}"
                f"{'' if budget.recipes else ' and one exemplar'}: {needed - allowed} tokens too many; raise max_length of the {budget.role}"
            )
        exemplars -= 1


def _longest_empty(task: Task, budget: Budget, language: str, exemplars: int, which: Which) -> Prompt:
    """Of the prompts that a checkpoint gets of one row the longest, here of a row without text."""
    if not budget.recipes:
        return budget.renderer.reasoner_prompt(task, exemplars, "", language, which)
    prompts = [budget.renderer.tunable_prompt(task, "", "", recipe) for recipe in budget.recipes]
    prompts += [budget.renderer.explain_prompt(task, "", recipe) for recipe in budget.recipes if recipe.cot == "distilled"]
    return max(prompts, key=len)


def _text(task: Task, row: Row, characters: int | None) -> str:
    """A row's text with only the first characters of its passage (None: all)."""
    if task.cut is None or characters is None:
        return task.text(row.fields)
    return task.text({**row.fields, task.cut: row.fields[task.cut][:characters].rstrip()})


def _cut(task: Task, row: Row, fits: Sequence[_Fit]) -> tuple[str, int]:
    """(text, characters cut off): the longest beginning of the passage that fits everywhere, by bisection."""
    whole = _text(task, row, None)
    # A byte-level tokenizer makes at most one token of a byte, so most rows need no count at all.
    size = len(whole.encode("utf-8", "replace"))

    def fitting(text: str) -> bool:
        return all(fit.count(text) <= fit.allowed for fit in fits)

    if all(size <= fit.allowed for fit in fits) or fitting(whole):
        return whole, 0
    passage = row.fields[task.cut] if task.cut else ""
    low, high = 0, len(passage)  # `low` fits (checked by _fit), `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fitting(_text(task, row, middle)) else (low, middle)
    return _text(task, row, low), len(passage) - low


def _gold_lost(task: Task, row: Row, removed: int) -> bool:
    """Whether a gold answer stood in the passage, and none does in what is left of it. Labels do not stand in passages."""
    passage = row.fields[task.cut or ""]
    left = passage[: len(passage) - removed]
    return not task.labels and any(t in passage for t in row.targets) and not any(t in left for t in row.targets)
