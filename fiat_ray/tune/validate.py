"""Validation during training, by what will be asked of the model on test: generated answers, or label probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy, pad
from transformers import DynamicCache

from fiat_ray.augmented import Example
from fiat_ray.metrics import NAMED_AVERAGES, selecting_metric
from fiat_ray.predict import Prediction, label_predictions, one_token_each, prediction_rows
from fiat_ray.recipe import Recipe
from fiat_ray.render import IGNORED, Prompt, Renderer
from fiat_ray.scoring import score_predictions
from fiat_ray.task import Task
from fiat_ray.tune.batches import Supervised, micro_batches, pack, padded_batches
from fiat_ray.tune.loss import packed_logits, token_losses
from fiat_ray.tune.memory import AtOnce


@dataclass(frozen=True)
class Validation:
    metric: str
    """The one that selects: see ``metrics.selecting_metric``."""
    scores: dict[str, float | None]
    """Metric → 0–100, macro over languages, and ``metric/mean_22`` … for a task's other averages; None where not defined on these rows."""
    loss: float
    """Mean cross-entropy of a supervised token, or of a label."""
    predictions: list[dict[str, Any]]
    """Columns of ``schema.PREDICTIONS``."""

    @property
    def value(self) -> float | None:
        return self.scores[self.metric]

    def better_than(self, other: Validation | None) -> bool:
        """Higher value; on ties, or without a value, lower loss."""
        return other is None or (_or_less(self.value), -self.loss) > (_or_less(other.value), -other.loss)


def _or_less(value: float | None) -> float:
    return -1.0 if value is None else value


@torch.no_grad()
def validate(
    model: Any,
    renderer: Renderer,
    task: Task,
    recipe: Recipe,
    examples: Sequence[Example],
    rationales: Mapping[str, str],
    max_tokens: int,
    at_once: AtOnce,
) -> Validation:
    """``at_once``: most that goes through the model together. Weights that have diverged give no value, and NaN as loss."""
    model.eval()
    with torch.compiler.set_stance("force_eager"):  # what is compiled is compiled for gradients
        found = _validate(model, renderer, task, recipe, examples, rationales, max_tokens, at_once)
    model.train()
    return found


def _validate(
    model: Any,
    renderer: Renderer,
    task: Task,
    recipe: Recipe,
    examples: Sequence[Example],
    rationales: Mapping[str, str],
    max_tokens: int,
    at_once: AtOnce,
) -> Validation:
    prompts = [renderer.tunable_prompt(task, e.input, rationales.get(e.id), recipe) for e in examples]
    gold = [e.targets[0] for e in examples]
    if task.labels:
        losses = label_losses(model, renderer, prompts, task.labels, at_once)
        if not np.isfinite(losses).all():
            metric = selecting_metric(task.metric, task.labels)
            return Validation(metric, {metric: None}, float("nan"), [])
        loss = losses[np.arange(len(gold)), [task.labels.index(label) for label in gold]].sum()
        predictions = label_predictions(-losses, task)
    else:
        answers, loss = answer(model, renderer, prompts, gold, max_tokens, at_once)
        predictions = [Prediction(text, None) for text in answers]
    units = len(gold) if task.labels else sum(len(renderer.target(text).ids) for text in gold)
    rows = prediction_rows(examples, predictions)
    scores = score_predictions(task.name, task.metric, task.labels, rows)
    averages = [score for score in scores if score["language"] in ("mean", *NAMED_AVERAGES)]
    named = {f"{score['metric']}/{score['language']}".removesuffix("/mean"): score["value"] for score in averages}
    return Validation(selecting_metric(task.metric, task.labels), named, float(loss) / max(1, units), rows)


def answer(
    model: Any, renderer: Renderer, prompts: Sequence[Prompt], gold: Sequence[str], max_tokens: int, at_once: AtOnce
) -> tuple[list[str], float]:
    """Greedy answers, in order, and Σ cross-entropy of the gold answers. One pass over a prompt serves both."""
    items = [Supervised(prompt + [renderer.target(text)], 1.0) for prompt, text in zip(prompts, gold, strict=True)]
    answers = [""] * len(items)
    total = 0.0
    for batch in padded_batches(items, at_once, max_tokens):
        found, loss = _answer_batch(model, renderer.ends, [items[at] for at in batch], max_tokens)
        for at, ids in zip(batch, found, strict=True):
            answers[at] = renderer.decode(ids)
        total += loss
    return answers, total


