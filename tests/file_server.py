"""A web server of one file that breaks off, refuses or lies as it is told."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler


@dataclass
class Server:
    """One file, and what to do at each request: the plan's next word, or serve it well."""

    content: bytes
    plan: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    etag: bool = True
    url: str = ""
    seen: list[dict[str, str]] = field(default_factory=list)
    """Headers of each request."""
    sent: int = 0

    def version(self) -> str:
        return f'"{hashlib.sha1(self.content).hexdigest()}"'


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.seen.append(dict(self.headers))
            word, _, count = (server.plan.pop(0) if server.plan else "serve").partition(" ")
            if word.isdigit():
                self.send_response(int(word))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = self.start(word)
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if word == "misplaced":
                start -= 1
            body = server.content[start:]
            if word == "damaged":
                body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
            if word != "lengthless":
                self.send_header("Content-Length", str(len(body)))
            if server.etag:
                self.send_header("ETag", server.version())
            for one in server.hashes:
                self.send_header("x-goog-hash", one)
            self.close_connection = True
            self.end_headers()
            body = body[: int(count or len(body))]
            server.sent += len(body)  # before the client can have them and look
            self.wfile.write(body)
            self.wfile.flush()
            if word == "stall":
                time.sleep(1)

        def start(self, word: str) -> int:
            wanted = self.headers.get("Range", "")
            same = self.headers.get("If-Range") == server.version() or word == "careless"
            return int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and same and word != "rangeless" else 0

        def log_message(self, *_: object) -> None:
            pass

    return Handler
