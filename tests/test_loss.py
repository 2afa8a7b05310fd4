"""Loss, attention and validation of packed prompts, against plain transformers with one prompt at a time. All in float32."""

from __future__ import annotations

import json
import shutil
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from torch.nn.functional import cross_entropy

from fiat_ray.augmented import Example
from fiat_ray.config import Lora
from fiat_ray.recipe import RECIPES
from fiat_ray.render import IGNORED, Prompt, Renderer
from fiat_ray.tune import attention
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune import validate as validating
from fiat_ray.tune.adapter import add_lora
from fiat_ray.tune.batches import Supervised, common_start, micro_batches, pack
from fiat_ray.tune.layers import last_layer_where_read
from fiat_ray.tune.loss import SupervisedLoss, token_losses
from fiat_ray.tune.memory import AtOnce
from fiat_ray.tune.tunable import supervised
from fiat_ray.tune.validate import answer, label_losses, validate

CPU = torch.device("cpu")
BUDGET = AtOnce(2048, 2048)
"""Tokens that go through a model at once."""
TASK = tiny_model.task()
INPUTS = ["short", "question: কোন শহর? context: " + "The town lies at the river. " * 8, "question: x context: " + "two roads " * 20, "q"]
TARGETS = ["yes", "two roads meet", "no", "the town at the river"]


@pytest.fixture(scope="module")
def renderer(tiny: Path) -> Renderer:
    return Renderer(tiny)


@pytest.fixture(scope="module")
def packed_model(tiny: Path) -> Any:
    model = checkpoints.load(tiny, torch.float32)
    last_layer_where_read(model)
    return model