def _answer_batch(model: Any, ends: Sequence[int], batch: Sequence[Supervised], max_tokens: int) -> tuple[list[list[int]], float]:
    """Prompts and gold answers pass packed, without padding; then the prompts' part of the cache is laid out for decoding side by side."""
    packed = pack(batch, model.device)
    positions = (packed.labels != IGNORED).nonzero(as_tuple=True)[0]
    # Of no config: its windows would keep the last tokens of all prompts together.
    cache = DynamicCache()
    logits = packed_logits(model, packed, positions - 1, cache)
    loss = cross_entropy(logits, packed.labels[positions], reduction="sum")
    token = _agreed(logits[[0, *accumulate(item.tokens for item in batch[:-1])]].argmax(-1))
    lengths = [len(item.prompt) - item.tokens for item in batch]
    cache, mask = _side_by_side(cache, packed.bounds, lengths)
    position = torch.tensor(lengths, device=model.device)
    answers: list[list[int]] = [[] for _ in batch]
    running = set(range(len(batch)))
    for step in range(max_tokens):
        for row in sorted(running):
            if int(token[row]) in ends:
                running.discard(row)
            else:
                answers[row].append(int(token[row]))
        if not running or step + 1 == max_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
        found = model(input_ids=token[:, None], attention_mask=mask, position_ids=position[:, None], past_key_values=cache, use_cache=True)
        token, position = _agreed(found.logits[:, -1].argmax(-1)), position + 1
    return answers, float(loss)


def _agreed(tokens: torch.Tensor) -> torch.Tensor:
    """The first worker's: GPUs may round differently, and under ZeRO-3 all must go through equally many passes, or one waits for ever."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tokens, 0)
    return tokens


def _side_by_side(packed: DynamicCache, bounds: Sequence[int], lengths: Sequence[int]) -> tuple[DynamicCache, torch.Tensor]:
    """A packed cache, (1, heads, T, d) a layer, as one of B rows padded on the left, (B, heads, longest, d), and its mask (B, longest)."""
    cache, longest = DynamicCache(), max(lengths)
    for number, layer in enumerate(packed.layers):
        rows = []
        for tensor in (layer.keys, layer.values):
            parts = [tensor[0, :, start : start + length] for start, length in zip(bounds, lengths, strict=False)]
            rows.append(torch.stack([pad(part, (0, 0, longest - part.shape[1], 0)) for part in parts]))
        cache.update(*rows, number)
    seen = [[0] * (longest - length) + [1] * length for length in lengths]
    return cache, torch.tensor(seen, device=packed.layers[0].keys.device)


def label_losses(model: Any, renderer: Renderer, prompts: Sequence[Prompt], labels: Sequence[str], at_once: AtOnce) -> np.ndarray:
    """−log P(label | prompt), shape (prompts, labels), as the engine scores labels: see ``predict.one_token_each``."""
    answers = [renderer.answer_ids(label) for label in labels]
    if one_token_each(answers):
        return _next_token_losses(model, prompts, [ids[0] for ids in answers], at_once)
    endings = [renderer.target(label) for label in labels]
    items = [Supervised(prompt + [ending], 1.0) for prompt in prompts for ending in endings]
    sums: list[float] = []
    for batch in micro_batches(items, at_once):
        losses, positions = token_losses(model, pack(batch, model.device))
        at = torch.tensor(list(accumulate(len(item.prompt) for item in batch)), device=model.device)
        sums += torch.zeros(len(batch), device=model.device).index_add(0, torch.bucketize(positions, at, right=True), losses).tolist()
    return np.array(sums).reshape(len(prompts), len(labels))


def _next_token_losses(model: Any, prompts: Sequence[Prompt], tokens: Sequence[int], at_once: AtOnce) -> np.ndarray:
    """−log P(token | prompt), shape (prompts, tokens), from one pass over each prompt."""
    rows: list[list[float]] = []
    for batch in micro_batches([Supervised(prompt, 1.0) for prompt in prompts], at_once):
        packed = pack(batch, model.device)
        logits = packed_logits(model, packed, torch.tensor(packed.bounds[1:], device=model.device) - 1)
        rows += (-torch.log_softmax(logits, dim=-1)[:, list(tokens)]).tolist()
    return np.array(rows).reshape(len(prompts), len(tokens))
