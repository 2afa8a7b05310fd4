"""``python notebook_sitting.py FOLDER MODEL``: what a notebook does whose cell is interrupted while it reasons, and run again.

Prints how many rows were given to the reasoner when the interrupted call was over, how many four seconds later, and how many at the end.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

import fiat_ray as fiat

SCRIPT = """
import time
from pathlib import Path

CALLS = Path(__file__).with_name("calls")

def reason(row):
    with CALLS.open("a") as calls:
        calls.write(row["fields"]["question"] + "\\n")
    while CALLS.read_text().count("\\n") > 10 and not CALLS.with_name("go").exists():
        time.sleep(0.1)
    return "Answer: " + row["targets"][0]
"""


def main(folder: Path, model: str) -> None:
    (folder / "script.py").write_text(SCRIPT)
    calls = folder / "calls"
    calls.touch()
    rows = [{"question": f"Which number follows {n}?", "answer": str(n + 1), "lang": "en"} for n in range(60)]
    task = fiat.Task.from_rows(rows, name="numbers", target="answer", language="lang")
    settings = {"reasoner": {"kind": "scripted", "script": str(folder / "script.py")}, "tunable": model, "methods": ["icl"], "out": folder / "run"}

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as kernels do: what a shell starts in the background ignores it

    def interrupt() -> None:
        while calls.read_text().count("\n") <= 10:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        fiat.run(task, **settings)
    except KeyboardInterrupt:
        print(calls.read_text().count("\n"))
    time.sleep(1)  # what was killed has ended by then
    (folder / "go").touch()
    time.sleep(3)
    print(calls.read_text().count("\n"))
    fiat.run(task, **settings)
    print(calls.read_text().count("\n"))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)
    main(Path(sys.argv[1]), sys.argv[2])
