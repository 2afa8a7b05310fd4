"""τ in training: a checkpoint with or without LoRA under DeepSpeed. Implements ``fiat.Tunable``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fiat_ray import cpu
from fiat_ray.augmented import Example
from fiat_ray.campaign import Trial
from fiat_ray.recipe import Recipe
from fiat_ray.render import Renderer
from fiat_ray.task import Task
from fiat_ray.tune import memory
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune.adapter import add_lora
from fiat_ray.tune.attention import keys_kept
from fiat_ray.tune.base import Base
from fiat_ray.tune.batches import Supervised, common_start, micro_batches, pack
from fiat_ray.tune.frozen import bytes_laid_out
from fiat_ray.tune.layers import make_fast
from fiat_ray.tune.loss import SupervisedLoss
from fiat_ray.tune.resume import Kept
from fiat_ray.tune.rounding import rounded

DISTILLED_ALPHA = 0.5
"""Distilled CoT: α · predict + (1 − α) · explain (Hsieh et al. 2023)."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises linearly; it then falls linearly to zero."""


AMPERE = (8, 0)
"""The first GPUs that compute in bfloat16, and that flash attention, which a micro-batch in bfloat16 goes through, has code for."""

ENGINE = "engine"
"""What DeepSpeed calls the state that is kept."""

ROUNDED_AT_ONCE = 2**24
"""Weights; it takes eight bytes for each."""

PROGRESS = ("step", "losses", "tokens", "supervised_tokens")


class DeepSpeedTunable:
    def __init__(
        self,
        trial: Trial,
        task: Task,
        renderer: Renderer,
        folder: Path,
        learning_rate: float,
        steps: int,
        zero: int,
        dtype: torch.dtype,
        share: float = 1.0,
        kept: Kept | None = None,
        base: Base | None = None,
    ) -> None:
        """``dtype``: what ``precision`` gave. ``share``: of a GPU's or a machine's memory. ``kept``: where to go on from; ``tunable`` of its progress
        is what ``progress`` gave. ``base``: what other tunings of this process have in common with it."""
        self.trial, self.task, self.renderer = trial, task, renderer
        self._folder, self._learning_rate, self._steps, self._zero, self._share, self._kept = folder, learning_rate, steps, zero, share, kept
        self._dtype, self._base = dtype, base or Base()
        self.step = 0
        """Updates so far."""
        self.losses: list[float] = []
        """Mean loss of each step so far, per supervised token."""
        self.tokens = 0
        """Read so far, prompts and targets."""
        self.supervised_tokens = 0

    def initialize(self) -> None:
        """θ_τ^PEFT ← INIT(θ_τ), in a DeepSpeed engine."""
        import deepspeed

        torch.manual_seed(self.trial.seed)
        if self._borrows:
            self.model = self._base.borrow(self._folder, self._dtype)
        else:
            self._base.drop()
            self.model = checkpoints.load(self._folder, self._dtype)
        if self.trial.recipe.peft:
            self.model = add_lora(self.model, self.trial.lora, self.trial.seed)
        tuned = [p for p in self.model.parameters() if p.requires_grad]
        self.passes = self._passes(sum(p.numel() for p in tuned))
        if self.passes.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        make_fast(self.model, self._zero)
        # torch's AdamW: DeepSpeed's own compiles C++ on first use.
        optimizer = torch.optim.AdamW(tuned, lr=self._learning_rate, weight_decay=0.0, fused=True)
        self.engine, *_ = deepspeed.initialize(model=SupervisedLoss(self.model.train()), optimizer=optimizer, config=self._deepspeed_config())
        self.device = self.engine.device
        if self._kept:
            for name in PROGRESS:
                setattr(self, name, self._kept.progress["tunable"][name])
            # Not strict: of what is frozen nothing was kept.
            self.engine.load_checkpoint(str(self._kept.folder), tag=ENGINE, load_module_strict=False, load_lr_scheduler_states=False)
            self._round()

    def progress(self) -> dict[str, Any]:
        """What ``keep`` does not keep, JSON."""
        return {name: getattr(self, name) for name in PROGRESS}

    def keep(self, folder: Path) -> None:
        """Write parameters and optimizer, each worker its share."""
        self.engine.save_checkpoint(str(folder), tag=ENGINE, save_latest=False, exclude_frozen_parameters=self.trial.recipe.peft)

    def gradient(self, x: Sequence[Example], y_beta: Sequence[str | None]) -> None:
        """g_τ, accumulated over micro-batches. All workers go through equally many: ZeRO's collectives must meet."""
        rank, world = dist.get_rank(), dist.get_world_size()
        items = supervised(self.renderer, self.task, self.trial.recipe, x, y_beta)
        self.tokens += sum(len(item.prompt) for item in items)
        self.supervised_tokens += sum(item.tokens for item in items)
        shared = common_start(items)
        batches = micro_batches(items, self.passes.at_once, shared)
        idle = [Supervised(batches[-1][-1].prompt, 0.0)]
        batches += [idle] * (-len(batches) % world)
        mine = batches[rank::world]
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(mine, 1):
            self.engine.set_gradient_accumulation_boundary(number == len(mine))
            loss = self.engine(pack(batch, self.device, shared))
            with self._among_workers():
                self.engine.backward(loss * world)  # DeepSpeed averages over workers; weights are of the global batch already
            total += loss.detach()
            if number < len(mine):
                self.engine.step()  # counts the micro-batch; parameters move at the boundary only
        if world > 1:
            dist.all_reduce(total)
        self.losses.append(float(total))

    def update(self) -> None:
        """θ_τ^PEFT ← UPDATE(θ_τ^PEFT, g_τ)."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self._learning_rate * rate_share(self.step, self._steps)
        self.engine.step()
        self._round()
        self.step += 1

    def _among_workers(self) -> AbstractContextManager[None]:
        """Gradients are summed over workers in it. In stage 0 DeepSpeed copies them there and back for one worker too: 3 to 5 % of a step."""
        alone = dist.get_world_size() == 1 and self.engine.zero_optimization_stage() == 0
        return self.engine.no_sync() if alone else nullcontext()  # type: ignore[no-any-return]

    @torch.no_grad()
    def _round(self) -> None:
        """Full tuning in bfloat16 by one worker: weights are their float32 masters rounded at random, where DeepSpeed rounds to the nearest.

        A step at 2e-5 moves most weights by less than bfloat16 tells apart: to the nearest, the model would stand still for its first steps.
        """
        if self._dtype != torch.bfloat16 or self.trial.recipe.peft or self._zero == 3 or dist.get_world_size() > 1:
            return
        optimizer = self.engine.optimizer
        for [weights], masters in zip(optimizer.bf16_partitioned_groups, optimizer.fp32_groups_flat_partition, strict=True):
            for part, exact in zip(weights.split(ROUNDED_AT_ONCE), masters.split(ROUNDED_AT_ONCE), strict=True):
                part.copy_(rounded(exact, part.dtype))

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the tuned parameters, on the CPU, whole on every worker."""
        import deepspeed

        state = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter]) if self._zero == 3 else nullcontext():
                    state[name] = parameter.detach().cpu().clone()
        return state

    def close(self) -> None:
        """Give the memory back before the next trial."""
        if hasattr(self, "engine"):
            self.engine.destroy()
            del self.engine
            if self._borrows:
                self._base.give_back(self.model)

    @property
    def _borrows(self) -> bool:
        """Of the base nothing is changed. ZeRO-3 takes it apart; and on a GPU its layers are compiled with the adapter in them."""
        return self.trial.recipe.peft and self._zero != 3 and not torch.cuda.is_available()

    def _passes(self, tuned: int) -> memory.Passes:
        dtype, device = self.model.dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        frozen = sum(p.numel() for p in self.model.parameters()) - tuned
        half = dtype == torch.bfloat16
        state = memory.state_bytes(frozen, tuned, half, self._stage(half), dist.get_world_size())
        state += bytes_laid_out(self.model, self._zero)
        rooms = [int(memory.of_device(device, self._share) * memory.USABLE) - state] * dist.get_world_size()
        dist.all_gather_object(rooms, rooms[0])  # workers take turns at the micro-batches of one split, so all must split alike
        longest = self.trial.max_length
        return memory.passes(self.model.config, dtype, min(rooms), longest, memory.FULL_SPEED[device.type], keys_kept(longest, device))

    def _stage(self, half: bool) -> int:
        """In bfloat16 stage 0 means 1, which keeps the masters: DeepSpeed 0.19 loses part of the gradient in its optimizer for stage 0.

        Stage 2 means 1 where nobody is there to share gradients with.
        """
        if not half or self._zero == 3:
            return self._zero
        return 2 if self._zero == 2 and dist.get_world_size() > 1 else 1

    def _deepspeed_config(self) -> dict[str, Any]:
        half = self.model.dtype == torch.bfloat16
        return {
            "train_micro_batch_size_per_gpu": 1,  # a formality: batches, their weights and their boundaries are ours
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "bf16": {"enabled": half},
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {"stage": self._stage(half)},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        }


