"""``fiat-ray data fetch``: the official archives of the paper's two tasks, resumed where a transfer broke off, and verified.

Neither release publishes a checksum. The transfer is checked with the hash that Google Cloud Storage sends along; the sha256 of what came stands in
``NAME.sha256`` beside the archive, in the form that ``sha256sum -c`` reads, and whatever is fetched or put there later must have it too.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from fiat_ray.artifact import read_json, write_json, write_text
from fiat_ray.errors import UserError
from fiat_ray.progress import Console
from fiat_ray.rows import source_files

PAUSES = [1.0, 2.0, 4.0]
"""Seconds before each further try. A try that got further than all before it starts the list anew."""
TIMEOUT = 60.0
"""Seconds without a byte after which a transfer counts as broken."""
CHUNK = 1 << 18


@dataclass(frozen=True)
class Archive:
    url: str
    holds: str
    """Where the task's files stand in it: what holds none is another file, such as the page of a login."""


ARCHIVES = {
    "xor_attriqa": Archive("https://storage.googleapis.com/gresearch/xor_attriqa/xor_attriqa.zip", "in-language/*.jsonl"),
    "xtreme_up_qa": Archive("https://storage.googleapis.com/xtreme-up/xtreme-up-v1.1.jsonl.tgz", "qa_cross_lang/*/*.jsonl"),
}
"""As the releases' own READMEs give them. XTREME-UP's holds the 20 Indic languages of XORQA-IN and, of the paper's others, all but ja."""


@dataclass(frozen=True)
class Fetched:
    path: Path
    sha256: str
    checked: str
    """Where the sha256 was expected or, for the first file of its name, is recorded now."""


class TransferError(Exception):
    """The server could not be reached, refused, or the transfer broke off. ``again``: whether another try may help."""

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


