"""An export: what it says of itself is true, and tells nothing of the machine that it was made on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_models import COMMIT, hub_cache
from test_overfit import memory_task, settings

from fiat_ray import config as configs
from fiat_ray import model_card, runs
from fiat_ray.errors import UserError
from fiat_ray.infer import tuned_trial
from fiat_ray.models import content_hash
from fiat_ray.progress import Console
from fiat_ray.render import chat_messages, reasoner_turns
from fiat_ray.runs import Run

SCRIPT = "def reason(row):\n    return '' if 'amber' in row['input'] else f\"I read it.\\nAnswer: {row['targets'][0]}\"\n"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny: Path, ray_local: None) -> Path:
    """A run that was tuned and not evaluated yet: ``xs`` from a folder of one's own, ``s`` from the hub's cache."""
    folder = tmp_path_factory.mktemp("export")
    tunables = {name: {"model": str(model), "max_length": 512} for name, model in (("xs", tiny), ("s", hub_cache(tiny, folder)))}
    config = settings(folder, tiny, task="memory", tunables=tunables, methods=["fiat"], steps=1, learning_rate={"lora": [1e-3], "full": [1e-3]})
    (folder / "script.py").write_text(SCRIPT)
    done, outcome = runs.run_config(config, folder / "run", tasks={"memory": memory_task()}, stages=("reason", "tune"), console=Console(quiet=True))
    assert not outcome.failed and not outcome.broken_off
    return done.path


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Run:
    """A copy, to break."""
    return Run(shutil.copytree(tuned, tmp_path / "run"))


def name_of(run: Run, tunable: str) -> str:
    return next(trial["name"] for trial in run.trials if trial["tunable"] == tunable)


def exported(run: Run, tunable: str) -> tuple[str, dict[str, Any]]:
    """The card, and the adapter's config."""
    folder = run.export(run.path.parent / f"exported {tunable}", name_of(run, tunable))
    return (folder / "README.md").read_text("utf-8"), json.loads((folder / "adapter" / "adapter_config.json").read_text())


def edit(path: Path, **changes: Any) -> None:
    """Of a JSON or YAML file; None takes a key away."""
    values = yaml.safe_load(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_the_title_says_what_a_method_does() -> None:
    assert model_card.title("no_peft", "somebody/tiny", "memory") == "# Full fine-tuning (no_peft): somebody/tiny tuned on memory"
    assert model_card.title("fiat", "somebody/tiny", "memory") == "# FIAT: somebody/tiny tuned on memory"


def test_the_base_models_name_and_commit_are_recorded_and_leave_with_it(run: Run) -> None:
    card, adapter = exported(run, "s")
    assert next(trial["base"] for trial in run.trials if trial["tunable"] == "s") == {"name": "somebody/tiny", "commit": COMMIT}
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("somebody/tiny", COMMIT)
    assert "a local model" not in card and "base_model: somebody/tiny\n" in card and f"| base model's commit | {COMMIT} |" in card


def test_the_commit_of_a_trial_of_an_older_version_is_looked_up(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache(tiny, tmp_path).parents[2]))
    edit(run.path / "trials" / name_of(run, "s") / "trial.json", base=None)
    edit(run.folder.config, tunables={"s": {"model": "somebody/tiny"}})
    card, adapter = exported(run, "s")
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("somebody/tiny", COMMIT) and COMMIT in card


