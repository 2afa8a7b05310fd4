"""Whole runs with a remote reasoner: the key stays secret, costs are told; and a real vLLM server, asked as the engine in this cluster would be."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chat_server
import pandas as pd
import pytest
import tiny_model
import vllm_server
import yaml
from test_cli import own_task

from fiat_ray import config as configs
from fiat_ray import runs
from fiat_ray.errors import UserError
from fiat_ray.prepare import Prepared, make_reasoner, prepare, reasoner_budget
from fiat_ray.progress import Console
from fiat_ray.reason.reasoners import Answer
from fiat_ray.reason.requests import Requests
from fiat_ray.reason.store import Store
from fiat_ray.schedule.trials import Outcome
from fiat_ray.task import SPLITS, Task

SECRET = "sk-planted-4f1d"


def write_config(folder: Path, tiny: Path, url: str, task: Path) -> Path:
    values = {
        "task": str(task),
        "reasoner": {"kind": "openai", "model": "m", "base_url": url, "max_tokens": 48, "tokenizer": str(tiny), "price_in": 1e4, "price_out": 1e5},
        "tunables": {"xs": {"model": str(tiny), "max_length": 1024}},
        "methods": ["icl", "fiat"],
        "steps": 1,
        "validation": {"times": 1, "rows": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


def fiat_ray(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENAI_API_KEY": SECRET, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder / "ray"), "OPENAI_LOG": "info"}
    (folder / "ray").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "fiat_ray", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    (folder / f"output of {arguments[0]}").write_text(done.stdout + done.stderr)
    return done


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it."""
    made = Path(tempfile.mkdtemp(prefix="fiat"))
    yield made
    shutil.rmtree(made)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_a_run_with_an_endpoint_tells_what_it_cost_and_writes_its_key_nowhere(tiny: Path, folder: Path) -> None:
    with chat_server.serving() as chat:
        config, run = write_config(folder, tiny, chat.url, own_task(folder)), folder / "run"
        done = fiat_ray(folder, "run", str(config), "--out", str(run))
        assert done.returncode == 0, done.stderr[-2000:]
        assert {request["authorization"] for request in chat.requests} == {f"Bearer {SECRET}"} and chat.questions.total() == 3
        assert "mytask: 300 tokens in, " in done.stderr and "by reasoner.price_in and price_out" in done.stderr
        costs = pd.read_csv(run / "report" / "costs.csv").iloc[0]
        assert (
            costs["charged"] == pytest.approx((1e4 * costs["prompt_tokens"] + 1e5 * costs["output_tokens"]) / 1e6) and costs["prompt_tokens"] == 300
        )
        decision = pd.read_csv(run / "report" / "decision.csv").set_index("method")
        assert decision.loc["icl", "per_1000_price"] > 1000 * 100 * 1e4 / 1e6

        assert json.loads((run / "spent.json").read_text())["charged"] == pytest.approx(costs["charged"])
        done = fiat_ray(folder, "run", str(config), "--out", str(run), "seeds=[0, 1]", "max_cost=3")
        assert done.returncode == 3 and "max_cost: 3 is reached" in done.stderr and "fiat-xs-s1" in done.stderr and "Ray:" not in done.stderr
        assert fiat_ray(folder, "run", str(config), "--out", str(run)).returncode == 0 and chat.questions.total() == 3, "nothing is asked twice"
        (folder / "new.jsonl").write_text('{"question": "new", "context": "c", "language": "en"}\n')
        done = fiat_ray(folder, "infer", str(run), "--input", str(folder / "new.jsonl"), "--output", str(folder / "answers.jsonl"))
        assert done.returncode == 0, done.stderr[-2000:]
        answer = json.loads((folder / "answers.jsonl").read_text())
        assert (answer["status"], answer["rationale"]) == ("ok", "about new\nAnswer: yes") and chat.questions["new"] == 1

        (folder / "mytask" / "test.jsonl").write_text('{"question": "key", "context": "c", "target": "t", "language": "en"}\n')
        done = fiat_ray(folder, "reason", str(config), "--out", str(folder / "refused"))
        assert done.returncode == 2 and "the endpoint answers 401, Incorrect API key provided: ***; OPENAI_API_KEY is set" in done.stderr
        assert "Traceback" not in done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in files if "ray" in path.parts and path.suffix in (".log", ".err", ".out")]) > 5  # Ray's own are among them
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_limit_of_cost_stops_an_endpoint_and_no_answer_is_lost(ray_local: None, tiny: Path, tmp_path: Path) -> None:
    towns = tiny_model.task(tuple(tiny_model.row(n, SPLITS[n % 3], question=f"town {n}") for n in range(100)))

    class Noting(Console):
        asked_at_limit = 0

        def line(self, text: str, stage: str = "", **counts: float | str) -> None:
            if "nothing more is started" in text:
                self.asked_at_limit = len(chat.requests)
            super().line(text, stage, **counts)

    console = Noting()

    def reason(**changes: Any) -> tuple[int, Outcome]:
        config = configs.load(values | changes)
        done, outcome = runs.run_config(config, tmp_path / "run", tasks={"towns": towns}, stages=("reason",), console=console)
        return len(Store(done.folder.rationales).table()), outcome

    with chat_server.serving() as chat:
        endpoint = {"kind": "openai", "model": "m", "base_url": chat.url, "tokenizer": str(tiny), "max_tokens": 48, "max_length": 1024}
        prices = {"concurrency": 3, "price_in": 1e4, "price_out": 1e-3}
        values = {"task": "towns", "methods": ["icl"], "reasoner": endpoint | prices}
        chat.delay = 2.0
        stored, outcome = reason(max_cost=4)  # of four rows
        assert outcome.stopped is not None and outcome.stopped.startswith("max_cost: 4 is reached") and "prompts are not answered" in outcome.stopped
        assert chat.at_once == 0 and 4 <= stored == len(chat.requests) <= console.asked_at_limit + 2 * 3 < 100
        assert json.loads((tmp_path / "run" / "spent.json").read_text())["charged"] == pytest.approx(stored)
        time.sleep(chat.delay)
        assert len(chat.requests) == stored, "somebody still asks"
        chat.delay = 0.0
        assert reason() == (100, Outcome()) and set(chat.questions.values()) == {1}


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server.serving(tiny, tmp_path_factory.mktemp("served") / "log") as url:
        yield url


