"""Costs: a plan's tokens as seconds, GPU hours and money, worked out by hand; and that what is stated about hardware decides nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_model

from fiat_ray import config as configs
from fiat_ray import costs, plan_text, planning
from fiat_ray.prepare import prepare

STATED = {"gpus": 1, "throughput": {"tflops": 100, "decode": 1000}, "gpu_hour_price": 3}


def planned(**changes: Any) -> dict[str, Any]:
    """A plan in round numbers: a reasoner of 3 B active parameters; one tunable of 1 B, tuned with LoRA and in full, two seeds each."""
    trials = {"model": "tunables.xs", "seeds": [0, 1], "tuned": 0, "evaluated": 0, "rows_validated": 100, "rows_tested": 1000}
    trials |= {"tokens_mean": 500.0, "answer_tokens_mean": 10.0, "tokens": 10_000_000} | changes
    missing = {"prompts": 5, "tokens_in_prefix_once": 1_000_000, "tokens_out_most": 400_000, "tokens_out_estimate": 200_000}
    whole = missing | {"prompts": 10, "tokens_in_prefix_once": 2_000_000}
    return {
        "models": {
            "reasoner": {"parameters": 30_000_000_000, "active_parameters": 3_000_000_000},
            "tunables.xs": {"parameters": 1_000_000_000, "active_parameters": 1_000_000_000},
        },
        "tasks": {"towns": {"reasoner": {"all": whole, "missing": missing}}},
        "trials": [{**trials, "peft": True}, {**trials, "peft": False}],
    }


def estimate(where: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return costs.estimate(configs.load({"task": "towns", "where": where}), planned(**changes))


def test_a_cost_worked_out_by_hand() -> None:
    found = estimate(STATED)
    read = 1e6 * 2 * 3e9 / 100e12  # tokens × FLOP a token and parameter × active parameters ÷ FLOP/s: 60 s
    assert found["parts"]["reasoning"] == pytest.approx(25 + read + 200_000 / 1000)
    answer = 500 * 2 * 1e9 / 100e12 + 10 / 1000  # a row: 0.01 s to read, 0.01 s to write
    assert found["parts"]["tuning"] == pytest.approx(15 + 1e7 * (4 + 6) * 1e9 / 100e12 + 2 * 2 * 100 * answer)
    assert found["parts"]["evaluation"] == pytest.approx(25 + 2 * 2 * 1000 * answer)
    assert found["seconds"] == pytest.approx(285 + 1023 + 105)
    assert (found["gpu_hours"], found["cost"]) == (pytest.approx(1413 / 3600), pytest.approx(3 * 1413 / 3600))
    text = plan_text.describe_time(found)
    assert "stated in the config, not measured: 100 TFLOP/s" in text and "1,000 tokens/s" in text and "0.4 GPU hours" in text and "1.18" in text


def test_what_is_done_costs_nothing() -> None:
    half = estimate(STATED, tuned=1, evaluated=1)["parts"]
    whole = estimate(STATED)["parts"]
    assert half["tuning"] - 15 == pytest.approx((whole["tuning"] - 15) / 2) and half["evaluation"] - 25 == pytest.approx(
        (whole["evaluation"] - 25) / 2
    )
    assert estimate(STATED, tuned=2, evaluated=2)["parts"] | {"reasoning": 0} == {"reasoning": 0, "tuning": 0, "evaluation": 0}


def test_an_engine_of_two_gpus_reads_twice_as_fast_and_is_paid_twice() -> None:
    one, two = estimate(STATED), estimate({**STATED, "gpus": 2})
    assert two["parts"]["reasoning"] == pytest.approx(one["parts"]["reasoning"] - 30)
    assert two["gpu_hours"] == pytest.approx(2 * two["seconds"] / 3600)


def test_nothing_is_told_that_nobody_stated_or_measured() -> None:
    unstated = estimate({"gpus": 1, "gpu_hour_price": 3})
    assert (unstated["seconds"], unstated["gpu_hours"], unstated["cost"]) == (None, None, None)
    assert "state it: where.throughput.tflops" in plan_text.describe_time(unstated)
    unpriced = estimate({**STATED, "gpu_hour_price": None})
    assert unpriced["gpu_hours"] and unpriced["cost"] is None and "no price of a GPU hour is stated" in plan_text.describe_time(unpriced)
    cpu = estimate({**STATED, "gpus": 0})
    assert cpu["gpu_hours"] is cpu["cost"] is None and costs.MEASURED_ON in cpu["note"] and "GPU" not in plan_text.describe_time(cpu)


def test_a_cpu_is_slower_by_active_parameters() -> None:
    found = estimate({"gpus": 0})["parts"]
    scale = 3e9 / costs.MEASURED_PARAMETERS
    assert found["reasoning"] == pytest.approx(25 + scale * (1e6 / 1000 + 200_000 / 600))


@pytest.mark.parametrize("where", [STATED, {"gpus": 4, "cpus": 2, "replicas": 3, "workers": 2, "zero": 3}])
def test_where_enters_no_fingerprint_and_no_key(tiny: Path, where: dict[str, Any]) -> None:
    tasks = {"towns": tiny_model.task()}
    values = {
        "task": "towns",
        "reasoner": {"model": str(tiny), "max_tokens": 32},
        "tunables": {"xs": {"model": str(tiny)}},
        "methods": ["icl", "fiat"],
    }
    plain, changed = prepare(configs.load(values), tasks), prepare(configs.load({**values, "where": where}), tasks)
    assert [trial.fingerprint for trial in changed.trials] == [trial.fingerprint for trial in plain.trials]
    assert changed.requests["towns"].keys == plain.requests["towns"].keys


def test_a_plan_tells_the_cost_of_its_own_tokens(tiny: Path) -> None:
    values = {
        "task": "towns",
        "reasoner": {"model": str(tiny), "max_tokens": 32},
        "tunables": {"xs": {"model": str(tiny)}},
        "methods": ["icl", "no_cot"],
    }
    found = planning.plan(configs.load({**values, "where": STATED}), {"towns": tiny_model.task()})
    size = found["models"]["reasoner"]["active_parameters"]
    asked = found["tasks"]["towns"]["reasoner"]["missing"]
    seconds = 25 + asked["tokens_in_prefix_once"] * 2 * size / 100e12 + asked["tokens_out_most"] / 1000
    assert found["time"]["parts"]["reasoning"] == pytest.approx(seconds)
    assert "GPU hours" in plan_text.describe(found)
