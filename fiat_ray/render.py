"""Row → token ids and loss mask: the one place where text becomes a prompt.

A prompt is a list of pieces, each tokenized on its own. *Structure* (chat template, BOS) may hold special tokens; *content* (instructions, rows,
rationales, targets) may not, so ``<|im_start|>`` in a passage stays text. Token counts of pieces add up, a row's text has the same tokens in every
recipe, and training tokens are evaluation tokens up to the target, because both come from here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fiat_ray.artifact import valid
from fiat_ray.models import end_ids
from fiat_ray.recipe import Recipe
from fiat_ray.task import Task, Which, split_at_answer, without_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = tuple[Literal["user", "assistant"], tuple[str, ...]]
"""Who speaks, and the content pieces of what is said."""

IGNORED = -100
"""Label of a token without loss (torch's cross-entropy skips it)."""

DATE = datetime(2025, 1, 1)
"""What chat templates take for today, whose own date would make the same row another prompt tomorrow."""

CHAT_OPTIONS = {"enable_thinking": False, "date_string": f"{DATE:%d %b %Y}"}
"""Given to every chat template, JSON: replies without thinking, and a date. Templates that ask a clock are given ``DATE`` beside."""

_SLOT = re.compile("\ufdd0(\\d+)\ufdd1")  # noncharacters: they occur in no template


class Piece(NamedTuple):
    kind: Literal["structure", "instructions", "exemplars", "input", "rationale", "target"]
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    pieces: tuple[Piece, ...]

    @property
    def ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.ids]

    @property
    def labels(self) -> list[int]:
        """The loss mask: ids of the target piece (answer and EOS), ``IGNORED`` elsewhere."""
        return [token if piece.kind == "target" else IGNORED for piece in self.pieces for token in piece.ids]

    def __add__(self, pieces: Sequence[Piece]) -> Prompt:
        return Prompt((*self.pieces, *pieces))

    def __len__(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)


def reasoner_turns(task: Task, exemplar_count: int, text: str, language: str, which: Which = "row_language") -> tuple[Message, ...]:
    """Instructions i_beta, the first ``exemplar_count`` exemplars as earlier turns, and the row: the conversation that β goes on with."""
    turns: list[Message] = []
    opening: tuple[str, ...] = (f"{task.i_beta}\n\n",)
    for exemplar in task.exemplars_for(language, which)[:exemplar_count]:
        turns += [("user", (*opening, task.text(exemplar.fields))), ("assistant", (exemplar.answer,))]
        opening = ()
    return (*turns, ("user", (*opening, text)))


def chat_messages(turns: Sequence[Message]) -> list[dict[str, str]]:
    """Turns as chat endpoints take them, whose servers put their own template around them."""
    return [{"role": role, "content": valid("".join(texts))} for role, texts in turns]


