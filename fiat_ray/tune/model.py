"""Checkpoints and adapters on disk: load θ_τ, save what was tuned, merge (θ'_τ ← θ_τ ⊕ θ_τ^PEFT)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fiat_ray.models import stored_dtypes
from fiat_ray.run_folder import ADAPTER, CHECKPOINT
from fiat_ray.tune import attention
from fiat_ray.tune.rounding import round_, rounded


def dtype_of(folder: Path) -> torch.dtype:
    """The precision a checkpoint is stored in: what its config says, else what its weights are."""
    from transformers import AutoConfig

    if dtype := AutoConfig.from_pretrained(folder).dtype:
        return dtype
    stored = stored_dtypes(folder)
    return next((dtype for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)) if name in stored), torch.float32)


def in_float32(folder: Path) -> bool:
    """Whether a checkpoint is tuned, validated and tested in float32 on any hardware: it is stored so, and bfloat16 would lose what tuning adds."""
    return dtype_of(folder) == torch.float32


def load(folder: Path, dtype: torch.dtype | str = "auto") -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    attention.register()
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention.NAME)


def save(model: Any, state: dict[str, torch.Tensor], peft: bool, dtype: torch.dtype, folder: Path) -> None:
    """Write an adapter, in the precision it was tuned in, or a full checkpoint in ``dtype``. ``state``: the tuned parameters by name."""
    if peft:
        for config in model.peft_config.values():
            if isinstance(config.target_modules, set):  # whose order differs from process to process
                config.target_modules = sorted(config.target_modules)
    else:
        state = {name: rounded(tensor, dtype) for name, tensor in state.items()}
        model.config.dtype = dtype
    model.save_pretrained(folder, state_dict=state)
    if peft:
        read_adapter(folder)


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors by name. Raises ``ValueError`` where there are none, which ZeRO-3 can leave behind, or values that are not finite."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) if path.is_file() else {}
    if not tensors or any(t.numel() == 0 for t in tensors.values()):
        raise ValueError(f"{folder}: the adapter holds no weights")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise ValueError(f"{folder}: the adapter holds values that are not finite")
    return tensors


def merge(base: Path, trial: Path, folder: Path) -> Path:
    """θ'_τ ← θ_τ ⊕ θ_τ^PEFT: the folder with a whole checkpoint, which is ``folder`` where a trial has an adapter."""
    if (trial / CHECKPOINT).is_dir():
        return trial / CHECKPOINT
    model = load(base)
    merge_into(model, model, trial / ADAPTER, model.dtype)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def merge_into(model: Any, base: Any, adapter: Path, dtype: torch.dtype) -> set[str]:
    """θ'_τ ← θ_τ ⊕ θ_τ^PEFT in memory: the parameters of ``model`` that the adapter changes (perhaps others too) become the base's, with the
    adapter added in float32 and rounded to ``dtype``. Returns their names. ``base``: θ_τ, which stays as it is unless it is ``model``."""
    tensors = read_adapter(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    if config["use_dora"] or not all(isinstance(base.get_submodule(name), nn.Linear) for name in names):
        return _merge_by_peft(model, base, adapter, dtype)
    # W + scale · B A: PEFT's own merging, which makes an adapter's layers first, takes five times as long.
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    for name in names:
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
        weight, target = base.get_submodule(name).weight, model.get_submodule(name).weight
        # Each pass over memory counts: where nothing else is needed, sums and rounding leave everything in its place.
        exact = target if target.dtype == torch.float32 else torch.empty_like(target, dtype=torch.float32)
        round_(torch.addmm(weight.float(), b, a, alpha=scale, out=exact), dtype)
        target.copy_(exact)
    return {f"{name}.weight" for name in names}


def _merge_by_peft(model: Any, base: Any, adapter: Path, dtype: torch.dtype) -> set[str]:
    from peft import PeftModel

    whole: Any = copy.deepcopy(base).float()
    # On the meta device first, PEFT draws no numbers that the adapter's own replace.
    whole = PeftModel.from_pretrained(whole, adapter, low_cpu_mem_usage=True).merge_and_unload()  # type: ignore[operator]
    parameters = dict(whole.named_parameters())
    for name, parameter in parameters.items():
        model.get_parameter(name).copy_(rounded(parameter, dtype))
    return set(parameters)
