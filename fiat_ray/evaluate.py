"""Evaluation: one engine a checkpoint, each trial's merged weights swapped into it and checked, then predictions and scores."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
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

SWAP_TOLERANCE = {torch.bfloat16: 0.25, torch.float16: 0.1, torch.float32: 0.02}
"""Largest mean difference, in nats, between the engine's and transformers' log-probabilities of likely first tokens. Rounding makes about 0.1 with
bfloat16; weights before and after tuning differ by one and more."""


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
        probes = [renderer.tunable_prompt(task, e.input, rationales.get(e.id), trial.recipe).ids for e in examples[:4]]
        self._swap(self._run.trial(trial.name), probes)
        return predict(EngineTuned(self._engine, renderer, task, trial.recipe, trial.answer_tokens), examples, rationales, trial.recipe)

    def close(self) -> None:
        self._engine.close()

    def _swap(self, trial: Path, probes: list[list[int]]) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            merged = checkpoints.merge(self._model, trial, Path(temporary))
            self._engine.swap(merged)
            check_swap(self._engine, merged, probes)


def check_swap(engine: Engine, merged: Path, prompts: Sequence[Sequence[int]]) -> None:
    """Raise ``RuntimeError`` unless the engine gives the merged model's own log-probabilities of the first tokens after ``prompts``."""
    model = checkpoints.load(merged).eval()
    differences = []
    for prompt in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([list(prompt)]), logits_to_keep=1).logits[0, -1].float()
        own = torch.log_softmax(logits, dim=-1)
        likeliest = own.topk(8).indices.tolist()
        found = engine.first_logprobs(prompt, likeliest)
        differences += [abs(float(own[token]) - value) for token, value in zip(likeliest, found, strict=True)]
    mean = sum(differences) / len(differences)
    if not mean <= SWAP_TOLERANCE.get(model.dtype, 0.25):
        raise RuntimeError(f"weight swap did not take: log-probabilities differ by {mean:.2f} nats from the tuned model's own ({merged})")
