"""What is checked of a checkpoint before it is swapped into a running engine; with engines see test_overfit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiat_ray.engine import check_same_tensors

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
