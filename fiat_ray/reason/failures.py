"""Where too many rows fail the stage stops, before all of them were paid for, and says why and in which languages they failed."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from fiat_ray.errors import Unfinished

FAILED = ("engine_error", "prompt_too_long")
"""States of rows that say nothing of what the reasoner thinks."""

MOST_SHARE = 0.5

FEWEST_ROWS, FEWEST_SHARE = 20, 0.1
"""Of how many rows, and of which part of all, the share is taken at the earliest while others are to come: rows that are alike come together, and so
do their failures."""


def too_many(failed: int, rows: int) -> bool:
    return 0 < rows * MOST_SHARE <= failed


class Failures:
    def __init__(self, total: int) -> None:
        """``total``: how many rows there are to answer."""
        self._rows, self._fewest = 0, max(FEWEST_ROWS, FEWEST_SHARE * total)
        self._failed: dict[str, Counter[str]] = {}
        """Cause → language → rows."""

    def count(self, answered: pa.Table) -> None:
        """Count rows with their ``status``, ``error`` and ``language``. Raises ``Unfinished`` where the share of failures is too high."""
        self._rows += len(answered)
        for row in answered.to_pylist():
            if row["status"] in FAILED:
                cause = f"{row['status']}: {row['error']}"[:120] if row["error"] else row["status"]
                self._failed.setdefault(cause, Counter())[row["language"] or "no language"] += 1
        failed = sum(languages.total() for languages in self._failed.values())
        if self._rows >= self._fewest and too_many(failed, self._rows):
            raise self._stopped(failed)

    def check_all(self, engine_errors: int) -> None:
        """When all were asked, however few they are. Raises ``Unfinished`` where too many of them may be asked again."""
        if too_many(engine_errors, self._rows):
            raise self._stopped(sum(languages.total() for languages in self._failed.values()))

    def _stopped(self, failed: int) -> Unfinished:
        return Unfinished(f"reasoning stopped, because {failed} of {self._rows} rows failed: {self._causes()}")

    def _causes(self) -> str:
        """The three commonest causes with their languages."""
        causes = sorted(self._failed.items(), key=lambda cause: -cause[1].total())
        said = [
            f"{languages.total()} by {cause!r} ({', '.join(f'{language} {rows}' for language, rows in languages.most_common())})"
            for cause, languages in causes[:3]
        ]
        return "; ".join([*said, f"and by {len(causes) - 3} more causes"] if len(causes) > 3 else said)
