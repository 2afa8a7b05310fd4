"""What a plan takes: its tokens as seconds, GPU hours and money. Speeds of a CPU were measured; those of a GPU are stated in the config.

Reading a prompt and tuning are bound by arithmetic, so one number a GPU, the TFLOP/s it reaches (``where.throughput.tflops``), does for every model:
a token takes ``FLOP`` floating-point operations for each active parameter. Generating is bound by memory, and by how many rows an engine has at once,
so its speed is a number of its own (``where.throughput.decode``). A sample (``sample.py``) measures both on this machine.

What this leaves out is smaller than what nobody knows about those two: attention, 2 to 20 % of a pass at these lengths, and against it the
embeddings, counted but looked up, a fifth to a quarter of these models' active parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fiat_ray.config import Config
from fiat_ray.where import Where

Work = Literal["read", "write", "lora", "full"]
Speed = Callable[[Work, int], float]
"""(what is done, active parameters) → tokens a second of one engine or tuning worker."""

FLOP: dict[Work, int] = {"read": 2, "lora": 4, "full": 6}
"""A token and active parameter. Forward takes 2, backward 2 for the gradient of what goes through a weight, and 2 for that of a weight that is tuned:
LoRA spares the last for all but its few own."""

MEASURED_ON = "2 CPU cores, SmolLM2-135M"
MEASURED_PARAMETERS = 134_515_008
MEASURED: dict[Work, float] = {"read": 1000.0, "write": 600.0, "lora": 390.0, "full": 330.0}
"""Tokens a second there. Other models are taken to be slower by their active parameters."""
START = {"engine": 25.0, "tuning": 15.0}
"""Seconds until an engine answers, and until a tuning worker takes its first step, measured there too."""

STARTS = f"{START['engine']:.0f} s for an engine's start and {START['tuning']:.0f} s for tuning's, measured on CPUs"
UNSTATED = "the speed of your GPU is not known; state it: where.throughput.tflops=… where.throughput.decode=… (docs/costs.md)"


def estimate(config: Config, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of each part still to do, one after the other on one engine or worker; GPU hours and cost (None without GPUs, a known throughput or
    a price). Beside them, without starts and whether done or not: ``prompts``, task → seconds of ``all`` and of the ``missing``; ``trials``, for each
    of the plan's the seconds of ``tuning`` and ``evaluation`` of one seed.

    Several GPUs share the work out: the same GPU hours in less time, but for what stands idle meanwhile, which is not in here.
    """
    where = config.where
    gpus = gpus_of(where)
    speed, note = _speed(where, gpus, planned)
    if speed is None:
        return {"seconds": None, "parts": {}, "gpu_hours": None, "cost": None, "note": note, "gpus": gpus, "prompts": {}, "trials": []}
    prompts = _prompts(planned, speed)
    trials = [_trial(trial, planned["models"][trial["model"]]["active_parameters"], speed) for trial in planned["trials"]]
    parts = {"reasoning": _reasoning(planned, prompts), "tuning": _tuning(planned, trials), "evaluation": _evaluation(planned, trials)}
    seconds = sum(parts.values())
    hours = seconds / 3600 * gpus if gpus else None
    cost = hours * where.gpu_hour_price if hours is not None and where.gpu_hour_price is not None else None
    found = {"seconds": seconds, "parts": parts, "gpu_hours": hours, "cost": cost, "note": note, "gpus": gpus}
    return {**found, "prompts": prompts, "trials": trials}


def gpus_of(where: Where) -> int:
    """GPUs of one engine; where the config leaves it open, one if their throughput is stated or this machine has any."""
    import torch

    return int(where.throughput is not None or torch.cuda.is_available()) if where.gpus is None else where.gpus


