"""What tuning is measured against: TRL's SFTTrainer, and a bare PyTorch loop. Model, rows, token ids, adapters, optimizer and rates are a trial's.

TRL lies in a folder of its own, so that nothing else ever sees it: ``make`` puts what ``requirements/bench.txt`` pins into ``.venv/bench``.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.turns import Turn
from fiat_ray import cpu
from fiat_ray.config import Lora
from fiat_ray.render import IGNORED, Piece, Prompt
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune.adapter import add_lora, lora_config
from fiat_ray.tune.batches import Supervised, common_start, micro_batches, pack
from fiat_ray.tune.layers import make_fast
from fiat_ray.tune.loss import SupervisedLoss
from fiat_ray.tune.memory import AtOnce
from fiat_ray.tune.tunable import precision, rate_share

CLIP = 1.0
"""Largest norm of a gradient, as a trial has it."""

PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
_ON_ANY: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no checkpointing": PLAIN,
    "no checkpointing, 1 row at once": {**PLAIN, "at_once": 1},
    "no checkpointing, grouped by length, 2 at once": {**PLAIN, "at_once": 2, "train_sampling_strategy": "group_by_length"},
    "no checkpointing, padding-free": {**PLAIN, "padding_free": True},
    "no checkpointing, packing": {**PLAIN, "at_once": 1, "packing": True, "max_length": 1024},
    "no checkpointing, eager attention": {**PLAIN, "attention": "eager"},
}
_ON_GPU: dict[str, dict[str, Any]] = {
    "no checkpointing, Liger": {**PLAIN, "use_liger_kernel": True},
    "no checkpointing, Liger, grouped by length": {**PLAIN, "use_liger_kernel": True, "train_sampling_strategy": "group_by_length"},
    "no checkpointing, Liger, padding-free": {**PLAIN, "use_liger_kernel": True, "padding_free": True},
    "no checkpointing, Liger, half at once": {**PLAIN, "use_liger_kernel": True, "at_once": 32},
    "no checkpointing, compiled": {**PLAIN, "torch_compile": True},
    "no checkpointing, padding-free, flash attention": {**PLAIN, "padding_free": True, "attention": "flash_attention_2"},
}
VARIANTS: dict[str, dict[str, Any]] = {**_ON_ANY, **(_ON_GPU if torch.cuda.is_available() else {})}
"""Settings of TRL that are tried; ``at_once``: rows that go through the model together, default all of a step."""

LIKELY_BEST = "no checkpointing, padding-free, flash attention" if torch.cuda.is_available() else "no checkpointing, 1 row at once"
"""Of them, where there is no time to try."""


def reorders(variant: str) -> bool:
    """Whether TRL's steps hold other rows than the sequence's: then all of them together are the same."""
    return bool({"packing", "train_sampling_strategy"} & VARIANTS[variant].keys())


@dataclass(frozen=True)
class Work:
    """A tuning, as every system gets it."""

    model: str
    """Folder."""
    lora: Lora | None
    """None: all parameters are tuned."""
    learning_rate: float
    seed: int
    batch: int
    """Rows in one step."""
    rows: list[dict[str, list[int]]]
    """``input_ids`` and ``labels`` of each row, in the order in which steps read them."""
    validated: list[dict[str, list[int]]] = field(default_factory=list)
    """The same of the rows that TRL takes the loss of, before the first step and after the last; none: it takes none."""

    @property
    def steps(self) -> int:
        return -(-len(self.rows) // self.batch)

    def step(self, number: int) -> list[Supervised]:
        """Its rows; the loss is the mean over its supervised tokens."""
        return _supervised(self.rows[number * self.batch : (number + 1) * self.batch])

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Work:
        values = json.loads(path.read_text())
        return cls(**{**values, "lora": values["lora"] and Lora(**values["lora"])})


class Mark(NamedTuple):
    """What is known when the first step begins, and at the end of each."""

    clock: float
    """Seconds, of which those that others took in their turns are none."""
    tokens: int
    """Of this step and all before, prompts and targets; padding is none."""
    supervised: int
    """The same, of those with a loss."""
    loss: float
    """Mean over the step's supervised tokens."""


