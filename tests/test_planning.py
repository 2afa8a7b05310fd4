"""The plan: what it counts is what prompts and stores hold, it starts nothing, and it is quick."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tiny_model
import transformers

from fiat_ray import config as configs
from fiat_ray import costs, disk, models, plan_text, planning
from fiat_ray.config import Config
from fiat_ray.draw import number_of_steps, steps_of
from fiat_ray.errors import UserError
from fiat_ray.prepare import check_models, prepare
from fiat_ray.reason.store import Store
from fiat_ray.run_folder import KEPT, RunFolder
from fiat_ray.runs import run_config
from fiat_ray.task import Task
from fiat_ray.text import WIDTH


def config(tiny: Path, **changes: Any) -> Config:
    values = {
        "task": "towns",
        "reasoner": {"model": str(tiny), "max_tokens": 32},
        "tunables": {"xs": {"model": str(tiny)}},
        "methods": ["icl", "fiat", "no_cot", "no_instructions", "no_peft", "no_instruction_tuned", "distilled_cot"],
        "batch_size": 4,
        "where": {"gpus": 0},
        **changes,
    }
    return configs.load(values)


def towns() -> dict[str, Task]:
    return {"towns": tiny_model.task()}


def store(folder: Path, config: Config, keys: int, **changes: Any) -> None:
    """Rationales of the first ``keys`` requests, each of 10 tokens."""
    requests = prepare(config, towns()).requests["towns"]
    row = {"status": "ok", "text": "The context names it.", "finish_reason": "stop", "prompt_tokens": 1, "output_tokens": 10, "seconds": 1.0}
    Store(folder).write([{"key": key, "tries": 1, "error": "", **row, **changes} for key in requests.distinct().to_pylist()[:keys]])


def test_rows_prompts_and_tokens_of_the_reasoner(tiny: Path) -> None:
    asked = config(tiny)
    planned = planning.plan(asked, towns())
    task = planned["tasks"]["towns"]
    assert task["rows"] == {split: {"bn": 3, "hi": 3} for split in ("train", "validation", "test")}
    requests = prepare(asked, towns()).requests["towns"]
    shared = sum(len(ids) for ids in requests.prefixes.values())
    own = sum(len(ids) for table in requests.columns("ids") for ids in table["ids"].to_pylist())
    reasoner = task["reasoner"]
    # The rows of the three splits ask the same: a language has three prompts.
    assert (reasoner["prompts"], reasoner["stored"], len(requests.prefixes)) == (6, 0, 2)
    assert reasoner["all"]["tokens_in_prefix_once"] == own + shared
    assert reasoner["all"]["tokens_in"] == own + 3 * shared
    assert reasoner["all"]["tokens_out_most"] == 6 * 32
    assert reasoner["all"]["tokens_out_estimate"] is None
    assert json.loads(json.dumps(planned)) == planned


@pytest.mark.parametrize("where", ["run", "store"])
def test_what_is_stored_need_not_be_generated(tiny: Path, tmp_path: Path, where: str) -> None:
    asked = config(tiny, **({"store": str(tmp_path / "rationales")} if where == "store" else {}))
    store(tmp_path / "rationales", asked, 4)
    reasoner = planning.plan(asked, towns(), run=tmp_path if where == "run" else None)["tasks"]["towns"]["reasoner"]
    assert (reasoner["prompts"], reasoner["stored"], reasoner["missing"]["prompts"]) == (6, 4, 2)
    assert reasoner["output_tokens_mean"] == 10
    assert (reasoner["missing"]["tokens_out_estimate"], reasoner["missing"]["tokens_out_most"]) == (20, 64)


def test_an_engine_error_is_to_be_tried_again(tiny: Path, tmp_path: Path) -> None:
    store(tmp_path, config(tiny), 4, status="engine_error")
    assert planning.plan(config(tiny, store=str(tmp_path)), towns())["tasks"]["towns"]["reasoner"]["stored"] == 0


def test_stored_rationales_that_a_tunable_would_be_shown_cut_are_counted(tiny: Path, tmp_path: Path) -> None:
    """As a trial counts them (see test_render), of the train rows that are sampled, here all six, which ask three prompts a language."""
    short = config(tiny, store=str(tmp_path / "short"), methods=["fiat"])
    store(tmp_path / "short", short, 4)
    [fits] = planning.plan(short, towns())["trials"]
    assert (fits["rationales_cut"], fits["rationales_sampled"]) == (0, 4)
    asked = config(tiny, store=str(tmp_path / "long"))
    store(tmp_path / "long", asked, 4, text="The context names it. " * 20 + "\nAnswer: market")
    planned = planning.plan(asked, towns())
    counted = {trials["method"]: (trials["rationales_cut"], trials["rationales_sampled"]) for trials in planned["trials"]}
    reasons = {method: configs.RECIPES[method].cot != "none" for method in counted}
    assert counted == {method: (4, 4) if with_rationale else (0, 0) for method, with_rationale in reasons.items()}
    assert {"fiat": True, "no_cot": False, "distilled_cot": True}.items() <= reasons.items()
    text = " ".join(plan_text.describe(planned).split())
    assert "towns, fiat, xs: 4 of 4 stored rationales sampled would be cut: too long in the tunable's own tokens" in text
    assert "no_cot, xs:" not in text


def test_tokens_trained_on_are_those_of_the_prompts(tiny: Path) -> None:
    planned = planning.plan(config(tiny, epochs=2, seeds=[0, 1], learning_rate={"lora": [1e-4, 2e-4], "full": [1e-5, 2e-5]}), towns())
    by_method = {trials["method"]: trials for trials in planned["trials"]}
    assert list(by_method) == ["fiat", "no_cot", "no_instructions", "no_peft", "distilled_cot"]
    assert [missing["method"] for missing in planned["not_run"]] == ["no_instruction_tuned"]
    task, renderer = tiny_model.task(), planning.prepare.make_renderer("xs", tiny)
    rows = task.split("train")
    recipe = configs.RECIPES["no_cot"]
    exact = [len(renderer.tunable_prompt(task, task.text(row.fields), None, recipe)) + len(renderer.target("yes").ids) for row in rows]
    no_cot = by_method["no_cot"]
    assert (no_cot["tokens_mean"], no_cot["tokens_max"]) == (fmean(exact), max(exact))
    assert no_cot["tokens"] == sum(exact) * 2 * 2 * 2  # epochs, learning rates, seeds
    assert by_method["fiat"]["tokens_max"] >= max(exact) + 32, "a rationale that is not stored counts as long as it may be"
    assert by_method["no_instructions"]["tokens_mean"] < no_cot["tokens_mean"]


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "steps"),
    [(6, 4, 2, None), (7, 4, 1.5, None), (10, 3, 1, 9), (5, 8, 1, 3), (9, 4, 0.2, None)],
)
def test_rows_seen_are_those_of_the_batches(rows: int, batch_size: int, epochs: float, steps: int | None) -> None:
    batches = list(steps_of([None] * rows, batch_size, epochs, steps, 0))  # type: ignore[list-item]
    assert planning._rows_seen(rows, batch_size, number_of_steps(rows, batch_size, epochs, steps)) == sum(map(len, batches))


def test_cuts_and_exemplars_that_do_not_fit_are_named(tiny: Path) -> None:
    rows = tuple(
        tiny_model.row(n, split, "bn", ("market",), context="The town lies at the river. " * 60 + "It has a market.")
        for split in ("train", "validation", "test")
        for n in range(2)
    )
    planned = planning.plan(config(tiny, reasoner={"model": str(tiny), "max_tokens": 32, "max_length": 260}), {"towns": tiny_model.task(rows)})
    task = planned["tasks"]["towns"]
    assert task["cut"] == {"bn": 6} and task["gold_cut"] == {"bn": 6}
    assert task["exemplars"]["bn"] < task["exemplars_most"]["bn"] == 3
    text = plan_text.describe(planned)
    assert "6 passages cut to fit: bn 6" in text and "lost their gold answer: bn 6" in text and "fewer than 3 fit in bn" in text


def test_lengths_by_component_and_language_add_up_to_the_longest_prompt(tiny: Path) -> None:
    task = towns()["towns"]
    found = planning.plan(config(tiny), towns())["tasks"]["towns"]
    prepared = prepare(config(tiny), towns())
    assert [(part["role"], part["language"]) for part in found["length"]] == [(r, x) for r in ("reasoner", "tunables.xs") for x in ("bn", "hi")]
    for part in found["length"]:
        budget = next(b for b in prepared.budgets if b.role == part["role"])
        rows = [row for row in task.rows if row.language == part["language"]]
        texts = [task.text(row.fields) for row in rows]
        if part["role"] == "reasoner":
            longest = max(len(budget.renderer.reasoner_prompt(task, 3, text, part["language"])) for text in texts)
            assert part["exemplars"] > 0
        else:
            prompts = [budget.renderer.tunable_prompt(task, text, "", recipe) for text in texts for recipe in budget.recipes]
            prompts += [
                budget.renderer.explain_prompt(task, text, recipe) for text in texts for recipe in budget.recipes if recipe.cot == "distilled"
            ]
            longest = max(map(len, prompts))
            assert part["exemplars"] == 0
        assert part["most"] == longest + part["reserved"] <= part["max_length"]
        assert part["rows"] == 9 and part["input_mean"] <= part["input_max"]
        assert part["instructions"] + part["exemplars"] + part["input_max"] + part["reserved"] == part["most"]
    text = plan_text.describe(planning.plan(config(tiny), towns()))
    assert "tokens     reasoner: " in text and "longest, with output: reasoner        xs" in text


def test_disk_is_what_is_not_there_yet(tiny: Path, tmp_path: Path) -> None:
    asked = config(tiny, methods=["icl", "fiat", "no_peft"], seeds=[0, 1])
    [found] = planning.plan(asked, towns(), run=tmp_path)["disk"]
    assert 0 < found["free"] <= shutil.disk_usage(tmp_path).free * 1.1
    weights = sum(path.stat().st_size for path in tiny.glob("*.safetensors"))
    adapters = found["needed"]["adapters and checkpoints"] - 2 * weights
    assert 0 < adapters < 2 * weights  # two adapters
    assert found["needed"]["a merged checkpoint, for a while"] == weights
    assert found["needed"]["rationales"] >= 6 * 32 * disk.TOKEN
    shared = planning.plan(config(tiny, store=str(tmp_path / "store")), towns(), run=tmp_path)["disk"]
    assert shared[0]["needed"]["their copy in the run"] == shared[0]["needed"]["rationales"]


@pytest.mark.parametrize(
    ("where", "at_once"), [({}, 1), ({"replicas": 2}, 2), ({"replicas": 5, "workers": 2}, 2), ({"gpus": 1, "tunings_per_gpu": 3}, 3)]
)
def test_disk_holds_two_states_of_each_tuning_side_by_side(tiny: Path, tmp_path: Path, where: dict[str, Any], at_once: int) -> None:
    asked = config(tiny, methods=["fiat", "no_peft"], seeds=[0, 1], where={"gpus": 0, **where})
    prepared, run = prepare(asked, towns()), RunFolder(tmp_path)
    full = 2 * KEPT * models.parameters(tiny).total
    lora = 2 * KEPT * disk._weights(tiny, True, asked.lora) // disk.WEIGHT
    [found] = planning.of(prepared, tmp_path)["disk"]
    what = "states that broken-off tunings go on from"
    assert found["needed"][what] == sum(sorted([full, full, lora, lora], reverse=True)[:at_once])
    [found] = disk.disk(prepared, run, units=100)
    assert found["needed"][what] == 2 * full + 2 * lora, "no more run side by side than there are"


def test_an_adapter_takes_what_was_planned(tiny: Path, tmp_path: Path) -> None:
    from fiat_ray.tune import model as checkpoints
    from fiat_ray.tune.adapter import add_lora

    lora = configs.Lora(rank=4)
    model = add_lora(checkpoints.load(tiny), lora, 0)
    state = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    checkpoints.save(model, state, True, checkpoints.dtype_of(tiny), tmp_path)
    taken = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert disk._weights(tiny, True, lora) <= taken < disk._weights(tiny, True, lora) * 1.2


def test_too_little_room_is_said_before_anything_starts(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="too little room, 0 MiB are free; needed are at most: rationales"):
        run_config(config(tiny), tmp_path / "out", tasks=towns())
    assert not (tmp_path / "out").exists()
    assert "TOO LITTLE" in plan_text.describe(planning.plan(config(tiny), towns(), run=tmp_path / "out"))


def test_described_in_110_columns(tiny: Path, tmp_path: Path) -> None:
    long = "a_recipe_whose_name_is_longer_than_any_column"
    asked = config(tiny, store=str(tmp_path), recipes={long: {}}, methods=[long, "fiat_without_instructions", "no_peft", "no_instruction_tuned"])
    for keys in (0, 4, 6):
        store(tmp_path, asked, keys)
        text = plan_text.describe(planning.plan(asked, towns()))
        assert max(map(len, text.splitlines())) <= WIDTH
        for said in ("towns", f"{keys} stored", "no_peft", "tunables.xs.pretrained", "roughly", costs.MEASURED_ON):
            assert said in " ".join(text.split())  # a long path breaks lines elsewhere
        assert ("reasoning" in text.split("roughly")[1]) == (keys < 6)


def test_a_script_needs_no_tokens(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def reason(row): return 'Answer: ' + row['targets'][0]\n")
    planned = planning.plan(config(tiny, reasoner={"kind": "scripted", "script": str(tmp_path / "script.py")}, methods=["icl", "majority"]), towns())
    assert planned["tasks"]["towns"]["reasoner"]["missing"]["tokens_in"] == 0
    assert "a script: 18 distinct prompts" in plan_text.describe(planned)
    assert "0 trials; without tuning: icl, majority" in plan_text.describe(planned)


def test_starts_nothing(tiny: Path) -> None:
    """In a fresh process: neither Ray nor an engine is so much as imported; nor torch, to read rows and make prompts."""
    code = f"""
