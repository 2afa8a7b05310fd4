"""A sample measures the reasoner and keeps what it says: nothing is generated twice, and the plan goes by it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_model

from fiat_ray import config as configs
from fiat_ray import costs, plan_text, planning, sample
from fiat_ray.errors import UserError
from fiat_ray.prepare import prepare
from fiat_ray.reason.reasoners import Answer
from fiat_ray.reason.store import Known, Store, digests
from fiat_ray.task import Task


def answer(seconds: float, written: int, computed: int = 0) -> Answer:
    return Answer("ok", "x", "stop", prompt_tokens=100 + computed, cached_tokens=100, output_tokens=written, seconds=seconds)


def test_the_rate_of_writing_is_taken_while_the_engine_is_full_and_without_reading() -> None:
    rows = [answer(2, 20), answer(4, 40), answer(6, 60), answer(12, 120)]  # ten tokens a second each, until they end
    assert sample._writing(rows, read=1000) == pytest.approx((20 + 40 + 60 + 60) / 6)
    rows = [answer(5, 40, computed=1000) for _ in range(4)]  # four of the five seconds go into reading
    assert sample._writing(rows, read=1000) == pytest.approx(160)
    assert sample._writing([answer(0, 0)], read=50) == 50


def known(keys: Iterable[str]) -> Known:
    return Known(np.sort(digests(pa.array(keys, pa.string()))), {})


def test_languages_come_in_turn_and_what_is_stored_not_at_all(tiny: Path) -> None:
    prepared = prepare(config(tiny), towns(20))
    requests = prepared.requests["towns"]
    prompts = sample._in_turn(prepared, known([]))
    assert len(prompts) == len(requests) == 40
    prefixes = [tuple(prefix) for _, prefix, _ in prompts]
    assert len(set(prefixes)) == 2 and all(a != b for a, b in zip(prefixes, prefixes[1:], strict=False))
    stored = {key for key, *_ in prompts[:13]}
    assert {key for key, *_ in sample._in_turn(prepared, known(stored))} == set(requests.distinct().to_pylist()) - stored


@pytest.mark.parametrize("gpus", [0, 2])
def test_costs_go_by_what_was_measured(gpus: int) -> None:
    size, where = 3_000_000_000, configs.load({"task": "towns", "where": {"gpus": gpus}}).where
    measured = {"rows": 9, "seconds": 21.0, "read": 500.0, "write": 90.0}
    speed, note = costs._speed(where, gpus, {"sample": measured, "models": {"reasoner": {"active_parameters": size}}})
    assert speed is not None and (speed("read", size), speed("write", size)) == (pytest.approx(500), 90)
    assert "measured with this reasoner on 9 prompts in 21 s: 500 tokens/s read, 90 written" in note
    # Tuning: half of the arithmetic of reading a token again goes backward with LoRA, and a tunable of a third is three times as fast.
    if gpus:
        assert speed("lora", size // 3) == pytest.approx(500 * 3 / 2 / gpus) and speed("full", size) == pytest.approx(500 / 3 / gpus)
    else:
        assert speed("lora", size // 3) == pytest.approx(500 * 3 * costs.MEASURED["lora"] / costs.MEASURED["read"])


def test_a_script_is_not_sampled(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "script.py").write_text("def reason(row): return 'Answer: x'\n")
    scripted = config(tiny, reasoner={"kind": "scripted", "script": str(tmp_path / "script.py")})
    with pytest.raises(UserError, match="--sample: measures a reasoner of kind vllm"):
        planning.plan(scripted, towns(3), run=tmp_path / "run", sample=True)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_real_sample(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SECONDS", 3.0)
    planned = planning.plan(config(tiny), towns(20), run=tmp_path / "run", sample=True)
    asked = planned["tasks"]["towns"]["reasoner"]
    measured = json.loads((tmp_path / "run" / "sample.json").read_text())
    stored = Store(tmp_path / "run" / "rationales").table()["key"].to_pylist()
    prompts = prepare(config(tiny), towns(20)).requests["towns"].distinct().to_pylist()
    assert 1 < measured["rows"] == len(stored) == asked["stored"] and set(stored) <= set(prompts)
    assert measured["read"] > 0 and measured["write"] > 0 and measured["gpus"] == 0
    assert planned["sample"] == measured and asked["output_tokens_mean"] > 0
    assert "measured with this reasoner" in plan_text.describe(planned)
    again = planning.plan(config(tiny), towns(20), run=tmp_path / "run")
    assert again == planned
    # Another reasoner is not what was measured.
    other = tiny_model.write(tmp_path / "other", seed=5)
    assert planning.plan(config(tiny, reasoner={"model": str(other), "max_tokens": 32}), towns(3), run=tmp_path / "run")["sample"] is None


def config(tiny: Path, **changes: Any) -> configs.Config:
    values = {
        "task": "towns",
        "reasoner": {"model": str(tiny), "max_tokens": 32},
        "tunables": {"xs": {"model": str(tiny)}},
        "methods": ["icl", "fiat"],
        "where": {"gpus": 0},
        **changes,
    }
    return configs.load(values)


def towns(rows: int) -> dict[str, Task]:
    """So many rows a language and split; of a language all ask different things, in the splits the same."""
    splits = ("train", "validation", "test")
    made = (
        tiny_model.row(n, split, language, question=f"Which town is number {n}?")
        for split in splits
        for language in ("bn", "hi")
        for n in range(rows)
    )
    return {"towns": tiny_model.task(tuple(made))}
