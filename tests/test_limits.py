"""Limits of spending: what counts, and that a campaign stops cleanly at its limit and goes on under a higher one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import test_break
import test_reason_stage
from test_keep import finished
from test_overfit import memory_task, settings

from fiat_ray import config as configs
from fiat_ray.cluster import Unit
from fiat_ray.errors import UserError
from fiat_ray.prepare import prepare
from fiat_ray.progress import Console
from fiat_ray.reason.reasoners import ScriptedReasoner
from fiat_ray.reason.stage import reason
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule import execute
from fiat_ray.schedule.hardware import Hardware
from fiat_ray.schedule.spending import Spending
from fiat_ray.schedule.tuning import Tuning
from fiat_ray.tune.lane import Board, Report
from fiat_ray.where import Where

bench = test_reason_stage.bench


@pytest.mark.parametrize(("gpus", "of_each", "weight"), [(0, None, 1), (1, None, 1), (4, None, 4), (4, 1, 1)])
def test_what_counts_is_time_in_use_times_gpus(gpus: int, of_each: int | None, weight: int) -> None:
    """``of_each``: GPUs that a worker of a tuning takes, where an engine takes all of its unit."""
    hardware = Hardware(Unit(1, gpus, 3))
    time.sleep(0.05)  # idle time costs nothing here
    done = threading.Event()

    def work() -> object:
        done.wait(10)
        return lambda: None

    hardware.start(2, work, gpus=of_each)  # type: ignore[arg-type]
    time.sleep(0.2)
    assert hardware.gpu_seconds == pytest.approx(2 * weight * 0.2, rel=0.3)
    done.set()
    assert hardware.deal_with_next()
    used = hardware.gpu_seconds
    time.sleep(0.05)
    assert hardware.gpu_seconds == used


def test_tunings_that_share_a_gpu_fill_it_and_count_once() -> None:
    hardware, done = Hardware(Unit(1, 1, 1)), threading.Event()

    def work() -> object:
        done.wait(10)
        return lambda: None

    for _ in range(3):
        assert hardware.free(1 / 3)
        hardware.start(1 / 3, work)  # type: ignore[arg-type]
    assert not hardware.free(1 / 3) and not hardware.free(1)
    start = hardware.gpu_seconds
    time.sleep(0.2)
    assert hardware.gpu_seconds - start == pytest.approx(0.2, rel=0.3)
    done.set()
    while hardware.busy:
        assert hardware.deal_with_next()
    assert hardware.free(1)


@pytest.mark.parametrize(("unit", "where", "share"), [(Unit(1, 1, 4), {}, 0.25), (Unit(1, 1, 4), {"workers": 2}, 1), (Unit(2, 0, 1), {}, 1)])
def test_only_tunings_of_one_worker_share_a_gpu(unit: Unit, where: dict[str, int], share: float) -> None:
    tuning = Tuning(None, None, None, None, Where(tunings_per_gpu=4, **where), Path())  # type: ignore[arg-type]
    assert tuning.share(Hardware(unit)) == share


def test_trials_whose_augmented_set_is_gone_fail_where_nothing_makes_it_again(tmp_path: Path, tiny: Path) -> None:
    """``evaluate`` alone would wait for it for ever."""
    config, run = settings(tmp_path, tiny, task="memory", methods=["no_cot", "fiat"]), RunFolder(tmp_path / "run")
    prepared = prepare(config, {"memory": memory_task()})
    with_cot, without = sorted(prepared.trials, key=lambda trial: trial.method)
    finished(run, with_cot, value=1.0, scored=False)
    finished(run, without, value=1.0)
    outcome = execute(prepared, run, Console(quiet=True), ("evaluate",))
    assert outcome.failed == {with_cot.name: "there is no sealed augmented set for this config; run `fiat-ray reason` first"}


def spending(path: Path, **limits: object) -> Spending:
    return Spending(path / "spent.json", configs.load({"task": "towns", "where": {"gpu_hour_price": 2}, **limits}))


def test_sittings_add_up_until_a_limit(tmp_path: Path) -> None:
    first = spending(tmp_path, max_gpu_hours=1.5)
    assert not first.reached
    first.update(3600, 0, last=True)
    second = spending(tmp_path, max_gpu_hours=1.5)
    assert second.hours == 1 and not second.reached
    second.update(1800, 0)
    assert second.reached == "max_gpu_hours: 1.5 is reached (1.5 GPU hours in this run directory)"
    assert spending(tmp_path, max_cost=2).reached == "max_cost: 2 is reached (2.00 in this run directory)"
    assert not spending(tmp_path, max_cost=2.01).reached and not spending(tmp_path).reached


def test_what_an_endpoint_charges_counts_with_and_without_a_gpu_price(tmp_path: Path) -> None:
    endpoint = {"kind": "openai", "model": "m", "base_url": "http://localhost/v1", "price_in": 1, "price_out": 2}
    first = spending(tmp_path, max_cost=5, reasoner=endpoint)
    first.update(3600, 2.0, last=True)
    second = spending(tmp_path, max_cost=5, reasoner=endpoint)
    assert second.cost == 4.0 and not second.reached
    second.update(0, 1.0)
    assert second.reached == "max_cost: 5 is reached (5.00 in this run directory)"
    alone = spending(tmp_path, max_cost=5, reasoner=endpoint, where={})
    assert alone.cost == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_gpu_hours": 0}, "max_gpu_hours: must be above 0"),
        ({"max_cost": -1, "where": {"gpu_hour_price": 1}}, "max_cost: must be above 0"),
        ({"max_cost": 5}, "max_cost: needs where.gpu_hour_price"),
    ],
)
def test_a_limit_that_is_none_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configs.load({"task": "towns", **values})


def test_a_stopped_stage_finishes_what_was_begun_and_begins_nothing(ray_local: None, bench: test_reason_stage.Bench) -> None:
    requests, stop = bench.requests(*(f"slow 0.4 {n}" for n in range(60))), bench.folder / "stop"

    def run() -> None:
        list(reason(requests, bench.store, partial(ScriptedReasoner, str(bench.script)), window=4, stop=stop))

    running = threading.Thread(target=run, daemon=True)
    running.start()
    while not bench.calls():
        assert running.is_alive()
        time.sleep(0.05)
    stop.touch()
    running.join(30)
    assert not running.is_alive()
    first = bench.calls()
    assert 0 < len(first) < 60 and len(bench.finished()) == len(first)
    stop.unlink()
    run()
    assert Counter(bench.calls().values()) == {1: 60} and bench.finished() == set(requests.distinct().to_pylist())


def fiat_ray(config: Path, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fiat_ray", "run", str(config), "--out", str(out), *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, "RAY_ADDRESS": "local"}, check=False)


def hours(seconds: float) -> str:
    return f"max_gpu_hours={seconds / 3600:.6f}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_campaign_stops_while_it_reasons_and_goes_on(tmp_path: Path, tiny: Path) -> None:
    config, out = (
        test_break.write_config(tmp_path, tiny, methods=["majority", "icl"], limit={"train": 60, "validation": 30, "test": 40}),
        tmp_path / "out",
    )
    first = fiat_ray(config, out, hours(20))
    assert first.returncode == 3, first.stderr
    assert "what runs is finished, nothing more is started" in first.stderr and "prompts are not answered; with a higher limit" in first.stderr
    rows = test_break.stored(out)
    assert 0 < len(rows) < 260
    assert json.loads((out / "spent.json").read_text())["gpu_seconds"] >= 20
    assert not (out / ".stop").exists() and not (out / "augmented").exists()
    assert set(pd.read_parquet(out / "scores.parquet").method) == {"majority"}
    assert "majority" in (out / "report" / "index.html").read_text()

    began = time.monotonic()
    again = fiat_ray(config, out, hours(20))
    assert again.returncode == 3 and "Ray:" not in again.stderr and time.monotonic() - began < 30
    assert test_break.stored(out).equals(rows)

    whole = fiat_ray(config, out)
    assert whole.returncode == 0, whole.stderr
    assert set(pd.read_parquet(out / "scores.parquet").method) == {"majority", "icl"}
    finished = test_break.stored(out)
    assert finished.key.is_unique and len(finished) == 260
    assert (finished.merge(rows, on="key").query("seconds_x == seconds_y").shape[0]) == len(rows), "a finished row was generated again"


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_campaign_stops_while_it_tunes_and_goes_on(tmp_path: Path, tiny: Path) -> None:
    config, out = test_break.write_config(tmp_path, tiny, methods=["majority", "no_cot", "no_peft"]), tmp_path / "out"
    first = fiat_ray(config, out, hours(1))  # over before the first trial is
    assert first.returncode == 3, first.stderr
    tuned = {path: path.read_bytes() for path in out.glob("trials/*/trial.json")}
    assert len(tuned) <= 1, "a trial was begun after the limit"
    missing = first.stderr.splitlines()[-1]
    assert all(f"{method}-xs-s0-" in missing for method in ("no_cot", "no_peft")) and "with a higher limit" in missing
    whole = fiat_ray(config, out, hours(3600))
    assert whole.returncode == 0, whole.stderr
    assert all(path.read_bytes() == content for path, content in tuned.items())
    assert set(pd.read_parquet(out / "scores.parquet").method) == {"majority", "no_cot", "no_peft"}
    assert "tuning: LoRA tuning" in whole.stdout and "all, with starts" in whole.stdout  # planned and measured


def test_trials_that_no_lane_has_taken_are_withdrawn() -> None:
    board = Board()
    board.add(["a", "b", "c"])  # type: ignore[list-item]
    assert board.take("lane") == "a"
    assert board.withdraw() == ["b", "c"] and board.waiting() == 0
    board.report("lane", Report("a", "tuned", ended=True))
    assert board.take("lane") is None
