"""The config's ``where`` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Throughput:
    """A GPU's speed as somebody states it, for ``plan`` alone. It differs by GPU and model, so there is no default (docs/costs.md)."""

    tflops: float
    """TFLOP/s that one GPU reaches when it reads prompts or tunes: a part of its data sheet's, often a fifth to two fifths."""
    decode: float
    """Tokens a second that one engine of the reasoner generates, over all rows it has at once. Tunables are taken to be no faster."""


@dataclass(frozen=True)
class Where:
    """Where things run. Never part of what is computed."""

    gpus: int | None = None
    """GPUs of one engine or one tuning worker; default: 1 where the cluster has any, else 0. With 0 they see none, and vLLM's build for
    GPUs can't run."""
    cpus: int | None = None
    """CPUs of the same; default: 1 beside a GPU, else all of a machine."""
    replicas: int = 1
    """Reasoner engines side by side."""
    workers: int = 1
    """Workers of one tuning, data-parallel."""
    tunings_per_gpu: int = 1
    """Tunings of one worker side by side on one GPU: small ones leave most of it idle."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed's ZeRO stage."""
    wait: float = 0.0
    """Most minutes to wait for machines of a cluster that adds them on demand, until there is room for all `replicas` and `workers`; needs `gpus`."""
    throughput: Throughput | None = None
    """A GPU's stated speed."""
    gpu_hour_price: float | None = None
    """What a GPU costs an hour, in a currency of your own."""
