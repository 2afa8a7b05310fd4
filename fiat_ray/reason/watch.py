"""Progress of reasoning, read off the store: what counts is what is durable."""

from __future__ import annotations

import time
from collections import Counter

from fiat_ray.progress import clock
from fiat_ray.reason.stage import FLUSH_SECONDS
from fiat_ray.reason.store import Store


class Watch:
    """What has come into a store since the watch began. Reads each new part once."""

    def __init__(self, task: str, missing: int, store: Store) -> None:
        self._task, self._missing, self._store = task, missing, store
        self._seen = set(store.folder.glob("*.parquet"))
        self._states: Counter[str] = Counter()
        self._tokens = 0
        self._start: float | None = None

    def text(self) -> str:
        """A status line: rows, states other than ok, speed, time left."""
        self._look()
        done = self._states.total()
        if not done:
            return f"reason: {self._task}: 0/{self._missing} rows, starting …"
        self._start = self._start or time.monotonic() - FLUSH_SECONDS
        seconds = time.monotonic() - self._start
        states = "".join(f", {n} {status}" for status, n in self._states.most_common() if status != "ok")
        speed = f"{done / seconds:.1f} rows/s · {self._tokens / seconds:.0f} tokens/s out"
        return f"reason: {self._task}: {done}/{self._missing} rows{states} · {speed} · ETA {clock((self._missing - done) * seconds / done)}"

    def _look(self) -> None:
        for path in set(self._store.folder.glob("*.parquet")) - self._seen:
            self._seen.add(path)
            for row in self._store.part(path, ["status", "output_tokens"]):
                self._states[row["status"]] += 1
                self._tokens += row["output_tokens"]
