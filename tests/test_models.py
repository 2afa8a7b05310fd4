"""From a model's name to its files and the hash of their content."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from fiat_ray import models
from fiat_ray.errors import UserError
from fiat_ray.tune.model import dtype_of


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


def test_what_an_index_does_not_name_is_no_part_of_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """As of Mistral 7B v0.3, whose ``consolidated.safetensors`` has all weights once more, under other names."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = list(tmp_path.glob("*.safetensors"))
    sizes, content = sum(path.stat().st_size for path in shards), models.content_hash(tmp_path)
    save_file({"tok_embeddings.weight": torch.zeros(3, 5)}, tmp_path / "consolidated.safetensors")
    assert len(shards) > 1 and models.weight_bytes(tmp_path) == sizes
    assert models.parameters(tmp_path) == models.parameters(tiny)
    assert models.content_hash(tmp_path) != content, "as ever: a run goes on with the rationales of the same files"
    model.save_pretrained(tmp_path / "saved")
    models.check_same_tensors(tmp_path, tmp_path / "saved")
    models.resolve(str(tmp_path))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_precision_is_that_of_the_weights_where_the_config_names_none(tmp_path: Path, dtype: str) -> None:
    tiny_model.write(tmp_path, dtype=dtype)
    values = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert values.pop("dtype") == dtype
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    assert dtype_of(tmp_path) == getattr(torch, dtype)


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


COMMIT = "0123456789abcdef" * 2 + "01234567"


def hub_cache(model: Path, folder: Path) -> Path:
    """A model as the hub's cache holds somebody/tiny; its folder."""
    place = folder / "hub" / "models--somebody--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(model, place / "snapshots" / COMMIT))


@pytest.fixture
def cached(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``hub_cache``, read without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub_cache(tiny, tmp_path)


def test_a_name_on_the_hub_is_pinned_to_its_commit(cached: Path) -> None:
    pinned = models.pinned("somebody/tiny")
    assert pinned == models.pinned(pinned) == f"somebody/tiny@{COMMIT}"
    assert models.find(pinned) == cached
    assert models.public_name(pinned) == models.PublicName("somebody/tiny", COMMIT)


def test_a_folder_stays_one_when_pinned_whatever_its_name(cached: Path, tiny: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny, tmp_path / "me@here" / "snapshots" / "step-100"))
    for folder in (cached, own):
        assert models.find(models.pinned(str(folder))) == folder
    assert models.public_name(models.pinned(str(cached))) == models.PublicName("somebody/tiny", COMMIT)
    assert models.public_name(models.pinned(str(own))) == models.PublicName("step-100")


def test_where_a_folder_lies_is_no_part_of_its_public_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert {models.public_name(name) for name in (str(tiny), f"./{tiny.name}", tiny.name)} == {models.PublicName("chat")}
    assert models.public_name("embedded") == models.PublicName("embedded")


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


def test_parameters_are_those_of_the_model(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    count = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert models.parameters(tiny) == models.Parameters(count, count)


def test_of_a_mixture_of_experts_those_chosen_are_active(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_experts=8,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
    )
    model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path)
    total = model.num_parameters()
    assert models.parameters(tmp_path) == models.Parameters(total, total - (8 - 2) * 2 * 3 * 16 * 8)  # experts, layers, matrices, their shape


def test_parameters_are_those_on_the_model_card(tmp_path: Path) -> None:
    """Qwen3-30B-A3B: 30.5 B in total, 3.3 B activated. The shapes alone: weights are not read."""
    hidden, heads, shared, expert = 2048, 32 * 128, 4 * 128, 768
    layer = {"self_attn.q_proj": [heads, hidden], "self_attn.k_proj": [shared, hidden], "self_attn.v_proj": [shared, hidden]}
    layer |= {"self_attn.o_proj": [hidden, heads], "mlp.gate": [128, hidden]}
    layer |= {f"mlp.experts.{e}.{name}_proj": [hidden, expert] for e in range(128) for name in ("gate", "up", "down")}
    shapes = {"model.embed_tokens.weight": [151_936, hidden], "lm_head.weight": [151_936, hidden]}
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in range(48) for name, shape in layer.items()}
    header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "config.json").write_text(json.dumps({"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}))
    found = models.parameters(tmp_path)
    assert (round(found.total / 1e9, 1), int(found.active / 1e8)) == (30.5, 33)


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [({"eos_token_id": [3, 4]}, 5, [3, 4]), ({"eos_token_id": 3}, 5, [3]), ({}, 5, []), (None, 5, [5]), (None, None, [])],
)
def test_answers_end_where_vllm_ends_them(copy: Path, generation: dict[str, object] | None, config: int | None, ends: list[int]) -> None:
    from vllm.transformers_utils.config import try_get_generation_config

    values = json.loads((copy / "config.json").read_text("utf-8")) | {"eos_token_id": config}
    (copy / "config.json").write_text(json.dumps(values), "utf-8")
    (copy / "generation_config.json").unlink()
    if generation is not None:
        (copy / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    found = try_get_generation_config(str(copy), trust_remote_code=False).to_diff_dict().get("eos_token_id")
    assert models.end_ids(copy) == ends == ([] if found is None else found if isinstance(found, list) else [found])
