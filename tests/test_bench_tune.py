"""What the benchmark of tuning compares: the same tokens in every system, and how far two loss curves are apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import tiny_model
import torch

from benchmarks import tuning
from benchmarks.baselines import Mark, Work, environment
from benchmarks.flops import flops_of_step
from benchmarks.tuning import Found, check_same, config_of, largest_difference, work_of
from fiat_ray import config as configs
from fiat_ray import runs
from fiat_ray.draw import steps_of, train_subset, validation_subset
from fiat_ray.predict import shown_rationales
from fiat_ray.prepare import prepare
from fiat_ray.progress import Console
from fiat_ray.render import IGNORED, Renderer
from fiat_ray.run_folder import RunFolder
from fiat_ray.tune.batches import common_start
from fiat_ray.tune.tunable import supervised

STEPS = 3
TRL = Path(sys.prefix) / "bench"
"""Where ``make bench-tune`` puts it."""


def test_flops_of_a_step_are_those_of_its_products() -> None:
    """Counted by torch in a forward and backward pass of each prompt alone; then what all begin with is taken off."""
    from test_memory import items
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(**sizes, vocab_size=60)
    model = Qwen3ForCausalLM(config)
    rows = items([30, 50])
    start = common_start(rows)
    assert start == 4
    with FlopCounterMode(display=False) as counter:
        for row in rows:
            ids = torch.tensor([row.prompt.ids])
            model(ids, use_cache=False, logits_to_keep=row.tokens).logits.sum().backward()
    linear = counter.get_flop_counts()["Global"]
    products = sum(flops for kind, flops in linear.items() if kind in (torch.ops.aten.mm, torch.ops.aten.addmm))
    weights = sum(p.numel() for name, p in model.model.layers.named_parameters() if p.ndim == 2)
    twice = 6 * weights * start  # of the second prompt, whose start is the first one's
    pairs = start * (start + 1) // 2 + sum(n * start + n * (n + 1) // 2 for n in (30 - start, 50 - start))
    attention = 3 * 4 * 3 * 4 * 16 * pairs
    assert flops_of_step(config, rows) == products - twice + attention


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("bench-tune") / "tiny")


def values(tiny: Path, how: str) -> tuning.Values:
    return config_of(how, STEPS, str(tiny), 1e-3, real=False) | {"languages": ["bn", "ru"], "batch_size": 4}


def work(tiny: Path, how: str) -> Work:
    prepared = prepare(configs.load(values(tiny, how)))
    return work_of(prepared, prepared.trials[0])


def per_step(work: Work) -> list[tuple[int, int]]:
    """Tokens and supervised tokens up to each step's end."""
    steps = [work.rows[start : start + work.batch] for start in range(0, len(work.rows), work.batch)]
    tokens = [sum(len(row["input_ids"]) for row in rows) for rows in steps]
    with_loss = [sum(label != IGNORED for row in rows for label in row["labels"]) for rows in steps]
    return list(zip(accumulate(tokens), accumulate(with_loss), strict=True))


def child(tmp_path: Path, system: str, how: str, given: str) -> list[Mark]:
    """At the end of each step."""
    path, output = tmp_path / "given.json", tmp_path / "found.json"
    path.write_text(given)
    command = [sys.executable, "-m", "benchmarks.tuning", system, how, str(path), str(output)]
    subprocess.run(command, check=True, env=environment(TRL if system == "trl" else None), capture_output=True)
    begun, *marks = [Mark(*mark) for mark in json.loads(output.read_text())["marks"]]
    assert begun.tokens == begun.supervised == 0 and begun.clock < marks[0].clock
    return marks