def fetch(task: str, folder: Path, *, url: str | None = None, sha256: str | None = None) -> Fetched:
    """The archive of a task in ``folder``, downloaded where it is not there yet. ``url``: a mirror; ``sha256``: what the file must have.

    Raises ``UserError`` for an unknown task and for a file that is not the archive or not the expected one (a download of that kind is deleted),
    ``ConnectionError`` where the transfer can't be finished: what came lies in ``NAME.part``, and the next call goes on from there.
    """
    if task not in ARCHIVES:
        raise UserError(f"task '{task}': there are official archives of {', '.join(ARCHIVES)}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"--sha256 {sha256}: not 64 hexadecimal digits")
    url = url or ARCHIVES[task].url
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: neither http:// nor https://; a file that is here already needs no fetching, `data` may name it")
    path = folder / ARCHIVES[task].url.rpartition("/")[2]
    part = path.with_name(f"{path.name}.part")
    record = path.with_name(f"{path.name}.sha256")
    folder.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    if new:
        _download(task, url, part, path)
    try:
        fetched = _verified(part if new else path, path, record, sha256, ARCHIVES[task].holds)
    except UserError:
        if new:
            _discard(part)
        raise
    if new:
        part.replace(path)
        _discard(part)
    write_text(record, f"{fetched.sha256}  {path.name}\n")
    return fetched


def _verified(file: Path, path: Path, record: Path, sha256: str | None, holds: str) -> Fetched:
    """``file``, which is or becomes ``path``, hashed, compared and read. ``UserError`` where it is not what it should be."""
    recorded = record.read_text("utf-8").split()[:1] if record.is_file() else []
    expected = sha256.lower() if sha256 else "".join(recorded)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if expected and found != expected:
        where = "--sha256" if sha256 else f"{record}, which an earlier fetch wrote,"
        raise UserError(f"{path}: its sha256 is {found}, but {where} says {expected}; it is another file: delete what is wrong, and fetch again")
    if next(source_files(file, holds), None) is None:
        raise UserError(f"{path}: holds no {holds}, so it is not the official archive; is the URL right?")
    return Fetched(path, found, "as --sha256 says" if sha256 else f"as {record} says" if expected else f"recorded in {record}")


def _download(task: str, url: str, part: Path, path: Path) -> None:
    """All of ``url`` in ``part``, in as many tries as it takes and ``PAUSES`` allow."""
    console = Console()
    console.line(f"{task}: {url}")
    pauses = list(PAUSES)
    furthest = _size(part)
    while True:
        try:
            hashes = _transfer(url, part, console)
            console.line(f"{_megabytes(_size(part))} are here, to be checked")
            _check_transfer(part, hashes)
            return
        except TransferError as error:
            if _size(part) > furthest:
                furthest, pauses = _size(part), list(PAUSES)
            if not error.again or not pauses:
                console.line(str(error))
                advice = f"try again later, or get the file on another machine and put it at {path}: the same command then checks it"
                raise ConnectionError(f"{task}: {url} can't be fetched ({error}); {advice}") from None
            console.line(f"{error}; trying again in {pauses[0]:g} s")
            time.sleep(pauses.pop(0))


def _transfer(url: str, part: Path, console: Console) -> str:
    """One try to get what ``part`` lacks. Returns the hashes that the server gave for the whole file; empty where it gave none."""
    start, known = _left_over(url, part)
    if known and start == known["size"]:
        return str(known["hashes"])
    with _request(url, part, start, known) as response:
        if response.status == 206 and (_version(response) != known.get("version") or not _content_range(response).startswith(f"bytes {start}-")):
            _discard(part)
            raise TransferError("the file changed between two tries")
        if response.status != 206:
            _discard(part)
            start, length = 0, response.headers.get("Content-Length")
            hashes = ",".join(response.headers.get_all("x-goog-hash", []))
            known = {"url": url, "version": _version(response), "size": int(length) if length else None, "hashes": hashes}
            write_json(_state(part), known)
        elif start:
            console.line(f"goes on at {_megabytes(start)} of {_megabytes(known['size'])}")
        began = time.monotonic()
        with part.open("ab") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                rate = (file.tell() - start) / max(time.monotonic() - began, 1e-3)
                whole = f" of {_megabytes(known['size'])} ({file.tell() / known['size']:.0%})" if known["size"] else ""
                console.status(f"{_megabytes(file.tell())}{whole}, {_megabytes(rate)} a second")
            file.flush()
            os.fsync(file.fileno())
    if known["size"] is not None and _size(part) != known["size"]:
        raise TransferError(f"the transfer broke off after {_size(part):,} of {known['size']:,} bytes")
    return str(known["hashes"])


def _left_over(url: str, part: Path) -> tuple[int, dict[str, Any]]:
    """(bytes that an earlier try left, what the server said then); nothing where they can't be told to be the beginning of the same file."""
    known = read_json(_state(part))
    if not part.is_file() or not known or known["url"] != url or not known["version"] or not known["size"]:
        return 0, {}
    return _size(part), known


def _request(url: str, part: Path, start: int, known: dict[str, Any]) -> HTTPResponse:
    # A file stored with `Content-Encoding: gzip` would else be unpacked on the way, without length, ranges and a hash that fits.
    headers = {"User-Agent": "fiat-ray", "Accept-Encoding": "gzip"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": known["version"]}
    try:
        response: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:  # what is there is more than the whole file has by now
            _discard(part)
        raise TransferError(f"the server says {error.code} {error.reason}", again=error.code >= 500 or error.code in (408, 416, 429)) from None
    except (OSError, HTTPException) as error:
        raise TransferError(_reason(error)) from None


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, HTTPException) as error:
            raise TransferError(_reason(error)) from None
        if not chunk:
            return
        yield chunk


def _version(response: HTTPResponse) -> str:
    """What tells this version of a file from others: a strong ETag, else when it was changed."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _content_range(response: HTTPResponse) -> str:
    return str(response.headers.get("Content-Range", ""))


def _check_transfer(part: Path, hashes: str) -> None:
    """Compares with ``crc32c=…,md5=…``, each in base64. Files that were uploaded in pieces have no md5; computing a crc32c takes longer."""
    said = dict(one.strip().split("=", 1) for one in hashes.split(",") if "=" in one)
    if "md5" in said:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "md5").digest()
    elif "crc32c" in said:
        with part.open("rb") as file:
            found = crc32c(iter(lambda: file.read(CHUNK), b"")).to_bytes(4, "big")
    else:
        return
    name = "md5" if "md5" in said else "crc32c"
    if base64.b64encode(found).decode() != said[name]:
        _discard(part)
        raise TransferError(f"what came is damaged: its {name} is not the server's")


def crc32c(chunks: Iterator[bytes]) -> int:
    """The Castagnoli CRC, which Python's zlib does not have."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    crc = 0xFFFFFFFF
    for chunk in chunks:
        for byte in chunk:
            crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