def rate_share(step: int, steps: int) -> float:
    """Which part of the learning rate an update has that follows ``step`` others."""
    warm_up = max(1, round(WARM_UP * steps))
    return min(1.0, (step + 1) / warm_up, (steps - step) / max(1, steps - warm_up + 1))


def precision(folder: Path, peft: bool, workers: int) -> torch.dtype:
    """What a checkpoint is tuned in: bfloat16 on a GPU that computes in it, unless it is stored in float32; DeepSpeed keeps float32 masters.

    On a CPU float32; but LoRA in bfloat16 where one worker's processor has AMX, whose products are eight times as fast (measured), and twice the
    tuning; full tuning was not faster.
    """
    fast = torch.cuda.get_device_capability() >= AMPERE if torch.cuda.is_available() else peft and cpu.has("amx_bf16") and workers == 1
    return torch.bfloat16 if fast and not checkpoints.in_float32(folder) else torch.float32


def supervised(renderer: Renderer, task: Task, recipe: Recipe, x: Sequence[Example], y_beta: Sequence[str | None]) -> list[Supervised]:
    """Prompts with targets. Each part's weights make its loss a mean over its own supervised tokens in the whole batch."""
    predict = [renderer.tunable_prompt(task, e.input, r, recipe) + [renderer.target(e.targets[0])] for e, r in zip(x, y_beta, strict=True)]
    if recipe.cot != "distilled":
        return _weighted(predict, 1.0)
    explain = [renderer.explain_prompt(task, e.input, recipe) + [renderer.target(r)] for e, r in zip(x, y_beta, strict=True) if r]
    alpha = DISTILLED_ALPHA if explain else 1.0
    return _weighted(predict, alpha) + _weighted(explain, 1 - alpha)


def _weighted(prompts: Sequence[Any], share: float) -> list[Supervised]:
    tokens = sum(len(prompt.pieces[-1].ids) for prompt in prompts)
    return [Supervised(prompt, share / tokens) for prompt in prompts]
