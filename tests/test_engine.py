"""What is checked before weights are swapped into a running engine: the checkpoint, and that no prompt is in work. Swaps themselves: test_overfit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fiat_ray import engine as engines
from fiat_ray.engine import Engine, EngineOptions, _params
from fiat_ray.models import check_same_tensors

Tensors = dict[str, torch.Tensor]
NORM = "model.norm.weight"


def changed(tiny: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    other = Path(shutil.copytree(tiny, folder / "other"))
    save_file(change(load_file(tiny / "model.safetensors")), other / "model.safetensors", metadata={"format": "pt"})
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != NORM},
        lambda tensors: tensors | {"another": tensors[NORM].clone()},
        lambda tensors: tensors | {NORM: tensors[NORM][:-1].clone()},
        lambda tensors: tensors | {NORM: tensors[NORM].half()},
    ],
    ids=["lacking", "beside", "shape", "dtype"],
)
def test_tensors_that_are_not_those_of_the_engines_model_are_refused(tiny: Path, tmp_path: Path, change: Callable[[Tensors], Tensors]) -> None:
    with pytest.raises(ValueError, match="1 tensors differ from "):
        check_same_tensors(tiny, changed(tiny, tmp_path, change))


def test_other_values_and_a_tied_head_under_its_own_name_are_taken(tiny: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        return {name: tensor + 1 for name, tensor in tensors.items()} | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    check_same_tensors(tiny, changed(tiny, tmp_path, change))


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    running = Engine(tiny, EngineOptions(max_length=512))
    yield running
    running.close()


@pytest.mark.vllm
@pytest.mark.parametrize(
    "ask",
    [
        lambda engine, prompts: engine.generate(prompts, 48),
        lambda engine, prompts: engine.label_logprobs(prompts, [[7], [9]], 3),
        lambda engine, prompts: engine.label_logprobs(prompts, [[7, 8], [9]], 3),
    ],
    ids=["text", "labels of one token", "labels"],
)
def test_a_swap_after_a_batch_that_failed_answers_by_the_new_weights_alone(
    engine: Engine, tiny: Path, tiny_pretrained: Path, ask: Callable[[Engine, list[list[int]]], object]
) -> None:
    """One prompt is refused while others are in work, whose keys and values must not be read under the next weights."""
    prompts = [[5 + number, *range(6, 400)] for number in range(24)]  # a few to a step, so that the first is done before the last is begun
    asked = prompts[:4], [[7, 8, 9]] * 4
    engine.swap(tiny_pretrained)
    expected = engine.first_logprobs(*asked)
    engine.swap(tiny)
    assert not np.allclose(engine.first_logprobs(*asked), expected, atol=0.1)
    engine.forget_prefixes()
    with pytest.raises(Exception, match="context length is 512"):
        ask(engine, [prompts[0], [5] * 600, *prompts[1:]])
    engine.swap(tiny_pretrained)
    assert np.allclose(engine.first_logprobs(*asked), expected, atol=1e-3)


@pytest.mark.vllm
def test_weights_are_not_swapped_under_a_prompt_in_work(engine: Engine, tiny: Path) -> None:
    running = engine.submit(list(range(5, 40)), _params(max_tokens=400, ignore_eos=True))
    engine.generate([[5]], 1)  # in a step that the other took part in
    for refused in (engine.forget_prefixes, lambda: engine.swap(tiny)):
        with pytest.raises(RuntimeError, match="can't be emptied while prompts are in work"):
            refused()
    assert len(running.result().outputs[0].token_ids) == 400
    engine.swap(tiny)


def test_prompts_that_an_engine_had_not_admitted_when_it_stopped_are_not_waited_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = []

    class Stopping:
        """Stands where vLLM does, which does not stop when it is asked to."""

        admitted = False

        def has_unfinished_requests(self) -> bool:
            return self.admitted

        def add_request(self, *_: object) -> None:
            self.admitted = True

        def step(self) -> None:
            late.append(running.submit([5], None))  # type: ignore[arg-type]
            raise MemoryError("no memory")

    monkeypatch.setattr(engines, "_create", lambda *_: Stopping())
    running = Engine(tiny, EngineOptions(max_length=512))
    admitted = running.submit([5], None)  # type: ignore[arg-type]
    for futures in ([admitted], late):
        with pytest.raises(RuntimeError, match="the engine stopped: no memory"):
            running._results(futures)
