"""The reasoning stage on Ray Data, with a scripted reasoner: what is generated, how often, and when it is durable."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_model

from fiat_ray import config as configs
from fiat_ray import runs
from fiat_ray.errors import UserError
from fiat_ray.length import measure
from fiat_ray.models import Model
from fiat_ray.prepare import _identity
from fiat_ray.reason import stage
from fiat_ray.reason.measured import measured
from fiat_ray.reason.reasoners import Reasoner, ScriptedReasoner, load_script
from fiat_ray.reason.requests import Requests, scripted_requests, vllm_requests
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.stage import ReasonerActor, reason
from fiat_ray.reason.store import MOST_TRIES, Store
from fiat_ray.render import Renderer
from fiat_ray.task import Task

SCRIPT = """
import os, time
from pathlib import Path

FOLDER = Path(__file__).parent

def reason(row):
    question = row["fields"]["question"]
    if question == "dies" and not (FOLDER / "died").exists():
        (FOLDER / "died").touch()
        os._exit(1)
    if question.startswith("slow"):
        time.sleep(float(question.split()[1]))
    with open(FOLDER / "calls", "a", errors="replace") as calls:
        calls.write(f"{time.time()} {question}\\n")
    if question == "fails":
        raise ValueError("as it was told to")
    return "" if question == "empty" else f"{question}, {row['language']} \\ud800\\nAnswer: {row['targets'][0]}"
"""


SLOW_START = 1.5


class Bench:
    """A script, a store, and a count of the calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "script.py"
        self.script.write_text(SCRIPT)
        self.store = Store(folder / "rationales")

    def requests(self, *questions: str) -> Requests:
        task = tiny_model.task(tuple(tiny_model.row(n, question=question, context="") for n, question in enumerate(questions)))
        return scripted_requests(task, measure(task, []), self.script)

    def run(self, requests: Requests, window: int = 16) -> list[dict[str, str]]:
        with requests.shared(self.folder) as shared:
            return list(reason(shared, self.store, partial(ScriptedReasoner, str(self.script)), window=window))

    def calls(self) -> Counter[str]:
        path = self.folder / "calls"
        return Counter(line.partition(" ")[2] for line in path.read_text().splitlines()) if path.exists() else Counter()

    def parts(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path(self.store.place).iterdir()}

    def finished(self) -> set[str]:
        return {row["key"] for row in self.store.table().to_pylist() if row["status"] != "engine_error" or row["tries"] == MOST_TRIES}

    def actor(self, requests: Requests) -> ReasonerActor:
        return ReasonerActor(partial(ScriptedReasoner, str(self.script)), str(requests.file), {}, self.store.place, 16, stage.PATIENCE)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def keys(requests: Requests) -> set[str]:
    return set(requests.distinct().to_pylist())


def slow_start(script: str) -> Reasoner:
    time.sleep(SLOW_START)
    return ScriptedReasoner(script)


def broken() -> Reasoner:
    raise AssertionError("nothing was missing, yet a reasoner was started")


def test_each_prompt_is_answered_once_and_a_rerun_generates_nothing(ray_local: None, bench: Bench) -> None:
    questions = [f"q{n}" for n in range(9)] + ["empty", "odd \ud800"]
    requests = bench.requests(*questions, *questions)  # each twice: identical prompts
    assert len(requests) == len(questions) and len(requests.keys) == 2 * len(questions)
    answered = bench.run(requests)
    assert Counter(row["key"] for row in answered) == Counter(keys(requests))
    assert Counter(row["status"] for row in answered) == {"ok": 10, "empty": 1}
    assert set(bench.calls().values()) == {1}
    stored = bench.store.read(requests.keys.values())
    first = stored[requests.keys["row-bn-train-0"]]
    assert (first["status"], first["text"], first["tries"], first["finish_reason"]) == ("ok", "q0, bn ?\nAnswer: yes", 1, "stop")
    before = bench.parts()
    assert list(reason(requests, bench.store, broken)) == []
    assert bench.parts() == before


def test_what_reasoning_took_is_written_down_without_the_reasoners_start(ray_local: None, bench: Bench) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers may not find this folder
    requests = bench.requests("q0", "slow 1", "q1")
    began = time.time()
    measured(bench.folder, "t", 2, reason(requests, bench.store, partial(slow_start, str(bench.script))))
    took = json.loads((bench.folder / "reasoning.json").read_text())["t"]
    assert took["rows"] == 3 and took["gpu_seconds"] == pytest.approx(2 * took["seconds"])
    assert 1 <= took["seconds"] < time.time() - began - SLOW_START
    before = (bench.folder / "reasoning.json").read_bytes()
    measured(bench.folder, "t", 2, reason(requests, bench.store, broken))
    assert (bench.folder / "reasoning.json").read_bytes() == before


