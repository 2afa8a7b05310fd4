"""``data fetch`` against a server on this machine that breaks off, refuses, changes the file or lies, as real ones do."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from file_server import Server, handler
from test_tasks import attriqa_tree, packed, qa_tree, write

from fiat_ray import Task, data_fetch
from fiat_ray.cli import main
from fiat_ray.data_fetch import crc32c, fetch
from fiat_ray.errors import UserError

NAME = "xor_attriqa.zip"


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """XOR-AttriQA's layout with two rows a file, and half a megabyte that does not compress."""
    path = packed(write(tmp_path / "official", attriqa_tree()), "zip")
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("xor_attriqa/padding", random.Random(0).randbytes(500_000))
    return path.read_bytes()


@pytest.fixture
def server(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(data_fetch, "PAUSES", [0.0, 0.0])
    served = Server(archive)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(served))
    served.url = f"http://127.0.0.1:{http.server_port}/mirror/archive?token=x"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served
    http.shutdown()
    http.server_close()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_fetched_archive_is_recorded_read_and_not_fetched_again(tmp_path: Path, server: Server) -> None:
    folder = tmp_path / "new" / "folder"
    fetched = fetch("xor_attriqa", folder, url=server.url)
    assert fetched.path.read_bytes() == server.content
    assert files(folder) == {NAME, f"{NAME}.sha256"}, "something else was left"
    assert (folder / f"{NAME}.sha256").read_text() == f"{hashlib.sha256(server.content).hexdigest()}  {NAME}\n"
    assert fetch("xor_attriqa", folder, url=server.url).sha256 == fetched.sha256
    assert len(server.seen) == 1
    assert len(Task.load("xor_attriqa", fetched.path).rows) == 14


def test_the_other_archive(tmp_path: Path, server: Server) -> None:
    server.content = packed(write(tmp_path / "official", qa_tree()), "tgz").read_bytes()
    fetched = fetch("xtreme_up_qa", tmp_path, url=server.url)
    assert fetched.path.name == "xtreme-up-v1.1.jsonl.tgz"
    assert Task.load("xtreme_up_qa", fetched.path).languages == ["bn", "hi", "ur"]


