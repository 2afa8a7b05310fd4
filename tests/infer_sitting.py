"""``python infer_sitting.py RUN INPUT OUTPUT PIECE``: one sitting of ``fiat-ray infer`` with an engine that repeats the row's input.

It logs what it is given. The last line on standard output is the most memory that the driver held, in MiB.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from fiat_ray import evaluate, infer
from fiat_ray.cli import main


class Repeating:
    """Stands where ``Evaluator`` does: what is tested is what goes into it and what becomes of its answers."""

    def __init__(self, run: str, *_: Any) -> None:
        self._log = Path(run) / "answered"

    def infer(self, trial: Any, task: Any, examples: list[Any]) -> list[dict[str, Any]]:
        time.sleep(0.2)
        with self._log.open("a") as log:
            log.write(f"{examples[0].input} {time.time()}\n")
        return [{"prediction": example.input, "score": None} for example in examples]


if __name__ == "__main__":
    evaluate.Evaluator = Repeating  # type: ignore[assignment,misc]
    infer.PIECE = int(sys.argv[4])
    code = main(["infer", sys.argv[1], "--input", sys.argv[2], "--output", sys.argv[3]])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    sys.exit(code)
