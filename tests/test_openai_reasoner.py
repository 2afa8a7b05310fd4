"""A reasoner behind an OpenAI-compatible endpoint: what it is asked, what becomes of all that an endpoint may do, and that its key stays secret."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import chat_server
import pytest
import tiny_model
from chat_server import ChatServer

from fiat_ray import config as configs
from fiat_ray import plan_text, planning, prompts
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.length import measure
from fiat_ray.prepare import Prepared, make_reasoner, prepare
from fiat_ray.reason import openai
from fiat_ray.reason.openai import OpenAIReasoner
from fiat_ray.reason.reasoners import Answer
from fiat_ray.reason.requests import Requests, openai_requests
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store
from fiat_ray.reason.watch import Watch
from fiat_ray.render import Renderer
from fiat_ray.task import Task

SECRET = "sk-planted-4f1d"


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chat_server.serving() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two retries instead of eight."""
    monkeypatch.setattr(openai, "RETRIES", 2)


def config(tiny: Path, url: str, **changes: Any) -> Config:
    reasoner = {"kind": "openai", "model": "m", "base_url": url, "max_tokens": 32, "tokenizer": str(tiny), **changes}
    return configs.load({"task": "towns", "reasoner": reasoner, "tunables": {"xs": {"model": str(tiny)}}, "methods": ["icl"]})


def asked(config: Config, task: Task | None = None) -> Prepared:
    return prepare(config, {"towns": task or tiny_model.task()})


def ask(chat: ChatServer, *questions: str, concurrency: int = 8) -> list[Answer]:
    async def all_of_them() -> list[Answer]:
        reasoner = OpenAIReasoner(chat.url, "m", 32, ("\n\n",), concurrency)
        rows = [json.dumps([{"role": "user", "content": f"question: {question} context: "}]) for question in questions]
        return await asyncio.gather(*(reasoner.reason([], [], row) for row in rows))

    return asyncio.run(all_of_them())


def test_a_request_holds_the_same_turns_as_a_prompt_in_this_cluster(tiny: Path) -> None:
    task = tiny_model.task()
    prepared = asked(config(tiny, "http://h/v1"))
    requests, renderer = prepared.requests["towns"], Renderer(tiny, reply="\n")
    for row in task.rows:
        request = requests.of(requests.keys[row.id])
        messages = json.loads(request["row"])
        assert [message["role"] for message in messages] == ["user", "assistant"] * 3 + ["user"]
        assert messages[0]["content"].startswith(f"{task.i_beta}\n\nquestion: ") and messages[-1]["content"] == task.text(row.fields)
        prompt = renderer.reasoner_prompt(task, 3, task.text(row.fields), row.language)
        said = "".join(piece.text for piece in prompt.pieces if piece.kind != "structure")
        assert "".join(message["content"] for message in messages) == said
        assert requests.prefixes[request["prefix"]] + request["ids"] == prompt.ids  # what plan counts
    assert len(requests) == 6 < len(task.rows)  # the same question in three splits is one request


