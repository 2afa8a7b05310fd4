"""The whole path on a tiny model: train → merge → swap → generate → score. Sixteen rows are learned by heart, with LoRA and with full tuning."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import vllm_server
from safetensors.torch import load_file, save_file
from test_run_folder import check_rerun

from fiat_ray import artifact, config, runs, schedule
from fiat_ray.artifact import read_rows
from fiat_ray.engine import Engine, EngineOptions
from fiat_ray.errors import UserError
from fiat_ray.progress import Console
from fiat_ray.runs import Run
from fiat_ray.task import Exemplar, Row, Task

Tensors = dict[str, torch.Tensor]
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "jade", "kelp", "lotus", "maple", "north", "onyx", "pearl"]


def memory_task(labels: tuple[str, ...] = ()) -> Task:
    """Sixteen questions with answers that only memory gives; the same rows in all splits, which the leakage guard would not let pass."""
    rng = random.Random(0)
    answers = rng.sample(WORDS, len(WORDS)) if not labels else [labels[at % 2] for at in range(16)]
    rows = [
        Row(f"{split}-{at}", split, ("aa", "bb")[at % 2], {"question": WORDS[at], "context": WORDS[at - 3]}, (answer,), WORDS[at], f"{split}-{at}")
        for split in ("train", "validation", "test")
        for at, answer in enumerate(answers)
    ]
    exemplar = Exemplar("aa", {"question": "q", "context": "c"}, "It says so.", labels[0] if labels else "amber")
    metric = "accuracy" if labels else "f1"
    return Task(
        "labels" if labels else "memory",
        "question: {question} context: {context}",
        "context",
        metric,
        labels,
        "Think.",
        "Answer.",
        (exemplar,),
        tuple(rows),
        built_in=False,
    )


def settings(folder: Path, model: Path, **changes: object) -> config.Config:
    script = folder / "script.py"
    script.write_text("def reason(row):\n    return f\"I read {row['input']}.\\nAnswer: {row['targets'][0]}\"\n")
    values = {
        "task": ["memory", "labels"],
        "reasoner": {"kind": "scripted", "script": str(script), "max_tokens": 48},
        "tunables": {"xs": {"model": str(model), "max_length": 512}},
        "methods": ["majority", "icl", "no_cot", "no_peft"],
        "learning_rate": {"lora": [2e-2], "full": [5e-3]},
        "lora": {"rank": 32, "alpha": 32},
        "batch_size": 16,
        "steps": 100,
        "validation": {"times": 4, "rows": 16},
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        **changes,
    }
    return config.load(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overfit")


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {"memory": memory_task(), "labels": memory_task(("no", "yes"))}


@pytest.fixture(scope="module")
def run(folder: Path, tiny: Path, tasks: dict[str, Task], ray_local: None) -> Run:
    done, outcome = runs.run_config(settings(folder, tiny), folder / "run", tasks=tasks, console=Console(quiet=True))
    assert not outcome.failed
    return done


def mean(run: Run, method: str, metric: str, task: str = "memory") -> float:
    scores = run.scores.query("task == @task and method == @method and metric == @metric and language == 'mean' and split == 'test'")
    assert len(scores) == 1
    return float(scores.value.iloc[0])


def trial_folder(run: Run, method: str, task: str = "memory") -> Path:
    [name] = [t["name"] for t in run.trials if (t["task"], t["method"]) == (task, method)]
    return run.path / "trials" / name


@pytest.mark.vllm
@pytest.mark.parametrize("method", ["no_cot", "no_peft"])
def test_overfit(run: Run, method: str) -> None:
    """LoRA (with instructions) and full tuning (without)."""
    assert mean(run, method, "f1") == 100
    assert mean(run, method, "exact_match") == 100


@pytest.mark.vllm
def test_overfit_labels(run: Run) -> None:
    assert mean(run, "no_peft", "accuracy", "labels") == 100
    assert mean(run, "no_peft", "auc_pr", "labels") == pytest.approx(100)
    assert json.loads((trial_folder(run, "no_peft", "labels") / "evaluation.json").read_text())["answer_tokens"] == 0


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("zero", [2, 3])
def test_overfit_with_two_workers(folder: Path, tiny: Path, ray_local: None, zero: int) -> None:
    config = settings(folder, tiny, task="memory", methods=["no_cot", "no_peft"], where={"workers": 2, "cpus": 1, "zero": zero})
    done, outcome = runs.run_config(config, folder / f"zero-{zero}", tasks={"memory": memory_task()}, console=Console(quiet=True))
    assert not outcome.failed
    assert [mean(done, method, "f1") for method in ("no_cot", "no_peft")] == [100, 100]


@pytest.mark.vllm
def test_run_directory_is_whole(run: Run) -> None:
    manifest = json.loads((run.path / "manifest.json").read_text())
    for trial in manifest["trials"]:
        folder = run.path / "trials" / trial["name"]
        assert {path.name for path in folder.iterdir()} >= {"trial.json", "history.parquet", "predictions.parquet", "scores.json"}
        history = pd.read_parquet(folder / "history.parquet")
        assert history.step.tolist() == [0, 25, 50, 75, 100]
        assert history.selected.sum() == 1
        record, took = (json.loads((folder / name).read_text()) for name in ("trial.json", "evaluation.json"))
        assert record["tokens"] > record["supervised_tokens"] > 0 == record["gpus"]
        assert (took["rows"], took["gpus"]) == (16, 0) and took["seconds"] > 0
        assert took["prompt_tokens"] > 16
        if trial["task"] == "memory":
            assert 16 <= took["answer_tokens"] <= 16 * (record["answer_tokens"] + 1)
    assert (run.path / "report" / "index.html").is_file()
    assert not list(run.path.rglob("*.tmp")) and not list(run.path.glob(".ray-train*"))
    assert mean(run, "icl", "f1") == 100  # the script gives the gold answer
    assert mean(run, "icl", "unparsed") == 0


@pytest.mark.vllm
def test_unchanged_rerun_starts_nothing(run: Run, tiny: Path, folder: Path, tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*.parquet")}

    def refuse(*_: object) -> None:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(schedule, "join", refuse)
    runs.run_config(settings(folder, tiny), run.path, tasks=tasks, console=Console(quiet=True))
    assert {path: path.read_bytes() for path in run.path.rglob("*.parquet")} == before


@pytest.mark.vllm
def test_a_rerun_from_its_own_directory_changes_nothing(run: Run) -> None:
    check_rerun(run.path)


@pytest.mark.vllm
def test_infer_answers_new_rows(run: Run) -> None:
    gold = {row.fields["question"]: row.targets[0] for row in memory_task().rows}
    rows = [{"question": WORDS[at], "context": WORDS[at - 3], "language": "aa", "extra": at} for at in (3, 0, 7)]
    answers = run.infer(rows, trial=trial_folder(run, "no_peft").name)
    assert [row["prediction"] for row in answers] == [gold[row["question"]] for row in rows]
    assert [row["extra"] for row in answers] == [3, 0, 7]


@pytest.mark.vllm
def test_compare_has_an_interval(run: Run) -> None:
    found = run.compare("no_cot", "majority", task="memory")
    assert found.difference > 50 and found.low > 0 and found.note


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    running = Engine(tiny, EngineOptions(max_length=512))
    yield running
    running.close()


def changed(base: Path, trial: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A trial's folder with a full checkpoint, which holds the base's tensors otherwise."""
    shutil.copytree(base, trial / "checkpoint")
    save_file(change(load_file(base / "model.safetensors")), trial / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    return trial


@pytest.mark.vllm
def test_swap_takes_and_is_checked(engine: Engine, run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fiat_ray.render import Renderer
    from fiat_ray.swap import Swaps

    engine.swap(tiny)
    swaps, task, trials = Swaps(engine, tiny), memory_task(), [trial_folder(run, method) for method in ("no_peft", "no_cot", "no_peft")]
    prompt = Renderer(tiny).tunable_prompt(task, task.text(task.rows[0].fields), None, config.RECIPES["no_peft"]).ids
    with monkeypatch.context() as patch:
        patch.setattr(engine, "swap", lambda weights, changed=None: None)
        for trial in trials:  # also when asked again
            with pytest.raises(RuntimeError, match="did not take"):
                swaps.swap(trial, [prompt])
    for trial in trials:
        swaps.swap(trial, [prompt])
    lacking = changed(tiny, tmp_path / "lacking", lambda tensors: dict(sorted(tensors.items())[:-1]))
    with pytest.raises(ValueError, match="tensors differ"):
        swaps.swap(lacking, [prompt])
    with pytest.raises(ValueError, match="tensors differ"):
        engine.swap(lacking / "checkpoint")
    tensors = load_file(lacking / "checkpoint" / "model.safetensors")
    with pytest.raises(ValueError, match="the tensors given are not those"):
        engine.swap(tensors)


FRESH = """
import json, sys
from pathlib import Path
from fiat_ray.engine import Engine, EngineOptions
engine = Engine(Path(sys.argv[1]), EngineOptions(max_length=512))
prompts, tokens = json.loads(sys.argv[2])
print(json.dumps([engine.first_logprobs(prompts, tokens), [c.text for c in engine.generate(prompts, 8)]]))
engine.close()
"""


@pytest.mark.vllm
def test_swapped_weights_answer_as_a_fresh_engine_that_was_started_with_them(
    engine: Engine, run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapped from memory, and by a folder where the engine cannot take them from there."""
    from fiat_ray.render import Renderer
    from fiat_ray.swap import Swaps
    from fiat_ray.tune import model

    task, renderer, trial = memory_task(), Renderer(tiny), trial_folder(run, "no_cot")
    prompts = [renderer.tunable_prompt(task, task.text(row.fields), None, config.RECIPES["no_cot"]).ids for row in task.split("test")]
    tokens = [[7, 8, 9]] * len(prompts)
    merged = model.merge(tiny, trial, Path(shutil.copytree(tiny, tmp_path / "merged")))
    asked = [str(merged), json.dumps([prompts, tokens])]
    logprobs, answers = json.loads(subprocess.run([sys.executable, "-c", FRESH, *asked], check=True, capture_output=True).stdout.splitlines()[-1])
    found = []
    for in_memory in (True, False):
        engine.swap(tiny)
        assert not np.allclose(engine.first_logprobs(prompts, tokens), logprobs, atol=0.1)
        with monkeypatch.context() as patch:
            if not in_memory:
                patch.setattr(engine, "takes", lambda tensors: False)
            Swaps(engine, tiny).swap(trial, prompts)
        found.append(engine.first_logprobs(prompts, tokens))
        assert np.allclose(found[-1], logprobs, atol=1e-3)
        differing = [own for own, fresh in zip(engine.generate(prompts, 8), answers, strict=True) if own.text != fresh]
        assert not differing, f"{len(differing)} of {len(answers)}"
    assert found[0] == found[1]


@pytest.mark.vllm
def test_a_swap_leaves_nothing_of_the_trial_before(engine: Engine, tiny: Path, tmp_path: Path) -> None:
    """Each adapter changes other parts of layers that the engine keeps as one, and no trial's stay; a full checkpoint changes all."""
    from fiat_ray.swap import Swaps
    from fiat_ray.tune import model
    from fiat_ray.tune.adapter import add_lora

    def adapted(target: str) -> Path:
        tuned = add_lora(model.load(tiny, torch.float32), config.Lora(rank=4, targets=[target]), 0)
        state = {name: torch.randn_like(p) * 0.3 for name, p in tuned.named_parameters() if p.requires_grad}
        model.save(tuned, state, True, torch.float32, tmp_path / target / "adapter")
        return tmp_path / target

    def noise(tensors: Tensors) -> Tensors:
        return {name: t + 0.1 * torch.randn(t.shape) for name, t in tensors.items()}

    torch.manual_seed(0)
    engine.swap(tiny)
    swaps, prompts, tokens = Swaps(engine, tiny), [list(range(5, 40))], [[7, 8, 9]]
    for trial in (adapted("q_proj"), adapted("up_proj"), changed(tiny, tmp_path / "full", noise), tmp_path / "q_proj"):
        swaps.swap(trial, prompts)
        found = engine.first_logprobs(prompts, tokens)
        engine.swap(model.merge(tiny, trial, Path(shutil.copytree(tiny, tmp_path / "merged", dirs_exist_ok=True))))
        assert found == engine.first_logprobs(prompts, tokens), trial.name


@pytest.mark.vllm
def test_a_swap_between_close_checkpoints_is_checked(engine: Engine, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of two seeds after a few steps are. The same tensors in another file are no other checkpoint: a trial may keep step 0."""
    from fiat_ray.swap import Swaps

    prompt = list(range(5, 40))
    engine.swap(tiny)
    swaps = Swaps(engine, tiny)
    close = changed(tiny, tmp_path / "close", lambda tensors: {name: t + 0.01 * t.abs().mean() for name, t in tensors.items()})
    same = changed(tiny, tmp_path / "same", lambda tensors: dict(reversed(tensors.items())))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "swap", lambda weights, changed=None: None)
        swaps.swap(same, [prompt])
        with pytest.raises(RuntimeError, match="did not take"):
            swaps.swap(close, [prompt])
    swaps.swap(close, [prompt])
    engine.swap(tiny)


@pytest.mark.vllm
@pytest.mark.parametrize("part", ["embed_tokens", "self_attn", "mlp", "norm"])
def test_swap_reaches_every_part(engine: Engine, tiny: Path, tmp_path: Path, part: str) -> None:
    """The output layer too, which is tied to the embedding here."""
    from fiat_ray.swap import Swaps

    generator = torch.Generator().manual_seed(0)

    def noise(tensors: Tensors) -> Tensors:
        return tensors | {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in tensors.items() if part in name}

    engine.swap(tiny)
    prompts, tokens = [list(range(5, 40))], [[7, 8, 9]]
    before = engine.first_logprobs(prompts, tokens)
    Swaps(engine, tiny).swap(changed(tiny, tmp_path / "other", noise), prompts)
    assert not np.allclose(engine.first_logprobs(prompts, tokens), before, atol=0.01)


@pytest.mark.vllm
def test_label_probabilities_agree_with_transformers(engine: Engine, tiny: Path) -> None:
    """One token a label, and several: both are the product over tokens, the latter with EOS."""
    from fiat_ray.render import Renderer
    from fiat_ray.tune import model
    from fiat_ray.tune.memory import AtOnce
    from fiat_ray.tune.validate import label_losses

    engine.swap(tiny)
    task, renderer = memory_task(), Renderer(tiny)
    prompts = [renderer.tunable_prompt(task, task.text(row.fields), None, config.RECIPES["no_cot"]) for row in task.rows[:6]]
    labels = ["amber birch", "delta", "a long label of words"]
    found = engine.label_logprobs([p.ids for p in prompts], [renderer.answer_ids(label) for label in labels], renderer.eos)
    own = -label_losses(model.load(tiny).eval(), renderer, prompts, labels, AtOnce(2048, 2048))
    assert np.allclose(found, own, rtol=2e-3)


def test_adapters_hold_weights(run: Run) -> None:
    folder = trial_folder(run, "no_cot")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(float(tensor.abs().max()) > 0 for name, tensor in adapter.items() if "lora_B" in name)
    record = artifact.read_json(folder / "trial.json")
    assert record["selection_value"] == 100 and not record["kept_step_0"]
    assert len(read_rows(folder / "predictions.parquet")) == 16


@pytest.mark.parametrize("method", ["no_cot", "no_peft"])
def test_what_is_exported_answers_by_heart_without_this_project(run: Run, tiny: Path, tmp_path: Path, method: str) -> None:
    """Asked as its model card says, through its own chat template; the adapter on its base is the merged model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run.export(tmp_path / "exported", trial_folder(run, method).name)
    card = (folder / "README.md").read_text()
    request = json.loads(card.split("```json\n")[1].split("```")[0])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    [message] = request["messages"]
    for row in memory_task().split("test")[:4]:
        content = message["content"].replace("{question}", row.fields["question"]).replace("{context}", row.fields["context"])
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**prompt, max_new_tokens=request["max_tokens"], do_sample=False)
        assert tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip() == row.targets[0]
    assert "the tokens of 16 of 16 validation rows are the same both ways" in card
    assert "| mean | 100.0 | 100.0 |" in card and not any(row.fields["question"] in card for row in memory_task().rows)

    if method == "no_cot":
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, folder / "adapter")
        assert torch.allclose(adapted(**prompt).logits, model(**prompt).logits, atol=1e-3)
    with pytest.raises(UserError, match="is not empty"):
        run.export(folder)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_what_is_exported_is_served(run: Run, tmp_path: Path) -> None:
    """A stock vLLM server, sent the request of the model card."""
    folder = run.export(tmp_path / "exported", trial_folder(run, "no_cot").name)
    request = json.loads((folder / "README.md").read_text().split("```json\n")[1].split("```")[0])
    content = request["messages"][0]["content"]
    with vllm_server.serving(folder / "model", tmp_path / "log") as url:
        for row in memory_task().split("test")[:4]:
            message = {"role": "user", "content": content.replace("{question}", row.fields["question"]).replace("{context}", row.fields["context"])}
            body = json.dumps(request | {"model": "m", "messages": [message]}).encode()
            asked = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"].strip() == row.targets[0]
