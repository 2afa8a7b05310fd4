"""A task: its rows, input text, instructions, exemplars, answer parsing and groups. One folder form for built-in and own tasks.

A task folder holds ``task.yaml``, ``i_beta.txt``, ``i_tau.txt``, ``exemplars.jsonl``, and ``task.py`` where reading the rows needs code.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from fiat_ray.errors import UserError
from fiat_ray.rows import Place, text_field

SPLITS = ("train", "validation", "test")
MARKUP = "*_`\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Emphasis, and the marks that say which way a line is read."""

_SPACE = rf"(?:[^\S\n]|[{MARKUP}])"
_OPENING = rf"^(?:{_SPACE}|[>#-])*answer{_SPACE}*[:：]"
ANSWER = re.compile(rf"(?im){_OPENING}(?:{_SPACE}*\n(?!{_OPENING})>?)*[*_`]*(.*)$")
"""A rationale ends with a line ``Answer: …``, in Markdown or not. Where nothing is said on it, the next line that says something is the answer."""

Which = Literal["row_language", "all"]
"""Exemplars in a row's prompt: those of its language, or all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a task, reduced to what may be shown: annotations and gold fields never enter ``fields``."""

    id: str
    split: str
    language: str
    fields: dict[str, str]
    """What the input template reads, and nothing else."""
    targets: tuple[str, ...]
    """Gold answers. The first is trained on; the best match counts in scoring."""
    group: str
    """Rows of one group are not independent: the unit of resampling."""
    example: str
    """Rows that are the same example: must not stand in two splits."""
    place: str = field(default="", compare=False)
    """File and row number. For messages only: it decides nothing, and no fingerprint holds it."""

    def __str__(self) -> str:
        return f"{self.place or self.id} ({self.split}, language {self.language})"


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A worked example in the reasoner's prompt, with a hand-written rationale (paper §3, Baselines)."""

    language: str
    fields: dict[str, str]
    rationale: str
    target: str

    @property
    def answer(self) -> str:
        return f"{self.rationale.strip()}\nAnswer: {self.target}"


@dataclass(frozen=True)
class Task:
    name: str
    input: str
    """Template of the input text, such as ``question: {question} context: {context}``; the same in every recipe."""
    cut: str | None
    """The field that gives way when a prompt is too long."""
    metric: str
    """One of ``metrics.TEXT_METRICS`` or ``LABEL_METRICS``, or somebody's own ``module:function``."""
    labels: tuple[str, ...]
    """All labels of a classification task, the positive one last; empty for free text."""
    i_beta: str
    i_tau: str
    exemplars: tuple[Exemplar, ...]
    rows: tuple[Row, ...]
    target: str = "target"
    language: str | None = "language"
    """The field that names a row's language; None: all rows are of one undetermined language, ``und``."""
    removed: tuple[dict[str, str], ...] = ()
    """Rows that the leakage guard took out of train and validation: id, split, language, overlaps."""
    built_in: bool = field(default=True, compare=False)

    @classmethod
    def load(
        cls,
        name: str | Path,
        data: str | Path | None = None,
        *,
        languages: Sequence[str] | None = None,
        limit: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Task:
        """A built-in task by name, or an own one by folder. ``data``: where its rows lie; ``options`` go to its ``rows()``.

        Raises ``UserError`` for a folder, field, language or option that is not there, and for own rows that stand in two splits.
        """
        from fiat_ray.leakage import without_overlap
        from fiat_ray.task_folder import read_task

        task = in_languages(read_task(name, data, options), languages)
        return limited(without_overlap(task), limit or {})

    @classmethod
    def from_rows(cls, rows: Any, *, target: str = "target", language: str | None = None, **definition: Any) -> Task:
        """A task from a DataFrame, a ``datasets.Dataset``, dicts or a file; see ``fiat_ray.own_task.from_rows``."""
        from fiat_ray.own_task import from_rows

        return from_rows(rows, target=target, language=language, **definition)

    def text(self, fields: Mapping[str, str]) -> str:
        """The input text of a row: the template, filled."""
        return self.input.format_map(fields)

    def exemplars_for(self, language: str, which: Which = "row_language") -> tuple[Exemplar, ...]:
        """Exemplars in the prompt of a row: those of its language; all where it has none of its own, or where all are asked for."""
        own = tuple(e for e in self.exemplars if e.language == language)
        return own if own and which == "row_language" else self.exemplars

    def answer(self, rationale: str) -> str:
        """ICL's prediction: the answer in a rationale; empty where there is none, or where it is none of the labels."""
        return parse_answer(rationale, self.labels)

    def split(self, name: str) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.split == name)

    @property
    def languages(self) -> list[str]:
        return sorted({row.language for row in self.rows})


