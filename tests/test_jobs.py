"""What is submitted: thin entry points, and the configs of the paper's settings, each planned on real rows with a tiny model swapped in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fiat_ray import config, plan_text, planning
from fiat_ray.config import Config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "jobs/configs").glob("*.yaml"))
PAPER = [path for path in CONFIGS if not path.stem.startswith("small_")]


def by_stem(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=by_stem)
def test_no_config_says_where_data_and_store_lie(path: Path) -> None:
    loaded = config.load(path)
    assert loaded.data is None and loaded.store is None, "that is said on the command line"


def test_a_config_for_each_setting_of_the_paper() -> None:
    loaded = [config.load(path) for path in PAPER]
    assert sorted((each.task[0], each.focus) for each in loaded if each.focus) == [("xtreme_up_qa", "full"), ("xtreme_up_qa", "indic")]
    assert [each.task for each in loaded if not each.focus] == [["xor_attriqa"]]


@pytest.mark.parametrize("path", PAPER, ids=by_stem)
def test_a_config_holds_all_that_the_paper_reports(path: Path) -> None:
    loaded = config.load(path)
    assert set(loaded.tunables) == {"xs", "s"} and all(tunable.pretrained for tunable in loaded.tunables.values())
    assert loaded.methods == config.load({"task": "t", "methods": "paper"}).methods
    assert {"icl", "majority", "no_instruction_tuned", "distilled_cot", "fiat_without_peft", "full_instructed_pretrained"} <= set(loaded.methods)
    rates = loaded.learning_rate
    assert len(rates.lora) == len(rates.full) == 3 and min(rates.lora) > max(rates.full)
    assert loaded.where.throughput is not None, "so that a plan tells GPU hours"


@pytest.mark.parametrize(("path", "languages"), [(path, 5 if path.stem == "xor_attriqa" else 27 if "full" in path.stem else 20) for path in PAPER])
def test_a_config_is_planned_on_real_rows(path: Path, languages: int, tiny: Path, data: Path, tmp_path: Path) -> None:
    loaded = with_tiny_model(path, tiny, data, tmp_path)
    planned = planning.plan(loaded)
    assert planned["not_run"] == [] and len(planned["tasks"][loaded.task[0]]["languages"]) == languages
    tuned = {(trials["method"], trials["tunable"]) for trials in planned["trials"]}
    assert tuned == {(method, size) for method in loaded.methods if method not in ("icl", "majority") for size in ("xs", "s")}
    assert all(len(trials["seeds"]) == len(loaded.seeds) for trials in planned["trials"])
    assert planned["time"]["gpu_hours"] > 0 and planned["time"]["cost"] == pytest.approx(2.5 * planned["time"]["gpu_hours"])
    assert "200 TFLOP/s" in plan_text.describe(planned)


def with_tiny_model(path: Path, tiny: Path, data: Path, folder: Path) -> Config:
    """The config with few rows and a tiny model whose positions suffice: its tokenizer makes a token of nearly every byte."""
    model = Path(shutil.copytree(tiny, folder / "model"))
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, "max_position_embeddings": 10**5}))
    swapped = [f"{key}.max_length=60000" for key in ("reasoner", "tunables.xs", "tunables.s")]
    swapped += [
        f"{key}={model}" for key in ("reasoner.model", *(f"tunables.{size}.{kind}" for size in ("xs", "s") for kind in ("model", "pretrained")))
    ]
    return config.load(path, [f"data={data}", "limit={train: 2, validation: 1, test: 1}", "where.gpu_hour_price=2.5", *swapped])


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=by_stem)
def test_jobs_are_thin(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 20
    assert f'main(["{path.stem}", *sys.argv[1:]])' in text