def test_only_what_is_missing_is_generated(ray_local: None, bench: Bench) -> None:
    half, whole = bench.requests("q0", "q1", "q2"), bench.requests("q0", "q1", "q2", "q3", "q4", "q5")
    bench.store.write([{"key": key, "status": "ok", "text": "stored before", "tries": 1} for key in keys(half)])
    before = bench.parts()
    answered = bench.run(whole)
    assert {row["key"] for row in answered} == keys(whole) - keys(half)
    assert bench.calls() == {"q3": 1, "q4": 1, "q5": 1}
    assert {path: content for path, content in bench.parts().items() if path in before} == before
    assert Counter(row["text"] == "stored before" for row in bench.store.read(whole.distinct()).values()) == {True: 3, False: 3}


def test_a_failing_row_is_tried_again_at_most_twice_and_touches_no_other(ray_local: None, bench: Bench) -> None:
    requests = bench.requests("q0", "fails", "q1")
    statuses = Counter(row["status"] for row in bench.run(requests))
    assert statuses == {"ok": 2, "engine_error": 1}
    failing = requests.keys["row-bn-train-1"]
    assert bench.store.read([failing])[failing]["error"] == "ValueError: as it was told to"
    assert bench.store.read([failing])[failing]["tries"] == 3
    assert list(reason(requests, bench.store, broken)) == []
    assert bench.calls() == {"q0": 1, "q1": 1, "fails": 3}


def test_rows_are_durable_while_a_slow_one_is_still_running(ray_local: None, bench: Bench) -> None:
    requests = bench.requests("q0", "q1", "slow 4.5", "q2")
    running = threading.Thread(target=bench.run, args=(requests,), daemon=True)
    running.start()
    fast = {requests.keys[f"row-bn-train-{n}"] for n in (0, 1, 3)}
    seen: dict[str, float] = {}
    while running.is_alive() and len(seen) < 3:
        seen |= dict.fromkeys(bench.finished() - seen.keys(), time.time())
        time.sleep(0.05)
    assert seen.keys() == fast and not bench.calls()["slow 4.5"]
    called = min(float(line.split()[0]) for line in (bench.folder / "calls").read_text().splitlines())
    assert max(seen.values()) - called < stage.FLUSH_SECONDS + 1
    running.join(30)
    assert bench.finished() == keys(requests)


def test_when_an_engine_dies_a_new_one_does_the_rest(ray_local: None, bench: Bench) -> None:
    requests = bench.requests("q0", "q1", "dies", "q2", "q3", "q4")
    answered = bench.run(requests, window=2)
    assert bench.finished() == keys(requests) >= {row["key"] for row in answered}
    assert {row["status"] for row in bench.store.table().to_pylist()} == {"ok"}


def batch(requests: Requests) -> pa.Table:
    return pa.table({"position": np.arange(len(requests), dtype=np.int32)})


def test_more_reasoners_than_there_is_room_for_are_as_many_as_there_is(ray_local: None, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"task": "towns", "methods": ["icl"], "reasoner": {"kind": "scripted", "script": str(bench.script)}, "where": {"cpus": 1, "replicas": 4}}
    done, _ = runs.run_config(configs.load(values), bench.folder / "run", tasks={"towns": tiny_model.task()}, stages=("reason",))
    assert "18 distinct prompts, 0 stored; starting 2 reasoner(s)" in capsys.readouterr().err
    assert bench.calls().total() == len(Store(done.folder.rationales).table()) == 18


