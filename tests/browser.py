"""Chromium without a window, driven by its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page; ``said`` collects what its console and its scripts complain of."""

    def __init__(self, profile: Path, width: int = 1280, scheme: str = "light") -> None:
        assert CHROMIUM, "no Chromium on this machine: apt install chromium"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen([CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._socket = connect(_page(profile), max_size=2**28)
        self._calls = 0
        self.said: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.said.append(json.dumps(answer["params"])[:300])
            if answer.get("id") == self._calls:
                return answer["result"]

    def open(self, page: Path) -> None:
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.run(f"document.readyState === 'complete' && location.href === {json.dumps(page.resolve().as_uri())}") is not True:
            assert time.monotonic() < deadline, "the page is not loaded after a minute"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text="\r" if key == "Enter" and kind == "keyDown" else "")


def _page(profile: Path) -> str:
    """The address of the one page, from the port that Chromium writes into its profile."""
    from urllib.request import urlopen

    deadline, port = time.monotonic() + 60, profile / "DevToolsActivePort"
    while not port.is_file() or "\n" not in port.read_text():
        assert time.monotonic() < deadline, "Chromium is not up after a minute"
        time.sleep(0.1)
    number = port.read_text().splitlines()[0]
    with urlopen(f"http://127.0.0.1:{number}/json") as pages:
        return str(next(page["webSocketDebuggerUrl"] for page in json.load(pages) if page["type"] == "page"))
