"""The reasoning stage: Ray Data spreads the requests over engine actors, and each actor is the sink of what it generates.

An actor admits several batches at once, so that its engine never drains between them; it writes finished rows itself, at most ``FLUSH_SECONDS``
after they finished, and passes on key and status only.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fiat_ray.cluster import end_with_raylet
from fiat_ray.errors import UserError
from fiat_ray.reason.reasoners import Reasoner
from fiat_ray.reason.requests import Request, Requests, columns
from fiat_ray.reason.store import Store, is_final

FLUSH_SECONDS = 2.0


MOST_STRIKES = 3
"""How often engines may die before the stage gives up."""


def reason(
    requests: Requests,
    store: Store,
    create: Callable[[], Reasoner],
    *,
    replicas: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    batch_size: int = 16,
    stop: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Generate what the store lacks; yields ``{key, status, admitted}`` for each row when it is durable. ``create`` runs in each actor.

    ``admitted``: when the row was given to a reasoner that was ready, in seconds since the epoch.

    Starts no actor where nothing is missing. Rows that failed are tried again until they are final. When an actor dies, what it had not written is
    given to a new one; after ``MOST_STRIKES`` the error of the last is raised. A reasoner's ``UserError`` is raised at once. When the file ``stop``
    appears, rows that a reasoner has are finished, and no others are begun.
    """
    strikes = 0
    while strikes < MOST_STRIKES:
        finished = store.finished()
        missing = [request for request in requests.ordered if request.key not in finished]
        if not missing:
            return
        try:
            answered = _answered(missing, requests.prefixes, store, create, replicas, cpus, gpus, batch_size, stop)
            for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from batch.to_pylist()
            if stop is not None and stop.exists():
                return
        except Exception as error:
            if broken := re.search(r"UserError: (.+)", str(error)):  # Ray passes on a worker's exception as text only
                raise UserError(broken[1]) from None
            strikes += 1
            if strikes == MOST_STRIKES:
                raise


def _answered(
    missing: list[Request],
    prefixes: dict[str, list[int]],
    store: Store,
    create: Callable[[], Reasoner],
    replicas: int,
    cpus: float,
    gpus: float,
    batch_size: int,
    stop: Path | None,
) -> Any:
    """The Ray dataset of keys and statuses; iterating it generates."""
    import pyarrow as pa
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised, and told by who gives up
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    schema = pa.schema([("key", pa.string()), ("prefix", pa.string()), ("ids", pa.list_(pa.int32())), ("row", pa.string())])
    table = pa.table(columns(missing), schema=schema)
    rows_a_block = -(-len(missing) // max(replicas, -(-len(missing) // 4096)))
    dataset = ray.data.from_arrow([table.slice(start, rows_a_block) for start in range(0, len(missing), rows_a_block)])
    with warnings.catch_warnings():  # the one way to bound restarts in this Ray is announced to go, without another yet
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            ReasonerActor,
            fn_constructor_args=(create, prefixes, str(store.folder), stop),
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=replicas),
            num_cpus=cpus,
            num_gpus=gpus or None,
            max_restarts=0,  # strikes are counted in `reason`, outside of what dies; Ray Data would retry without end
        )


class ReasonerActor:
    """Ray Data's callable: one reasoner, and the store it writes to."""

    def __init__(self, create: Callable[[], Reasoner], prefixes: dict[str, list[int]], store: str, stop: Path | None = None) -> None:
        end_with_raylet()
        self._stop = stop
        self._store = Store(Path(store))
        self._states = self._store.states()
        self._prefixes = prefixes
        self._unwritten: list[dict[str, Any]] = []
        self._writing = asyncio.Lock()
        self._writer = ThreadPoolExecutor(1)  # its own: a reasoner may keep all threads of the loop's busy
        self._timer: asyncio.Task[None] | None = None
        self._reasoner = create()

    async def __call__(self, batch: Any) -> dict[str, np.ndarray]:
        if self._stop is not None and self._stop.exists():
            batch = batch.slice(0, 0)
        admitted = time.time()
        statuses = await asyncio.gather(*(self._row(row) for row in batch.to_pylist()))
        await self._flush()
        keys, times = np.array(batch["key"].to_pylist(), dtype=object), np.full(len(statuses), admitted)
        return {"key": keys, "status": np.array(statuses, dtype=object), "admitted": times}

    async def _row(self, row: dict[str, Any]) -> str:
        key = row["key"]
        state = self._states.get(key)
        if state is not None and is_final(state):
            return str(state["status"])
        answer = await self._reasoner.reason(self._prefixes.get(row["prefix"], []), row["ids"], row["row"])
        self._unwritten.append({"key": key, "tries": (state["tries"] if state else 0) + 1, **vars(answer)})
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._flush_later())
        return answer.status

    async def _flush_later(self) -> None:
        while self._unwritten:  # rows that finish during a flush wait for the next
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            if rows := list(self._unwritten):
                # In a thread: an fsync must not hold up rows that finish meanwhile.
                await asyncio.get_running_loop().run_in_executor(self._writer, self._store.write, rows)
                del self._unwritten[: len(rows)]  # after a write that failed they are still there for the next
