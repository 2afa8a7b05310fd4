"""What a run directory has taken over all its sittings, and the limit at which nothing more is started.

``spent.json`` holds ``gpu_seconds``: of every engine and tuning worker the time from its start to its end, times its GPUs; once where it has none.
And ``charged``: what a reasoner's endpoint charges for the tokens of the rows that it answered.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from fiat_ray import artifact
from fiat_ray.config import Config

WRITTEN_EVERY = 10.0
"""Seconds: what a killed process may forget to count."""


class Spent(NamedTuple):
    """What stands in ``spent.json``."""

    gpu_seconds: float = 0.0
    charged: float = 0.0


class Spending:
    def __init__(self, path: Path, config: Config) -> None:
        self._path, self._config = path, config
        before = artifact.read_json(path, gpu_seconds=(int, float)) or {}
        self._before = self._total = Spent(before.get("gpu_seconds", 0.0), before.get("charged", 0.0))
        self._written = time.monotonic()

    @property
    def hours(self) -> float:
        return self._total.gpu_seconds / 3600

    @property
    def cost(self) -> float:
        """Of GPUs, where their price is known, and of an endpoint."""
        return self.hours * (self._config.where.gpu_hour_price or 0.0) + self._total.charged

    @property
    def reached(self) -> str:
        """The limit that is reached, in words; empty where none is."""
        limit = self._config.max_gpu_hours
        if limit is not None and self.hours >= limit:
            return f"max_gpu_hours: {limit:g} is reached ({self.hours:,.3g} GPU hours in this run directory)"
        limit = self._config.max_cost
        if limit is not None and self.cost >= limit:
            return f"max_cost: {limit:g} is reached ({self.cost:,.2f} in this run directory)"
        return ""

    def update(self, gpu_seconds: float, charged: float, last: bool = False) -> None:
        """What this sitting has taken so far; written now and then, and at its end."""
        self._total = Spent(self._before.gpu_seconds + gpu_seconds, self._before.charged + charged)
        if last or time.monotonic() - self._written > WRITTEN_EVERY:
            self._written = time.monotonic()
            artifact.write_json(self._path, self._total._asdict())
