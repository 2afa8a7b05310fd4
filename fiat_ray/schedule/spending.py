"""GPU time that a run directory has taken over all its sittings, and the limit at which nothing more is started.

``spent.json`` holds ``gpu_seconds``: of every engine and tuning worker the time from its start to its end, times its GPUs; once where it has none.
"""

from __future__ import annotations

import time
from pathlib import Path

from fiat_ray import artifact
from fiat_ray.config import Config

WRITTEN_EVERY = 10.0
"""Seconds: what a killed process may forget to count."""


class Spending:
    def __init__(self, path: Path, config: Config) -> None:
        self._path, self._config = path, config
        self._before = float((artifact.read_json(path, gpu_seconds=(int, float)) or {"gpu_seconds": 0.0})["gpu_seconds"])
        self._now = 0.0
        self._written = time.monotonic()

    @property
    def hours(self) -> float:
        return (self._before + self._now) / 3600

    @property
    def reached(self) -> str:
        """The limit that is reached, in words; empty where none is."""
        limit, price = self._config.max_gpu_hours, self._config.where.gpu_hour_price
        if limit is not None and self.hours >= limit:
            return f"max_gpu_hours: {limit:g} is reached ({self.hours:,.3g} GPU hours in this run directory)"
        limit = self._config.max_cost
        if limit is not None and price is not None and self.hours * price >= limit:
            return f"max_cost: {limit:g} is reached ({self.hours * price:,.2f} in this run directory)"
        return ""

    def update(self, gpu_seconds: float, last: bool = False) -> None:
        """What this sitting has taken so far; written now and then, and at its end."""
        self._now = gpu_seconds
        if last or time.monotonic() - self._written > WRITTEN_EVERY:
            self._written = time.monotonic()
            artifact.write_json(self._path, {"gpu_seconds": self._before + self._now})
