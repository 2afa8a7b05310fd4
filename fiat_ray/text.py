"""Text for terminals."""

import re
from collections.abc import Mapping
from itertools import accumulate
from textwrap import fill
from unicodedata import east_asian_width

WIDTH = 110
"""Columns of what commands print."""


def size_of(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def count(number: int, noun: str) -> str:
    """A number of things, of which there may be one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def by_language(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{language} {number:,}" for language, number in sorted(numbers.items()))


def line(label: str, text: str) -> str:
    """A label and what is said of it, wrapped beside it; words, such as paths, stay whole."""
    return fill(text, WIDTH, initial_indent=f"  {label:<10} ", subsequent_indent=" " * 13, break_on_hyphens=False, break_long_words=False)


def short(text: str, characters: int) -> str:
    """The beginning of a text, as one line."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[:characters]}…"


def visible(text: str) -> str:
    """One line of somebody's text with its control characters spelt out: a terminal would obey them."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def columns(text: str) -> int:
    """Those that a terminal shows a line in: two for a wide character, such as a Chinese one."""
    return sum(map(_columns, text))


def within(text: str, most: int) -> str:
    """The beginning of a line that ``most`` columns have room for."""
    return text[: sum(end <= most for end in accumulate(map(_columns, text)))]


def _columns(character: str) -> int:
    return 2 if east_asian_width(character) in "WF" else 1
