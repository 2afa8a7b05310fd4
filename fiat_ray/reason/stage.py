"""The reasoning stage: Ray Data spreads the requests over engine actors, and each actor is the sink of what it generates.

A block of the dataset says where in the file of requests its rows stand: an actor reads them there, so that no prompt goes through the driver. It
works on several blocks at once, so that its engine never drains between them; it writes finished rows itself, and passes on key and status only.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiat_ray.cluster import actor_errors, end_with_raylet
from fiat_ray.errors import Unfinished, UserError
from fiat_ray.reason.failures import Failures, too_many
from fiat_ray.reason.order import blocks
from fiat_ray.reason.reasoners import Answer, Reasoner
from fiat_ray.reason.requests import Requests
from fiat_ray.reason.store import MOST_TRIES, Store
from fiat_ray.reason.watchdog import PATIENCE, Watchdog, why_killed

FLUSH_SECONDS = 1.0
"""How often finished rows are written. With the write itself they are durable two seconds after they finished, on storage that is worth the name."""

MOST_STRIKES = 3
"""How often engines may die before the stage gives up."""

BLOCKS_AT_ONCE = 4
"""Blocks that an actor works on."""

ANSWERED = pa.schema([("key", pa.string()), ("status", pa.string()), ("admitted", pa.float64()), ("language", pa.string()), ("error", pa.string())])

BROKEN, REFUSED = "broken", "refused"
"""In place of a row's status: the engine failed as a whole, or there is a ``UserError`` to be told. As data, because Ray passes on errors as text."""


def reason(
    requests: Requests,
    store: Store,
    create: Callable[[], Reasoner],
    *,
    replicas: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    window: int = 64,
    patience: float = PATIENCE,
    stop: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Generate what the store lacks; yields each row (``key``, ``status``, ``admitted``, …) when it is durable. ``create`` runs in each actor.

    ``window``: rows that a reasoner is given at once. ``patience``: see ``watchdog.PATIENCE``. ``admitted``: when a row's block was given to a
    reasoner that was ready, in seconds since the epoch.

    Starts no actor where nothing is missing. Rows that failed are tried again until they are final. When an engine fails or dies, what was not
    written goes to new ones. When the file ``stop`` appears, rows that a reasoner has are finished, and no others are begun. Raises ``Unfinished``
    after ``MOST_STRIKES``, and where too many rows fail; ``UserError`` where the store can't be written or a reasoner raises one.
    """
    strikes: list[str] = []
    again = False
    actor = (create, str(requests.file), dict(requests.prefixes), store.place, window, patience, stop)
    while todo := blocks(requests, store.known(), replicas, window):
        left = sum(map(len, todo))
        failures = Failures(left)
        try:
            with closing(_answered(_dataset(todo, actor, replicas, cpus, gpus), _note(requests.file))) as tables:
                for answered in tables:
                    failures.count(answered)
                    left -= pc.sum(pc.not_equal(answered["status"], "engine_error"), min_count=0).as_py()
                    yield from answered.to_pylist()
            if not left or (stop is not None and stop.exists()):  # where all is answered, a store of a million rows need not be read again to know it
                return
            if not again:  # later only those are asked that failed, and all of them may
                failures.check_all(left)
            again = True
        except EngineFailed as failed:
            strikes.append(str(failed))
        if len(strikes) == MOST_STRIKES:
            raise Unfinished(
                f"reasoning stopped, because its engine failed {MOST_STRIKES} times, the last time because {strikes[-1]}; finished rows are stored, "
                "and the same command goes on from there"
            )


class EngineFailed(Exception):
    """An engine is of no use any more; the message says why."""


def _answered(dataset: Any, note: Path) -> Generator[pa.Table]:
    """Tables of ``ANSWERED``, a block each. Raises ``EngineFailed`` or ``UserError``. ``note``: where a watchdog says why it killed an engine."""
    try:
        for answered in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            first = answered.slice(0, 1).to_pylist()
            if first and first[0]["status"] == REFUSED:
                raise UserError(first[0]["error"])
            if first and first[0]["status"] == BROKEN:
                raise EngineFailed(first[0]["error"])
            yield answered
    except actor_errors():
        raise EngineFailed(why_killed(note, "its process died, or was killed, as systems do with one that takes too much memory")) from None


def _dataset(todo: list[np.ndarray], actor: tuple[Any, ...], replicas: int, cpus: float, gpus: float) -> Any:
    """The Ray dataset of ``ANSWERED``; iterating it generates."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is told here
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_arrow([pa.table({"position": block}) for block in todo])
    with warnings.catch_warnings():  # the one way to bound restarts in this Ray is announced to go, without another yet
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            ReasonerActor,
            fn_constructor_args=actor,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=replicas, max_concurrent_calls_per_actor=BLOCKS_AT_ONCE, max_tasks_in_flight_per_actor=BLOCKS_AT_ONCE
            ),
            num_cpus=cpus,
            num_gpus=gpus or None,
            max_restarts=0,  # strikes are counted in `reason`, outside of what dies; Ray Data would retry without end
        )


