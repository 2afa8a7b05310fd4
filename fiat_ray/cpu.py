"""What this machine's processor can do, and how its memory is used."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

MALLOC = {
    "M_ARENA_MAX": (-8, 1),  # heaps that new threads would get are given back whatever the others say; those there are stay (see `cluster.connect`)
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, -1),
    "M_TOP_PAD": (-2, 2**26),
}
"""glibc's options: number (malloc.h) and value."""


def has(*flags: str) -> bool:
    """Whether it has one of these features, as Linux names them."""
    return re.search(rf"\b({'|'.join(flags)})\b", Path("/proc/cpuinfo").read_text()) is not None


def is_amds_with_avx2() -> bool:
    """And without AVX-512: MKL, which torch's products are from, reaches 60 % of the speed of such an EPYC, oneDNN 75 % (measured)."""
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text() and has("avx2") and not has("avx512f")


def memory_limit() -> float:
    """Bytes that this control group, such as a container, may use; infinite where it has no limit."""
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            return float(text)
    return float("inf")


def keep_memory() -> None:
    """Keep what this process frees, where glibc would give it to the system; to be called before the thread starts that computes.

    Each step of tuning, and each batch of an engine, frees gigabytes and takes them again. Every page of that costs a fault: 5 to 15 % of the time on
    virtual machines, which give it on to their host.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in MALLOC.values():
            libc.mallopt(option, value)