@pytest.mark.parametrize("how", tuning.METHODS)
def test_other_systems_get_the_token_ids_that_a_trial_reads_in_its_run(tmp_path: Path, tiny: Path, how: str) -> None:
    config = configs.load(values(tiny, how))
    runs.run_config(config, tmp_path / "run", stages=("reason",), console=Console(quiet=True))
    run, [trial] = RunFolder(tmp_path / "run"), prepare(config).trials
    train = train_subset([e for e in run.examples(trial.task, with_rationales=False) if e.split == "train"], trial.train_size)
    steps = steps_of(train, trial.batch_size, trial.epochs, trial.steps, trial.seed, trial.language_mix)
    renderer, task = Renderer(tiny), run.load_task(trial.task)
    read = [item.prompt for x in steps for item in supervised(renderer, task, trial.recipe, x, [None] * len(x))]
    given = work(tiny, how)
    assert (given.steps, given.lora) == (STEPS, trial.lora if how == "LoRA" else None)
    assert given.rows == [{"input_ids": prompt.ids, "labels": prompt.labels} for prompt in read]


def test_a_sequence_of_more_than_an_epoch_has_whole_steps_alone(tmp_path: Path, tiny: Path) -> None:
    """260 rows, say, are 32 steps of 8 and one of 4, which other systems would fill up with rows of the next epoch."""
    steps = 40
    rows = Work.read(tuning._write(tmp_path, "work", config_of("full", steps, str(tiny), real=False))["work"]).rows
    assert len(rows) == steps * tuning.BATCH


@pytest.mark.slow
def test_a_script_gets_the_token_ids_that_trials_read_with_their_rationales(tmp_path: Path, tiny: Path) -> None:
    said = "def reason(row):\n    return f\"Thought about {row['input'][:20]}.\\nAnswer: {row['targets'][0]}\"\n"
    (tmp_path / "script.py").write_text(said)
    reasoner = {"kind": "scripted", "script": str(tmp_path / "script.py"), "max_tokens": 32}
    config = configs.load(values(tiny, "LoRA") | {"reasoner": reasoner, "methods": ["fiat", "no_cot"], "steps": None, "limit": {"train": 4}})
    runs.run_config(config, tmp_path / "run", stages=("reason",), console=Console(quiet=True))
    run, prepared = RunFolder(tmp_path / "run"), prepare(config)
    for trial in prepared.trials:
        examples = run.examples(trial.task, with_rationales=trial.recipe.cot != "none")
        train, validation = ([e for e in examples if e.split == split] for split in ("train", "validation"))
        task, renderer = run.load_task(trial.task), Renderer(tiny)
        shown = shown_rationales(task, renderer, trial.recipe, examples, trial.rationale_tokens)
        assert bool(shown) == (trial.method == "fiat")
        texts = {e.id: e.rationale or "" for e in examples} if shown else None

        steps = steps_of(train_subset(train, trial.train_size), trial.batch_size, trial.epochs, trial.steps, trial.seed)
        *tuned_on, validated_on = [
            [(item.prompt.ids, item.prompt.labels) for item in supervised(renderer, task, trial.recipe, x, [shown.get(e.id) for e in x])]
            for x in [*steps, validation_subset(validation, trial.validation_rows)]
        ]
        for validate in (False, True):
            given = work_of(prepared, trial, texts, validate=validate)
            assert list(map(both, given.rows)) == sum(tuned_on, [])
            assert list(map(both, given.validated)) == (validated_on if validate else [])
        assert validated_on


