"""Validation during training, by what will be asked of the model on test: generated answers, or label probabilities."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fiat_ray import metrics
from fiat_ray.augmented import Example
from fiat_ray.recipe import Recipe
from fiat_ray.render import Prompt, Renderer
from fiat_ray.task import Task
from fiat_ray.tune.batches import Supervised, micro_batches, tensors
from fiat_ray.tune.loss import token_losses


@dataclass(frozen=True)
class Validation:
    metric: str
    value: float | None
    """0–100, macro over languages; None where the metric is not defined on these rows."""
    loss: float
    """Mean cross-entropy of a supervised token."""

    def better_than(self, other: Validation | None) -> bool:
        """Higher value; on ties, or without a value, lower loss."""
        return other is None or (_or_less(self.value), -self.loss) > (_or_less(other.value), -other.loss)


def _or_less(value: float | None) -> float:
    return -1.0 if value is None else value


def subset(examples: Sequence[Example], rows: int, seed: int = 0) -> list[Example]:
    """A fixed draw, the same for all trials of a task, as equal over languages (and labels) as it can be: round robin over the strata."""
    strata: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: e.id):
        strata[example.language,].append(example)
    for key in sorted(strata):
        random.Random(f"{seed}{key}").shuffle(strata[key])
    longest = max((len(stratum) for stratum in strata.values()), default=0)
    order = [stratum[at] for at in range(longest) for _, stratum in sorted(strata.items()) if at < len(stratum)]
    return order[:rows]


@torch.no_grad()
def validate(
    model: Any, renderer: Renderer, task: Task, recipe: Recipe, examples: Sequence[Example], rationales: Mapping[str, str], max_tokens: int
) -> Validation:
    model.eval()
    prompts = [renderer.tunable_prompt(task, e.input, rationales.get(e.id), recipe) for e in examples]
    loss = _loss(model, renderer, [p + [renderer.target(e.targets[0])] for p, e in zip(prompts, examples, strict=True)])
    languages: dict[str, list[int]] = defaultdict(list)
    for at, example in enumerate(examples):
        languages[example.language].append(at)
    if task.labels:
        metric, values = "auc_pr", label_probabilities(model, renderer, prompts, task.labels)[:, -1]
        gold = [e.targets[0] for e in examples]
        value = {
            language: metrics.label_scores([gold[i] for i in at], [gold[i] for i in at], [float(values[i]) for i in at], task.labels[-1])["auc_pr"]
            for language, at in languages.items()
        }
    else:
        metric, answers = "f1", generate(model, renderer, prompts, max_tokens)
        value = {
            language: metrics.text_scores([list(examples[i].targets) for i in at], [answers[i] for i in at])["f1"] for language, at in languages.items()
        }
    model.train()
    return Validation(metric, metrics.average(value), loss)


def generate(model: Any, renderer: Renderer, prompts: Sequence[Prompt], max_tokens: int, rows: int = 16) -> list[str]:
    """Greedy answers, in order. Prompts of similar length go together, padded on the left."""
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        ids = [prompts[at].ids for at in chosen]
        width = max(map(len, ids))
        padded = torch.tensor([[renderer.eos] * (width - len(row)) + row for row in ids], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
        output = model.generate(
            input_ids=padded,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=renderer.eos,
            pad_token_id=renderer.eos,
            synced_gpus=False,
        )
        for at, row in zip(chosen, output[:, width:].tolist(), strict=True):
            answers[at] = renderer.decode(row[: row.index(renderer.eos)] if renderer.eos in row else row)
    return answers


def label_probabilities(model: Any, renderer: Renderer, prompts: Sequence[Prompt], labels: Sequence[str]) -> np.ndarray:
    """P(label) = Π P(token | …) over its tokens and EOS, normalised over the label set; shape (prompts, labels)."""
    endings = [renderer.target(label) for label in labels]
    items = [[Supervised(prompt + [ending], 1.0) for ending in endings] for prompt in prompts]
    sums = np.array(_loss_sums(model, renderer, [item for row in items for item in row])).reshape(len(prompts), len(labels))
    weights = np.exp(-(sums - sums.min(axis=1, keepdims=True)))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _loss(model: Any, renderer: Renderer, prompts: Sequence[Prompt]) -> float:
    items = [Supervised(prompt, 1.0) for prompt in prompts]
    return sum(_loss_sums(model, renderer, items)) / max(1, sum(item.tokens for item in items))


def _loss_sums(model: Any, renderer: Renderer, items: Sequence[Supervised]) -> list[float]:
    """Σ cross-entropy of each item's supervised tokens."""
    sums = {id(item): 0.0 for item in items}
    for batch in micro_batches(items, 16384 if model.device.type == "cuda" else 1):
        losses, rows = token_losses(model, tensors(batch, renderer.eos, model.device))
        for loss, row in zip(losses.tolist(), rows.tolist(), strict=True):
            sums[id(batch[row])] += loss
    return [sums[id(item)] for item in items]
