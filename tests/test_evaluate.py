"""An engine that stands still while it evaluates, and the order in which results are written; with real engines see test_overfit."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_model
import torch
from run_directory import write_run

from fiat_ray import artifact, cpu, engine
from fiat_ray.evaluate import Evaluator, engine_options, stalled
from fiat_ray.predict import Usage
from fiat_ray.recipe import RECIPES
from fiat_ray.run_folder import RunFolder
from fiat_ray.tune.tunable import precision

PROGRAM = """
import sys, time
from fiat_ray.evaluate import Evaluator
from fiat_ray.run_folder import RunFolder

class Standing(Evaluator):
    def __init__(self, run):  # to stand still it needs no engine
        self._run = RunFolder(run)
        self._watch(1.0)
        self._watchdog.tell(busy=False)

    def _infer(self, *_):
        time.sleep(15)

evaluator = Standing(sys.argv[1])
time.sleep(2)  # without work it is left alone
print("idle", flush=True)
evaluator.infer(None, None, [])
"""


def test_an_engine_that_stands_still_while_it_evaluates_is_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "idle\n"), done.stderr
    assert stalled(RunFolder(tmp_path)).read_text() == "it made no progress for 1 seconds"


def test_scores_which_say_that_a_trial_is_done_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(write_run(tmp_path / "run", methods=["no_cot"]))
    [folder] = (run.path / "trials").iterdir()
    predictions = artifact.read_rows(folder / "predictions.parquet")

    # The task's own files, and rows, are of no use without an engine.
    monkeypatch.setattr(RunFolder, "load_task", lambda *_: SimpleNamespace(metric="f1", labels=()))
    monkeypatch.setattr(RunFolder, "examples", lambda *_, **__: [])

    class Answering(Evaluator):
        def __init__(self) -> None:
            self._run, self._gpus, self.usage = run, 0, Usage()

        def infer(self, *_: Any) -> list[dict[str, Any]]:
            return predictions

    written: list[str] = []

    def write(through: Callable[..., None], path: Path, *arguments: Any) -> None:
        through(path, *arguments)
        written.append(path.name)

    for name in ("write_rows", "write_json"):
        monkeypatch.setattr(artifact, name, partial(write, getattr(artifact, name)))
    scores = Answering().evaluate(SimpleNamespace(name=folder.name, task="rivers", recipe=RECIPES["no_cot"]))  # type: ignore[arg-type]
    assert written == ["predictions.parquet", "evaluation.json", "scores.json"]
    assert scores == artifact.read_json(folder / "scores.json") and len(scores) > 4


def test_what_is_tuned_in_float32_is_tested_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On hardware with bfloat16 arithmetic, where vLLM would round a checkpoint in float32."""
    monkeypatch.setattr(cpu, "has", lambda *_: True)
    single, half = (tiny_model.write(tmp_path / dtype, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert [precision(folder, peft=True, workers=1) for folder in (single, half)] == [torch.float32, torch.bfloat16]
    assert [engine.arguments(folder, engine_options(folder, 512, 1))["dtype"] for folder in (single, half)] == ["float32", "auto"]
