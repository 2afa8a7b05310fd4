"""Configs: every key and value checked, with the file and the key in the message; paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fiat_ray import config
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.recipe import ABLATIONS, LEAVE_ONE_OUT, RECIPES, UNTUNED, Recipe


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_and_one_task_or_several() -> None:
    assert config.load({"task": "xtreme_up_qa"}) == Config(["xtreme_up_qa"])
    assert config.load({"task": ["xtreme_up_qa", "xor_attriqa"]}).task == ["xtreme_up_qa", "xor_attriqa"]
    assert config.load({"task": "t", "methods": "ablations"}).methods == list(ABLATIONS)
    assert config.load({"task": "t", "methods": "leave_one_out"}).methods == list(LEAVE_ONE_OUT)
    assert config.load({"task": "t", "methods": "fiat"}).methods == ["fiat"]
    assert config.load({"task": "t", "methods": ["icl", "no_peft", "leave_one_out", "ablations"]}).methods == [
        *("icl", "no_peft", *LEAVE_ONE_OUT, *(method for method in ABLATIONS if method not in ("no_peft", *LEAVE_ONE_OUT)))
    ]
    of_paper = config.load({"task": "t", "methods": "paper"}).methods
    assert {*ABLATIONS, *LEAVE_ONE_OUT, *UNTUNED, "distilled_cot", "full_instructed", "full_instructed_pretrained"} == set(of_paper)


@pytest.mark.parametrize("name", [path.stem for path in config.BUILT_IN.glob("*.yaml")])
def test_built_in_configs_load(name: str) -> None:
    assert config.load(name).task


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tsak": "t"}, "unknown key 'tsak'; did you mean 'task'?"),
        ({"task": "t", "learning_rat": 1}, "did you mean 'learning_rate'?"),
        ({"task": "t", "reasoner": {"max_token": 3}}, "unknown key 'reasoner.max_token'; did you mean 'max_tokens'?"),
        ({"task": "t", "tunables": {"xs": {"modle": "m"}}}, "unknown key 'tunables.xs.modle'; did you mean 'model'?"),
        ({"task": "t", "where": {"qqq": 1}}, "unknown key 'where.qqq'; known are gpus, cpus"),
        ({}, "key 'task' is missing"),
        ({"task": 3}, "task: must be a list, not 3"),
        ({"task": []}, "task: is empty"),
        ({"task": ["t", "t"]}, "task: names something twice"),
        ({"task": "t", "methods": "no_cto"}, "methods: unknown method 'no_cto'; did you mean no_cot?"),
        ({"task": "t", "methods": 3}, "methods: must be a list, not 3"),
        ({"task": "t", "methods": ["icl", "icl"]}, "methods: names something twice"),
        ({"task": "t", "lora": {"targets": "*_proj"}}, r"lora.targets: '\*_proj' is neither all-linear nor a regular expression"),
        ({"task": "t", "where": {"wait": 5}}, "where.wait: needs where.gpus"),
        ({"task": "t", "recipes": {"paper": {}}}, "recipes: 'paper' is no name for one"),
        ({"task": "t", "methods": ["fiat", "no_cto"]}, "methods: unknown method 'no_cto'; did you mean no_cot?"),
        ({"task": "t", "methods": ["zzz"]}, "methods: unknown method 'zzz'; known are icl, majority, fiat"),
        ({"task": "t", "seeds": ["0"]}, r"seeds\[0\]: must be a whole number, not '0'"),
        ({"task": "t", "seeds": [True]}, r"seeds\[0\]: must be a whole number, not True"),
        ({"task": "t", "batch_size": 1.5}, "batch_size: must be a whole number, not 1.5"),
        ({"task": "t", "epochs": "many"}, "epochs: must be a number, not 'many'"),
        ({"task": "t", "limit": 3}, "limit: must be a mapping, not 3"),
        ({"task": "t", "limit": {"train": 0}}, "limit.train: must be above 0"),
        ({"task": "t", "reasoner": None}, "reasoner: must be a mapping, not None"),
        ({"task": "t", "reasoner": {"kind": "scripted"}}, "reasoner.script: names the Python file"),
        ({"task": "t", "where": {"zero": 1}}, "where.zero: 1 is none of 0, 2, 3"),
        ({"task": "t", "where": {"zero": False}}, "where.zero: False is none of 0, 2, 3"),
        ({"task": "t", "where": {"throughput": {"tflops": 200}}}, "key 'where.throughput.decode' is missing"),
        ({"task": "t", "where": {"throughput": {"tflops": 0, "decode": 1}}}, "where.throughput.tflops: must be above 0"),
        ({"task": "t", "where": {"gpu_hour_price": -1}}, "where.gpu_hour_price: must be above 0"),
        ({"task": "t", "exemplars": "some"}, "exemplars: 'some' is none of row_language, all"),
        ({"task": "t", "recipes": {"mine": {"cot": "much"}}}, "recipes.mine.cot: 'much' is none of none, augmented, distilled"),
        ({"task": "t", "recipes": {"icl": {}}}, "recipes: 'icl' is no name for one"),
        ({"task": "t", "tunables": {"a/b": {}}}, "tunables: 'a/b' is no name for one"),
        ({"task": "t", "tunables": {"xs": {"max_length": 0}}}, "tunables.xs.max_length: must be above 0"),
        ({"task": "t", "epochs": float("inf")}, "epochs: must be above 0 and finite"),
        ({"task": "t", "epochs": float("nan")}, "epochs: must be above 0 and finite"),
        ({"task": "t", "steps": 0}, "steps: must be above 0"),
        ({"task": "t", "learning_rate": {"lora": []}}, "learning_rate.lora: must be above 0"),
        ({"task": "t", "learning_rate": {"lora": [1e-4, 2e-4]}}, "equally many rates"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.load(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["task: [", "- a\n- b", "", "task: \xff"])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"broken.yaml: ") as caught:
        config.load(path)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "task: t\nepoch: 3\n")
    with pytest.raises(UserError, match=rf"{path}: unknown key 'epoch'; did you mean 'epochs'"):
        config.load(path)
    with pytest.raises(UserError, match="config 'nothing': no such file, run directory or built-in config .*demo"):
        config.load("nothing")


def test_overrides() -> None:
    base = {"task": ["a", "b"], "learning_rate": {"lora": [1e-3], "full": [1e-4]}}
    loaded = config.load(
        base,
        [
            *(
                "epochs=2e-1",
                "limit.train=100",
                "learning_rate.lora=[2e-4]",
                "learning_rate.full.0=3e-5",
                "tunables.xs.model=m",
                "tunables.s.model=n",
            ),
            *("task.1=c", "methods=[fiat]", "reasoner.stop=['\\n\\n']", "data=folder/=x", "seeds=[0, 1]", "steps=null"),
        ],
    )
    assert loaded.epochs == 0.2 and loaded.limit == {"train": 100}
    assert (loaded.learning_rate.lora, loaded.learning_rate.full) == ([2e-4], [3e-5])
    assert {name: tunable.model for name, tunable in loaded.tunables.items()} == {"xs": "m", "s": "n"}
    assert loaded.task == ["a", "c"] and loaded.methods == ["fiat"] and loaded.data == "folder/=x" and loaded.seeds == [0, 1]
    assert base == {"task": ["a", "b"], "learning_rate": {"lora": [1e-3], "full": [1e-4]}}


@pytest.mark.parametrize("rate", ["2e-4", "2E-4", "0.0002", "2.0e-04"])
def test_rates_as_people_write_them(tmp_path: Path, rate: str) -> None:
    """YAML 1.1 takes 2e-4 for text."""
    assert config.load(written(tmp_path, f"task: t\nlearning_rate: {{lora: [{rate}], full: [1]}}\n")).learning_rate.lora == [2e-4]
    assert config.load({"task": "t"}, [f"learning_rate.lora=[{rate}]"]).learning_rate.lora == [2e-4]
    assert config.load({"task": "t"}, [f"epochs={rate}"]).epochs == 2e-4


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs=[", "limit.trian.x=1", "nothing=1"])
def test_wrong_overrides(override: str) -> None:
    with pytest.raises(UserError):
        config.load({"task": "t"}, [override])


def test_paths_are_relative_to_the_file_and_in_overrides_to_here(tmp_path: Path) -> None:
    path = written(
        tmp_path / "configs",
        "task: [./towns, xor_attriqa]\ndata: ../rows\nstore: rationales\n"
        "reasoner: {model: ../models/big, kind: scripted, script: answer.py}\n"
        "tunables: {xs: {model: owner/name, pretrained: ~/twin}, s: {model: embedded, pretrained: /models/twin}}\n",
    )
    loaded = config.load(path, ["data=here"])
    folder = tmp_path / "configs"
    assert loaded.task == [str(folder / "towns"), "xor_attriqa"]
    assert config.load(path).data == str(folder / "../rows") and loaded.data == "here"
    assert loaded.store == str(folder / "rationales") and loaded.reasoner.script == str(folder / "answer.py")
    assert loaded.reasoner.model == str(folder / "../models/big")
    assert loaded.tunables["xs"].model == "owner/name" and loaded.tunables["xs"].pretrained == str(Path.home() / "twin")
    assert loaded.tunables["s"].model == "embedded" and loaded.tunables["s"].pretrained == "/models/twin"


def test_what_is_dumped_loads_as_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(
        tmp_path,
        "task: [./towns]\ndata: rows\nlanguages: [bn, 'no']\nlimit: {train: 3}\nseeds: [0, 7]\nepochs: 0.5\n"
        "methods: [mine, icl]\nrecipes: {mine: {cot: none, rationale: answer_only}}\nreasoner: {stop: [\"\\n\\n\", 'নদী']}\n"
        "learning_rate: {lora: [2e-4], full: [2e-5]}\nstore: s\nnotes: ['a note: with a colon']\n"
        "where: {zero: 3, gpus: 0, gpu_hour_price: 2.5, throughput: {tflops: 200, decode: 5e3}}\n",
    )
    loaded = config.load(path)
    run = written(tmp_path / "run", config.dump(loaded), "config.yaml").parent
    monkeypatch.chdir(tmp_path / "run")
    assert config.load(run) == loaded  # a run directory is a CONFIG
    assert config.load(run / "config.yaml") == loaded
    assert config.dump(config.load(run)) == config.dump(loaded)
    assert loaded.recipe("mine") == Recipe(cot="none", rationale="answer_only") and loaded.recipe("fiat") == RECIPES["fiat"]


def test_a_dump_holds_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = config.load({"task": "./towns", "data": "rows", "store": "~/s", "tunables": {"xs": {"model": "./m"}}})
    again = config.load(written(tmp_path / "elsewhere", config.dump(loaded)))
    assert again.task == [str(tmp_path / "towns")] and again.data == str(tmp_path / "rows")
    assert again.store == str(Path.home() / "s") and again.tunables["xs"].model == str(tmp_path / "m")
