"""The rationale store on an object store: a real S3-compatible server on this machine."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import tiny_model
from ports import free_port
from pyarrow import fs
from test_store import FEW, answered, finished, key, read

from fiat_ray.errors import UserError
from fiat_ray.length import measure
from fiat_ray.reason import merge
from fiat_ray.reason.reasoners import ScriptedReasoner
from fiat_ray.reason.requests import scripted_requests
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store

pytest.importorskip("moto", reason="the S3 server of the tests; `make setup` installs it")


class Server:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "requests.log"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.log.open("w"))
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def files(self) -> fs.S3FileSystem:
        return fs.S3FileSystem(endpoint_override=f"127.0.0.1:{self.port}", scheme="http", allow_bucket_creation=True)

    def uri(self, path: str) -> str:
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def requests(self, method: str, path: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if re.search(rf'"{method} /{path}', line)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("s3"))
    running.files().create_dir("bucket")
    yield running
    running.process.kill()


@pytest.fixture
def path() -> str:
    return f"bucket/{uuid.uuid4().hex}"


@pytest.fixture
def store(server: Server, path: str) -> Store:
    return Store(server.uri(path))


def test_what_is_written_is_read(store: Store) -> None:
    assert finished(store, "a") == set()
    store.check_writable()
    rows = [answered("a", text="নদী"), answered("b", "engine_error", "", 2)]
    store.write(rows)
    store.write([answered("a", text="second")])
    assert read(store, "a", "b") == dict(zip("ab", rows, strict=True))
    assert finished(store, "a", "b") == {"a"} and store.known().tries == {key("b"): 2}


def test_a_part_is_one_put_under_a_name_of_its_own(server: Server, store: Store, path: str) -> None:
    for n in range(3):
        store.write([answered(f"{n}-{row}", text="long " * 1000) for row in range(50)])
    puts = server.requests("PUT", path)
    assert len(puts) == 3 == len(set(puts)) == len(store.parts()) and not server.requests("POST", path)


def test_small_parts_are_merged(server: Server, store: Store, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(FEW):
        store.write([answered(str(n)), answered("shared", text=str(n))])
    before = store.table()
    merge.merge(store)
    assert len(store.parts()) == 1 and store.table() == before
    monkeypatch.setattr(merge, "GRACE_SECONDS", -1.0)
    merge.merge(store)
    assert len(server.files().get_file_info(fs.FileSelector(path))) == 1 and store.table() == before


def test_a_truncated_object_is_named(server: Server, store: Store) -> None:
    store.write([answered(str(n)) for n in range(50)])
    (part,) = store.parts()
    content = server.files().open_input_stream(part).read()
    with server.files().open_output_stream(part) as stream:
        stream.write(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged part of the rationale store"):
        store.known()


def test_a_bucket_that_is_not_there_is_named_before_anything_is_paid_for(server: Server) -> None:
    with pytest.raises(UserError, match="s3://nobodys/x.*the rationale store can't be written"):
        Store(server.uri("nobodys/x")).check_writable()


@pytest.mark.parametrize("place", ["nosuch://bucket/x", "s3://bucket/x?nosuch=1"])
def test_a_place_that_is_none_is_named(place: str) -> None:
    with pytest.raises(UserError, match="no place for a rationale store"):
        Store(place)


def test_a_stage_writes_to_it(server: Server, store: Store, tmp_path: Path, ray_local: None) -> None:
    script = tmp_path / "script.py"
    script.write_text("def reason(row): return row['fields']['question']")
    task = tiny_model.task()
    requests = scripted_requests(task, measure(task, []), script)
    create = partial(ScriptedReasoner, str(script))
    answered_ = list(reason(requests, store, create))
    assert {row["key"] for row in answered_} == set(requests.distinct().to_pylist()) == set(store.table()["key"].to_pylist())
    assert list(reason(requests, store, create)) == []
