"""Units of hardware in use, and the threads that wait for what runs on them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from fiat_ray.cluster import Unit


class Hardware:
    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.busy = 0
        """Units in use."""
        self._ended: queue.Queue[Callable[[], None]] = queue.Queue()

    def free(self, units: int) -> bool:
        """Whether so many units are free; something may always run, also where a tuning wants more than there is at once."""
        return self.busy == 0 or self.busy + units <= self.unit.count

    def start(self, units: int, work: Callable[..., Callable[[], None]], *arguments: Any) -> None:
        """Run ``work`` in a thread; what it returns, or its error, is dealt with by the deciding thread (see ``deal_with_next``)."""
        self.busy += units

        def body() -> None:
            try:
                after = work(*arguments)
            except BaseException as error:
                after = partial(_raise, error)
            self._ended.put(partial(self._end, units, after))

        threading.Thread(target=body, daemon=True).start()

    def deal_with_next(self, seconds: float = 0.3) -> bool:
        """Wait that long for a work to end, and do what is to be done then. False: none ended."""
        try:
            after = self._ended.get(timeout=seconds)
        except queue.Empty:
            return False
        after()
        return True

    def _end(self, units: int, after: Callable[[], None]) -> None:
        self.busy -= units
        after()


def _raise(error: BaseException) -> None:
    raise error