def test_a_key_is_of_all_that_decides_the_answer_and_of_nothing_else(tiny: Path, tiny_pretrained: Path) -> None:
    base = config(tiny, "http://h/v1")
    keys = set(asked(base).requests["towns"].keys.values())
    same = {"concurrency": 3, "price_in": 1.0, "price_out": 2.0, "tokenizer": str(tiny_pretrained), "base_url": "http://h/v1/", "dtype": "float32"}
    assert keys == set(asked(config(tiny, "http://h/v1", **same)).requests["towns"].keys.values())
    for change in ({"model": "n"}, {"base_url": "http://other/v1"}, {"max_tokens": 33}, {"stop": ["\n\n"]}):
        assert not keys & set(asked(config(tiny, "http://h/v1", **change)).requests["towns"].keys.values())
    task = tiny_model.task()
    assert not keys & set(asked(base, replace(task, i_beta="Other.")).requests["towns"].keys.values())
    renamed = replace(task, i_tau="Other.", rows=tuple(replace(row, id=f"{row.id}!", targets=("x",), group="g") for row in task.rows))
    assert keys == set(asked(base, renamed).requests["towns"].keys.values())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("question", "status", "error", "calls"),
    [
        ("well", "ok", "", 1),
        ("odd \ud800", "ok", "", 1),
        ("length", "length", "", 1),
        ("empty", "empty", "", 1),
        ("context", "prompt_too_long", "This model's maximum context length is 10 tokens, your prompt has 20", 1),
        ("code", "prompt_too_long", "no", 1),
        ("filtered", "engine_error", "400: the prompt was filtered", 1),
        ("rate", "engine_error", "429: slow down", 3),
        ("rate 1", "ok", "", 2),
        ("broken", "engine_error", "500: it broke", 3),
        ("broken 2", "ok", "", 3),
        ("half", "engine_error", "Connection error. peer closed connection", 3),
        ("half 1", "ok", "", 2),
        ("reset 1", "ok", "", 2),
        ("hang", "engine_error", "Request timed out.", 3),
        ("hang 1", "ok", "", 2),
        *((word, "engine_error", "the endpoint's answer is no chat completion", 1) for word in chat_server.BODIES),
    ],
)
def test_what_an_endpoint_does_becomes_the_rows_status(
    chat: ChatServer, monkeypatch: pytest.MonkeyPatch, question: str, status: str, error: str, calls: int
) -> None:
    if question.startswith("hang"):
        monkeypatch.setattr(openai, "PATIENCE", 1.5)  # the server keeps still for three seconds
    question = question.encode("utf-8", "replace").decode()
    [answer] = ask(chat, question)
    assert answer.status == status and answer.error.startswith(error) and len(answer.error) <= 400 and "\n" not in answer.error
    assert chat.questions == {question: calls}
    if status == "ok":
        assert answer.text == f"about {question}\nAnswer: yes" and answer.finish_reason == "stop"
        assert (answer.prompt_tokens, answer.output_tokens) == (100, len(answer.text.split())) and answer.seconds > 0


def test_requests_say_what_the_key_holds(chat: ChatServer) -> None:
    ask(chat, "well")
    [request] = chat.requests
    said = {name: request[name] for name in ("model", "temperature", "max_tokens", "stop", "messages")}
    assert said == {
        "model": "m",
        "temperature": 0,
        "max_tokens": 32,
        "stop": ["\n\n"],
        "messages": [{"role": "user", "content": "question: well context: "}],
    }


def test_retry_after_is_waited_for(chat: ChatServer) -> None:
    ask(chat, "rate 1")
    first, second = (request["time"] for request in chat.requests)
    assert 0.95 <= second - first < 3  # of itself the client would have come back after half a second


def test_no_more_requests_at_once_than_allowed(chat: ChatServer) -> None:
    chat.delay = 0.1
    answers = ask(chat, *(f"q{n}" for n in range(20)), concurrency=5)
    assert {answer.status for answer in answers} == {"ok"} and chat.most_at_once == 5


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("key", "the endpoint answers 401, Incorrect API key provided: none; OPENAI_API_KEY is not set where the reasoner runs"),
        ("forbidden", "the endpoint answers 403, not yours; OPENAI_API_KEY is not set"),
        ("model", "reasoner.model: m at http://.*: the endpoint answers 404, The model `m` does not exist."),
        ("quota", "the endpoint answers 429, you exceeded your current quota"),
        ("tomorrow", r"reasoner.base_url: http://.* asks for a pause of 3,600 s \(daily limit\); run this again after it"),
        ("parameter", "the endpoint answers 400, max_tokens is not supported"),
    ],
)
def test_a_broken_config_is_no_rows_failure(chat: ChatServer, monkeypatch: pytest.MonkeyPatch, question: str, message: str) -> None:
    monkeypatch.delenv(openai.KEY, raising=False)
    with pytest.raises(UserError, match=message) as caught:
        ask(chat, question)
    assert "\n" not in str(caught.value)