def environment(trl: Path | None = None) -> dict[str, str]:
    """Of a process; ``trl``: the folder with TRL, where it needs that."""
    paths = [str(path) for path in (trl, os.environ.get("PYTHONPATH")) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRANSFORMERS_VERBOSITY": "error"}


def bare(work: Work, at_once: int) -> list[Mark]:
    """A loop around the model, with a trial's packing, layers and loss and nothing else. ``at_once``: most tokens that go through it together."""
    cpu.keep_memory()
    folder, device = Path(work.model), _device()
    model = checkpoints.load(folder, precision(folder, work.lora is not None, workers=1))
    if work.lora:
        model = add_lora(model, work.lora, work.seed)
    make_fast(model)
    loss_of = SupervisedLoss(model.to(device).train())
    tuned = [p for p in model.parameters() if p.requires_grad]
    masters = [p.detach().float() for p in tuned]  # the same memory where parameters are float32
    optimizer = torch.optim.AdamW(masters, lr=work.learning_rate, weight_decay=0.0, fused=True)
    turn, marks = Turn(), list[Mark]()
    for step in range(work.steps):
        turn.begin()
        marks = marks or [Mark(turn.clock(), 0, 0, 0.0)]
        items = work.step(step)
        total = torch.zeros((), device=device)
        shared = common_start(items)
        for batch in micro_batches(items, AtOnce(at_once, at_once), shared):
            loss = loss_of(pack(batch, device, shared))
            loss.backward()
            total += loss.detach()
        for master, parameter in zip(masters, tuned, strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.param_groups[0]["lr"] = work.learning_rate * rate_share(step, work.steps)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, tuned, strict=True):
                if parameter.dtype != master.dtype:
                    parameter.copy_(master)
        tokens, supervised = sum(len(item.prompt) for item in items), sum(item.tokens for item in items)
        loss_now = float(total)  # waits for a GPU
        marks.append(Mark(turn.clock(), marks[-1].tokens + tokens, marks[-1].supervised + supervised, loss_now))
    turn.end()
    return marks


def _supervised(rows: Sequence[dict[str, list[int]]]) -> list[Supervised]:
    starts = [row["labels"].count(IGNORED) for row in rows]
    pieces = [
        (Piece("input", "", tuple(row["input_ids"][:at])), Piece("target", "", tuple(row["input_ids"][at:])))
        for row, at in zip(rows, starts, strict=True)
    ]
    weight = 1 / sum(len(target.ids) for _, target in pieces)
    return [Supervised(Prompt(piece), weight) for piece in pieces]


def trl(work: Work, variant: str, save_to: Path | None = None) -> list[Mark]:
    """``SFTTrainer`` on the same token ids and labels. ``save_to``: where the whole tuned checkpoint goes, a tokenizer beside it."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    _device()
    turn = Turn()
    settings = dict(VARIANTS[variant])
    at_once, attention = settings.pop("at_once", work.batch), settings.pop("attention", "sdpa")
    # Rows, or packs of them, before an update.
    at_a_step = sum(len(row["input_ids"]) for row in work.rows) / work.steps / settings["max_length"] if "packing" in settings else work.batch
    marks: list[Mark] = []

    class Watched(SFTTrainer):
        tokens = supervised = 0
        loss = 0.0

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: max(0.0, rate_share(step, work.steps)))
            return self.lr_scheduler

        def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
            self.tokens += int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()
            self.supervised += int((inputs["labels"] != IGNORED).sum())
            loss = super().compute_loss(model, inputs, *arguments, **options)
            self.loss += loss.detach()
            return loss

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn.begin()
            if not marks:
                marks.append(Mark(turn.clock(), 0, 0, 0.0))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(Mark(turn.clock(), trainer.tokens, trainer.supervised, float(trainer.loss)))
            trainer.loss = 0.0

    folder = Path(work.model)
    dtype, tokenizer = precision(folder, work.lora is not None, workers=1), AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as output:
        trainer = Watched(
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention),
            SFTConfig(
                output,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=math.ceil(at_a_step / at_once),
                num_train_epochs=1,
                learning_rate=work.learning_rate,
                weight_decay=0.0,
                max_grad_norm=CLIP,
                seed=work.seed,
                bf16=dtype == torch.bfloat16,
                use_cpu=not torch.cuda.is_available(),
                **{"train_sampling_strategy": "sequential", "max_length": None, **settings},
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                eval_on_start=bool(work.validated),
                eval_strategy="epoch" if work.validated else "no",
            ),
            train_dataset=Dataset.from_list(work.rows),
            eval_dataset=Dataset.from_list(work.validated) if work.validated else None,
            processing_class=tokenizer,
            peft_config=lora_config(work.lora) if work.lora else None,
            callbacks=[Watch()],
        )
        trainer.train()
        turn.end()
    if save_to:
        model = trainer.model.merge_and_unload() if work.lora else trainer.model
        model.to(checkpoints.dtype_of(folder)).save_pretrained(save_to)
        tokenizer.save_pretrained(save_to)
    return marks


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(os.cpu_count() or 1)
    return torch.device("cpu")
