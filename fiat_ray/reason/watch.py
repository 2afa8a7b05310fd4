"""Progress of reasoning, read off the store: what counts is what is durable."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from fiat_ray.progress import clock
from fiat_ray.reason.order import lacking
from fiat_ray.reason.requests import Requests
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.stage import FLUSH_SECONDS
from fiat_ray.reason.store import MOST_TRIES, Store, digests, find

TOKENS = ["prompt_tokens", "cached_tokens", "output_tokens"]
COLUMNS = ["key", "status", "tries", "error", *TOKENS]
SHOWN_CAUSES = 5


class Watch:
    """What has come into a store since the watch began, of the requests that it lacked then. Reads each new part once.

    Others may write there, and a merge writes old rows anew: each try of a request counts once.
    """

    def __init__(self, task: str, requests: Requests, store: Store, reasoner: ReasonerConfig) -> None:
        self.task, self._store, self._reasoner = task, store, reasoner
        self._looking = threading.Lock()
        self._seen = set(store.parts())
        known = store.known()
        self._lacking = lacking(requests, known)
        """Digests of keys, sorted."""
        self._answered = np.zeros(len(self._lacking), bool)
        self._tries = np.zeros((len(self._lacking), MOST_TRIES + 1), bool)
        """Those of each that are in the store."""
        for at, tries in zip(find(self._lacking, digests(pa.array(known.tries, pa.string()))), known.tries.values(), strict=True):
            if at >= 0:
                self._tries[at, : tries + 1] = True
        self._states: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()
        """How rows ended that are not ok: their state, and of an error what was said."""
        self._tokens = Counter(dict.fromkeys(TOKENS, 0))
        self._start: float | None = None

    @property
    def missing(self) -> int:
        """Requests that the store lacked when the watch began."""
        return len(self._lacking)

    @property
    def charged(self) -> float:
        """What an endpoint with a price charges for what was seen so far."""
        return self._reasoner.charged(self._tokens["prompt_tokens"], self._tokens["output_tokens"]) or 0.0

    def text(self) -> str:
        """A status line: rows, speed, share of prompts that the prefix cache held, time left, and how rows ended that are not ok."""
        now = self.numbers()
        done = now["rows"]
        if not done:
            return f"reason: {self.task}: 0/{self.missing} rows, starting …"
        speed = f"{now['rows_per_second']:.1f} rows/s · tokens/s: {now['read_per_second']:,.0f} in, {now['written_per_second']:,.0f} out"
        cached = f" ({now['cached_share']:.0%} cached)" if self._tokens["cached_tokens"] else ""
        cost = f" · cost {self.charged:,.2f}" if self._reasoner.has_price else ""
        left = clock((self.missing - done) / now["rows_per_second"])
        causes = "".join(f" · {n} {cause}" for cause, n in self._causes.most_common(SHOWN_CAUSES))
        return f"reason: {self.task}: {done}/{self.missing} rows · {speed}{cached}{cost} · ETA {left}{causes}"

    def numbers(self) -> dict[str, float]:
        """The same by name. Rates are means a second since the first row; ``read`` counts prompt tokens, from the prefix cache or not."""
        with self._looking:
            self._look()
        done, tokens = int(self._answered.sum()), self._tokens
        if done and self._start is None:
            self._start = time.monotonic() - FLUSH_SECONDS
        seconds = time.monotonic() - (self._start or 0.0)
        return {
            "rows": done,
            "missing": self.missing - done,
            "rows_per_second": done / seconds,
            "read_per_second": tokens["prompt_tokens"] / seconds,
            "written_per_second": tokens["output_tokens"] / seconds,
            "cached_share": tokens["cached_tokens"] / max(1, tokens["prompt_tokens"]),
            **{f"status/{status}": count for status, count in self._states.items()},
        }

    def _look(self) -> None:
        for path in set(self._store.parts()) - self._seen:
            self._seen.add(path)
            for row in self._new(self._store.part(path, COLUMNS)).to_pylist():
                self._states[row["status"]] += 1
                self._tokens.update({name: row[name] or 0 for name in TOKENS})
                if row["status"] != "ok":
                    self._causes[_cause(row)] += 1

    def _new(self, rows: pa.Table) -> pa.Table:
        """The tries among them that were not seen before."""
        at, tries = find(self._lacking, digests(rows["key"])), np.minimum(rows["tries"].to_numpy(), MOST_TRIES)
        mine = np.flatnonzero(at >= 0)
        found, first = np.unique(np.stack([at[mine], tries[mine]]), axis=1, return_index=True)
        new = ~self._tries[tuple(found)]
        self._tries[tuple(found[:, new])] = True
        self._answered[found[0, new]] = True
        return rows.take(pa.array(mine[first[new]]))


def _cause(row: dict[str, Any]) -> str:
    said = " ".join((row["error"] or "").split())
    return f"{row['status']} ({said[:60]})" if said else str(row["status"])
