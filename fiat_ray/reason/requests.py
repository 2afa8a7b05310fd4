"""What the reasoner is asked: one request a distinct prompt, under a key of all that decides the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fiat_ray.artifact import fingerprint
from fiat_ray.length import Lengths
from fiat_ray.render import Renderer, chat_messages, reasoner_turns
from fiat_ray.task import Row, Task, Which


@dataclass(frozen=True)
class Request:
    key: str
    prefix: str
    """Id of the shared beginning in ``Requests.prefixes``."""
    ids: tuple[int, ...]
    """The row's own token ids, after the prefix; empty for a scripted reasoner."""
    row: str
    """JSON: the row, for a scripted reasoner, or the messages, for a remote one, whose token ids are estimates; empty otherwise."""


@dataclass
class Requests:
    prefixes: dict[str, list[int]]
    distinct: dict[str, Request]
    keys: dict[str, str]
    """Row id → key."""

    @property
    def ordered(self) -> list[Request]:
        """In the order that a prefix cache likes: shared beginnings next to each other."""
        return sorted(self.distinct.values(), key=lambda request: (request.prefix, request.ids, request.key))


def vllm_requests(
    task: Task, lengths: Lengths, renderer: Renderer, identity: Mapping[str, Any], which: Which, exemplars: Mapping[str, int]
) -> Requests:
    """Requests for a model in this cluster. ``identity``: model hash, dtype, sampling and stop settings; the key is their hash and the token ids'."""
    requests = Requests({}, {}, {})
    header = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for row in task.rows:
        prefix = renderer.reasoner_prefix(task, exemplars[row.language], row.language, which).ids
        own = [token for piece in renderer.row_pieces(lengths.texts[row.id]) for token in piece.ids]
        digest = header.copy()
        digest.update(np.asarray(prefix + own, dtype="<i4").tobytes())
        key = digest.hexdigest()
        name = hashlib.sha256(np.asarray(prefix, dtype="<i4").tobytes()).hexdigest()[:16]
        requests.prefixes[name] = prefix
        requests.keys[row.id] = key
        requests.distinct.setdefault(key, Request(key, name, tuple(own), ""))
    return requests


def openai_requests(
    task: Task, lengths: Lengths, renderer: Renderer, identity: Mapping[str, Any], which: Which, exemplars: Mapping[str, int]
) -> Requests:
    """Requests for a remote endpoint: as in ``vllm_requests``, but what is asked, and keyed, are messages. ``renderer`` estimates their tokens."""
    measured = vllm_requests(task, lengths, renderer, identity, which, exemplars)
    requests = Requests(measured.prefixes, {}, {})
    for row in task.rows:
        messages = chat_messages(reasoner_turns(task, exemplars[row.language], lengths.texts[row.id], row.language, which))
        key = fingerprint(identity, messages)
        requests.keys[row.id] = key
        asked = replace(measured.distinct[measured.keys[row.id]], key=key, row=json.dumps(messages))
        requests.distinct.setdefault(key, asked)
    return requests


def scripted_requests(task: Task, lengths: Lengths, script: Path) -> Requests:
    """Requests for a Python script: the key is the hash of the script and of the row it is given."""
    requests = Requests({}, {}, {})
    code = hashlib.sha256(script.read_bytes()).hexdigest()
    for row in task.rows:
        content = json.dumps(script_row(row, lengths.texts[row.id]), sort_keys=True)  # in ASCII: Arrow takes no lone surrogates
        key = hashlib.sha256(f"{code}{content}".encode()).hexdigest()
        requests.keys[row.id] = key
        requests.distinct.setdefault(key, Request(key, "", (), content))
    return requests


def script_row(row: Row, text: str) -> dict[str, Any]:
    """What a script's ``reason(row)`` sees. Gold answers are in it: scripts build controls, such as rationales that are right by construction."""
    return {"split": row.split, "language": row.language, "input": text, "fields": row.fields, "targets": list(row.targets)}


def columns(requests: Sequence[Request]) -> dict[str, list[Any]]:
    return {
        "key": [r.key for r in requests],
        "prefix": [r.prefix for r in requests],
        "ids": [list(r.ids) for r in requests],
        "row": [r.row for r in requests],
    }