def template_fields(template: str, place: str = "") -> list[str]:
    """Names in a template. Only plain names: ``{context}``, not ``{context.x}``, ``{0}`` or ``{context!r}``."""
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"{place}input template {template!r}: {error}") from None
    for name, spec, conversion in fields:
        if not name.isidentifier() or spec or conversion:
            raise UserError(f"{place}input template: {{{name}}} is no plain field name")
    if not fields:
        raise UserError(f"{place}input template {template!r} names no field")
    return [name for name, _, _ in fields]


def parse_answer(rationale: str, labels: Sequence[str] = ()) -> str:
    """The last answer in a rationale; empty where there is none, or where it is none of the labels."""
    _, _, answer = split_at_answer(rationale, labels)
    if not labels or answer in labels:
        return answer
    alike = [label for label in labels if label.casefold() == answer.casefold()]
    return alike[0] if len(alike) == 1 else ""


def split_at_answer(rationale: str, labels: Sequence[str] = ()) -> tuple[str, str, str]:
    """(what stands before the last answer that is not empty, its line, the answer); the first is the whole rationale where there is none.

    What stands around a label is left out, but for characters that labels begin or end with: they may be all that tells one from another.
    """
    ends = {character for label in labels for character in label[:1] + label[-1:]}
    signed = any(unicodedata.category(character) == "Pd" for character in ends)  # then no dash of another kind is punctuation

    def around(character: str) -> bool:
        kind = unicodedata.category(character)
        markup = character.isspace() or character in MARKUP
        if not labels:
            return markup
        return character not in ends and not (signed and kind == "Pd") and (markup or character in "<>|~" or kind[0] in "PZ" or kind == "Cf")

    for line in reversed(list(ANSWER.finditer(rationale))):
        if answer := _stripped(line[1], around):
            return rationale[: line.start()], line[0].strip(), answer
    return rationale, "", ""


def _stripped(text: str, around: Callable[[str], bool]) -> str:
    kept = [at for at, character in enumerate(text) if not around(character)]
    return text[kept[0] : kept[-1] + 1] if kept else ""


def without_answer(rationale: str) -> str:
    """A rationale less its answer lines (``Recipe.rationale: without_answer``)."""
    return ANSWER.sub("", rationale).strip()


def in_languages(task: Task, languages: Sequence[str] | None) -> Task:
    """The rows of some languages, or of all where none is named. Raises ``UserError`` for a language without rows."""
    if not languages:
        return task
    if unknown := sorted(set(languages) - set(task.languages)):
        raise UserError(f"{task.name}: no rows in language {', '.join(unknown)}; its languages are {', '.join(task.languages)}")
    removed = tuple(row for row in task.removed if row["language"] in languages)
    return replace(task, rows=tuple(row for row in task.rows if row.language in languages), removed=removed)


def limited(task: Task, limit: Mapping[str, int]) -> Task:
    """At most ``limit[split]`` rows a language and split, whole groups first, always the same ones; train, then validation, then test.

    Groups are taken in the order of their hash, so a language's draw does not depend on the other languages, translations of one question are
    drawn together, and a smaller draw is a subset of a larger one.
    """
    unknown = sorted(set(limit) - set(SPLITS))
    if unknown:
        raise UserError(f"limit: no split '{unknown[0]}'; splits are {', '.join(SPLITS)}")
    taken: Counter[tuple[str, str]] = Counter()
    keep: set[str] = set()
    for row in sorted(task.rows, key=lambda r: (digest(r.group), r.id)):
        bound = limit.get(row.split)
        if bound is None or taken[row.split, row.language] < bound:
            taken[row.split, row.language] += 1
            keep.add(row.id)
    return replace(task, rows=tuple(row for split in SPLITS for row in task.split(split) if row.id in keep))


