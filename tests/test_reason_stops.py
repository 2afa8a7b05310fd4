"""Engines that hang, stop, break or never start, and rows that fail: what the reasoning stage does about them, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny_model

import fiat_ray as fiat
from fiat_ray.cli import main
from fiat_ray.errors import Unfinished, UserError
from fiat_ray.length import measure
from fiat_ray.reason.failures import FEWEST_ROWS, Failures
from fiat_ray.reason.order import missing
from fiat_ray.reason.reasoners import Reasoner, ScriptedReasoner
from fiat_ray.reason.requests import Requests, scripted_requests
from fiat_ray.reason.stage import ANSWERED, reason
from fiat_ray.reason.store import Store

SCRIPT = """
import os, signal, time
from pathlib import Path

CALLS = Path(__file__).with_name("calls")

def reason(row):
    question = row["fields"]["question"]
    with CALLS.open("a") as calls:
        calls.write(question + "\\n")
    if question.startswith("fails"):
        time.sleep(0.2)  # sixteen at a time: slow enough for a busy driver to stop the stage before most of them
        raise ValueError("as it was told to")
    if question.startswith("unlucky") and not CALLS.with_name("up").exists():
        raise ConnectionError("503")
    what, _, times = question.partition(" ")
    if what in ("hangs", "stops") and CALLS.read_text().splitlines().count(question) <= int(times):
        if what == "stops":
            time.sleep(3)  # the other rows are written by then
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)
    return "said"
"""


class Bench:
    def __init__(self, folder: Path) -> None:
        self.script = folder / "script.py"
        self.script.write_text(SCRIPT)
        self.store = Store(folder / "rationales")

    def requests(self, *questions: str, language: str = "bn") -> Requests:
        task = tiny_model.task(tuple(tiny_model.row(n, language=language, question=q, context="") for n, q in enumerate(questions)))
        return scripted_requests(task, measure(task, []), self.script)

    def run(self, requests: Requests, create: Any = None, **options: Any) -> list[dict[str, Any]]:
        with requests.shared(self.script.parent) as shared:
            return list(reason(shared, self.store, create or partial(ScriptedReasoner, str(self.script)), **options))

    def calls(self) -> Counter[str]:
        return Counter(self.script.with_name("calls").read_text().splitlines())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def _workers_know_this_file() -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("what", ["hangs", "stops"])
def test_an_engine_without_progress_is_killed_and_replaced(ray_local: None, bench: Bench, what: str) -> None:
    """``stops``: its process gets SIGSTOP, and so can't do anything itself."""
    requests = bench.requests("q0", "q1", f"{what} 1", "q2")
    bench.run(requests, patience=6.0)
    assert {row["status"] for row in bench.store.table().to_pylist()} == {"ok"} and len(bench.store.table()) == 4
    assert bench.calls() == {"q0": 1, "q1": 1, f"{what} 1": 2, "q2": 1}, "what was finished is not done again"


@pytest.mark.slow
def test_after_three_strikes_the_stage_says_so_and_stops(ray_local: None, bench: Bench) -> None:
    requests = bench.requests("q0", "hangs 3", "q1")
    said = r"its engine failed 3 times, the last time because it made no progress for 4 seconds; finished rows are stored"
    with pytest.raises(Unfinished, match=said):
        bench.run(requests, patience=4.0)
    assert bench.calls() == {"q0": 1, "q1": 1, "hangs 3": 3}
    bench.run(requests, patience=60.0)
    assert len(bench.store.table()) == 3


def test_a_watchdog_ends_with_its_process_and_lets_it_idle(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from fiat_ray.reason.watchdog import Watchdog\n"
        "dog = Watchdog(1.0, Path(sys.argv[1])); dog.tell(busy=False); print(dog._process.pid, flush=True); time.sleep(3)\n"
        "dog.tell(busy=True); time.sleep(60 if sys.argv[2] == 'hang' else 0)"
    )
    for what, code in (("end", 0), ("hang", -signal.SIGKILL)):
        command = [sys.executable, "-c", program, str(tmp_path / what), what]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        watchdog = int(process.stdout.readline())
        assert process.wait(30) == code
        assert (tmp_path / what).exists() == (what == "hang")
        deadline = time.monotonic() + 10
        while Path(f"/proc/{watchdog}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{watchdog}").exists()


def test_an_engine_may_take_longer_to_start_than_for_a_row(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from fiat_ray.reason.watchdog import Watchdog\n"
        "dog = Watchdog(1.0, Path(sys.argv[1])); time.sleep(float(sys.argv[2])); dog.tell(busy=False); time.sleep(1.5)"
    )
    for seconds, code in ((2, 0), (60, -signal.SIGKILL)):
        note = tmp_path / str(seconds)
        assert subprocess.run([sys.executable, "-c", program, str(note), str(seconds)], timeout=30).returncode == code
        assert (note.read_text() if note.exists() else "") == ("it made no progress for 4 seconds" if code else "")


def never_starts() -> Reasoner:
    raise RuntimeError("no kernel image is available")


def is_refused() -> Reasoner:
    raise UserError("reasoner.model: there is none of that name")


class Broken:
    async def reason(self, *_: Any) -> Any:
        raise RuntimeError("the engine stopped: out of memory")