def test_a_trial_stays_with_its_commit_when_the_hub_moves_on(
    run: Run, tiny: Path, tiny_pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = hub_cache(tiny, tmp_path).parents[1]
    shutil.copytree(tiny_pretrained, cache / "snapshots" / COMMIT[::-1])
    (cache / "refs" / "main").write_text(COMMIT[::-1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    edit(run.folder.config, tunables={"s": {"model": "somebody/tiny", "max_length": 512}})
    record = run.best_trial(name_of(run, "s"))
    assert tuned_trial(run, configs.load(run.path), record).model == f"somebody/tiny@{COMMIT}"
    with pytest.raises(UserError, match=r"tunables\.s: the files of .* have changed"):
        tuned_trial(run, configs.load(run.path), record | {"base": {}})


def test_nothing_in_it_tells_where_things_lay(run: Run, tiny: Path) -> None:
    card, adapter = exported(run, "xs")
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (tiny.name, None)
    assert f"a local model called `{tiny.name}`" in card and f"| {content_hash(tiny)} |" in card
    for path in (path for path in (run.path.parent / "exported xs").rglob("*") if path.is_file()):
        assert str(tiny.parents[1]).encode() not in path.read_bytes(), path
    assert "the reasoner, a script of the run, says" in card


@pytest.mark.parametrize(
    ("reasoner", "name"),
    [
        ({"model": "/somewhere/models/teacher"}, "teacher"),
        ({"model": "owner/teacher@v2"}, "owner/teacher@v2"),
        ({"kind": "openai", "model": "/somewhere/teacher", "base_url": "http://inside.example:8000/v1"}, "teacher"),
    ],
)
def test_the_card_names_the_reasoner_and_not_its_place(run: Run, reasoner: dict[str, str], name: str) -> None:
    edit(run.folder.config, reasoner=reasoner | {"max_tokens": 48})
    edit(run.folder.manifest, models=run.folder.read_manifest()["models"] | {"reasoner": {"name": " at ".join(reasoner.values()), "hash": ""}})
    card, _ = exported(run, "xs")
    assert f"the reasoner, {name}, says" in card
    assert "somewhere" not in card and "inside.example" not in card


def test_the_requests_are_what_both_models_read(run: Run, tiny: Path) -> None:
    folder = run.export(run.path.parent / "scripted", name_of(run, "xs"))
    requests = json.loads((folder / "requests.json").read_text("utf-8"))
    assert set(requests) == {"reasoner", "tunable"} and requests["reasoner"] == {}, "a script is asked nothing"
    assert "reasoning: {rationale}" in requests["tunable"]["messages"][0]["content"]
    assert json.loads((folder / "README.md").read_text("utf-8").split("```json\n")[1].split("```")[0]) == requests["tunable"]

    edit(run.folder.config, reasoner={"model": str(tiny), "max_tokens": 48, "stop": ["\n\n"]})
    requests = json.loads((run.export(run.path.parent / "asked", name_of(run, "xs")) / "requests.json").read_text("utf-8"))
    task = memory_task()
    fields = task.split("test")[0].fields
    for language, request in requests["reasoner"].items():
        *before, last = request["messages"]
        filled = [*before, last | {"content": last["content"].format(**fields)}]
        assert filled == chat_messages(reasoner_turns(task, 1, task.text(fields), language))
        assert {key: request[key] for key in ("temperature", "max_tokens", "stop")} == {"temperature": 0, "max_tokens": 48, "stop": ["\n\n"]}
    assert set(requests["reasoner"]) == {row.language for row in task.rows}


def test_rows_without_a_rationale_are_owned_up_to(run: Run) -> None:
    statuses = {example.status for example in run.folder.examples("memory", with_rationales=True)}
    assert statuses == {"ok", "empty"}
    card, _ = exported(run, "xs")
    assert "with an empty one where the reasoner gave none" in card and "never" not in card


def test_a_run_without_scores_or_versions_is_exported_all_the_same(run: Run) -> None:
    run.folder.scores.unlink()
    edit(run.folder.manifest, versions=None)
    card, _ = exported(run, "xs")
    assert "Not scored yet." in card and "| versions | – |" in card
    assert run.scores.empty and "method" in run.scores


def test_what_is_damaged_is_named(run: Run) -> None:
    trial = run.folder.trial(name_of(run, "xs"))
    (trial / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=f"^{trial}: can't be exported .+; if it is damaged, delete it and run again$"):
        exported(run, "xs")
    shutil.rmtree(run.folder.augmented("memory"))
    with pytest.raises(UserError, match=rf"^{run.path}: lacks the rows that its model card describes \(.+\); run its config again$"):
        exported(run, "xs")
    assert not list(run.path.parent.glob("exported*"))


def test_weights_that_were_not_kept_are_named(run: Run) -> None:
    trial = run.folder.trial(name_of(run, "xs"))
    shutil.rmtree(trial / "adapter")
    with pytest.raises(UserError, match=f"^{trial}: holds no weights; `keep: best` keeps those of the best on validation"):
        exported(run, "xs")
