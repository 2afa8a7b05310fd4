"""The config's ``reasoner`` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from fiat_ray.errors import UserError


@dataclass(frozen=True)
class ReasonerConfig:
    model: str = "embedded"
    """A name on the hub, a folder, or ``embedded``; with ``kind: openai`` the name that the endpoint knows."""
    kind: Literal["vllm", "openai", "scripted"] = "vllm"
    """A model in this cluster, one behind an OpenAI-compatible endpoint, or a Python script."""
    max_tokens: int = 256
    """Bound on a rationale, in tokens."""
    max_length: int | None = None
    """Prompt and rationale together, in tokens; default: what the model was made for, at most 8,192."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """``auto``: the checkpoint's, but bfloat16 for float32; float32 on a CPU without bfloat16 arithmetic."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a rationale, besides EOS."""
    script: str | None = None
    """A Python file with ``reason(row) -> str``, for ``kind: scripted``."""
    base_url: str | None = None
    """For ``kind: openai``: the endpoint, such as http://host:8000/v1. Its key is OPENAI_API_KEY in the environment, and stands nowhere else."""
    tokenizer: str = "embedded"
    """A model in this cluster whose tokenizer estimates a remote model's tokens: best a small one of the same family."""
    concurrency: int = 32
    """Requests that an endpoint has at once. No part of what is computed."""
    price_in: float | None = None
    """What an endpoint charges for a million prompt tokens, in a currency of your own; for the costs that are shown."""
    price_out: float | None = None
    """The same for a million generated tokens."""

    @property
    def is_remote(self) -> bool:
        return self.kind == "openai"

    @property
    def has_price(self) -> bool:
        return self.is_remote and self.price_in is not None

    def check(self) -> None:
        """Raises ``UserError`` for settings that lack something, or hold a secret."""
        if self.kind == "scripted" and not self.script:
            raise UserError("reasoner.script: names the Python file of a scripted reasoner")
        if "" in self.stop:
            raise UserError("reasoner.stop: an empty string would end every rationale before it starts")
        if (self.price_in is None) != (self.price_out is None):
            raise UserError("reasoner: price_in and price_out go together")
        if self.is_remote:
            self._check_endpoint()

    def _check_endpoint(self) -> None:
        try:
            where = urlsplit(self.base_url or "")
            secret, fit = where.username or where.password or where.query, where.scheme in ("http", "https") and where.hostname
        except ValueError:
            secret, fit = None, None
        if secret:  # the message must not repeat it
            raise UserError("reasoner.base_url: holds a user, password or query; secrets stay out of configs, the key is OPENAI_API_KEY's")
        if not fit:
            raise UserError(f"reasoner.base_url: {self.base_url!r} is no endpoint; `kind: openai` needs one such as http://host:8000/v1")
        if self.model in ("", "embedded"):
            raise UserError("reasoner.model: `kind: openai` needs the name that the endpoint knows its model by")

    def charged(self, prompt_tokens: float | None, output_tokens: float | None) -> float | None:
        """What an endpoint charges for so many tokens; None where it has none, where they are not known, or where no prices are stated."""
        if not self.has_price or prompt_tokens is None or output_tokens is None:
            return None
        return ((self.price_in or 0) * prompt_tokens + (self.price_out or 0) * output_tokens) / 1e6
