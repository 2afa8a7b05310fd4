"""Evaluation: one engine a checkpoint, each trial's merged weights swapped into it and checked, then predictions and scores."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from fiat_ray import artifact, models
from fiat_ray.augmented import Example
from fiat_ray.campaign import Trial
from fiat_ray.engine import Engine, EngineOptions
from fiat_ray.predict import EngineTuned, predict, shown_rationales
from fiat_ray.render import Renderer
from fiat_ray.run_folder import RunFolder
from fiat_ray.schema import PREDICTIONS
from fiat_ray.scoring import score_predictions
from fiat_ray.task import Task
from fiat_ray.tune import model as checkpoints

SWAP_TOLERANCE = 0.5
"""Largest difference, in nats, between the engine's and transformers' log-probabilities of the likeliest first tokens after a swap. Kernels of
bfloat16 differ by up to about 0.2; other weights by far more."""


class Evaluator:
    """A running engine for all trials of one checkpoint."""

    def __init__(self, run: str, model: str, max_length: int, tensor_parallel: int = 1) -> None:
        self._run, self._model = RunFolder(run), models.find(model)
        self._engine = Engine(self._model, EngineOptions(max_length=max_length, tensor_parallel=tensor_parallel))

    def evaluate(self, trial: Trial) -> list[dict[str, Any]]:
        """Swap, predict, score one tuned trial; writes ``predictions.parquet`` and, last, ``scores.json``."""
        folder = self._run.trial(trial.name)
        task = self._run.load_task(trial.task)
        examples = [e for e in self._run.examples(trial.task, with_rationales=trial.recipe.cot == "augmented") if e.split == "test"]
        rows = self.infer(trial, task, examples)
        artifact.write_rows(folder / "predictions.parquet", rows, PREDICTIONS)
        scores = [dict(score) for score in score_predictions(trial.task, task.labels, rows)]
        artifact.write_json(folder / "scores.json", scores)
        return scores

    def infer(self, trial: Trial, task: Task, examples: list[Example]) -> list[dict[str, Any]]:
        """Predictions of a tuned trial for rows with their rationales."""
        renderer = Renderer(self._model, chat=trial.recipe.instruction_tuned)
        rationales = shown_rationales(task, renderer, trial.recipe, examples, trial.rationale_tokens)
        first = renderer.tunable_prompt(task, examples[0].input, rationales.get(examples[0].id), trial.recipe)
        self._swap(self._run.trial(trial.name), first.ids)
        return predict(EngineTuned(self._engine, renderer, task, trial.recipe, trial.answer_tokens), examples, rationales, trial.recipe)

    def close(self) -> None:
        self._engine.close()

    def _swap(self, trial: Path, prompt: list[int]) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            merged = checkpoints.merge(self._model, trial, Path(temporary))
            self._engine.swap(merged)
            check_swap(self._engine, merged, prompt)


def check_swap(engine: Engine, merged: Path, prompt: list[int]) -> None:
    """Raise ``RuntimeError`` unless the engine gives the merged model's own log-probabilities for the first token after ``prompt``."""
    with torch.no_grad():
        logits = checkpoints.load(merged)(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].float()
    own = torch.log_softmax(logits, dim=-1)
    likeliest = own.topk(8).indices.tolist()
    found = engine.first_logprobs(prompt, likeliest)
    largest = max(abs(float(own[token]) - value) for token, value in zip(likeliest, found, strict=True))
    if not largest <= SWAP_TOLERANCE:
        raise RuntimeError(f"weight swap did not take: log-probabilities differ by {largest:.2f} nats from the tuned model's own ({merged})")
