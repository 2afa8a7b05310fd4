"""A sample of the reasoner: some of a campaign's prompts, for about ``SECONDS`` on this machine. It measures how fast they are read and answered.

What was answered is stored, like everything that the reasoner says, and not asked again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import cast

import pyarrow as pa

from fiat_ray import artifact, costs
from fiat_ray.engine import CPU_ROWS, GPU_ROWS
from fiat_ray.errors import UserError
from fiat_ray.prepare import Prepared, make_reasoner
from fiat_ray.progress import Console
from fiat_ray.reason.reasoners import Answer, VllmReasoner
from fiat_ray.reason.store import Known, Store
from fiat_ray.run_folder import RunFolder
from fiat_ray.task import by_language

SECONDS = 20.0
"""A third of them for reading. The engine's start comes on top, and where answering is slow, what the slowest row takes."""

Prompt = tuple[str, Sequence[int], Sequence[int]]
"""Key, shared beginning, own tokens."""


def measure(prepared: Prepared, run: RunFolder, console: Console) -> None:
    """Ask the reasoner some prompts that are not stored, and write ``sample.json`` (``schema.SAMPLE``) into the run directory.

    Does nothing where all are stored. Raises ``UserError`` for a reasoner without an engine here.
    """
    config = prepared.config
    if config.reasoner.kind != "vllm" or not prepared.requests:
        raise UserError("--sample: measures a reasoner of kind vllm, and this config asks none; leave it out")
    gpus = costs.gpus_of(config.where)
    with run.only_one():
        store = Store(config.store or run.rationales)
        prompts = _in_turn(prepared, store.known())
        if not prompts:
            return
        console.line(f"sampling the reasoner: its engine starts, then about {SECONDS:.0f} s of prompts …")
        create = make_reasoner(replace(config, where=replace(config.where, gpus=gpus)), prepared.reasoner_length)
        with console.working("sampling the reasoner"), closing(cast(VllmReasoner, create())) as reasoner:
            begun = time.perf_counter()
            found = asyncio.run(_measure(reasoner, prompts, GPU_ROWS if gpus else CPU_ROWS, config.reasoner.max_tokens))
            took = time.perf_counter() - begun
        store.write([{"key": key, "tries": 1, **vars(answer)} for key, answer in found.answers.items()])
        measured = {"rows": len(found.answers), "seconds": took, "read": found.read, "write": found.write}
        artifact.write_json(run.sample, {"model": prepared.models["reasoner"]["hash"], "gpus": gpus, **measured})


@dataclass
class _Measured:
    read: float
    """Prompt tokens a second that an engine computes."""
    write: float
    """Tokens a second that it generates, over all rows that it has at once."""
    answers: dict[str, Answer]


def _in_turn(prepared: Prepared, known: Known) -> list[Prompt]:
    """Prompts of rows that are not stored, languages in turn, those of a language in an order drawn once and for all."""
    draw, of_languages = random.Random(0), []
    for requests in prepared.requests.values():
        missing = (table.filter(pa.array(~known.has(table["key"]))) for table in requests.columns("key", "prefix", "ids", "language"))
        for asked in by_language(row for table in missing for row in table.to_pylist()).values():
            draw.shuffle(asked)
            of_languages.append([(row["key"], requests.prefixes[row["prefix"]], row["ids"]) for row in asked])
    return list({prompt[0]: prompt for turn in zip_longest(*of_languages) for prompt in turn if prompt is not None}.values())


async def _measure(reasoner: VllmReasoner, prompts: Sequence[Prompt], most: int, max_tokens: int) -> _Measured:
    """First prompts are read, each time twice as many, until the time for it is used up; then some that begin alike are answered, all at once."""
    begun, shown, wave = time.perf_counter(), 0, 1
    while True:
        started = time.perf_counter()
        computed = sum(await asyncio.gather(*(reasoner.read(prefix, ids) for _, prefix, ids in prompts[shown : shown + wave])))
        now = time.perf_counter()
        read = computed / (now - started)
        shown += wave
        if now - begun + 2 * (now - started) > SECONDS / 3 or shown + 2 * wave > min(most, len(prompts)):
            break
        wave *= 2
    known = {tuple(prefix) for _, prefix, _ in prompts[:shown]}
    rows = max(1, min(most, int(read * SECONDS * 2 / 3 / max_tokens)))  # writing a token takes at least what reading one does
    asked = [prompt for prompt in prompts if tuple(prompt[1]) in known][:rows]
    answers = await asyncio.gather(*(reasoner.reason(prefix, ids, "") for _, prefix, ids in asked))
    return _Measured(read, _writing(answers, read), {key: answer for (key, *_), answer in zip(asked, answers, strict=True)})


def _writing(answers: Sequence[Answer], read: float) -> float:
    """Tokens a second until half of the rows had ended: afterwards an engine has fewer of them at once than in a long run."""
    half = sorted(answer.seconds for answer in answers)[len(answers) // 2]
    written = sum(answer.output_tokens * min(1.0, half / answer.seconds) for answer in answers if answer.seconds)
    reading = sum(answer.prompt_tokens - answer.cached_tokens for answer in answers) / read
    return written / max(half - reading, half / 10) if written else read