import sys
from fiat_ray import config, planning, prepare
asked = config.load(dict(task="country_facts", limit=dict(train=2, validation=1, test=2), methods=["icl", "fiat"],
    reasoner=dict(model={str(tiny)!r}, max_tokens=16), tunables=dict(xs=dict(model={str(tiny)!r})), languages=["el"]))
prepare.prepare(asked)
print([name for name in ("torch", "ray", "vllm", "deepspeed", "mlflow", "scipy") if name in sys.modules])
planning.plan(asked)
print([name for name in ("ray", "vllm", "deepspeed", "mlflow") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["[]", "[]"]


def test_thousands_of_real_rows_within_a_minute(data: Path) -> None:
    models.find(models.EMBEDDED)  # its conversion, once for a machine, is no part of the plan
    start = time.perf_counter()
    planned = planning.plan(configs.load({"task": "xtreme_up_qa", "data": str(data / "xtreme_up"), "focus": "full", "where": {"gpus": 0}}))
    assert sum(sum(rows.values()) for rows in planned["tasks"]["xtreme_up_qa"]["rows"].values()) > 6000
    assert {trials["rows_sampled"] for trials in planned["trials"]} <= set(range(1, planning.SAMPLED + 1))
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("kind", ["BloomConfig", "GPT2Config", "GPTNeoXConfig", "OPTConfig", "XGLMConfig", "FalconConfig"])
def test_a_tunable_whose_architecture_tuning_does_not_know_is_refused(tiny: Path, tmp_path: Path, kind: str) -> None:
    """Before the reasoner is paid. Attention of some could not be kept within a row, others lack parts that tuning names."""
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    getattr(transformers, kind)().save_pretrained(other)
    asked = config(tiny, tunables={"xs": {"model": str(other), "max_length": 512}})
    with pytest.raises(UserError, match=r"^tunables.xs: other is of the kind \w+, which tuning does not support; choose another"):
        planning.plan(asked, towns())


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen3Config", "Qwen2Config", "MistralConfig", "OlmoConfig", "Phi3Config", "Qwen3MoeConfig"])
def test_architectures_that_tuning_knows(tiny: Path, tmp_path: Path, kind: str) -> None:
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    getattr(transformers, kind)(**({"sliding_window": None} if kind == "MistralConfig" else {})).save_pretrained(other)
    check_models(prepare(config(tiny, tunables={"xs": {"model": str(other), "max_length": 512}}), towns()))