def test_a_row_that_is_forbidden_after_others_were_answered_is_one_rows_failure(chat: ChatServer) -> None:
    """Gateways refuse single prompts so."""
    well, forbidden = ask(chat, "well", "forbidden", concurrency=1)
    assert (well.status, forbidden.status, forbidden.error) == ("ok", "engine_error", "403: not yours")
    with pytest.raises(UserError, match="the endpoint answers 403, not yours"):
        ask(chat, "forbidden", "well", concurrency=1)


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_that_is_not_there_is_named() -> None:
    with chat_server.serving() as gone:
        pass
    with pytest.raises(UserError, match=f"reasoner.base_url: nothing answers at {gone.url} "):
        ask(gone, "well")


@pytest.mark.parametrize("key", [None, SECRET, f" {SECRET}\n"])
def test_the_key_comes_from_the_environment(chat: ChatServer, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv(openai.KEY, raising=False) if key is None else monkeypatch.setenv(openai.KEY, key)
    ask(chat, "well")
    assert chat.requests[0]["authorization"] == f"Bearer {SECRET if key else 'none'}"


def test_a_key_that_an_endpoint_repeats_is_taken_out(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(openai.KEY, SECRET)
    with pytest.raises(UserError, match=r"the endpoint answers 401, Incorrect API key provided: \*\*\*; OPENAI_API_KEY is set") as caught:
        ask(chat, "key")
    assert chat.requests[0]["authorization"] == f"Bearer {SECRET}" and SECRET not in str(caught.value)


def test_a_key_that_is_none_is_not_repeated(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(openai.KEY, f"{SECRET}\n{SECRET}")
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds spaces") as caught:
        ask(chat, "well")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": None}, "reasoner.base_url: None is no endpoint"),
        ({"base_url": "host:8000/v1"}, "reasoner.base_url: 'host:8000/v1' is no endpoint"),
        ({"base_url": "http://[h/v1"}, "is no endpoint"),
        ({"base_url": f"http://me:{SECRET}@h/v1"}, "reasoner.base_url: holds a user, password or query"),
        ({"base_url": f"http://h/v1?key={SECRET}"}, "reasoner.base_url: holds a user, password or query"),
        ({"model": "embedded"}, "reasoner.model: `kind: openai` needs the name"),
        ({"concurrency": 0}, "reasoner.concurrency: must be above 0"),
        ({"price_in": 1.0}, "price_in and price_out go together"),
        ({"price_in": -1.0, "price_out": 1.0}, "reasoner.price_in: must be above 0"),
        ({"api_key": SECRET}, "unknown key 'reasoner.api_key'"),
    ],
)
def test_what_is_wrong_in_a_config_is_named_and_no_secret_repeated(tiny: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config(tiny, **({"url": "http://h/v1"} | changes if "base_url" not in changes else {"url": "", **changes}))
    assert SECRET not in str(caught.value)


def test_an_endpoints_name_of_a_model_is_no_path(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("task: t\nreasoner: {kind: openai, model: ./served, base_url: 'http://h/v1', tokenizer: ./tokens}\n")
    loaded = configs.load(path)
    assert loaded.reasoner.model == "./served" and loaded.reasoner.tokenizer == str(tmp_path / "tokens")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(configs.dump(loaded))
    assert configs.load(tmp_path / "run").reasoner == loaded.reasoner


def of_questions(tiny: Path, *questions: str) -> Requests:
    task = tiny_model.task(tuple(tiny_model.row(n, question=question, context="") for n, question in enumerate(questions)))
    return openai_requests(task, measure(task, []), Renderer(tiny), {"model": "m"}, "row_language", {"bn": 2})


def test_the_stage_asks_an_endpoint_once_for_each_prompt(ray_local: None, tiny: Path, chat: ChatServer, tmp_path: Path) -> None:
    questions = [*(f"q{n}" for n in range(30)), "empty", "length", "context", "filtered"]
    requests, store = of_questions(tiny, *questions, *questions), Store(tmp_path)
    watch = Watch("towns", requests, store, config(tiny, chat.url, price_in=1e6, price_out=1e6).reasoner)
    answered = list(reason(requests, store, partial(OpenAIReasoner, chat.url, "m", 32, (), 16), cpus=0, window=16))
    ended = {"ok": 30, "empty": 1, "length": 1, "prompt_too_long": 1, "engine_error": 1}
    assert Counter(row["status"] for row in store.table().to_pylist()) == ended and len(answered) == 34
    assert chat.questions == dict.fromkeys(questions, 1) | {"filtered": 3} and chat.most_at_once <= 16
    rows = store.read(requests.distinct()).values()
    tokens = sum(row["prompt_tokens"] + row["output_tokens"] for row in rows)
    assert f"· cost {tokens:,.2f} ·" in watch.text() and "1 prompt_too_long" in watch.text()


def test_a_broken_config_stops_the_stage_at_once_and_keeps_what_was_answered(ray_local: None, tiny: Path, chat: ChatServer, tmp_path: Path) -> None:
    requests, store = of_questions(tiny, "q0", "q1", "model"), Store(tmp_path)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^reasoner.model: m at .* 404, The model `m` does not exist\.$"):
        list(reason(requests, store, partial(OpenAIReasoner, chat.url, "m", 32, (), 1), cpus=0, window=1))
    assert chat.questions["model"] == 1 and time.monotonic() - start < 60
    assert "engine_error" not in {row["status"] for row in store.table().to_pylist()}


def test_plan_and_prompt_say_what_is_estimated(tiny: Path, tmp_path: Path) -> None:
    towns = {"towns": tiny_model.task()}
    told = config(tiny, "http://h/v1", price_in=2.0, price_out=10.0)
    planned = planning.plan(told, towns)
    reasoner = planned["tasks"]["towns"]["reasoner"]
    assert reasoner["charged"] == pytest.approx((2 * reasoner["all"]["tokens_in"] + 10 * 6 * 32) / 1e6) and reasoner["prompts"] == 6
    assert json.loads(json.dumps(planned)) == planned and planned["time"]["seconds"] == 0
    text = " ".join(plan_text.describe(planned).split())
    assert "m at http://h/v1: 6 distinct prompts" in text and f"an estimate, by the tokenizer of {tiny}" in text
    assert "costs 0.01 by price_in and price_out" in text
    unpriced = planning.plan(config(tiny, "http://h/v1"), towns)
    assert unpriced["tasks"]["towns"]["reasoner"]["charged"] is None and "price_in" not in plan_text.describe(unpriced)

    facts = {"task": ["country_facts"], "languages": ["el"], "limit": {"train": 2, "validation": 1, "test": 2}}
    shown = prompts.show(replace(told, **facts))
    assert "reasoner m at http://h/v1, key " in shown and "tokens are an estimate" in shown and "\nassistant " in shown
    prepared = prepare(replace(told, **facts))
    requests = prepared.requests["country_facts"]
    messages = json.loads(requests.of(requests.keys[prepared.tasks["country_facts"].rows[0].id])["row"])
    for line in messages[-1]["content"].splitlines():
        assert line in shown
    assert "<|im_start|>" not in shown  # the endpoint's template is its own


def test_make_reasoner_makes_it(tiny: Path, chat: ChatServer) -> None:
    reasoner = make_reasoner(config(tiny, chat.url), 0)()
    answer = asyncio.run(reasoner.reason([], [], json.dumps([{"role": "user", "content": "question: well context: "}])))
    assert answer.status == "ok" and chat.requests[0]["max_tokens"] == 32 and "stop" not in chat.requests[0]
