"""The part of a campaign that asks the reasoner, and seals the augmented sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow.compute as pc

from fiat_ray import augmented
from fiat_ray.cluster import Unit, reasoner_unit, resolved
from fiat_ray.config import Config
from fiat_ray.errors import Unfinished
from fiat_ray.prepare import Prepared, make_reasoner
from fiat_ray.progress import Console, ProgressLog
from fiat_ray.reason.measured import measured
from fiat_ray.reason.merge import merge
from fiat_ray.reason.order import missing
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Rationales, Store
from fiat_ray.reason.watch import Watch
from fiat_ray.reason.watchdog import patience_for
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.hardware import Hardware
from fiat_ray.schedule.trials import Trials
from fiat_ray.tracking import track_progress

GPU_WINDOW, CPU_WINDOW = 512, 64
"""Rows that an engine is given at once: twice as many as it generates together, so that it never waits."""


def window_of(config: Config, unit: Unit) -> int:
    """How many rows a reasoner on such a unit is given at once."""
    return config.reasoner.concurrency if config.reasoner.is_remote else GPU_WINDOW if unit.gpus else CPU_WINDOW


class Reasoning:
    """Seals at once where the store holds all rationales already."""

    def __init__(self, prepared: Prepared, run: RunFolder, trials: Trials, console: Console, *, wanted: bool) -> None:
        self._prepared, self._run, self._trials, self._console = prepared, run, trials, console
        self._store = Store(prepared.config.store or run.rationales)
        self._watches: list[Watch] = []
        """One a task that is reasoned about, the last of them at work where anything runs."""
        self._log = ProgressLog(run.progress, partial(track_progress, run.path, prepared.config.tracking_uri))
        self._wanted = self._to_start = wanted and bool(prepared.requests)
        self.running = self._stopped = False
        """``running``: rows are asked; a remote reasoner takes no unit of hardware that would tell."""
        self.sealed = not self._to_start and all(augmented.read_seal(run.augmented(task), prepared.asked(task)) for task in prepared.requests)
        """Whether what trials with CoT need is there."""
        if self._to_start and not self.missing:
            self._to_start = False
            self._seal()

    @property
    def unfinished(self) -> bool:
        return self._to_start or self.running

    def start_what_can(self, hardware: Hardware) -> None:
        unit, remote = reasoner_unit(self._prepared.config, hardware.unit), self._prepared.config.reasoner.is_remote
        if self._to_start and (remote or hardware.free(1)):
            replicas = 1 if remote else max(1, min(self._prepared.config.where.replicas, int(unit.count - hardware.busy)))
            self._to_start, self.running = False, True
            hardware.start(0 if remote else replicas, self._reason, unit, replicas)

    @property
    def missing(self) -> int:
        """Distinct prompts without a final answer, where this run is to ask them."""
        known = self._store.known()
        return sum(missing(requests, known) for requests in self._prepared.requests.values()) if self._wanted else 0

    @property
    def charged(self) -> float:
        """By an endpoint, for what it has answered in this sitting; 0 where it has no price."""
        return sum(watch.charged for watch in self._watches)

    def stop(self) -> None:
        """What reasoners have admitted is finished, nothing else is begun."""
        self._stopped = True
        self._run.stop.touch()

    def show_progress(self) -> None:
        if self.running and self._watches:
            watch = self._watches[-1]
            self._console.status(watch.text(), "reason", task=watch.task, **watch.numbers())
            self._log.write(watch.task, watch.numbers)

    def _reason(self, unit: Unit, replicas: int) -> Callable[[], None]:
        config = self._prepared.config
        create = make_reasoner(replace(config, where=resolved(config.where, unit)), self._prepared.reasoner_length)
        window = window_of(config, unit)
        for task, requests in self._prepared.requests.items():
            if self._stopped:
                break
            total, watch = len(requests), Watch(task, requests, self._store, config.reasoner)
            said = f"reason: {task}: {total} distinct prompts, {total - watch.missing} stored; starting {replicas} reasoner(s)"
            self._console.line(said, "reason", task=task, prompts=total, missing=watch.missing)
            self._watches.append(watch)
            options: dict[str, Any] = {"replicas": replicas, "cpus": unit.cpus, "gpus": unit.gpus, "window": window, "stop": self._run.stop}
            options["patience"] = patience_for(config.reasoner.max_tokens)
            with requests.shared(self._run.path) as shared:
                try:
                    measured(self._run.path, task, replicas * unit.gpus, reason(shared, self._store, create, **options))
                except Unfinished as why:
                    return partial(self._broken_off, f"{task}: {why}")
                finally:
                    self._log.write(task, watch.numbers, last=True)
        return self._reasoned

    def _reasoned(self) -> None:
        self.running = False
        if self._stopped and self.missing:
            return
        self._seal()
        self._trials.refresh(with_rationales=True)

    def _broken_off(self, why: str) -> None:
        """Trials that need no rationales go on."""
        self.running = False
        self._console.line(why, "reason")
        self._trials.outcome.broken_off.append(why)
        self._trials.fail_without_rationales()

    def _seal(self) -> None:
        for name, requests in self._prepared.requests.items():
            task, rationales = self._prepared.tasks[name], Rationales(self._store, requests.distinct())
            seal = augmented.seal(self._run.augmented(name), task.rows, self._prepared.lengths[name], requests.keys, rationales)
            if self._prepared.config.store:  # a run is self-contained: its rows are copied from a shared store
                Store(self._run.rationales).add(rationales.table)
            failed = rationales.failed()
            self._trials.outcome.engine_errors += [row.id for row in task.rows if requests.keys[row.id] in failed]
            statuses: Counter[str] = Counter()
            for counts in seal["status"].values():
                statuses.update(counts)
            said = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
            said += "; length: cut off at the token limit, raise reasoner.max_tokens" if statuses["length"] else ""
            self._console.line(f"augmented set complete: {name}: {seal['rows']:,} rows ({said})", "reason", task=name, rows=seal["rows"], **statuses)
            tokens_in, tokens_out = (pc.sum(rationales.table[column]).as_py() or 0 for column in ("prompt_tokens", "output_tokens"))
            charged = self._prepared.config.reasoner.charged(tokens_in, tokens_out)
            if charged is not None:
                said = f"{name}: {tokens_in:,} tokens in, {tokens_out:,} out cost {charged:,.2f} by reasoner.price_in and price_out"
                self._console.line(said, "reason", task=name, read=tokens_in, written=tokens_out, cost=charged)
        merge(self._store)
        self.sealed = True
