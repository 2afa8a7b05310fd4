"""Faults of every kind in every stage of real campaigns: what is lost by them, what is done twice, and which scores they change.

``make test-faults`` injects 40, two of them with vLLM as reasoner; ``make test-faults FAULTS=200`` five times as many. Each strikes at a moment that
a seed draws. Afterwards the same command runs to its end without a fault, and what is there is compared with an undisturbed run's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.fault_kinds import Fault, faults, kill_driver, kill_worker, moment, small_disk
from benchmarks.fault_run import STAGES, Ended, Run, seconds
from benchmarks.fault_surroundings import TROUBLES, MlflowServer, Postgres, expected_runs, node_faults, trouble
from tests import chat_server, tiny_model

SCRIPT = """
import random, time

def reason(row):
    time.sleep(random.Random(row["input"]).uniform(0.5, 2.0))
    return "It is about " + row["input"][:20] + ".\\nAnswer: " + row["targets"][0]
"""

CAMPAIGN = {
    "task": "country_facts",
    "languages": ["id", "sw"],
    "limit": {"train": 12, "validation": 6, "test": 8},
    "methods": ["majority", "icl", "fiat", "no_peft"],
    "learning_rate": {"lora": [1e-2], "full": [2e-3]},
    "batch_size": 8,
    "steps": 30,
    "validation": {"times": 2, "rows": 8},
}

IN_A_ROUND = 40
"""Faults: each scripted kind in each stage that it can strike, and two with vLLM."""

IN_ONE_RUN = 4
"""Faults that strike one run, one after the other, before it ends."""

TRIES = 6
"""Runs that may end before they are struck."""


@dataclass(frozen=True)
class Struck:
    """One fault, and what became of the run. What a run lost that was struck several times stands with the first."""

    fault: str
    stage: str
    rows_lost: int
    rows_repeated_over: int
    scores_equal: bool | None
    """None: with vLLM as reasoner another batch may give another text, and so other scores."""


class Bench:
    """Runs of one config, and the undisturbed one that they are compared with."""

    def __init__(self, folder: Path, reasoner: dict[str, Any], exact: bool = True, **changes: Any) -> None:
        self.config, self._exact = folder / "config.yaml", exact
        self.undisturbed = Run(self.config, folder)
        if not (self.undisturbed.out / "report").is_dir():
            folder.mkdir(parents=True)
            model = tiny_model.write(folder / "model")
            (folder / "script.py").write_text(SCRIPT)
            if reasoner["kind"] != "scripted":
                reasoner = {"model" if reasoner["kind"] == "vllm" else "tokenizer": str(model), **reasoner}
            values = {
                "reasoner": reasoner,
                "tunables": {"xs": {"model": str(model), "max_length": 1024}},
                "tracking_uri": f"sqlite:///{folder}/mlflow.db",
            }
            self.config.write_text(yaml.safe_dump({**CAMPAIGN, **values, **changes}))
            self.undisturbed.finish(tries=1)
        self.took = seconds(self.undisturbed)

    def chain(self, place: Path, chain: Sequence[Fault], chance: random.Random, overrides: Sequence[str] = ()) -> list[Struck]:
        """Strike a run in ``place``, let it end, and compare it."""
        run = Run(self.config, place, overrides)
        for again in range(TRIES):
            try:
                self._strike(run, chain, chance, 0.9 / 2**again)  # stages take less time than in the undisturbed run, whose files nobody had read
                break
            except Ended:
                continue
        else:
            raise AssertionError(f"{', '.join(fault.kind for fault in chain)}: {chain[0].stage} always ended before it was struck")
        return self.ended(run, [(fault.kind, fault.stage) for fault in chain])

    def ended(self, run: Run, struck: Sequence[tuple[str, str]]) -> list[Struck]:
        run.finish()
        lost, over = run.lost(self.undisturbed, self._exact), run.repeated_over()
        equal = not run.scores_differ(self.undisturbed) if self._exact else None
        found = [Struck(*what, 0 if number else lost, 0 if number else over, equal) for number, what in enumerate(struck)]
        for one in found:
            said = f"{one.rows_lost} rows lost, {one.rows_repeated_over} repeated over, scores equal: {one.scores_equal}"
            print(f"{time.strftime('%H:%M:%S')} {one.fault} in {one.stage}: {said}", file=sys.stderr, flush=True)
        return found

    def _strike(self, run: Run, chain: Sequence[Fault], chance: random.Random, share: float) -> None:
        """Begin at the chain's stage, and let its faults strike one after the other, within a ``share`` of the time that it takes.

        Raises ``Ended`` where the stage ends before.
        """
        stage, sitting = chain[0].stage, None
        run.begin_at(self.undisturbed, stage)
        try:
            for number, fault in enumerate(chain, 1):
                if sitting is not None and (sitting.told != fault.told or not fault.ends):  # a campaign gives up what fails again and again
                    kill_driver(sitting, stage)
                    sitting = None
                sitting = sitting or run.start(**fault.told)
                moment(sitting, stage, share * self.took[stage] / number, chance)  # less and less is left to be done
                fault.strike(sitting, stage)
                sitting = None if fault.ends else sitting
            if sitting is not None:
                sitting.wait()
        except Ended:
            if sitting is not None and sitting.alive():
                kill_driver(sitting, stage)
            raise


def scripted(folder: Path, stages: Sequence[str], chance: random.Random) -> Iterator[Struck]:
    """Every kind of fault, in chains of a few."""
    bench = Bench(folder / "scripted", {"kind": "scripted", "script": "script.py", "max_tokens": 48})
    for stage in stages:
        kinds = faults(stage)
        chance.shuffle(kinds)
        for start in range(0, len(kinds), IN_ONE_RUN):
            with small_disk(folder / "struck") as place:
                yield from bench.chain(place, kinds[start : start + IN_ONE_RUN], chance)
    if "report" in stages:
        yield from tracked(bench, folder, chance)
    with node_faults() as nodes:
        for fault in nodes:
            if fault.stage in stages:
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    yield from bench.chain(Path(place), [fault], chance)


def tracked(bench: Bench, folder: Path, chance: random.Random) -> Iterator[Struck]:
    """Troubles of an MLflow server, with PostgreSQL where that is installed: it holds each run once at the end."""
    with tempfile.TemporaryDirectory(dir=folder) as place, contextlib.ExitStack() as running:
        database = Postgres() if Postgres.programs() else None
        if database:
            running.callback(database.remove)
        server = MlflowServer(Path(place), database.uri if database else "")
        running.callback(server.stop)
        restarted = [Fault("PostgreSQL restarted", "report", database.restart)] if database else []
        yield from bench.chain(Path(place), [*server.faults(), *restarted], chance, [f"tracking_uri={server.uri}"])
        assert server.runs() == expected_runs(bench.undisturbed.out), "MLflow holds something twice, or not at all"


def endpoint(folder: Path, chance: random.Random) -> Iterator[Struck]:
    """Troubles of an endpoint: all of them in one run, which goes on by itself."""
    os.environ.setdefault("OPENAI_API_KEY", "none")
    with chat_server.serving() as chat, tempfile.TemporaryDirectory(dir=folder) as place:
        chat.delay = 0.1
        chat.reply = lambda messages: f"It is {len(messages[-1]['content'])}.\nAnswer: {messages[-1]['content'][-9:]}"
        reasoner = {"kind": "openai", "model": "m", "base_url": chat.url, "max_tokens": 48}
        bench = Bench(Path(place) / "bench", reasoner, methods=["majority", "icl"])
        run = Run(bench.config, Path(place) / "struck")
        run.begin_at(bench.undisturbed, "reason")
        trouble(chat, chance)
        with run.struck():
            run.start().wait()
        yield from bench.ended(run, [(f"endpoint: {what}", "reason") for what in TROUBLES])


def vllm(folder: Path, chance: random.Random) -> Iterator[Struck]:
    bench = Bench(folder / "vllm", {"kind": "vllm", "max_tokens": 96}, exact=False, methods=["majority", "icl"])
    with tempfile.TemporaryDirectory(dir=folder) as place:
        chain = [Fault("worker killed (vLLM)", "reason", kill_worker, ends=False), Fault("driver killed (vLLM)", "reason", kill_driver)]
        yield from bench.chain(Path(place), chain, chance)


def report(struck: list[Struck]) -> None:
    """A line for each fault and stage, then everything in one JSON object."""
    rows = pd.DataFrame([vars(one) for one in struck])
    rows["tries"] = 1
    rows["scores_equal"] = rows["scores_equal"].map(lambda equal: "-" if equal is None else "yes" if equal else "NO")
    sums: dict[str, Any] = {
        "tries": "sum",
        "rows_lost": "sum",
        "rows_repeated_over": "sum",
        "scores_equal": lambda all_: ", ".join(sorted(set(all_))),
    }
    print(rows.groupby(["fault", "stage"], sort=False).agg(sums).reset_index().to_string(index=False))
    with_vllm = sum("vLLM" in one.fault for one in struck)
    total = {"faults": len(struck), "vllm_faults": with_vllm, "rows_lost": int(rows["rows_lost"].sum())}
    total |= {"rows_repeated_over": int(rows["rows_repeated_over"].sum()), "scores_differ": sum(one.scores_equal is False for one in struck)}
    print(json.dumps(total))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=IN_A_ROUND, help=f"rounded to rounds of {IN_A_ROUND}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[*STAGES, "endpoint", "vllm"], help="stages, endpoint, vllm")
    parser.add_argument("--folder", help="where undisturbed runs are kept, to be used again")
    arguments = parser.parse_args()
    chance, struck = random.Random(arguments.seed), list[Struck]()
    with tempfile.TemporaryDirectory(prefix="faults") as temporary:
        folder = Path(arguments.folder or temporary).resolve()
        try:
            for _ in range(max(1, round(arguments.faults / IN_A_ROUND))):
                if stages := [stage for stage in STAGES if stage in arguments.only]:
                    struck += scripted(folder, stages, chance)
                struck += endpoint(folder, chance) if "endpoint" in arguments.only else []
                struck += vllm(folder, chance) if "vllm" in arguments.only else []
        finally:  # also where one could not be struck, or the campaign did not end after it
            if struck:
                report(struck)


if __name__ == "__main__":
    main()