def digest(*parts: str) -> str:
    """A short stable hash of texts: 16 hexadecimal digits."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def make_rows(task: Task, source: Iterable[tuple[Place, str, dict[str, Any]]], group: Sequence[str], example: Sequence[str]) -> Iterator[Row]:
    """(place, split, raw row) → ``Row``: every field checked, everything the template does not read left behind."""
    names = template_fields(task.input)
    seen: Counter[str] = Counter()
    for place, split, raw in source:
        if split not in SPLITS:
            raise UserError(f"{place}: split '{split}' is none of {', '.join(SPLITS)}")
        fields = {name: text_field(raw, name, place) for name in names}
        targets = _targets(task, raw, place)
        language = row_language(task, raw, place)
        _check_language(language, task.language, place)
        identity = digest(split, language, *(fields[name] for name in names), *targets)
        seen[identity] += 1
        yield Row(
            id=identity if seen[identity] == 1 else f"{identity}-{seen[identity]}",
            split=split,
            language=language,
            fields=fields,
            targets=targets,
            group=_key(raw, group, names, place),
            example=_key(raw, example, names, place),
            place=place,
        )


def joined(rows: Iterable[Row]) -> list[Row]:
    """The rows, those with the same input made one example too, along whole chains: A shares its group with B, and B its input with C.

    The same input in two splits is a leak whatever the groups say. White space makes no other input.
    """
    rows = list(rows)
    above: dict[str, str] = {row.example: row.example for row in rows}
    """Union-find: the root of each example is the least of all that are joined to it, so the order of rows decides nothing."""

    def root(example: str) -> str:
        while above[example] != example:
            above[example] = above[above[example]]
            example = above[example]
        return example

    first: dict[tuple[str, ...], str] = {}
    for row in rows:
        text = tuple(" ".join(value.split()) for value in row.fields.values())
        low, high = sorted((root(row.example), root(first.setdefault(text, row.example))))
        above[high] = low
    return [replace(row, example=root(row.example)) for row in rows]


def row_language(task: Task, raw: dict[str, Any], place: Place) -> str:
    """``und`` where the task has no field for it. White space at its ends would make another language that reads the same."""
    return text_field(raw, task.language, place).strip() if task.language else "und"


def _check_language(language: str, field: str | None, place: Place) -> None:
    """A language stands in folder names, metric names and tables, beside averages that are named mean."""
    if not re.fullmatch(r"\w[\w .()-]{0,49}", language) or re.fullmatch(r"mean(_\d+)?", language):
        raise UserError(f"{place}: field '{field}' is {language[:60]!r}, no name for a language; take a code such as hi or zh-Hant")


def _targets(task: Task, raw: dict[str, Any], place: Place) -> tuple[str, ...]:
    value = raw.get(task.target)
    targets = tuple(value) if isinstance(value, list) else (text_field(raw, task.target, place),)
    if not targets or not all(isinstance(t, str) for t in targets):
        raise UserError(f"{place}: field '{task.target}' must be text or a list of texts")
    if task.labels and any(t not in task.labels for t in targets):
        raise UserError(f"{place}: field '{task.target}' is {targets[0]!r}, none of the labels {', '.join(task.labels)}")
    if not targets[0].strip():
        raise UserError(f"{place}: field '{task.target}' is empty; there is nothing to learn or score")
    return targets


def _key(raw: dict[str, Any], names: Sequence[str], inputs: Sequence[str], place: Place) -> str:
    """What rows of one group, or example, share. That all these fields are blank is nothing to share: then it is the input."""
    texts = [_key_text(raw, name, place) for name in names]
    said = any(raw[name] is not None and str(raw[name]).strip() for name in names)
    return digest(*(texts if said else (_key_text(raw, name, place) for name in inputs)))


def _key_text(raw: dict[str, Any], name: str, place: Place) -> str:
    if name not in raw:
        raise UserError(f"{place}: no field '{name}', which groups rows")
    return json.dumps(raw[name], ensure_ascii=False, sort_keys=True, default=str)


class HasLanguage(Protocol):
    @property
    def language(self) -> str: ...


X = TypeVar("X", bound=HasLanguage | Mapping[str, Any])


def by_language(rows: Iterable[X]) -> dict[str, list[X]]:
    """The rows of each language, languages sorted."""
    languages: dict[str, list[X]] = defaultdict(list)
    for row in rows:
        languages[row["language"] if isinstance(row, Mapping) else row.language].append(row)
    return dict(sorted(languages.items()))


def count_by_language(rows: Iterable[Row]) -> dict[str, int]:
    return {language: len(found) for language, found in by_language(rows).items()}


def check_splits(task: Task) -> None:
    """Raises ``UserError`` for a split without rows."""
    for split in SPLITS:
        if not task.split(split):
            left = f" ({len(task.removed)} rows were left out, because they stand in a later split too)" if task.removed else ""
            raise UserError(f"{task.name}: no rows in split {split}{left}; a campaign trains on train, selects on validation and scores test")