@pytest.fixture(scope="module")
def plain_model(tiny: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def items(renderer: Renderer) -> list[Supervised]:
    rows = [Example(str(n), "train", "bn", x, (y,), "") for n, (x, y) in enumerate(zip(INPUTS, TARGETS, strict=True))]
    return supervised(renderer, TASK, RECIPES["fiat"], rows, ["because", None, "It says so. " * 5, ""])


def plain_loss(model: Any, prompt: Prompt) -> torch.Tensor:
    """Cross-entropy of each supervised token, as transformers alone computes it."""
    ids, labels = torch.tensor([prompt.ids]), torch.tensor(prompt.labels)
    losses = cross_entropy(model(ids).logits[0, :-1].float(), labels[1:], ignore_index=IGNORED, reduction="none")
    return losses[labels[1:] != IGNORED]


def test_a_packed_loss_is_the_sum_of_the_prompts_own(packed_model: Any, plain_model: Any, items: list[Supervised]) -> None:
    expected = sum(plain_loss(plain_model, each.prompt).sum().item() * each.weight for each in items)
    for shared, budget in product((0, common_start(items)), (1, 200, 10_000)):
        batches = micro_batches(items, AtOnce(budget, budget), shared)
        assert budget < 10_000 or len(batches) == 1
        found = sum(SupervisedLoss(packed_model)(pack(batch, CPU, shared)).item() for batch in batches)
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_gradients_are_the_same(packed_model: Any, plain_model: Any, items: list[Supervised], share: bool) -> None:
    for model in (packed_model, plain_model):
        model.zero_grad()
    packed = pack(items, CPU, common_start(items) if share else 0)
    assert packed.input_ids.shape[1] == sum(len(item.prompt) for item in items) - packed.shared * (len(items) - 1)
    assert bool(packed.shared) == share
    SupervisedLoss(packed_model)(packed).backward()
    sum((plain_loss(plain_model, each.prompt) * each.weight).sum() for each in items).backward()  # type: ignore[union-attr]
    for (name, ours), theirs in zip(packed_model.named_parameters(), plain_model.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5), name
        assert ours.grad.abs().max() > 0, name


def test_prompts_do_not_see_each_other(packed_model: Any, items: list[Supervised]) -> None:
    first = items[0].tokens
    alone, _ = token_losses(packed_model, pack(items[:1], CPU))
    for others in (items[1:2], items[2:], [items[0]] * 3):
        before, _ = token_losses(packed_model, pack([*others, items[0]], CPU))
        behind, _ = token_losses(packed_model, pack([items[0], *others], CPU))
        assert torch.allclose(before[-first:], alone, atol=1e-5) and torch.allclose(behind[:first], alone, atol=1e-5)


def test_only_the_target_counts(packed_model: Any, items: list[Supervised]) -> None:
    losses, positions = token_losses(packed_model, pack(items, CPU))
    assert len(losses) == sum(each.tokens for each in items)
    ids = torch.tensor([token for each in items for token in each.prompt.ids])
    targets = [token for each in items for token in each.prompt.pieces[-1].ids]
    assert ids[positions].tolist() == targets
    assert losses.dtype == torch.float32


def test_an_adapter_has_the_same_loss_and_only_it_gets_gradients(tiny: Path, plain_model: Any, items: list[Supervised]) -> None:
    model = add_lora(checkpoints.load(tiny, torch.float32), Lora(rank=4), 0)
    loss = SupervisedLoss(model)(pack(items, CPU))
    assert loss.item() == pytest.approx(sum(plain_loss(plain_model, each.prompt).sum().item() * each.weight for each in items), abs=1e-5)
    loss.backward()
    tuned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert tuned and all("lora_" in name for name in tuned)


@pytest.mark.parametrize("part", ["mlp.gate_proj", "self_attn.q_proj", "self_attn.o_proj"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_layer_is_computed_where_it_is_read_alone(tiny: Path, items: list[Supervised], checkpointing: bool, part: str) -> None:
    packed, seen = pack(items, CPU), list[int]()
    model = checkpoints.load(tiny, torch.float32).train()
    last_layer_where_read(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = model.get_decoder().layers
    for layer in layers:
        layer.get_submodule(part).register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]), prepend=True)
    whole = checkpoints.load(tiny, torch.float32)
    for each in (model, whole):
        SupervisedLoss(each)(packed).backward()
    tokens, supervised_ones = packed.input_ids.shape[1], sum(item.tokens for item in items)
    forward = [*[tokens] * (len(layers) - 1), supervised_ones]
    assert seen == (forward + forward[::-1] if checkpointing else forward)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    seen.clear()
    model(packed.input_ids)  # all logits
    assert seen == [tokens] * len(layers)


def test_without_bounds_attention_is_sdpa(packed_model: Any, plain_model: Any, items: list[Supervised]) -> None:
    ids = torch.tensor([items[1].prompt.ids])
    assert torch.allclose(packed_model(ids).logits, plain_model(ids).logits, atol=1e-4)


@pytest.mark.parametrize("bos", [False, True])
def test_answers_are_those_of_transformers_own_generation(tmp_path: Path, bos: bool) -> None:
    """Prompts of different lengths, decoded side by side; the longest answers end at the bound, others at EOS."""
    from transformers import AutoModelForCausalLM

    folder = tiny_model.write(tmp_path / "model", seed=3, bos=bos)
    renderer = Renderer(folder)
    ours = checkpoints.load(folder, torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    prompts = [renderer.tunable_prompt(TASK, text, None, RECIPES["no_cot"]) for text in INPUTS]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt.ids])
        done = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=renderer.eos)
        expected.append(renderer.decode(done[0, len(prompt.ids) :].tolist()))
    with torch.no_grad():
        found, loss = answer(ours, renderer, prompts, TARGETS, 12, BUDGET)
        gold = [plain_loss(plain, prompt + [renderer.target(text)]) for prompt, text in zip(prompts, TARGETS, strict=True)]
    assert found == expected and any(expected)
    assert loss == pytest.approx(sum(float(losses.sum()) for losses in gold), abs=1e-3)


def made(kind: str, renderer: Renderer, **more: Any) -> Any:
    """A tiny random model of another architecture than the fixtures', such as ``Mistral``."""
    import transformers

    attention.register()
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(renderer.tokenizer), initializer_range=0.1, **shape, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME).eval()


def test_a_window_as_long_as_a_prompt_keeps_all_prompts_of_a_batch(renderer: Renderer) -> None:
    """A cache that follows the config would keep the window's last tokens of all prompts together."""
    window, steps = 64, 8
    model = made("Mistral", renderer, sliding_window=window)
    prompts = [renderer.tunable_prompt(TASK, text, None, RECIPES["no_instructions"]) for text in ("q", "the town", "two roads", "x y z", "a river")]
    gold = [TARGETS[number % 4] for number in range(len(prompts))]
    assert max(map(len, prompts)) + steps <= window < sum(map(len, prompts))
    with torch.no_grad():
        found, loss = answer(model, renderer, prompts, gold, steps, BUDGET)
        alone = [answer(model, renderer, [prompt], [text], steps, BUDGET) for prompt, text in zip(prompts, gold, strict=True)]
    assert found == [text for [text], _ in alone] and len(set(found)) > 1
    assert loss == pytest.approx(sum(own for _, own in alone), rel=1e-5)


