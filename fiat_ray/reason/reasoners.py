"""Who answers: a model in this cluster behind vLLM, or a script (for tests and controls); a remote one is in ``openai.py``."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol


@dataclass(frozen=True)
class Answer:
    """A reasoner's answer to one request, as the store keeps it (without key and tries)."""

    status: str
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those that the prefix cache held."""
    output_tokens: int = 0
    seconds: float = 0.0
    error: str = ""


def ended(text: str, finish_reason: str) -> str:
    """The status of a row that was answered."""
    return "length" if finish_reason == "length" else "ok" if text else "empty"


class Reasoner(Protocol):
    async def reason(self, prefix: Sequence[int], ids: Sequence[int], row: str) -> Answer:
        """ŷ_β = argmax_y P(y | x; θ_β, I_β) for one request. A row's own failure is an ``Answer``; an exception means the reasoner is broken,
        and ``UserError`` that nothing but another config will mend it."""


class VllmReasoner:
    def __init__(self, model: str, max_length: int, max_tokens: int, dtype: str, stop: Sequence[str], tensor_parallel: int) -> None:
        from fiat_ray import models
        from fiat_ray.engine import Engine, EngineOptions

        self._max_tokens = max_tokens
        self._stop = tuple(stop)
        self._engine = Engine(models.find(model), EngineOptions(max_length=max_length, dtype=dtype, tensor_parallel=tensor_parallel))

    async def reason(self, prefix: Sequence[int], ids: Sequence[int], row: str) -> Answer:
        try:
            done = await asyncio.wrap_future(self._engine.complete([*prefix, *ids], self._max_tokens, self._stop))
        except ValueError as error:  # vLLM refused this prompt
            return Answer("engine_error", error=str(error)[:500])
        text = done.text.strip()
        status = ended(text, done.finish_reason)
        return Answer(status, text, done.finish_reason, done.prompt_tokens, done.cached_tokens, done.output_tokens, done.seconds)

    async def read(self, prefix: Sequence[int], ids: Sequence[int]) -> int:
        """Only read a prompt, as a measurement: how many of its tokens were computed."""
        done = await asyncio.wrap_future(self._engine.complete([*prefix, *ids], 1))
        return done.prompt_tokens - done.cached_tokens

    def close(self) -> None:
        self._engine.close()


class ScriptedReasoner:
    """``reason(row) -> str`` of a Python file; what it raises is that row's ``engine_error``."""

    def __init__(self, script: str) -> None:
        self._function = load_script(Path(script))

    async def reason(self, prefix: Sequence[int], ids: Sequence[int], row: str) -> Answer:
        start = time.perf_counter()
        try:
            said = await asyncio.to_thread(self._function, json.loads(row))
            if not isinstance(said, str):
                raise TypeError(f"reason(row) gave {type(said).__name__}, not text")
        except (Exception, SystemExit) as error:
            return Answer("engine_error", error=f"{type(error).__name__}: {error}"[:500])
        text = said.strip()
        return Answer(ended(text, "stop"), text, "stop", seconds=time.perf_counter() - start)


def load_script(path: Path) -> Callable[[dict[str, Any]], str]:
    """The function ``reason`` of a Python file."""
    from fiat_ray.errors import UserError

    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path}: no such Python file; `reasoner: {{kind: scripted, script: …}}` names one with a function reason(row)")
    module = ModuleType("fiat_ray_script")
    module.__file__ = str(path)
    try:
        # No import: Python's cache of compiled files would miss a change within a second that leaves the size as it was.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: {type(error).__name__} when loaded: {error}") from None
    function: Callable[[dict[str, Any]], str] | None = getattr(module, "reason", None)
    try:
        inspect.signature(function).bind({})  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{path}: defines no function reason(row)") from None
    assert function is not None
    return function
