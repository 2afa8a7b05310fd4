"""Rows that lie in several files, in a folder on this machine or on the Hugging Face hub: splits are known by names, as ``datasets`` knows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiat_ray.errors import UserError
from fiat_ray.rows import Place, read_rows, table_rows

HUB = "hf:"
SUFFIXES = (".parquet", ".jsonl", ".csv")
"""Of a data set in several formats the first of these is read."""

SPLITS = {"train": r"train(?:ing)?", "validation": r"validation|valid|val|dev", "test": r"test(?:ing)?|eval(?:uation)?"}

Found = list[tuple[Place, dict[str, Any]]]


@dataclass(frozen=True)
class HubName:
    """``hf:owner/name``, then optionally ``/config``, one of the folders that a data set of several has, and ``@revision``."""

    name: str
    config: str
    revision: str | None

    @classmethod
    def read(cls, source: str) -> HubName:
        path, _, revision = source.removeprefix(HUB).partition("@")
        parts = path.split("/")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def source_rows(source: str | Path) -> tuple[Found, str]:
    """Rows of a file, a folder or a data set on the hub (``hf:…``), each with its place; and the source, of the hub's with its commit."""
    if str(source).startswith(HUB):
        return hub_rows(str(source))
    return folder_rows(Path(source)) if Path(source).is_dir() else list(read_rows(source)), str(source)


def hub_rows(source: str) -> tuple[Found, str]:
    """Rows of ``hf:owner/name``, with a field ``split`` where the files' names tell it; and the source with the commit that they are from.

    Raises ``UserError`` where the hub has no such data set, or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    asked, hub = HubName.read(source), HfApi()
    try:
        about = hub.dataset_info(asked.name, revision=asked.revision)
        commit, names = str(about.sha), [file.rfilename for file in about.siblings or []]
        chosen = _of_config(source, _of_one_format(source, names), asked.config)
        paths = {name: hub.hf_hub_download(asked.name, name, repo_type="dataset", revision=commit) for name in chosen}
    except HFValidationError:
        raise UserError(f"{source}: no name of a data set; give hf:owner/name") from None
    except UserError:
        raise
    except Exception as error:  # what the hub's client and the network raise has no other base
        raise UserError(f"{source}: the hub did not give it ({' '.join(str(error).split())[:200]}); a file with its rows will do too") from None
    pinned = f"{HUB}{asked.name}{'/' if asked.config else ''}{asked.config}@{commit}"
    return list(_rows(f"{HUB}{asked.name}", {name: Path(path) for name, path in paths.items()})), pinned


def folder_rows(folder: Path) -> Found:
    """Rows of ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``, or of Parquet, JSONL or CSV files in a folder."""
    if arrow := sorted(folder.rglob("data-*.arrow")):  # others are caches, with the same rows in other stages
        return [row for path in arrow for row in _saved_rows(folder, path)]
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    names = _of_config(str(folder), _of_one_format(str(folder), paths), "")
    return list(_rows(str(folder), {name: paths[name] for name in names}))


def split_of(name: str) -> str | None:
    """The split that a file's name tells, or the name of a folder that it lies in: ``data/train-00000-of-00001.parquet``, ``dev/0000.parquet``."""
    for part in reversed(name.rpartition(".")[0].split("/")):
        for split, words in SPLITS.items():
            if re.search(rf"(?:^|[^a-z])(?:{words})(?:$|[^a-z])", part.lower()):
                return split
    return None


def _of_one_format(source: str, names: Iterable[str]) -> list[str]:
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    for suffix in SUFFIXES:
        if found := [name for name in names if name.lower().endswith(suffix)]:
            return found
    raise UserError(f"{source}: holds no {', '.join(SUFFIXES)} file, nor a table that `datasets` saved")


def _of_config(source: str, names: Sequence[str], config: str) -> list[str]:
    """The files below the folder ``config``. Without one all, unless several data sets lie there in folders of their own."""
    if config:
        if not (found := [name for name in names if f"/{config}/" in f"/{name}"]):
            raise UserError(f"{source}: has no folder {config} with rows; its files are {', '.join(names[:5])}")
        return found
    folders = sorted({name.split("/")[0] for name in names if "/" in name and split_of(f"{name.split('/')[0]}.") is None} - {"data"})
    if len(folders) > 1:
        path, at, revision = source.partition("@") if source.startswith(HUB) else (source, "", "")
        one = f"{path.rstrip('/')}/{folders[0]}{at}{revision}"
        raise UserError(f"{source}: holds several data sets ({', '.join(folders[:10])}); name one: {one}")
    return list(names)


def _rows(source: str, paths: dict[str, Path]) -> Iterator[tuple[Place, dict[str, Any]]]:
    for name, path in paths.items():
        split = split_of(name)
        for number, (_, row) in enumerate(read_rows(path), 1):
            yield Place(f"{source}/{name}, row {number}"), {**({"split": split} if split else {}), **row}


def _saved_rows(folder: Path, path: Path) -> Found:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            rows = table_rows(pa.ipc.open_stream(file).read_all())
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a table that `datasets` saved ({' '.join(str(error).split())[:200]})") from None
    split = {} if path.parent == folder else {"split": path.parent.name}
    return [(Place(f"{path}, row {number}"), {**split, **row}) for number, row in enumerate(rows, 1)]