@pytest.mark.parametrize("word", ["cut", "stall"])
def test_a_broken_transfer_goes_on_where_it_broke_off(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(data_fetch, "TIMEOUT", 0.3)
    server.plan = [f"{word} 200000", f"{word} 100000"]
    assert fetch("xor_attriqa", tmp_path / "a", url=server.url).path.read_bytes() == server.content
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=200000-", "bytes=300000-"]
    assert {seen.get("If-Range") for seen in server.seen[1:]} == {server.version()}
    assert server.sent == len(server.content), "bytes came twice"
    assert "goes on at 0.2 MB of 0.5 MB" in capsys.readouterr().err


def test_the_next_command_goes_on_too(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_fetch, "PAUSES", [])
    server.plan = ["cut 123456"]
    with pytest.raises(ConnectionError, match="broke off after 123,456 of"):
        fetch("xor_attriqa", tmp_path / "a", url=server.url)
    assert files(tmp_path / "a") == {f"{NAME}.part", f"{NAME}.part.json"}
    assert fetch("xor_attriqa", tmp_path / "a", url=server.url).path.read_bytes() == server.content
    assert server.sent == len(server.content)
    assert files(tmp_path / "a") == {NAME, f"{NAME}.sha256"}


def test_what_came_from_another_url_is_no_beginning(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_fetch, "PAUSES", [])
    server.plan = ["cut 123456"]
    with pytest.raises(ConnectionError):
        fetch("xor_attriqa", tmp_path, url=server.url)
    fetch("xor_attriqa", tmp_path, url=f"{server.url}y")
    assert "Range" not in server.seen[1]


def test_a_whole_part_needs_no_server(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command leaves it that was killed between the last byte and the renaming."""
    monkeypatch.setattr(data_fetch, "_verified", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch("xor_attriqa", tmp_path / "a", url=server.url)
    monkeypatch.undo()
    assert fetch("xor_attriqa", tmp_path / "a", url=server.url).path.read_bytes() == server.content
    assert len(server.seen) == 1


def test_a_server_that_ignores_range(tmp_path: Path, server: Server) -> None:
    server.plan = ["cut 200000", "rangeless"]
    assert fetch("xor_attriqa", tmp_path, url=server.url).path.read_bytes() == server.content
    assert server.sent == 200_000 + len(server.content)


def test_another_range_than_was_asked_for_is_not_appended(tmp_path: Path, server: Server) -> None:
    server.plan = ["cut 200000", "misplaced"]
    assert fetch("xor_attriqa", tmp_path, url=server.url).path.read_bytes() == server.content
    assert len(server.seen) == 3


def test_a_server_that_always_breaks_off_at_the_same_place_is_given_up(tmp_path: Path, server: Server) -> None:
    server.plan = ["rangeless 200000"] * 50
    with pytest.raises(ConnectionError, match="broke off after 200,000 of"):
        fetch("xor_attriqa", tmp_path, url=server.url)
    assert len(server.seen) == 1 + len(data_fetch.PAUSES)


def test_a_server_without_versions_is_never_asked_for_the_rest(tmp_path: Path, server: Server) -> None:
    server.etag, server.plan = False, ["cut 200000"]
    assert fetch("xor_attriqa", tmp_path, url=server.url).path.read_bytes() == server.content
    assert "Range" not in server.seen[1]


def test_a_file_of_unknown_length(tmp_path: Path, server: Server) -> None:
    server.plan = ["lengthless"]
    assert fetch("xor_attriqa", tmp_path, url=server.url).path.read_bytes() == server.content


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("size", [400_000, 500_000, 100_000])
def test_a_file_that_changed_between_two_tries_is_not_mixed(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, careless: bool, size: int
) -> None:
    """Whether the server heeds If-Range or not, and whether the new file is shorter, as long as the old one, or shorter than what came of it."""
    monkeypatch.setattr(data_fetch, "PAUSES", [])
    server.plan = ["cut 200000"]
    with pytest.raises(ConnectionError):
        fetch("xor_attriqa", tmp_path / "a", url=server.url)
    path = packed(write(tmp_path / "newer", attriqa_tree()), "zip")
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("xor_attriqa/padding", random.Random(1).randbytes(size))
    monkeypatch.setattr(data_fetch, "PAUSES", [0.0])
    server.content, server.plan = path.read_bytes(), ["careless"] * 9 if careless else []
    assert fetch("xor_attriqa", tmp_path / "a", url=server.url).path.read_bytes() == server.content
    assert len(server.seen) == (3 if careless else 2)


@pytest.mark.parametrize("answer", ["500", "503", "429"])
def test_a_busy_server_is_asked_again(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], answer: str) -> None:
    server.plan = [answer, answer]
    assert fetch("xor_attriqa", tmp_path, url=server.url).path.read_bytes() == server.content
    assert capsys.readouterr().err.count(f"the server says {answer}") == 2


def test_pauses_grow_and_progress_starts_them_anew(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(data_fetch, "PAUSES", [1.0, 2.0])
    monkeypatch.setattr(data_fetch.time, "sleep", paused.append)
    server.plan = ["503", "503", "cut 100000", "503", "503"]
    with pytest.raises(ConnectionError, match="503"):
        fetch("xor_attriqa", tmp_path, url=server.url)
    assert paused == [1, 2, 1, 2]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_file_that_is_not_there_is_asked_for_once(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.plan = ["404"]
    assert main(["data", "fetch", "xor_attriqa", str(tmp_path / "a"), "--url", server.url]) == 1
    line = one_line(capsys)
    assert "404" in line and server.url in line and str(tmp_path / "a" / NAME) in line
    assert len(server.seen) == 1 and not files(tmp_path / "a")


def test_no_server_at_all(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/archive"
    assert main(["data", "fetch", "xor_attriqa", str(tmp_path / "a"), "--url", url]) == 1
    line = one_line(capsys)
    assert "Connection refused" in line and url in line
    assert f"get the file on another machine and put it at {tmp_path / 'a' / NAME}" in line
    assert not files(tmp_path / "a")


def test_the_command_says_what_came_and_what_is_next(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    digest = hashlib.sha256(server.content).hexdigest()
    assert main(["data", "fetch", "xor_attriqa", str(tmp_path), "--url", server.url, "--sha256", digest.upper()]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / NAME}\nsha256 {digest}, as --sha256 says\n")
    *_, following = said.splitlines()
    assert main(following.split()[1:]) == 0
    assert "14 rows in 5 languages" in capsys.readouterr().out


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "xor_attriqa", str(tmp_path / "a"), "--url", server.url, "--sha256", "0" * 64]) == 2
    assert "but --sha256 says 000" in one_line(capsys)
    assert not files(tmp_path / "a")


def test_a_later_fetch_must_bring_the_same_file(tmp_path: Path, server: Server, archive: bytes) -> None:
    path = fetch("xor_attriqa", tmp_path / "a", url=server.url).path
    path.unlink()
    server.content = packed(write(tmp_path / "newer", attriqa_tree() | {"xor_attriqa/more.jsonl": []}), "zip").read_bytes()
    with pytest.raises(UserError, match=f"{NAME}.sha256, which an earlier fetch wrote, says {hashlib.sha256(archive).hexdigest()}"):
        fetch("xor_attriqa", tmp_path / "a", url=server.url)
    assert files(tmp_path / "a") == {f"{NAME}.sha256"}
    server.content = archive
    assert "zip.sha256 says" in fetch("xor_attriqa", tmp_path / "a", url=server.url).checked


def hashed(content: bytes, name: str) -> str:
    value = hashlib.md5(content).digest() if name == "md5" else crc32c(iter([content])).to_bytes(4, "big")
    return f"{name}={base64.b64encode(value).decode()}"


@pytest.mark.parametrize("name", ["md5", "crc32c"])
def test_a_damaged_transfer_is_thrown_away_and_made_again(tmp_path: Path, server: Server, name: str) -> None:
    server.hashes, server.plan = [hashed(server.content, name)], ["damaged"]
    assert fetch("xor_attriqa", tmp_path / "a", url=server.url).path.read_bytes() == server.content
    assert "Range" not in server.seen[1]
    server.plan = ["damaged"] * 9
    with pytest.raises(ConnectionError, match=f"damaged: its {name} is not the server's"):
        fetch("xor_attriqa", tmp_path / "b", url=server.url)
    assert not files(tmp_path / "b")


def test_both_hashes_in_one_or_two_headers(tmp_path: Path, server: Server) -> None:
    right, wrong = hashed(server.content, "md5"), hashed(b"", "md5")
    server.hashes = ["crc32c=AAAAAA==", right]
    fetch("xor_attriqa", tmp_path / "two", url=server.url)
    server.hashes = [f"crc32c=AAAAAA==,{right}"]
    fetch("xor_attriqa", tmp_path / "one", url=server.url)
    server.hashes = [f"crc32c=AAAAAA==,{wrong}"]
    with pytest.raises(ConnectionError, match="its md5 is not"):
        fetch("xor_attriqa", tmp_path / "wrong", url=server.url)


def test_crc32c_is_castagnolis() -> None:
    """Values of RFC 3720, appendix B.4."""
    assert crc32c(iter([b"1234", b"56789"])) == 0xE3069283
    assert crc32c(iter([bytes(32)])) == 0x8A9136AA
    assert crc32c(iter([bytes(range(32))])) == 0x46DD794E


@pytest.mark.parametrize("kind", ["page", "another archive", "half"])
def test_what_is_not_the_archive_is_not_kept(tmp_path: Path, server: Server, kind: str) -> None:
    other = packed(write(tmp_path / "other", qa_tree()), "zip").read_bytes()
    server.content = {"page": b"<html>log in first</html>", "another archive": other, "half": server.content[:300_000]}[kind]
    with pytest.raises(UserError, match=r"neither a folder nor a zip|holds no in-language"):
        fetch("xor_attriqa", tmp_path / "a", url=server.url)
    assert not files(tmp_path / "a")


def test_an_archive_that_was_put_there_by_hand_is_checked_and_kept(tmp_path: Path, server: Server) -> None:
    (tmp_path / NAME).write_bytes(server.content)
    assert fetch("xor_attriqa", tmp_path).checked == f"recorded in {tmp_path / NAME}.sha256"
    (tmp_path / NAME).write_bytes(server.content[:-100])
    with pytest.raises(UserError, match="which an earlier fetch wrote"):
        fetch("xor_attriqa", tmp_path)
    (tmp_path / f"{NAME}.sha256").unlink()
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        fetch("xor_attriqa", tmp_path)
    assert NAME in files(tmp_path) and f"{NAME}.sha256" not in files(tmp_path)
    assert not server.seen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["country_facts"], "official archives of xor_attriqa, xtreme_up_qa"),
        (["xor_attriqa", "--sha256", "abc"], "not 64 hexadecimal digits"),
        (["xor_attriqa", "--url", "file:///etc/passwd"], "neither http:// nor https://"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    task, *options = arguments
    assert main(["data", "fetch", task, str(tmp_path / "a"), *options]) == 2
    assert said in one_line(capsys)
    assert not (tmp_path / "a").exists()
