"""Progress of reasoning, read off the store: what counts is what is durable."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from fiat_ray.progress import clock
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.stage import FLUSH_SECONDS
from fiat_ray.reason.store import Store

COLUMNS = ["status", "error", "prompt_tokens", "cached_tokens", "output_tokens"]
SHOWN_CAUSES = 5


class Watch:
    """What has come into a store since the watch began. Reads each new part once."""

    def __init__(self, task: str, missing: int, store: Store, reasoner: ReasonerConfig) -> None:
        self.task, self._missing, self._store, self._reasoner = task, missing, store, reasoner
        self._looking = threading.Lock()
        self._seen = set(store.parts())
        self._states: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()
        """How rows ended that are not ok: their state, and of an error what was said."""
        self._tokens = Counter(dict.fromkeys(COLUMNS[2:], 0))
        self._start: float | None = None

    @property
    def charged(self) -> float:
        """What an endpoint with a price charges for what was seen so far."""
        return self._reasoner.charged(self._tokens["prompt_tokens"], self._tokens["output_tokens"]) or 0.0

    def text(self) -> str:
        """A status line: rows, speed, share of prompts that the prefix cache held, time left, and how rows ended that are not ok."""
        now = self.numbers()
        done = self._states.total()
        if not done:
            return f"reason: {self.task}: 0/{self._missing} rows, starting …"
        speed = f"{now['rows_per_second']:.1f} rows/s · tokens/s: {now['read_per_second']:,.0f} in, {now['written_per_second']:,.0f} out"
        cached = f" ({now['cached_share']:.0%} cached)" if self._tokens["cached_tokens"] else ""
        cost = f" · cost {self.charged:,.2f}" if self._reasoner.has_price else ""
        left = clock((self._missing - done) / now["rows_per_second"])
        causes = "".join(f" · {n} {cause}" for cause, n in self._causes.most_common(SHOWN_CAUSES))
        return f"reason: {self.task}: {done}/{self._missing} rows · {speed}{cached}{cost} · ETA {left}{causes}"

    def numbers(self) -> dict[str, float]:
        """The same by name. Rates are means a second since the first row; ``read`` counts prompt tokens, from the prefix cache or not."""
        with self._looking:
            self._look()
        done, tokens = self._states.total(), self._tokens
        if done and self._start is None:
            self._start = time.monotonic() - FLUSH_SECONDS
        seconds = time.monotonic() - (self._start or 0.0)
        return {
            "rows": done,
            "missing": self._missing - done,
            "rows_per_second": done / seconds,
            "read_per_second": tokens["prompt_tokens"] / seconds,
            "written_per_second": tokens["output_tokens"] / seconds,
            "cached_share": tokens["cached_tokens"] / max(1, tokens["prompt_tokens"]),
            **{f"status/{status}": count for status, count in self._states.items()},
        }

    def _look(self) -> None:
        for path in set(self._store.parts()) - self._seen:
            self._seen.add(path)
            for row in self._store.part(path, COLUMNS).to_pylist():
                self._states[row["status"]] += 1
                self._tokens.update({name: row[name] or 0 for name in COLUMNS[2:]})
                if row["status"] != "ok":
                    self._causes[_cause(row)] += 1


def _cause(row: dict[str, Any]) -> str:
    said = " ".join((row["error"] or "").split())
    return f"{row['status']} ({said[:60]})" if said else str(row["status"])
