"""Progress of reasoning: rows, speed, prefix-cache share, time left, causes; as a line, and as a log that a killed process may have cut off."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiat_ray import progress, schema
from fiat_ray.reason.merge import FEWEST, merge
from fiat_ray.reason.requests import Request, Requests, write
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.store import Store
from fiat_ray.reason.watch import Watch
from fiat_ray.text import columns


def row(key: int | str, status: str = "ok", error: str = "", **changed: int) -> dict[str, Any]:
    counts = {"tries": 1, "prompt_tokens": 1000, "cached_tokens": 750, "output_tokens": 50}
    return {"key": str(key), "status": status, "error": error, **counts, **changed}


def watch_of(store: Store, keys: int, reasoner: ReasonerConfig | None = None) -> Watch:
    """Of a campaign that asks for the keys from 0 on."""
    file = Path(store.place).with_name("requests.parquet")
    write(file, [[Request(str(key)) for key in range(keys)]])
    return Watch("rivers", Requests(file), store, reasoner or ReasonerConfig())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "rationales")


def test_a_line_says_how_far_how_fast_and_what_failed(store: Store) -> None:
    store.write([row(0)])  # before the watch began
    watch = watch_of(store, 21)
    assert watch.text() == "reason: rivers: 0/20 rows, starting …"
    store.write([row(1), row(2, "length"), row(3, "engine_error", "ValueError: too\n odd"), row(4, "engine_error", "ValueError: too odd")])
    text = watch.text()
    assert text.startswith("reason: rivers: 4/20 rows · 4.0 rows/s · tokens/s: 4,000 in, 200 out (75% cached) · ETA 0:0")
    assert text.endswith(" · 2 engine_error (ValueError: too odd) · 1 length")
    now = watch.numbers()
    assert (now["rows"], now["missing"], now["cached_share"]) == (4, 16, 0.75)
    assert now["status/engine_error"] == 2 and now["status/ok"] == 1


def test_what_others_write_and_what_is_merged_costs_nothing(store: Store) -> None:
    """Another campaign shares the store, and merges it. Nor is anything to be counted where nothing is missing."""
    store.write([row(0), row(1, "engine_error"), row("theirs")])
    watch = watch_of(store, 4, ReasonerConfig(kind="openai", price_in=1000.0, price_out=0.0))
    nothing = watch_of(store, 1)
    assert (watch.missing, nothing.missing) == (3, 0)

    def costs(rows: int, charged: float) -> bool:
        now = watch.numbers()
        return (now["rows"], now["missing"], watch.charged) == (rows, 3 - rows, charged)

    for number in range(FEWEST):
        store.write([row(f"theirs {number}")])
    assert costs(0, 0)
    merge(store)
    assert costs(0, 0), "the first try of key 1 was before"
    store.write([row(1, tries=2, status="engine_error"), row(2), row("theirs, too")])
    assert costs(2, 2)
    store.write([row(2), row(1, tries=3)])  # theirs, and another try
    assert costs(2, 3)
    for number in range(FEWEST):
        store.write([row(f"more of theirs {number}")])
    merge(store)
    assert costs(2, 3) and len(store.parts()) < FEWEST
    store.write([row(3)])
    assert costs(3, 4) and nothing.numbers()["rows"] == 0


def test_a_script_has_no_prefix_cache(store: Store) -> None:
    watch = watch_of(store, 2)
    store.write([row(1, prompt_tokens=0, cached_tokens=0)])
    assert "cached" not in watch.text()


def test_parts_of_older_versions_are_read(store: Store) -> None:
    """They lack the column of cached tokens."""
    old = pa.schema([field for field in schema.RATIONALES if field.name != "cached_tokens"])
    watch = watch_of(store, 2)
    Path(store.place).mkdir()
    pq.write_table(pa.Table.from_pylist([row(1)], schema=old), store.path("part-0.parquet"))
    assert store.read(["1"])["1"]["cached_tokens"] is None and "1/2 rows" in watch.text()


def test_a_log_has_a_line_a_minute_and_the_last_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = threading.Event()
    log = progress.ProgressLog(tmp_path / "progress.jsonl", sent.set)
    log.write("rivers", lambda: {"rows": 1})
    assert progress.read_log(tmp_path / "progress.jsonl") == []
    monkeypatch.setattr(progress, "LOGGED_EVERY", 0.0)
    log.write("rivers", lambda: {"rows": 2})
    assert not sent.wait(0.5), "a short stage is sent at its end only"
    monkeypatch.setattr(progress, "SENT_AFTER", 0.0)
    log.write("rivers", lambda: {"rows": 3})
    assert sent.wait(5)
    monkeypatch.setattr(progress, "LOGGED_EVERY", 60.0)
    log.write("rivers", lambda: {"rows": 4}, last=True)
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"time": 1, "ta')
    lines = progress.read_log(tmp_path / "progress.jsonl")
    assert [(line["task"], line["numbers"]["rows"]) for line in lines] == [("rivers", rows) for rows in (2, 3, 4)]
    assert all(abs(line["time"] - time.time()) < 60 for line in lines)
    assert json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[0])["task"] == "rivers"


def test_a_server_that_stands_still_holds_up_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOGGED_EVERY", 0.0)
    monkeypatch.setattr(progress, "SENT_AFTER", 0.0)
    going, begun, sent = threading.Event(), threading.Event(), list[float]()

    def send() -> None:
        sent.append(time.monotonic())
        begun.set()
        going.wait(4)

    log, began = progress.ProgressLog(tmp_path / "progress.jsonl", send), time.monotonic()
    for rows in range(3):
        log.write("rivers", lambda rows=rows: {"rows": rows})  # type: ignore[misc]
    assert time.monotonic() - began < 3 and len(progress.read_log(tmp_path / "progress.jsonl")) == 3
    assert begun.wait(5)
    going.set()
    assert len(sent) == 1, "senders pile up"


def test_lines_of_json_hold_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    console = progress.Console(as_json=True)
    console.line("rivers: ১২ rows", "prepare", task="rivers", rows=12)
    console.status("10/20 rows", "reason", rows=10, missing=10, rows_per_second=2.5)
    console.status("11/20 rows", "reason", rows=11)  # within a minute
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(abs(line.pop("time") - time.time()) < 60 for line in lines)
    assert lines == [
        {"stage": "prepare", "message": "rivers: ১২ rows", "task": "rivers", "rows": 12},
        {"stage": "reason", "message": "10/20 rows", "rows": 10, "missing": 10, "rows_per_second": 2.5},
    ]


def test_a_watched_thing_is_shown_while_one_waits(capsys: pytest.CaptureFixture[str]) -> None:
    class Counting:
        def text(self) -> str:
            return "3 of 4"

        def numbers(self) -> dict[str, float]:
            return {"rows": 3}

    with progress.Console(as_json=True).watching(Counting(), "answer"):
        time.sleep(1.5)
    [line] = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["message"], json.loads(line)["stage"], json.loads(line)["rows"]) == ("3 of 4", "answer", 3)


def test_without_a_terminal_a_status_is_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    console = progress.Console()
    for _ in range(3):
        console.status("10/20 rows")
    assert capsys.readouterr().err.count("10/20 rows\n") == 1
    monkeypatch.setattr(progress, "LOGGED_EVERY", 0.0)
    console.status("11/20 rows")
    assert capsys.readouterr().err.count("11/20 rows\n") == 1


def test_a_status_fits_in_its_terminal_also_when_that_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.openpty()
    line = "[0:00] reason: 河流: 640/4000 rows · 21.3 rows/s · tokens/s: 9,000 in, 700 out (88% cached) · ETA 2:37 · 3 truncated"

    class Terminal(io.StringIO):
        isatty, fileno = (lambda self: True), (lambda self: writer)

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    console, before = progress.Console(), 0
    for wide, filled in ((60, 59), (30, 29), (1, 0), (0, 79), (200, columns(line))):  # one that says 0 is taken for 80 wide
        termios.tcsetwinsize(writer, (24, wide))
        monkeypatch.setattr(console, "_last", 0.0)
        screen.truncate(screen.seek(0))
        console.status(line.removeprefix("[0:00] "))
        cleared, _, shown = screen.getvalue().rpartition("\r")
        assert line.startswith(shown) and filled - 1 <= columns(shown) <= filled
        assert cleared.strip("\r") == " " * min(before, (wide or 80) - 1)
        before = columns(shown)
    console.line("done")
    assert screen.getvalue().endswith(f"\r{' ' * before}\r[0:00] done\n")
    os.close(reader)
    os.close(writer)


def test_a_notebook_renews_a_status_and_keeps_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's stream is no terminal, and shows escape codes as text; a page goes back to a line's start at a carriage return."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", page := io.StringIO())
    console = progress.Console()
    console.line("started")
    for text in (f"reason: 1/9 rows · {'a cause · ' * 20}", "reason: 2/9 rows"):
        monkeypatch.setattr(console, "_last", 0.0)
        console.status(text)
        assert page.getvalue().endswith(text)
    console.line("ended")
    assert re.sub(r".*\r", "", page.getvalue()) == "[0:00] started\n[0:00] ended\n"
    assert re.fullmatch(r"[^\x00-\x09\x0b\x0c\x0e-\x1f]+", page.getvalue())


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_a_while_is_told_and_taken_back(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    console = progress.Console()
    with console.working("reading rows"):
        pass
    assert not stream.getvalue(), "what takes no while is not told"
    with console.working("asking", rows=20) as work, redirect_stderr(io.StringIO()):
        wait_for(lambda: "asking: 0/20" in stream.getvalue())
        work.done = 3
        wait_for(lambda: not terminal or "asking: 3/20" in stream.getvalue())
    first, *more = re.sub(r"\[0:\d\d\] ", "", stream.getvalue()).split("\r")
    assert first == "asking: 0/20 rows, starting …" + ("" if terminal else "\n")
    if terminal:
        *_, last, blank, end = more
        assert re.fullmatch(r"asking: 3/20 rows · \d\.\d rows/s · ETA 0:\d\d", last) and not blank.strip() and len(blank) > len(last) and not end
    else:
        assert not more


def wait_for(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 30
        time.sleep(0.05)
