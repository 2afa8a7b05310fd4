"""The part of a campaign that asks the reasoner, and seals the augmented sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from fiat_ray import augmented
from fiat_ray.cluster import Unit, reasoner_unit, resolved
from fiat_ray.prepare import Prepared, make_reasoner
from fiat_ray.progress import Console, ProgressLog
from fiat_ray.reason.measured import measured
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store, is_final
from fiat_ray.reason.watch import Watch
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.hardware import Hardware
from fiat_ray.schedule.trials import Trials
from fiat_ray.tracking import track_progress

GPU_BATCH, CPU_BATCH = 128, 16
"""Requests in one batch of Ray Data; an actor admits several of them at once."""


class Reasoning:
    """Seals at once where the store holds all rationales already."""

    def __init__(self, prepared: Prepared, run: RunFolder, trials: Trials, console: Console, *, wanted: bool) -> None:
        self._prepared, self._run, self._trials, self._console = prepared, run, trials, console
        self._store = Store(Path(prepared.config.store).resolve() if prepared.config.store else run.rationales)
        self._watch: Watch | None = None
        self._log = ProgressLog(run.progress, partial(track_progress, run.path, prepared.config.tracking_uri))
        self._wanted = self._to_start = wanted and bool(prepared.requests)
        self._running = self._stopped = False
        self.sealed = not self._to_start and all(augmented.read_seal(run.augmented(task), prepared.asked(task)) for task in prepared.requests)
        """Whether what trials with CoT need is there."""
        if self._to_start and not self.missing:
            self._to_start = False
            self._seal()

    @property
    def unfinished(self) -> bool:
        return self._to_start or self._running

    def start_what_can(self, hardware: Hardware) -> None:
        unit, remote = reasoner_unit(self._prepared.config, hardware.unit), self._prepared.config.reasoner.is_remote
        if self._to_start and (remote or hardware.free(1)):
            replicas = 1 if remote else max(1, min(self._prepared.config.where.replicas, unit.count - hardware.busy))
            self._to_start, self._running = False, True
            hardware.start(0 if remote else replicas, self._reason, unit, replicas)

    @property
    def missing(self) -> int:
        """Distinct prompts without a final answer, where this run is to ask them."""
        asked = {key for requests in self._prepared.requests.values() for key in requests.distinct}
        return len(asked - self._store.finished()) if self._wanted else 0

    def stop(self) -> None:
        """What reasoners have admitted is finished, nothing else is begun."""
        self._stopped = True
        self._run.stop.touch()

    def show_progress(self) -> None:
        if self._watch is not None:
            self._console.status(self._watch.text())
            self._log.write(self._watch.task, self._watch.numbers)

    def _reason(self, unit: Unit, replicas: int) -> Callable[[], None]:
        config = self._prepared.config
        create = make_reasoner(replace(config, where=resolved(config.where, unit)), self._prepared.reasoner_length)
        batch_size = config.reasoner.concurrency if config.reasoner.is_remote else GPU_BATCH if unit.gpus else CPU_BATCH
        for task, requests in self._prepared.requests.items():
            if self._stopped:
                break
            total = len(requests.distinct)
            missing = len(requests.distinct.keys() - self._store.finished())
            self._console.line(f"reason: {task}: {total} distinct prompts, {total - missing} stored; starting {replicas} reasoner(s)")
            self._watch = Watch(task, missing, self._store, config.reasoner)
            stop, store = self._run.stop, self._store
            answered = reason(requests, store, create, replicas=replicas, cpus=unit.cpus, gpus=unit.gpus, batch_size=batch_size, stop=stop)
            measured(self._run.path, task, replicas * unit.gpus, answered)
            self._log.write(task, self._watch.numbers, last=True)
        return self._reasoned

    def _reasoned(self) -> None:
        self._running, self._watch = False, None
        if self._stopped and self.missing:
            return
        self._seal()
        self._trials.refresh(with_rationales=True)

    def _seal(self) -> None:
        for name, requests in self._prepared.requests.items():
            task, rationales = self._prepared.tasks[name], self._store.read(requests.distinct)
            seal = augmented.seal(self._run.augmented(name), task.rows, self._prepared.lengths[name], requests.keys, rationales)
            if self._prepared.config.store:  # a run is self-contained: its rows are copied from a shared store
                own = Store(self._run.rationales)
                new = [rationales[key] for key in sorted(requests.distinct.keys() - own.finished()) if is_final(rationales[key])]
                if new:
                    own.write(new)
            statuses: Counter[str] = Counter()
            for counts in seal["status"].values():
                statuses.update(counts)
            failed = [row.id for row in task.rows if rationales[requests.keys[row.id]]["status"] == "engine_error"]
            self._trials.outcome.engine_errors += failed
            said = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
            self._console.line(f"augmented set sealed: {name}: {seal['rows']} rows ({said})")
            tokens_in, tokens_out = (sum(row[column] or 0 for row in rationales.values()) for column in ("prompt_tokens", "output_tokens"))
            charged = self._prepared.config.reasoner.charged(tokens_in, tokens_out)
            if charged is not None:
                self._console.line(f"{name}: {tokens_in:,} tokens in, {tokens_out:,} out cost {charged:,.2f} by reasoner.price_in and price_out")
        self.sealed = True
