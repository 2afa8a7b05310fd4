"""Which requests are still to be answered, and in which order: rows with one beginning next to each other, the long ones first."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fiat_ray.reason.requests import Requests
from fiat_ray.reason.store import DIGEST, Known, digests, find

MOST_ROWS = 1024
"""Rows of a block: few enough that engines end together, and many enough that a block's own cost is small."""

MOST_OF_MANY = 4096
"""Rows of a block where each engine gets at least 64 such blocks: Ray keeps something of every block on the driver until the end."""


def blocks(requests: Requests, known: Known, replicas: int, window: int) -> list[np.ndarray]:
    """Positions of the requests that ``known`` lacks, in blocks in the order in which engines take them.

    Within a prefix the file's order holds, so that rows which share a passage stay together. A prefix is one block where that leaves each of the
    ``replicas`` its share, so that one engine alone computes it; small ones share a block, so that an engine always has a ``window`` of rows.
    Prefixes with the longest rows come first: the last rows to end are short ones.
    """
    positions, prefixes, sizes = _missing(requests, known)
    most = max(min(MOST_ROWS, max(1, window // 2, len(positions) // (4 * replicas))), min(MOST_OF_MANY, len(positions) // (64 * replicas)))
    groups = [np.flatnonzero(prefixes == prefix).astype(np.int32) for prefix in np.unique(prefixes)]
    groups.sort(key=lambda rows: -sizes[rows].mean())
    found: list[np.ndarray] = []
    block: list[np.ndarray] = []
    for piece in (piece for rows in groups for piece in np.array_split(positions[rows], -(-len(rows) // most))):
        if block and sum(map(len, block)) + len(piece) > most:
            found.append(np.concatenate(block))
            block = []
        block.append(piece)
    if block:
        found.append(np.concatenate(block))
    return found


def missing(requests: Requests, known: Known) -> int:
    """How many requests ``known`` lacks."""
    return len(lacking(requests, known))


def lacking(requests: Requests, known: Known) -> np.ndarray:
    """Digests of their keys, sorted."""
    found = np.concatenate([np.empty(0, DIGEST), *(digests(table["key"]) for table in requests.columns("key"))])
    return np.sort(found[find(known.finished, found) < 0])


def _missing(requests: Requests, known: Known) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each request that is to be answered: where it stands in the file, the number of its prefix, and its size."""
    numbers = {prefix: number for number, prefix in enumerate(requests.prefixes)}
    positions, prefixes, sizes = (np.empty(len(requests), kind) for kind in (np.int32, np.int16, np.int32))
    start = end = 0
    for table in requests.columns("key", "prefix", "size"):
        missing = np.flatnonzero(~known.has(table["key"]))
        found, rows = slice(end, end + len(missing)), table.take(pa.array(missing))
        positions[found] = start + missing
        prefixes[found] = [numbers.get(prefix, 0) for prefix in rows["prefix"].to_pylist()]
        sizes[found] = rows["size"].to_numpy()
        start, end = start + len(table), found.stop
    return positions[:end], prefixes[:end], sizes[:end]