def _speed(where: Where, gpus: int, planned: Mapping[str, Any]) -> tuple[Speed | None, str]:
    """How fast things go, and on what grounds: measured by a sample of this reasoner, or stated, or measured elsewhere."""
    stated, sample = where.throughput, planned.get("sample")
    if sample is not None:
        size = planned["models"]["reasoner"]["active_parameters"]
        return _sampled(sample, size, gpus), (
            f"measured with this reasoner on {sample['rows']} prompts in {sample['seconds']:.0f} s: {sample['read']:,.0f} tokens/s read, "
            f"{sample['write']:,.0f} written by an engine; tunables and tuning by parameters from there; {STARTS}"
        )
    if not gpus:
        note = f"measured with {MEASURED_ON}; scaled by parameters for other models, not scaled for other processors"
        return lambda work, size: MEASURED[work] * MEASURED_PARAMETERS / size, note
    if stated is None:
        return None, UNSTATED
    flops = stated.tflops * 1e12

    def speed(work: Work, size: int) -> float:
        return stated.decode if work == "write" else flops * (gpus if work == "read" else 1) / (FLOP[work] * size)

    return speed, (
        f"stated in the config, not measured: {stated.tflops:g} TFLOP/s a GPU (where.throughput.tflops), {stated.decode:,g} tokens/s generated by an "
        f"engine (where.throughput.decode); {STARTS}"
    )


def _sampled(sample: Mapping[str, Any], size: int, gpus: int) -> Speed:
    """``size``: active parameters of the reasoner that was sampled. On a GPU its reading tells the arithmetic that tuning reaches too; on a CPU it
    tells how much faster than where ``MEASURED`` was measured this machine is.
    """
    flops = sample["read"] * FLOP["read"] * size
    faster = sample["read"] * size / (MEASURED["read"] * MEASURED_PARAMETERS)

    def speed(work: Work, of: int) -> float:
        if work == "write":
            return float(sample["write"] if gpus else sample["write"] * size / of)
        if not gpus:
            return float(faster * MEASURED[work] * MEASURED_PARAMETERS / of)
        return float(flops / (1 if work == "read" else gpus) / (FLOP[work] * of))

    return speed


def _prompts(planned: Mapping[str, Any], speed: Speed) -> dict[str, dict[str, float]]:
    """Every shared beginning is read once: prompts come in the order that a prefix cache likes."""
    size = planned["models"].get("reasoner", {}).get("active_parameters")
    if size is None:  # a script, or a remote endpoint, which has a price and no known speed
        return {}

    def seconds(part: Mapping[str, Any]) -> float:
        out = part["tokens_out_most"] if part["tokens_out_estimate"] is None else part["tokens_out_estimate"]
        return float(part["tokens_in_prefix_once"] / speed("read", size) + out / speed("write", size))

    asked = {name: task["reasoner"] for name, task in planned["tasks"].items() if task["reasoner"]}
    return {name: {which: seconds(of[which]) for which in ("all", "missing")} for name, of in asked.items()}


def _trial(trials: Mapping[str, Any], size: int, speed: Speed) -> dict[str, float]:
    """One seed: steps of all learning rates and the validations between them; and its test rows."""
    # A row is read and answered by the tunable, its prompt and its answer as long as a train row's.
    answer = trials["tokens_mean"] / speed("read", size) + trials["answer_tokens_mean"] / speed("write", size)
    steps = trials["tokens"] / len(trials["seeds"]) / speed("lora" if trials["peft"] else "full", size)
    return {"tuning": steps + trials["rows_validated"] * answer, "evaluation": trials["rows_tested"] * answer}


def _reasoning(planned: Mapping[str, Any], prompts: Mapping[str, Mapping[str, float]]) -> float:
    starts = any(planned["tasks"][name]["reasoner"]["missing"]["prompts"] for name in prompts)
    return sum(seconds["missing"] for seconds in prompts.values()) + START["engine"] * starts


def _tuning(planned: Mapping[str, Any], trials: Sequence[Mapping[str, float]]) -> float:
    seconds = sum((len(of["seeds"]) - of["tuned"]) * one["tuning"] for of, one in zip(planned["trials"], trials, strict=True))
    return seconds + START["tuning"] if seconds else 0.0


def _evaluation(planned: Mapping[str, Any], trials: Sequence[Mapping[str, float]]) -> float:
    """Test rows of all trials, on one engine a checkpoint."""
    to_do = [(of, one) for of, one in zip(planned["trials"], trials, strict=True) if of["evaluated"] < len(of["seeds"])]
    starts = START["engine"] * len({of["model"] for of, _ in to_do})
    return starts + sum((len(of["seeds"]) - of["evaluated"]) * one["evaluation"] for of, one in to_do)
