"""A tuned trial as files that need nothing of this project: a merged model for ``vllm serve`` and transformers, its adapter for PEFT,
a card, and the requests to send to servers of both models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fiat_ray import artifact, model_card, models, serving
from fiat_ray import config as configs
from fiat_ray.errors import UserError
from fiat_ray.infer import tuned_trial
from fiat_ray.render import Renderer
from fiat_ray.run_folder import ADAPTER, make, new_place
from fiat_ray.runs import Run

MODEL, CARD, REQUESTS = "model", "README.md", "requests.json"

SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")
"""What checkpoints ask servers for in ``generation_config.json``. Trials were scored without."""


def export(run: Run, folder: str | Path, trial: str | None = None) -> Path:
    """Write ``model/``, ``adapter/`` (of LoRA), ``README.md`` and ``requests.json``; returns the folder. ``trial``: see ``Run.best_trial``.

    Raises ``UserError`` where there is no such trial, its base model has changed, or ``folder`` holds something already.
    """
    place = new_place(folder, "an export")
    record = run.best_trial(trial)
    config = configs.load(run.path)
    spec = tuned_trial(run, config, record)
    base = models.find(spec.model)
    renderer = Renderer(base, chat=spec.recipe.instruction_tuned)
    # A trial that an older version tuned has no record of its base, whose files are the same by their hash.
    name = models.PublicName(**record["base"]) if "base" in record else models.public_name(models.pinned(spec.model))
    card = model_card.write(run, config, record, spec, name, renderer)
    task = run.folder.load_task(spec.task)
    requests: dict[str, Any] = {"tunable": serving.tunable_request(task, spec, renderer)}
    if spec.recipe.cot == "augmented":
        requests["reasoner"] = serving.reasoner_requests(run.folder, config, task)
    trial_folder = run.folder.trial(record["name"])
    make(place.parent, "an export")

    def fill(temporary: Path) -> None:
        (temporary / CARD).write_text(card, "utf-8", errors="replace")
        artifact.write_json(temporary / REQUESTS, requests)
        try:
            _write_model(trial_folder, base, name, renderer.ends, temporary)
        except (ValueError, FileNotFoundError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{trial_folder}: can't be exported ({said}); if it is damaged, delete it and run again") from None

    artifact.write_folder(place, fill)
    return place


def _write_model(trial: Path, base: Path, base_name: models.PublicName, ends: list[int], folder: Path) -> None:
    from fiat_ray.tune import model as checkpoints

    model = folder / MODEL
    merged = checkpoints.merge(base, trial, model)
    if merged != model:
        shutil.copytree(merged, model)
    for path in [path for pattern in models.TOKENIZER_FILES for path in base.glob(pattern)]:
        shutil.copyfile(path, model / path.name)
    _end_and_decode_as_scored(model, ends)
    if (trial / ADAPTER).is_dir():
        shutil.copytree(trial / ADAPTER, folder / ADAPTER, ignore=shutil.ignore_patterns(CARD))
        config = folder / ADAPTER / "adapter_config.json"
        values = json.loads(config.read_text("utf-8"))
        values |= {"base_model_name_or_path": base_name.name, "revision": base_name.commit or None}
        config.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def _end_and_decode_as_scored(model: Path, ends: list[int]) -> None:
    """Servers go by ``generation_config.json``: answers end where they did when they were scored, and no setting for sampling is suggested."""
    path = model / "generation_config.json"
    values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    values = {key: value for key, value in values.items() if key not in SAMPLING}
    path.write_text(json.dumps(values | {"eos_token_id": ends}, indent=1, sort_keys=True) + "\n")
