"""A chat endpoint that answers, refuses, breaks off or talks nonsense as the question tells it."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSALS: dict[str, tuple[int, dict[str, Any]]] = {
    "rate": (429, {"message": "slow down", "code": "rate_limit_exceeded"}),
    "tomorrow": (429, {"message": "daily limit"}),
    "quota": (429, {"message": "you exceeded your current quota", "code": "insufficient_quota"}),
    "broken": (500, {"message": "it broke"}),
    "context": (400, {"message": "This model's maximum context length is 10 tokens, your prompt has 20", "code": 400}),
    "code": (400, {"message": "no", "code": "context_length_exceeded"}),
    "filtered": (400, {"message": "the prompt was filtered", "code": "content_filter"}),
    "parameter": (400, {"message": "max_tokens is not supported", "code": "unsupported_parameter", "param": "max_tokens"}),
    "key": (401, {"message": "Incorrect API key provided: {key}"}),
    "forbidden": (403, {"message": "not yours"}),
    "model": (404, {"message": "The model `m` does not exist."}),
}
PAUSES = {"rate": {"Retry-After": "1"}, "tomorrow": {"Retry-After": "3600"}}
BODIES = {
    "garbage": "<html>welcome</html>",
    "other": '{"hello": ["world"]}',
    "list": "[1, 2]",
    "nothing": "",
    "string": '{"choices": "abc"}',
    "null": '{"choices": [{"message": null}]}',
}


@dataclass
class ChatServer:
    """What the last user message says after ``question:`` is a word of the above, ``word n`` (n times, then answer), or gets an answer."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies as received, each with its ``authorization`` and ``time``."""
    questions: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    delay: float = 0.0
    reply: Callable[[list[dict[str, str]]], str] | None = None
    """What is answered to messages, instead of ``about … Answer: yes``."""
    trouble: Callable[[int], str] = lambda number: ""
    """A word of the above for the n-th request, whatever it asks."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving() -> Iterator[ChatServer]:
    chat = ChatServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(chat))
    server.daemon_threads = True
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": len(text.split()), "total_tokens": 100 + len(text.split())}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def _handler(chat: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = re.findall(r"question: (.*?)(?: context:.*)?$", body["messages"][-1]["content"], re.DOTALL)[-1].strip()
            word, _, times = question.partition(" ")
            with chat.lock:
                trouble = chat.trouble(len(chat.requests))
                chat.requests.append(body | {"authorization": self.headers.get("Authorization", ""), "time": time.time()})
                chat.questions[question] += 1
                chat.at_once += 1
                chat.most_at_once = max(chat.most_at_once, chat.at_once)
                over = times.isdigit() and chat.questions[question] > int(times)
            time.sleep(chat.delay)
            try:
                if trouble:
                    self.answer(trouble, question)
                elif chat.reply is not None:
                    self.send(200, json.dumps(completion(chat.reply(body["messages"]))))
                else:
                    self.answer("" if over else word, question)
            finally:
                with chat.lock:
                    chat.at_once -= 1

        def answer(self, word: str, question: str) -> None:
            if word in REFUSALS:
                status, error = REFUSALS[word]
                message = error["message"].replace("{key}", self.headers.get("Authorization", "").removeprefix("Bearer "))
                self.send(status, json.dumps({"error": error | {"message": message}}), headers=PAUSES.get(word))
            elif word in BODIES:
                self.send(200, BODIES[word])
            elif word == "half":
                self.send(200, json.dumps(completion("a long answer")), sent=40)
            elif word == "hang":
                time.sleep(3)
                self.close_connection = True
            elif word == "reset":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif word in ("length", "empty"):
                self.send(200, json.dumps(completion("cut off" if word == "length" else " \n", "length" if word == "length" else "stop")))
            else:
                self.send(200, json.dumps(completion(f"about {question}\nAnswer: yes")))

        def send(self, status: int, text: str, sent: int | None = None, headers: dict[str, str] | None = None) -> None:
            content = text.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[:sent])
            self.close_connection = sent is not None

        def log_message(self, *_: object) -> None:
            pass

    return Handler
