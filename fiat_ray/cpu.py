"""What this machine's processor can do."""

from __future__ import annotations

import re
from pathlib import Path


def has(*flags: str) -> bool:
    """Whether it has one of these features, as Linux names them."""
    return re.search(rf"\b({'|'.join(flags)})\b", Path("/proc/cpuinfo").read_text()) is not None
