"""From a model's name to its files and the hash of their content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tiny_model

from fiat_ray import models
from fiat_ray.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def changed(path: Path, at: int) -> None:
    """One byte changed, the size kept."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 1, before + 1))


def test_a_hash_is_of_content_not_of_time_or_place(copy: Path, tiny: Path, tmp_path: Path) -> None:
    found = models.content_hash(copy)
    for path in copy.iterdir():
        os.utime(path, (0, 0))
    assert models.content_hash(copy) == found == models.content_hash(tiny)
    assert models.content_hash(Path(shutil.copytree(copy, tmp_path / "elsewhere"))) == found
    shutil.rmtree(models.cache_folder())
    assert models.content_hash(copy) == found


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"])
def test_a_byte_of_what_decides_changes_the_hash(copy: Path, name: str) -> None:
    before = models.content_hash(copy)
    changed(copy / name, -5)
    assert models.content_hash(copy) != before


@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json", "model-00002-of-00002.safetensors", "chat_template.jinja2.jinja"])
def test_a_file_more_changes_the_hash(copy: Path, name: str) -> None:
    before = models.content_hash(copy)
    (copy / name).write_text("{}")
    assert models.content_hash(copy) != before


@pytest.mark.parametrize("name", ["README.md", "trainer_state.json", "pytorch_model.bin", ".gitattributes"])
def test_what_decides_nothing_does_not(copy: Path, name: str) -> None:
    before = models.content_hash(copy)
    (copy / name).write_text("{}")
    assert models.content_hash(copy) == before


def test_seeds_and_twins_differ(tiny: Path, tiny_pretrained: Path, tmp_path: Path) -> None:
    assert models.content_hash(tiny) != models.content_hash(tiny_pretrained)
    assert models.content_hash(tiny) == models.content_hash(tiny_model.write(tmp_path / "again"))
    assert models.content_hash(tiny) != models.content_hash(tiny_model.write(tmp_path / "other", seed=7))


def test_a_folder_is_found_by_any_path_to_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert models.find(f"./{tiny.name}") == models.find(tiny.name) == models.find(str(tiny)) == tiny
    model = models.resolve(tiny.name)
    assert (model.name, model.folder, model.hash) == (tiny.name, tiny, models.content_hash(tiny))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"model {copy}: .*safetensors \(pickled weights are not loaded\)"):
        models.find(str(copy))


def test_a_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"lacks config.json"):
        models.find(str(copy))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"model {name}: no such folder"):
        models.find(name)


@pytest.mark.parametrize("name", ["somebody/no-such-model", "no-such-model", "not a name!"])
def test_a_name_that_no_hub_gives_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"model {name}: no such folder here, and the hub did not give it \(.+\)") as caught:
        models.find(name)
    assert "\n" not in str(caught.value)