def plain_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint is of Llama's kind and names the class that reads ``tokenizer.json`` as it is, which ``AutoTokenizer`` then takes.

    To import that one brings torch, and takes seconds: most of the time of a command that starts no model.
    """
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        plain = tokenizer["tokenizer_class"] in ("TokenizersBackend", "PreTrainedTokenizerFast") and "auto_map" not in tokenizer
    except (OSError, ValueError, LookupError, TypeError):  # AutoTokenizer says it better
        return False
    return bool(kind == "llama" and plain)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """What ``AutoTokenizer`` loads."""
    if plain_tokenizer(folder):
        from transformers import PreTrainedTokenizerFast

        plain: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        return plain
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


class Renderer:
    """Renders for one checkpoint: its tokenizer, and its chat template where it is instruction-tuned.

    ``chat=False`` is for a pretrained checkpoint: plain text in every recipe, in which ``reply`` stands between the row and the answer.
    """

    def __init__(self, folder: Path, chat: bool = True, reply: str = "\nanswer:") -> None:
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        self.chat = chat and bool(self.tokenizer.chat_template)
        self.reply = reply
        # Of each renderer its own: a method's would keep every renderer, and its vocabulary, for as long as the process lives.
        self._content = lru_cache(maxsize=4096)(self._encode_content)
        self._around_last = lru_cache(maxsize=256)(self._split_around_last)

    def reasoner_prompt(self, task: Task, exemplar_count: int, text: str, language: str, which: Which = "row_language") -> Prompt:
        """``reasoner_turns`` as tokens: what β reasons about."""
        return self.reasoner_prefix(task, exemplar_count, language, which) + self.row_pieces(text)

    def reasoner_prefix(self, task: Task, exemplar_count: int, language: str, which: Which = "row_language") -> Prompt:
        """All of the prompt before the row: the same for all rows of a language, so that engines compute it once."""
        turns = reasoner_turns(task, exemplar_count, "", language, which)
        kinds = ("instructions", *["exemplars"] * 2 * (len(turns) // 2), "input")
        before, _ = self._around_last(turns, kinds)
        return Prompt(before)

    def row_pieces(self, text: str) -> list[Piece]:
        """The row and the opening of the reply."""
        return [self.content("input", text), *self._around_last((("user", ("",)),), ("input",))[1]]

    def tunable_prompt(self, task: Task, text: str, rationale: str | None, recipe: Recipe) -> Prompt:
        """What τ reads: i_tau (with instructions), the row's text, and the rationale (with CoT); the target follows."""
        opening = [self.content("input", "predict: ")] if recipe.cot == "distilled" else []
        return self._tunable_prompt(task, opening, text, rationale, recipe)

    def explain_prompt(self, task: Task, text: str, recipe: Recipe) -> Prompt:
        """Distilled CoT's other half: ``explain: `` and the row, whose target is the rationale (Hsieh et al. 2023)."""
        return self._tunable_prompt(task, [self.content("input", "explain: ")], text, None, recipe)

    def _tunable_prompt(self, task: Task, opening: list[Piece], text: str, rationale: str | None, recipe: Recipe) -> Prompt:
        content = [self.content("instructions", f"{task.i_tau}\n\n")] if recipe.instructions else []
        content += [*opening, self.content("input", text)]
        if recipe.cot == "augmented":
            content.append(self.content("rationale", f"\nreasoning: {rationale or ''}".rstrip()))
        before, after = self._around_last((("user", ("",)),), ("input",))
        return Prompt((*before, *content, *after))

    def check(self) -> None:
        """Raises whatever a broken chat template raises, and ``ValueError`` where prompts would lose what is said, or answers have no end."""
        turns: tuple[Message, ...] = (("user", ("a",)), ("assistant", ("b",)), ("user", ("c",)))
        for messages in (turns, turns[:1]):
            self._around_last(messages, ("input",) * len(messages))
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer names no EOS token")

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of many texts takes as content of a prompt; all at once, which is faster than one by one."""
        return [len(ids) for ids in self.tokenizer(valid(list(texts)), add_special_tokens=False, split_special_tokens=True)["input_ids"]]

    def target(self, text: str) -> Piece:
        """The supervised tokens: the answer and EOS."""
        return Piece("target", text, (*self.answer_ids(text), self.eos))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """An answer as it stands after the prompt: the reply of a chat, or after ``answer:`` and a space in plain text."""
        return self._content(text if self.chat else f" {text}")

    def size(self, text: str) -> int:
        """How many tokens a text takes as content of a prompt."""
        return len(self._content(text))

    def content(self, kind: Any, text: str) -> Piece:
        return Piece(kind, text, self._content(text))

    @cached_property
    def eos(self) -> int:
        assert self.tokenizer.eos_token_id is not None, "a tunable's tokenizer names an EOS token"
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def ends(self) -> list[int]:
        """Tokens at which answers end, in validation as in test: EOS, which ends what is tuned, first; then those that the checkpoint names."""
        return list(dict.fromkeys([self.eos, *end_ids(self.folder)]))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _encode_content(self, text: str) -> tuple[int, ...]:
        text = valid(text)  # what a tokenizer takes
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) if text else ()

    def _split_around_last(self, messages: tuple[Message, ...], kinds: tuple[str, ...]) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """Pieces before and after the last content piece of ``messages``, whose kinds are given in order."""
        contents = [text for _, texts in messages for text in texts]
        slots = iter(range(len(contents)))
        marked = [(role, "".join(f"\ufdd0{next(slots)}\ufdd1" for _ in texts)) for role, texts in messages]
        parts = _SLOT.split(self._template(marked))
        if [int(number) for number in parts[1::2]] != list(range(len(contents))):
            raise ValueError("the chat template leaves out, repeats or reorders what is said")
        pieces: list[Piece] = []
        last = 0
        for at, part in enumerate(parts):  # structure, slot number, structure, slot number, …, structure
            if at % 2:
                last = len(pieces)
                pieces.append(self.content(kinds[int(part)], contents[int(part)]))
            elif part:
                pieces.append(Piece("structure", part, tuple(self.tokenizer.encode(part, add_special_tokens=False))))
        return self._with_bos(pieces[:last]), tuple(pieces[last + 1 :])

    @property
    def dated(self) -> bool:
        """Whether prompts hold ``DATE`` because their template asks a clock, where a server's would hold the day's."""
        one = [("user", "a")]
        return self._template(one) != self._template(one, DATE - timedelta(days=1))

    def _template(self, messages: Sequence[tuple[str, str]], today: datetime = DATE) -> str:
        if not self.chat:
            turns = [text if role == "user" else f"\n{text}\n\n" for role, text in messages]
            return "".join(turns) + self.reply
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in messages],
                tokenize=False,
                add_generation_prompt=True,
                strftime_now=today.strftime,  # instead of transformers' own
                **CHAT_OPTIONS,
            )
        )

    def _with_bos(self, pieces: list[Piece]) -> tuple[Piece, ...]:
        """Exactly one BOS, where the tokenizer itself starts texts with one."""
        bos = self._own_bos
        if bos is None or (pieces and pieces[0].ids[:1] == (bos,)):
            return tuple(pieces)
        return (Piece("structure", self.tokenizer.decode([bos]), (bos,)), *pieces)

    @cached_property
    def _own_bos(self) -> int | None:
        ids = self.tokenizer.encode("x")
        return ids[0] if ids and ids[0] == self.tokenizer.bos_token_id else None


def rationale_part(task: Task, rationale: str, recipe: Recipe) -> str:
    """The part of a rationale that a recipe shows to the tunable, however long."""
    if recipe.rationale == "answer_only":
        return task.answer(rationale)
    return without_answer(rationale) if recipe.rationale == "without_answer" else rationale.strip()


def shown_rationale(task: Task, renderer: Renderer, rationale: str, recipe: Recipe, max_tokens: int) -> str:
    """``rationale_part`` in at most ``max_tokens`` of the tunable's own tokens: where it is longer, what leads to the answer is cut, not its line."""
    text = rationale_part(task, rationale, recipe)
    if renderer.size(text) <= max_tokens:  # another tokenizer than the reasoner's may need more
        return text
    before, line, _ = split_at_answer(text, task.labels)
    if renderer.size(line) > max_tokens:
        before, line = text, ""
    before, ending = before.rstrip(), f"\n{line}" if line else ""
    ids, bound = renderer.content("rationale", before).ids, max(0, max_tokens - renderer.size(ending))
    while before and renderer.size(before + ending) > max_tokens:  # a cut text may need more than it was cut to, hence the loop
        before = renderer.decode(ids[:bound]).rstrip("\ufffd")  # half a character stands at the end of a cut
        ids, bound = renderer.content("rationale", before).ids, bound - 1
    return (before + ending).strip()