def both(row: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    return row["input_ids"], row["labels"]


def test_the_loop_reads_all_rows_and_learns_from_them(tmp_path: Path, tiny: Path) -> None:
    given = work(tiny, "full")
    for way in tuning.MICRO_BATCHES:
        marks = child(tmp_path, "bare", way, _json(tmp_path, given))
        assert [(mark.tokens, mark.supervised) for mark in marks] == per_step(given)
        assert marks[-1].loss < marks[0].loss


@pytest.mark.slow
@pytest.mark.parametrize("how", tuning.METHODS)
def test_a_trial_and_the_loop_read_the_same_and_have_one_loss_curve(tmp_path: Path, tiny: Path, how: str) -> None:
    given = work(tiny, how)
    ours = child(tmp_path, "ours", "trial", json.dumps(values(tiny, how) | {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}))
    loop = child(tmp_path, "bare", "packed", _json(tmp_path, given))
    check_same({"ours": Found(ours, []), "loop": Found(loop, [])})
    assert largest_difference([mark.loss for mark in ours], [mark.loss for mark in loop]) < 1e-3


@pytest.mark.slow
@pytest.mark.skipif(not TRL.is_dir(), reason="make bench-tune installs TRL")
def test_trl_reads_the_same_and_has_the_loops_loss_curve(tmp_path: Path, tiny: Path) -> None:
    given = work(tiny, "LoRA")
    loop = child(tmp_path, "bare", "packed", _json(tmp_path, given))
    for variant in ("defaults", "no checkpointing, 1 row at once", "no checkpointing, padding-free"):
        theirs = child(tmp_path, "trl", variant, _json(tmp_path, given))
        assert [(mark.tokens) for mark in theirs] == [tokens for tokens, _ in per_step(given)]
        assert [mark.supervised for mark in theirs] == [mark.supervised for mark in loop]
        assert largest_difference([mark.loss for mark in loop], [mark.loss for mark in theirs]) < 1e-2


def test_systems_that_read_other_tokens_are_not_compared() -> None:
    marks = [Mark(0.0, 10, 2, 1.0), Mark(1.0, 20, 4, 1.0)]
    check_same({"a": Found(marks, []), "b": Found([mark._replace(clock=9.0, loss=2.0) for mark in marks], [])})
    for change in ({"tokens": 21}, {"supervised": 5}):
        with pytest.raises(SystemExit, match="same tokens"):
            check_same({"a": Found(marks, []), "b": Found([marks[0], marks[1]._replace(**change)], [])})


def test_of_ways_that_are_about_as_fast_one_is_compared_that_reads_rows_in_order() -> None:
    grouped, in_order = "no checkpointing, grouped by length, 2 at once", "no checkpointing, 1 row at once"

    def tried(**rates: int) -> dict[str, Found]:
        return {{"g": grouped, "o": in_order}[way]: Found([Mark(0, 0, 0, 0), Mark(1, rate, 1, 0)], []) for way, rate in rates.items()}

    assert tuning._best(tried(g=93, o=91)) == tuning._best(tried(o=93, g=91)) == in_order
    assert tuning._best(tried(g=93, o=80)) == grouped


@pytest.mark.parametrize(("ours", "theirs", "apart"), [([2.0, 1.0], [2.0, 1.0], 0.0), ([2.0, 1.1], [2.1, 1.0], 0.1), ([0.9, 1.0], [1.0, 1.0], 0.1)])
def test_largest_relative_difference_of_loss_curves(ours: Sequence[float], theirs: Sequence[float], apart: float) -> None:
    assert largest_difference(ours, theirs) == pytest.approx(apart)
    with pytest.raises(ValueError):
        largest_difference(ours, theirs[:1])


def test_rate_counts_between_marks_and_spreads_the_keeping() -> None:
    marks = [Mark(5.0, 100, 1, 1.0), Mark(7.0, 300, 2, 1.0)]
    assert Found(marks, []).rate == pytest.approx(100)
    assert Found(marks, [1.0]).rate == pytest.approx(100 / (1 + 1 / tuning.KEEP_SECONDS))
    assert Found(marks, [100.0]).rate == pytest.approx(100 / (1 + tuning.MOST_SHARE))


def test_rounds_hold_all_steps_but_the_first() -> None:
    marks = [Mark(float(step), 10 * step, step, 1.0) for step in range(8)]
    rounds = Found(marks, [1.0]).rounds(3)
    assert [run.marks for run in rounds] == [marks[1:4], marks[3:6], marks[5:8]] and all(run.kept == [1.0] for run in rounds)


def _json(tmp_path: Path, given: Work) -> str:
    given.write(tmp_path / "work.json")
    return (tmp_path / "work.json").read_text()