@pytest.mark.parametrize("labels", [(), ("a", "b"), ("no", "the town")], ids=["text", "one token", "labels"])
def test_validation_scales_logits_as_the_model_does(renderer: Renderer, labels: tuple[str, ...]) -> None:
    model = made("Granite", renderer, logits_scaling=8.0)
    prompts = [renderer.tunable_prompt(TASK, text, None, RECIPES["no_cot"]) for text in INPUTS]
    with torch.no_grad():
        if labels == ("a", "b"):
            last = torch.stack([model(torch.tensor([prompt.ids])).logits[0, -1] for prompt in prompts]).log_softmax(-1)
            expected = -last[:, [renderer.answer_ids(label)[0] for label in labels]]
        else:
            texts = [labels or (text,) for text in TARGETS]
            endings = [[prompt + [renderer.target(text)] for text in of] for prompt, of in zip(prompts, texts, strict=True)]
            expected = torch.tensor([[plain_loss(model, each).sum() for each in row] for row in endings])
        found = label_losses(model, renderer, prompts, labels, BUDGET) if labels else answer(model, renderer, prompts, TARGETS, 4, BUDGET)[1]
    np.testing.assert_allclose(found, expected if labels else expected.sum(), rtol=1e-4)


def test_one_long_prompt_among_short_ones_does_not_pad_them_all(packed_model: Any, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding pads every prompt of a batch to its longest: that, and not the sum of their lengths, has to stay within the bound."""
    texts = [*(f"q{number}" for number in range(30)), "two roads " * 150, *(f"{number} " * number for number in range(30))]
    prompts = [renderer.tunable_prompt(TASK, text, None, RECIPES["no_cot"]) for text in texts]
    gold, steps, batches = [TARGETS[number % 4] for number in range(len(texts))], 5, []
    answer_batch = validating._answer_batch

    def recorded(model: Any, ends: list[int], batch: list[Supervised], max_tokens: int) -> Any:
        batches.append([item.prompt.ids for item in batch])
        return answer_batch(model, ends, batch, max_tokens)

    monkeypatch.setattr(validating, "_answer_batch", recorded)
    with torch.no_grad():
        found, loss = answer(packed_model, renderer, prompts, gold, steps, BUDGET)
        alone = [answer(packed_model, renderer, [prompt], [text], steps, BUDGET) for prompt, text in zip(prompts, gold, strict=True)]
    together = batches[: -len(prompts)]
    assert all(len(batch) == 1 or len(batch) * (max(map(len, batch)) + steps) <= BUDGET.tokens for batch in together)
    assert sorted(ids for batch in together for ids in batch) == sorted(ids for [ids] in batches[-len(prompts) :])
    assert 1 < len(together) < len(prompts) / 4
    assert found == [text for [text], _ in alone] and len(set(found)) > 1
    assert loss == pytest.approx(sum(own for _, own in alone), rel=1e-5)


@pytest.mark.parametrize("end", [None, 78], ids=["eos", "another"])
def test_an_answer_ends_at_eos(tiny: Path, tmp_path: Path, end: int | None) -> None:
    """A model made to say EOS, or what its generation config names beside it, after one token stops there, whatever other rows still say."""
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    eos = Renderer(folder).eos
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, 78]}), "utf-8")
    renderer, end = Renderer(folder), end or eos
    model = checkpoints.load(folder, torch.float32).eval()
    prompts = [renderer.tunable_prompt(TASK, text, None, RECIPES["no_cot"]) for text in INPUTS]
    tokens = iter([[70, 71, end, 73], [end, 71, end, 74], [75, end, 76, 70], [80, 81, 82, 83]])
    said = torch.tensor(list(zip(*tokens, strict=True)))  # (step, row)
    steps = iter(said)

    first = list(accumulate((len(renderer.target(text).ids) for text in TARGETS[:-1]), initial=0))  # of each answer, among all tokens of the answers

    def say(_: Any, __: Any, output: Any) -> Any:
        rows = torch.nn.functional.one_hot(next(steps), output.shape[-1]).float()
        return output.index_copy(1, torch.tensor(first), rows[None]) if len(output) == 1 else rows[:, None]

    hook = model.lm_head.register_forward_hook(say)
    try:
        with torch.no_grad():
            found, _ = answer(model, renderer, prompts, TARGETS, 4, BUDGET)
    finally:
        hook.remove()
    assert found == [renderer.decode(ids) for ids in ([70, 71], [], [75], [80, 81, 82, 83])]


def test_label_losses_are_those_of_each_label_alone(packed_model: Any, plain_model: Any, renderer: Renderer) -> None:
    labels = ["no", "yes", "the town at the river"]  # of different numbers of tokens
    prompts = [renderer.tunable_prompt(TASK, text, None, RECIPES["no_cot"]) for text in INPUTS]
    with torch.no_grad():
        found = label_losses(packed_model, renderer, prompts, labels, BUDGET)
        expected = [[float(plain_loss(plain_model, prompt + [renderer.target(label)]).sum()) for label in labels] for prompt in prompts]
    assert found.shape == (len(prompts), len(labels))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_labels_of_one_token_are_compared_by_it_alone(packed_model: Any, plain_model: Any, renderer: Renderer) -> None:
    tokens = [renderer.answer_ids(label) for label in ("a", "b")]
    assert [len(ids) for ids in tokens] == [1, 1]
    prompts = [renderer.tunable_prompt(TASK, text, None, RECIPES["no_cot"]) for text in INPUTS]
    with torch.no_grad():
        found = label_losses(packed_model, renderer, prompts, ["a", "b"], BUDGET)
        last = torch.stack([plain_model(torch.tensor([prompt.ids])).logits[0, -1] for prompt in prompts])
    np.testing.assert_allclose(found, -last.log_softmax(-1)[:, [ids[0] for ids in tokens]], atol=1e-4)


def test_distilled_cot_weighs_answer_and_rationale_by_their_own_tokens(packed_model: Any, plain_model: Any, renderer: Renderer) -> None:
    """Three tokens of an answer count as much as a hundred of a rationale (Hsieh et al. 2023: each part is a mean of its own)."""
    answer_text = next(text for text in ("no road", "two roads", "x y", "yes no") if len(renderer.target(text).ids) == 3)
    rationale = "It says so. " * 100
    while len(renderer.target(rationale).ids) > 100:
        rationale = rationale[:-1]
    row = Example("0", "train", "bn", INPUTS[0], (answer_text,), "")
    predict, explain = supervised(renderer, TASK, RECIPES["distilled_cot"], [row], [rationale])
    assert (predict.tokens, explain.tokens) == (3, 100)
    with torch.no_grad():
        found = SupervisedLoss(packed_model)(pack([predict, explain], CPU))
        parts = [plain_loss(plain_model, item.prompt).mean() for item in (predict, explain)]
    assert float(found) == pytest.approx(0.5 * float(parts[0]) + 0.5 * float(parts[1]), abs=1e-5)


def examples(languages: dict[str, int], labels: tuple[str, ...] = ("yes",)) -> list[Example]:
    return [
        Example(f"{language}{n}", "validation", language, f"question: {n} context: {language}", (labels[n % len(labels)],), "g")
        for language, number in languages.items()
        for n in range(number)
    ]


@pytest.mark.parametrize("labels", [(), ("no", "yes")], ids=["text", "labels"])
def test_validation_scores_what_test_will_and_leaves_the_model_in_training(tiny: Path, renderer: Renderer, labels: tuple[str, ...]) -> None:
    model = checkpoints.load(tiny, torch.float32).train()
    task = tiny_model.task(labels=labels)
    rows = examples({"bn": 4, "hi": 4}, labels or ("two roads",))
    found = validate(model, renderer, task, RECIPES["fiat"], rows, {rows[0].id: "because"}, 6, BUDGET)
    assert model.training and found.metric == ("auc_pr" if labels else "f1")
    assert found.value is not None and 0 <= found.value <= 100
    prompts = [renderer.tunable_prompt(task, e.input, "because" if e is rows[0] else None, RECIPES["fiat"]) for e in rows]
    with torch.no_grad():
        if labels:
            expected = label_losses(model, renderer, prompts, labels, BUDGET)[range(len(rows)), [labels.index(e.targets[0]) for e in rows]].mean()
        else:
            gold = [prompt + [renderer.target(e.targets[0])] for prompt, e in zip(prompts, rows, strict=True)]
            expected = torch.cat([token_losses(model, pack([Supervised(prompt, 1.0)], CPU))[0] for prompt in gold]).mean().item()
    assert found.loss == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("labels", [(), ("no", "yes"), ("a", "b", "c")], ids=["text", "two labels", "labels"])
def test_weights_that_have_diverged_are_never_the_best(tiny: Path, renderer: Renderer, labels: tuple[str, ...]) -> None:
    task, rows, model = tiny_model.task(labels=labels), examples({"bn": 4, "hi": 4}, labels or ("two roads",)), checkpoints.load(tiny, torch.float32)
    whole = validate(model, renderer, task, RECIPES["fiat"], rows, {}, 6, BUDGET)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    found = validate(model, renderer, task, RECIPES["fiat"], rows, {}, 6, BUDGET)
    assert np.isnan(found.loss) and not found.better_than(whole)
    assert (found.value is None) == bool(labels)