def _note(requests: Path) -> Path:
    return requests.with_suffix(".stalled.tmp")


class ReasonerActor:
    """Ray Data's callable: one reasoner, and the store it writes to."""

    def __init__(
        self,
        create: Callable[[], Reasoner],
        requests: str,
        prefixes: dict[str, list[int]],
        store: str,
        window: int,
        patience: float,
        stop: Path | None = None,
    ) -> None:
        end_with_raylet()
        self._watchdog = Watchdog(patience, _note(Path(requests)))
        self._requests = Requests(Path(requests), prefixes)
        self._stop = stop
        self._unwritten: list[dict[str, Any]] = []
        self._blocks = 0
        """How many are in work."""
        self._admission = asyncio.Lock()  # block after block, so that rows keep their order
        self._window = asyncio.Semaphore(window)
        self._writing = asyncio.Lock()
        self._files = ThreadPoolExecutor(2)  # its own: a reasoner may keep all threads of the loop's busy
        self._timer: asyncio.Task[None] | None = None
        self._broken: Exception | None = None
        try:
            self._store = Store(store)
            self._known = self._store.known()
            self._reasoner = create()
        except Exception as error:  # told with the first block
            traceback.print_exc()
            self._broken = error
        self._watchdog.tell(busy=False)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        self._blocks += 1
        self._watchdog.tell(busy=True)
        try:
            if self._broken:
                raise self._broken
            return await self._block(batch["position"].to_numpy())
        except Exception as error:
            traceback.print_exc()
            self._broken = error
            told = (REFUSED, str(error)) if isinstance(error, UserError) else (BROKEN, f"{type(error).__name__}: {error}"[:500])
            return pa.table({"key": [""], "status": [told[0]], "admitted": [0.0], "language": [""], "error": [told[1]]}, ANSWERED)
        finally:
            self._blocks -= 1
            self._watchdog.tell(busy=self._blocks > 0)

    async def _block(self, positions: np.ndarray) -> pa.Table:
        """Answer the requests at some positions; all answers are durable when this returns."""
        found = await self._in_thread(self._requests.at, positions)
        found = found.filter(pa.array(~self._known.has(found["key"])))  # what an actor before this one had finished when it died
        admitted, answers = time.time(), dict[str, Answer]()
        asked = rows = found.select(["key", "prefix", "ids", "row"]).to_pylist()
        while asked:
            answers |= await self._answers(asked)
            asked = [row for row in asked if row["key"] in answers and 0 < self._known.tries.get(row["key"], 0) < MOST_TRIES]
            if too_many(len(asked), len(rows)):  # nothing is gained by trying at once what fails everywhere
                break
        await self._flush()
        found = found.filter(pa.array([row["key"] in answers for row in rows], pa.bool_()))
        said = [answers[key] for key in found["key"].to_pylist()]
        times, states, errors = np.full(len(said), admitted), [answer.status for answer in said], [answer.error for answer in said]
        return pa.table({"key": found["key"], "status": states, "admitted": times, "language": found["language"], "error": errors}, ANSWERED)

    async def _answers(self, rows: list[dict[str, Any]]) -> dict[str, Answer]:
        """Key → answer, one try each; of those rows that were begun before the stage was to stop."""
        running = []
        async with self._admission:
            for row in rows:
                await self._window.acquire()
                if self._stop is not None and self._stop.exists():
                    self._window.release()
                    break
                running.append(asyncio.create_task(self._row(row)))
        return dict(await asyncio.gather(*running))

    async def _row(self, row: dict[str, Any]) -> tuple[str, Answer]:
        key = row["key"]
        try:
            answer = await self._reasoner.reason(self._requests.prefixes.get(row["prefix"], ()), row["ids"], row["row"])
        finally:
            self._window.release()
        tries = self._known.tries.pop(key, 0) + 1
        if answer.status == "engine_error":
            self._known.tries[key] = tries
        self._unwritten.append({"key": key, "tries": tries, **vars(answer)})
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._flush_later())
        return key, answer

    async def _flush_later(self) -> None:
        while self._unwritten:  # rows that finish during a flush wait for the next
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            if rows := list(self._unwritten):
                self._watchdog.tell(busy=True)
                await self._in_thread(self._store.write, rows)  # an fsync must not hold up rows that finish meanwhile
                del self._unwritten[: len(rows)]  # after a write that failed they are still there for the next

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *arguments)
