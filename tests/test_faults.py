"""Faults that strike real campaigns, a few of those of ``make test-faults``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from test_store import answered

from benchmarks.fault_kinds import Fault, faults, kill_driver, kill_worker
from benchmarks.faults import Bench, Run
from fiat_ray.reason.store import Store

SCRIPTED = {"kind": "scripted", "script": "script.py", "max_tokens": 48}


@pytest.mark.timeout(600)
def test_struck_while_it_reasons(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", SCRIPTED, methods=["majority", "icl"])
    chain = [Fault("worker killed", "reason", kill_worker, ends=False), Fault("driver killed", "reason", kill_driver)]
    struck = bench.chain(tmp_path / "struck", chain, random.Random(0))
    assert [(one.rows_lost, one.rows_repeated_over, one.scores_equal) for one in struck] == [(0, 0, True)] * 2

    run = Run(bench.config, tmp_path / "struck")
    answered = (run.place / "answered").read_text().splitlines()
    (run.place / "answered").write_text("\n".join([*answered, answered[0]]))
    (run.out / "scores.parquet").write_bytes(b"others")
    parts = list((run.out / "rationales").glob("*.parquet"))
    for part in parts:
        part.unlink()
    assert run.repeated_over() > 0 and run.lost(bench.undisturbed) == 52 and run.scores_differ(bench.undisturbed)


def test_an_answer_stored_twice_is_repeated_and_a_failed_try_is_not(tmp_path: Path) -> None:
    run = Run(tmp_path / "config.yaml", tmp_path)
    store = Store(run.out / "rationales")
    store.write([answered("a", "engine_error", "")])
    store.write([answered("a", tries=2), answered("b")])
    assert run.repeated_over() == 0
    store.write([answered("b")])
    assert run.repeated_over() == 1


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", ["tune", "evaluate"])
def test_a_worker_that_is_stopped_is_replaced(tmp_path: Path, stage: str) -> None:
    bench = Bench(tmp_path / "bench", SCRIPTED, methods=["no_cot"])
    [stops] = [fault for fault in faults(stage) if fault.kind == "worker stopped"]
    [struck] = bench.chain(tmp_path / "struck", [stops], random.Random(0))
    assert (struck.rows_lost, struck.rows_repeated_over, struck.scores_equal) == (0, 0, True)