def rows(requests: Requests) -> list[dict[str, Any]]:
    return [row for table in requests.columns("prefix", "ids", "row") for row in table.to_pylist()]


def asked(tiny: Path, url: str, task: Task | None = None, **changes: Any) -> tuple[Prepared, list[Answer]]:
    """What a server says to the distinct prompts of a task."""
    values = {"kind": "openai", "model": "m", "base_url": url, "max_tokens": 16, "tokenizer": str(tiny), "max_length": 512, **changes}
    config = configs.load({"task": "towns", "reasoner": values, "tunables": {"xs": {"model": str(tiny)}}, "methods": ["icl"]})
    prepared = prepare(config, {"towns": task or tiny_model.task()})

    async def answers() -> list[Answer]:
        reasoner = make_reasoner(config, 0)()
        return await asyncio.gather(*(reasoner.reason([], row["ids"], row["row"]) for row in rows(prepared.requests["towns"])))

    return prepared, asyncio.run(answers())


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_real_server_answers_the_prompts_that_the_engine_here_would_get(tiny: Path, served: str) -> None:
    prepared, answers = asked(tiny, served)
    assert {answer.status for answer in answers} <= {"ok", "length"} and len(answers) == 6
    budget, _ = reasoner_budget(prepared.config)
    assert budget is not None
    requests = prepared.requests["towns"]
    for request, answer in zip(rows(requests), answers, strict=True):
        # Its own template, and whole turns tokenized at once: where pieces meet, a few tokens may be others.
        assert answer.prompt_tokens == pytest.approx(len(requests.prefixes[request["prefix"]]) + len(request["ids"]), abs=8)
        assert 0 < answer.output_tokens <= 16 and (answer.status == "length") == (answer.output_tokens == 16)
    again, same = asked(tiny, served)
    assert again.requests["towns"].keys == requests.keys
    assert [answer.text for answer in same] == [answer.text for answer in answers]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_what_a_real_server_refuses_is_understood(tiny: Path, served: str) -> None:
    rows = tuple(tiny_model.row(0, split, context="The town lies at the river. " * 60) for split in SPLITS)
    _, answers = asked(tiny, served, tiny_model.task(rows), max_length=2048)
    assert {answer.status for answer in answers} == {"prompt_too_long"}, answers[0]
    with pytest.raises(UserError, match="the endpoint answers 404"):
        asked(tiny, served, model="another")