def test_an_actor_keeps_rows_that_could_not_be_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write fails, a later one does not: nothing is reported that is not stored."""
    monkeypatch.setattr(stage, "FLUSH_SECONDS", 0.05)
    requests = bench.requests("q0", "q1", "slow 1.5")
    actor, folder = bench.actor(requests), Path(bench.store.place)
    folder.write_text("no folder")  # as a full disk, for a while

    async def work() -> pa.Table:
        answering = asyncio.create_task(actor(batch(requests)))
        while not answering.done() and bench.calls().total() < 2:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        folder.unlink()
        return await answering

    done = asyncio.run(work())
    assert bench.finished() == set(done["key"].to_pylist()) and len(done) == 3


def test_rows_that_finish_during_a_write_are_in_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Store.write

    def slowly(store: Store, rows: list[dict[str, Any]]) -> None:
        time.sleep(0.3)
        write(store, rows)

    monkeypatch.setattr(Store, "write", slowly)
    monkeypatch.setattr(stage, "FLUSH_SECONDS", 0.0)
    requests = bench.requests("q0", "slow 0.15", "slow 2")
    actor = bench.actor(requests)

    async def work() -> int:
        answering = asyncio.create_task(actor(batch(requests)))
        await asyncio.sleep(1.2)
        durable = len(bench.finished())
        await answering
        return durable

    assert asyncio.run(work()) == 2  # without waiting for the slow one
    assert bench.finished() == keys(requests)


def test_a_stored_row_is_not_given_to_the_reasoner_again(bench: Bench) -> None:
    """A new actor, in place of one that died, gets the same rows and asks the store first."""
    requests = bench.requests("q0", "q1")
    for attempt in range(2):
        actor = bench.actor(requests)
        done = asyncio.run(actor(batch(requests)))
        assert len(done) == (0 if attempt else 2)
    assert bench.calls() == {"q0": 1, "q1": 1}


def test_a_scripts_key_is_of_script_and_row(bench: Bench) -> None:
    keys = bench.requests("q0", "q1").keys
    assert keys == bench.requests("q0", "q1").keys and len(set(keys.values())) == 2
    assert bench.requests("q0", "other").keys["row-bn-train-0"] == keys["row-bn-train-0"]
    bench.script.write_text(SCRIPT + "# changed\n")
    assert not set(bench.requests("q0", "q1").keys.values()) & set(keys.values())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "script.py: no such Python file"),
        ("x = 1", r"script.py: defines no function reason\(row\)"),
        ("def reason(row:", "script.py: SyntaxError when loaded"),
        ("import no_such_module_here", "script.py: ModuleNotFoundError when loaded: No module named 'no_such_module_here'"),
    ],
)
def test_a_script_that_is_none_is_named(tmp_path: Path, script: str | None, message: str) -> None:
    if script is not None:
        (tmp_path / "script.py").write_text(script)
    with pytest.raises(UserError, match=message):
        load_script(tmp_path / "script.py")


def asked(tiny: Path, task: Task, **identity: Any) -> Requests:
    return vllm_requests(task, measure(task, []), Renderer(tiny), {"model": "hash"} | identity, "row_language", {"bn": 2, "hi": 2})


def test_a_models_requests_are_the_prompts_tokens(tiny: Path) -> None:
    task, renderer = tiny_model.task(), Renderer(tiny)
    requests = asked(tiny, task)
    assert len(requests.prefixes) == 2  # one a language
    for row in task.rows:
        request = requests.of(requests.keys[row.id])
        prompt = renderer.reasoner_prompt(task, 2, task.text(row.fields), row.language)
        assert requests.prefixes[request["prefix"]] + request["ids"] == prompt.ids and request["row"] == ""
    assert len(requests) == 6 < len(task.rows)  # the same question in three splits is one request


def test_a_models_key_is_of_all_that_decides_its_answer(tiny: Path) -> None:
    task = tiny_model.task()
    keys = set(asked(tiny, task).keys.values())
    assert keys == set(asked(tiny, task).keys.values())
    for change in ({"model": "other"}, {"max_tokens": 3}, {"stop": ["\n"]}, {"dtype": "float32"}):
        assert not keys & set(asked(tiny, task, **change).keys.values())
    assert not keys & set(asked(tiny, replace(task, i_beta="Other.")).keys.values())
    renamed = replace(task, i_tau="Other.", name="other", rows=tuple(replace(row, id=f"{row.id}!", targets=("x",), group="g") for row in task.rows))
    assert keys == set(asked(tiny, renamed).keys.values())  # what the reasoner does not read


def test_a_models_identity_is_of_its_weights_and_of_all_that_decides_what_it_says() -> None:
    config, model = ReasonerConfig(), Model("m", Path("m"), "hash")
    changed = [replace(config, dtype="float32"), replace(config, max_tokens=7), replace(config, stop=["x"])]
    found = [_identity(config, model), _identity(config, replace(model, hash="another")), *(_identity(other, model) for other in changed)]
    assert all(one != other for at, one in enumerate(found) for other in found[:at])
    assert _identity(config, replace(model, name="n", folder=Path("n"))) == found[0]


def test_requests_leave_nothing_behind_when_their_process_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = bench.folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    requests = bench.requests("a", "b")
    assert len(requests) == 2 and not list(temporary.iterdir())
