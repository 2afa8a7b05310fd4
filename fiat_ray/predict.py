"""Predictions: Algorithm 2 with the engine as τ, the answers parsed out of rationales (ICL), and what goes into ``predictions.parquet``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fiat_ray import augmented, fiat
from fiat_ray.augmented import Example
from fiat_ray.metrics import scores_positive
from fiat_ray.recipe import Recipe
from fiat_ray.render import Renderer, rationale_part, shown_rationale
from fiat_ray.task import Task

if TYPE_CHECKING:
    from fiat_ray.engine import Engine


class Prediction(NamedTuple):
    text: str
    score: float | None
    """P(positive label), or of this answer, see ``metrics.scores_positive``; None for free text."""


@dataclass
class Usage:
    """What predictions took. Starting the engine and swapping weights are not in it: they cost the same for one row and for a million."""

    rows: int = 0
    seconds: float = 0.0
    """Wall-clock, rows side by side in the engine."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Generated; none where labels are scored."""


class EngineTuned:
    """θ'_τ in a running engine. Implements ``fiat.Tuned``."""

    def __init__(self, engine: Engine, renderer: Renderer, task: Task, recipe: Recipe, answer_tokens: int) -> None:
        self._engine, self._renderer, self._task, self._recipe, self._answer_tokens = engine, renderer, task, recipe, answer_tokens
        self.usage = Usage()

    def predict(self, x: Sequence[Example], y_beta: Sequence[str | None]) -> list[Prediction]:
        """y = argmax_y P(y | x, ŷ_β; θ'_τ, I_τ): over all texts, or over the label set."""
        prompts = [self._renderer.tunable_prompt(self._task, e.input, r, self._recipe).ids for e, r in zip(x, y_beta, strict=True)]
        start = time.perf_counter()
        answers = self._answers(prompts)
        self.usage.seconds += time.perf_counter() - start
        self.usage.rows += len(prompts)
        self.usage.prompt_tokens += sum(map(len, prompts))
        return answers

    def _answers(self, prompts: Sequence[Sequence[int]]) -> list[Prediction]:
        if not self._task.labels:
            done = self._engine.generate(prompts, self._answer_tokens, self._renderer.ends)
            self.usage.answer_tokens += sum(completion.output_tokens for completion in done)
            return [Prediction(completion.text.strip(), None) for completion in done]
        endings = [self._renderer.answer_ids(label) for label in self._task.labels]
        return label_predictions(self._engine.label_logprobs(prompts, endings, self._renderer.eos), self._task)


def one_token_each(labels: Sequence[Sequence[int]]) -> bool:
    """Whether each label is one distinct token. Its log-probability alone is then P(label); else it is the product over its tokens and EOS."""
    return all(len(label) == 1 for label in labels) and len({label[0] for label in labels}) == len(labels)


def label_predictions(logprobs: np.ndarray, task: Task) -> list[Prediction]:
    """log P(label), shape (rows, labels), positive label last → the label and a probability (see ``Prediction``), normalised over the set.

    Of two labels the positive one is predicted where its probability is above one half.
    """
    weights = np.exp(logprobs - logprobs.max(axis=1, keepdims=True)) if len(logprobs) else logprobs
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    scored = probabilities[:, -1] if scores_positive(task.metric, task.labels) else probabilities.max(axis=1)
    return [Prediction(task.labels[int(row.argmax())], float(score)) for row, score in zip(probabilities, scored, strict=True)]


def shown_rationales(task: Task, renderer: Renderer, recipe: Recipe, examples: Sequence[Example], max_tokens: int) -> dict[str, str]:
    """Row id → what a recipe shows of its rationale; empty without CoT. The same in training and at inference."""
    if recipe.cot == "none":
        return {}
    return {name: shown_rationale(task, renderer, text, recipe, max_tokens) for name, text in augmented.readable(examples).items()}


def cut_rationales(task: Task, recipe: Recipe, examples: Sequence[Example], shown: Mapping[str, str]) -> dict[str, int]:
    """Language → rows whose rationale was too long in the tunable's own tokens. ``shown``: of ``shown_rationales``."""
    whole = augmented.readable(examples)
    return dict(Counter(e.language for e in examples if e.id in shown and shown[e.id] != rationale_part(task, whole[e.id], recipe)))


def predict(tuned: EngineTuned, examples: Sequence[Example], rationales: dict[str, str], recipe: Recipe) -> list[dict[str, Any]]:
    """Rows of ``predictions.parquet`` by Algorithm 2. Distilled CoT needs no rationale at inference."""

    def reason(x: Sequence[Example]) -> list[str | None]:
        return [rationales.get(e.id) if recipe.cot == "augmented" else None for e in x]

    return prediction_rows(examples, fiat.infer(examples, reason, tuned))


def icl(task: Task, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Few-shot ICL: the answer in each rationale. No second pass; nothing parsable is an empty prediction."""
    return prediction_rows(examples, [Prediction(task.answer(e.rationale or ""), None) for e in examples])


def prediction_rows(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [
        {
            "id": example.id,
            "language": example.language,
            "group": example.group,
            "targets": list(example.targets),
            "prediction": prediction.text,
            "score": prediction.score,
            "status": example.status,
        }
        for example, prediction in zip(examples, predictions, strict=True)
    ]