@pytest.mark.parametrize(
    ("create", "error", "said"),
    [
        (never_starts, Unfinished, "failed 3 times, the last time because RuntimeError: no kernel image is available; finished"),
        (Broken, Unfinished, "failed 3 times, the last time because RuntimeError: the engine stopped: out of memory; finished"),
        (is_refused, UserError, "^reasoner.model: there is none of that name$"),
    ],
)
def test_an_engine_that_is_broken_is_named(ray_local: None, bench: Bench, create: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        bench.run(bench.requests("q0"), create)


def test_a_disk_that_is_full_stops_the_stage_at_once(ray_local: None, bench: Bench) -> None:
    Path(bench.store.place).write_text("no folder")
    with pytest.raises(UserError, match="the rationale store can't be"):
        bench.run(bench.requests("q0"))


def answered(rows: int, status: str, language: str, error: str = "") -> pa.Table:
    names = {"key": "", "status": status, "admitted": 0.0, "language": language, "error": error}
    return pa.Table.from_pylist([names] * rows, ANSWERED)


def test_too_many_failing_rows_stop_the_stage_with_causes_and_languages() -> None:
    failures = Failures(100)
    failures.count(answered(FEWEST_ROWS - 1, "engine_error", "bn", "refused"))
    with pytest.raises(Unfinished) as stopped:
        failures.count(answered(5, "prompt_too_long", "hi"))
    expected = "24 of 24 rows failed: 19 by 'engine_error: refused' (bn 19); 5 by 'prompt_too_long' (hi 5)"
    assert expected in str(stopped.value)
    failures = Failures(100)
    failures.count(answered(30, "ok", "bn"))
    failures.count(answered(29, "engine_error", "bn", "refused"))
    failures.count(answered(30, "empty", "bn"))


def test_one_language_that_fails_does_not_stop_the_others() -> None:
    """Rows of a language come together, so the first rows may well be the only ones that fail."""
    failures = Failures(1000)
    failures.count(answered(90, "prompt_too_long", "my"))
    failures.count(answered(910, "ok", "hi"))
    with pytest.raises(Unfinished):  # of a tenth as many rows they would be too many
        Failures(100).count(answered(90, "prompt_too_long", "my"))


def test_a_failing_stage_ends_early_and_a_failing_row_does_not_end_it(ray_local: None, bench: Bench) -> None:
    few = bench.requests(*[f"q{n}" for n in range(60)], *[f"fails {n}" for n in range(10)])
    assert Counter(row["status"] for row in bench.run(few)) == {"ok": 60, "engine_error": 10}
    many = bench.requests(*[f"fails {n}" for n in range(100, 1100)], language="hi")
    with pytest.raises(Unfinished, match=r"rows failed: \d+ by 'engine_error: ValueError: as it was told to' \(hi \d+\)"):
        bench.run(many, window=16)
    assert len(bench.store.table()) < 600, "most rows were spared"
    assert set(bench.store.known().tries.values()) == {1}, "what fails everywhere is not tried out: it may be put right"


@pytest.mark.parametrize("rows", [1, 10, 72])
def test_an_outage_makes_no_row_final_however_few_they_are(ray_local: None, bench: Bench, rows: int) -> None:
    """The blocks of 72 rows are smaller than ``FEWEST_ROWS``."""
    requests = bench.requests(*[f"unlucky {n}" for n in range(rows)])
    with pytest.raises(Unfinished, match=r"rows failed: \d+ by 'engine_error: ConnectionError: 503' \(bn \d+\)"):
        bench.run(requests, window=32)
    assert missing(requests, bench.store.known()) == rows and set(bench.store.known().tries.values()) == {1}
    bench.script.with_name("up").touch()
    bench.run(requests, window=32)
    assert {row["status"] for row in bench.store.read(requests.distinct()).values()} == {"ok"} and not missing(requests, bench.store.known())


CONFIG = """
task: country_facts
languages: [id, sw]
limit: {{train: 12, validation: 6, test: 8}}
reasoner: {{kind: scripted, script: {script}}}
tunables: {{xs: {{model: {tiny}, max_length: 1024}}}}
methods: [majority, icl, fiat]
tracking_uri: sqlite:///{folder}/mlflow.db
"""


@pytest.mark.slow
def test_a_campaign_whose_reasoner_fails_ends_with_code_3_and_says_why(tmp_path: Path, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("def reason(row): raise ValueError('no luck')")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(script=script, tiny=tiny, folder=tmp_path))
    program = "import sys; from fiat_ray import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "run", str(config), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 3, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert "country_facts: reasoning stopped, because" in last and "'engine_error: ValueError: no luck' (" in last
    assert "trial fiat-xs-s0-" in last and "has not all of its rationales" in last
    assert (tmp_path / "out" / "report" / "index.html").is_file() and "Traceback" not in done.stderr


@pytest.mark.slow
def test_python_ends_as_the_command_line_does(tmp_path: Path, tiny: Path, ray_local: None, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("def reason(row):\n    if '7' in row['fields']['question']: raise ValueError('no luck')\n    return 'Answer: x'")
    rows = [{"question": f"Which number follows {n}?", "answer": str(n + 1), "lang": "en"} for n in range(20)]
    settings: dict[str, Any] = {"reasoner": {"kind": "scripted", "script": str(script)}, "methods": ["icl"]}
    settings["tracking_uri"] = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(Unfinished) as ended:
        fiat.run(fiat.Task.from_rows(rows, name="numbers", target="answer", language="lang"), out=tmp_path / "run", tunable=str(tiny), **settings)
    assert f"{tmp_path}/run: finished, but not all of it: 2 rows without a rationale (engine_error): " in str(ended.value)
    assert set(fiat.open_run(tmp_path / "run").scores.method) == {"icl"}, "what is finished is kept"
    assert main(["run", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == f"fiat-ray: {ended.value}".replace("/run:", "/again:")
