"""A stand-in for the Hugging Face hub: the part of its API that tells and gives the files of data sets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(data_sets: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """Serves data sets, name → path → content; yields the address. The only revision is ``COMMIT``, which ``main`` and ``v1`` mean too."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            status, headers, body = self._found()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def _found(self) -> tuple[int, dict[str, str], bytes]:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "datasets"]:
                name, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
                if name not in data_sets:
                    return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
                if revision not in ("main", "v1", COMMIT):
                    return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, b""
                about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in data_sets[name]]}
                return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
            name, path = "/".join(parts[1:3]), "/".join(parts[5:])
            assert parts[0] == "datasets" and parts[3:5] == ["resolve", COMMIT], f"asked for something that is not pinned: {self.path}"
            content = data_sets[name][path]
            return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
