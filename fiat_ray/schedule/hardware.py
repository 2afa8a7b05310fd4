"""Units of hardware in use, and the threads that wait for what runs on them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fiat_ray.cluster import Unit


class Hardware:
    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.busy = 0.0
        """Units in use."""
        self._held = 0.0
        """GPUs, of what is in use; units where they have none."""
        self._gpu_seconds, self._counted = 0.0, time.monotonic()
        self._ended: queue.Queue[Callable[[], None]] = queue.Queue()

    @property
    def gpu_seconds(self) -> float:
        """Taken so far: time of each unit in use, times its GPUs; once where it has none."""
        self._occupy(0, 0)
        return self._gpu_seconds

    def free(self, units: float) -> bool:
        """Whether so many units are free; something may always run: workers of a tuning may be more than units, of which
        each may have several GPUs."""
        return self.busy == 0 or round(self.busy + units, 6) <= self.unit.count

    def start(self, units: float, work: Callable[..., Callable[[], None]], *arguments: Any, gpus: float | None = None) -> None:
        """Run ``work`` in a thread; what it returns, or its error, is dealt with by the deciding thread (see ``deal_with_next``).

        ``gpus``: that it holds of each unit's, where these are not all."""
        held = units * max(1.0, self.unit.gpus if gpus is None else gpus)
        self._occupy(units, held)

        def body() -> None:
            try:
                after = work(*arguments)
            except BaseException as error:
                after = partial(_raise, error)
            self._ended.put(partial(self._end, units, held, after))

        threading.Thread(target=body, daemon=True).start()

    def deal_with_next(self, seconds: float = 0.3) -> bool:
        """Wait that long for a work to end, and do what is to be done then. False: none ended."""
        try:
            after = self._ended.get(timeout=seconds)
        except queue.Empty:
            return False
        after()
        return True

    def _end(self, units: float, held: float, after: Callable[[], None]) -> None:
        self._occupy(-units, -held)
        after()

    def _occupy(self, units: float, held: float) -> None:
        now = time.monotonic()
        self._gpu_seconds += (now - self._counted) * self._held
        self._counted = now
        self.busy, self._held = round(self.busy + units, 6), round(self._held + held, 6)  # thirds of a unit add up to it


def _raise(error: BaseException) -> None:
    raise error
