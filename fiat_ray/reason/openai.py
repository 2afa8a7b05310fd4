"""A reasoner behind any OpenAI-compatible endpoint, asked through the official client.

The client itself tries again after 408, 409, 429, 5xx, time-outs and lost connections: exponential backoff with jitter, or what ``Retry-After`` asks
for. The key comes from the environment of the process that asks, and goes nowhere but into the request's header.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fiat_ray.errors import UserError
from fiat_ray.reason.reasoners import Answer, ended

KEY = "OPENAI_API_KEY"

RETRIES = 8
"""After the first try; 40 s of backoff in all. The stage gives a row that failed even so two more such rounds."""

PATIENCE = 300.0
"""Seconds without a byte of an answer until a request is given up."""

LONGEST_PAUSE = 120
"""Seconds of ``Retry-After`` that the client waits for. A longer one is about a quota, and the same for all rows."""

FORBIDDEN = 403
"""No access; or, of an endpoint that has answered before, a gateway's refusal of one prompt."""

BROKEN = (401, 402, 404)
"""What an endpoint says to every row alike: no or a wrong key, no credit, no such model or path."""

TOO_LONG = re.compile(
    r"context.?(length|window|size)|(prompt|input|request) is too (long|large)|token count|too many \w*.?tokens|number of (input )?tokens",
    re.IGNORECASE,
)
"""How servers say that a prompt does not fit; OpenAI's own have the code ``context_length_exceeded``."""


class OpenAIReasoner:
    def __init__(self, base_url: str, model: str, max_tokens: int, stop: Sequence[str], concurrency: int) -> None:
        from openai import AsyncOpenAI

        self._url, self._model = base_url, model
        self._parameters: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens, **({"stop": list(stop)} if stop else {})}
        self._key = os.environ.get(KEY, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", self._key):
            raise UserError(f"{KEY}: holds spaces or other characters that no key has; set it anew")
        self._client = AsyncOpenAI(api_key=self._key or "none", base_url=base_url, max_retries=RETRIES, timeout=PATIENCE)
        self._free = asyncio.Semaphore(concurrency)
        self._has_answered = False

    async def reason(self, prefix: Sequence[int], ids: Sequence[int], row: str) -> Answer:
        from openai import OpenAIError

        async with self._free:
            start = time.perf_counter()
            try:
                done = await self._client.chat.completions.create(model=self._model, messages=json.loads(row), **self._parameters)
            except OpenAIError as error:
                return replace(self._failed(error), seconds=time.perf_counter() - start)
            except ValueError:  # half of a JSON text, or none
                done = None
        answer = _answer(done, time.perf_counter() - start)
        self._has_answered |= answer.status != "engine_error"
        return answer

    def _failed(self, error: Exception) -> Answer:
        """The row's own failure. Raises ``UserError`` where every other row would fail for the same reason."""
        from openai import APIStatusError

        if not isinstance(error, APIStatusError):
            return self._unanswered(error)
        said, status = self._said(error.body["message"] if isinstance(error.body, dict) and error.body.get("message") else error), error.status_code
        if status in (400, 413, 422) and (error.code == "context_length_exceeded" or TOO_LONG.search(said)):
            return Answer("prompt_too_long", error=said)
        is_broken = status in BROKEN or (status == FORBIDDEN and not self._has_answered)
        if is_broken or error.code == "insufficient_quota" or error.param in self._parameters:
            key = f"; {KEY} is {'set' if self._key else 'not set'} where the reasoner runs" if status in (401, FORBIDDEN) else ""
            raise UserError(f"reasoner.model: {self._model} at {self._url}: the endpoint answers {status}, {said}{key}") from None
        pause = error.response.headers.get("retry-after", "")
        if pause.isdigit() and int(pause) > LONGEST_PAUSE:
            raise UserError(f"reasoner.base_url: {self._url} asks for a pause of {int(pause):,} s ({said}); run this again after it") from None
        return Answer("engine_error", error=f"{status}: {said}")

    def _unanswered(self, error: Exception) -> Answer:
        """A time-out, or a connection that broke; one that nobody takes after all tries is everybody's."""
        from httpx2 import ConnectError

        cause = self._said(error.__cause__ or error)
        if isinstance(error.__cause__, ConnectError):
            raise UserError(f"reasoner.base_url: nothing answers at {self._url} ({cause}); start it and run this again") from None
        return Answer("engine_error", error=f"{self._said(error)} {cause}")

    def _said(self, what: object) -> str:
        """One short line, without the key, which some endpoints repeat."""
        text = " ".join(str(what).split())
        return (text.replace(self._key, "***") if self._key else text)[:300]


def _answer(done: Any, seconds: float) -> Answer:
    """What the endpoint said. The client takes any JSON for a completion, so nothing of it is sure to be there."""
    try:
        choice = done.choices[0]
        text, finish_reason = (choice.message.content or "").strip(), str(choice.finish_reason or "")
        read, written = (int(done.usage.prompt_tokens), int(done.usage.completion_tokens)) if done.usage else (0, 0)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return Answer("engine_error", error="the endpoint's answer is no chat completion", seconds=seconds)
    return Answer(ended(text, finish_reason), text, finish_reason, read, output_tokens=written, seconds=seconds)
