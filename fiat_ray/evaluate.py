"""Evaluation: one engine a checkpoint, each trial's merged weights swapped into it and checked, then predictions and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fiat_ray import artifact, models
from fiat_ray.augmented import Example
from fiat_ray.campaign import Trial
from fiat_ray.cluster import end_with_raylet
from fiat_ray.engine import Engine, EngineOptions
from fiat_ray.predict import EngineTuned, Usage, predict, shown_rationales
from fiat_ray.reason.watchdog import PATIENCE, Watchdog, why_killed
from fiat_ray.render import Renderer
from fiat_ray.run_folder import RunFolder
from fiat_ray.schema import PREDICTIONS
from fiat_ray.scoring import score_predictions
from fiat_ray.swap import Swaps
from fiat_ray.task import Task
from fiat_ray.tune.model import in_float32


def stalled(run: RunFolder) -> Path:
    """Where a watchdog says why it killed an engine."""
    return run.path / ".evaluation-stalled.tmp"


def why_died(run: RunFolder, error: Exception) -> str:
    """Of an engine that is gone: what its watchdog says, else what Ray does (``error``, see ``cluster.actor_errors``)."""
    return why_killed(stalled(run), str(error))


def engine_options(model: Path, max_length: int, tensor_parallel: int) -> EngineOptions:
    """For trials of a checkpoint. Where they are tuned in float32, vLLM by itself would round them to bfloat16, and to the nearest."""
    return EngineOptions(max_length, "float32" if in_float32(model) else "auto", tensor_parallel)


class Evaluator:
    """A running engine for all trials of one checkpoint."""

    def __init__(self, run: str, model: str, max_length: int, tensor_parallel: int = 1) -> None:
        end_with_raylet()
        self._run, self._model = RunFolder(run), models.find(model)
        self._watch(PATIENCE)
        self._gpus = tensor_parallel if torch.cuda.is_available() else 0
        self._renderers: dict[bool, Renderer] = {}
        self.usage = Usage()
        """Of the last predictions."""
        self._swapped = ""
        """The trial whose weights the engine has."""
        self.engine = Engine(self._model, engine_options(self._model, max_length, tensor_parallel))
        self._swaps = Swaps(self.engine, self._model)
        self.engine.progress = lambda: self._watchdog.tell(busy=True)
        self._watchdog.tell(busy=False)

    def evaluate(self, trial: Trial) -> list[dict[str, Any]]:
        """Swap, predict, score one tuned trial; writes ``predictions.parquet``, ``evaluation.json`` and, last, ``scores.json``."""
        folder = self._run.trial(trial.name)
        task = self._run.load_task(trial.task)
        examples = [e for e in self._run.examples(trial.task, with_rationales=trial.recipe.cot == "augmented") if e.split == "test"]
        rows = self.infer(trial, task, examples)
        artifact.write_rows(folder / "predictions.parquet", rows, PREDICTIONS)
        artifact.write_json(folder / "evaluation.json", {**vars(self.usage), "gpus": self._gpus})
        scores = [dict(score) for score in score_predictions(trial.task, task.metric, task.labels, rows)]
        artifact.write_json(folder / "scores.json", scores)
        return scores

    def infer(self, trial: Trial, task: Task, examples: list[Example]) -> list[dict[str, Any]]:
        """Predictions of a tuned trial for rows with their rationales. Asked again about the same trial, it has its weights already."""
        self._watchdog.tell(busy=True)
        try:
            return self._infer(trial, task, examples)
        finally:
            self._watchdog.tell(busy=False)

    def close(self) -> None:
        self.engine.close()

    def _watch(self, patience: float) -> None:
        """Without it, an engine that stands still would hold up the campaign for ever."""
        self._watchdog = Watchdog(patience, stalled(self._run))

    def _infer(self, trial: Trial, task: Task, examples: list[Example]) -> list[dict[str, Any]]:
        chat = trial.recipe.instruction_tuned
        if chat not in self._renderers:
            self._renderers[chat] = Renderer(self._model, chat)
        renderer = self._renderers[chat]
        rationales = shown_rationales(task, renderer, trial.recipe, examples, trial.rationale_tokens)
        if trial.name != self._swapped:
            probes = [renderer.tunable_prompt(task, e.input, rationales.get(e.id), trial.recipe).ids for e in examples[:1]]
            self._swapped = ""  # should the swap fail, nobody knows whose weights the engine has
            self._swaps.swap(self._run.trial(trial.name), probes)
            self._swapped = trial.name
        tuned = EngineTuned(self.engine, renderer, task, trial.recipe, trial.answer_tokens)
        self.usage = tuned.usage
        return predict(tuned, examples, rationales, trial.recipe)
