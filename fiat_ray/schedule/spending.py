"""What a run directory has taken over all its sittings, and the limit at which nothing more is started.

``spent.json`` holds ``gpu_seconds``: of every engine and tuning worker the time from its start to its end, times its GPUs; once where it has none.
And ``charged``: what a reasoner's endpoint charges for the tokens of the rows that it answered.
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
        before = artifact.read_json(path, gpu_seconds=(int, float)) or {"gpu_seconds": 0.0}
        self._before = float(before["gpu_seconds"]), float(before.get("charged", 0.0))
        self._now = 0.0, 0.0
        self._written = time.monotonic()

    @property
    def hours(self) -> float:
        return (self._before[0] + self._now[0]) / 3600

    @property
    def cost(self) -> float:
        """Of GPUs, where their price is known, and of an endpoint."""
        return self.hours * (self._config.where.gpu_hour_price or 0.0) + self._before[1] + self._now[1]

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
        self._now = gpu_seconds, charged
        if last or time.monotonic() - self._written > WRITTEN_EVERY:
            self._written = time.monotonic()
            artifact.write_json(self._path, {"gpu_seconds": self._before[0] + gpu_seconds, "charged": self._before[1] + charged})
