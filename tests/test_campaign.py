"""Config → trials: which there are, what can't run, and what a fingerprint depends on."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from fiat_ray import campaign, config
from fiat_ray.campaign import Checkpoint, Measured, Trial
from fiat_ray.config import Config, LearningRates, Lora, ReasonerConfig, TunableConfig, ValidationConfig
from fiat_ray.recipe import ABLATIONS, RECIPES, Recipe
from fiat_ray.where import Where

CONFIG = Config(["towns"], methods=["icl", "majority", *ABLATIONS])
TASKS = {"towns": Measured("rows", "rationales", "Answer.", (), "f1", 12)}
CHECKPOINTS = {
    ("xs", True): Checkpoint("tuned", "hash of tuned", 1024, {"towns": 8}),
    ("xs", False): Checkpoint("twin", "hash of twin", 1024, {"towns": 8}),
}


def found(config: Config = CONFIG, tasks: Any = None, checkpoints: Any = None) -> dict[str, Trial]:
    trials, _ = campaign.trials(config, tasks or TASKS, checkpoints or CHECKPOINTS)
    assert len({trial.name for trial in trials}) == len(trials)
    return {trial.method: trial for trial in trials}


def fingerprints(*arguments: Any) -> dict[str, str]:
    return {method: trial.fingerprint for method, trial in found(*arguments).items()}


def task(**changes: Any) -> dict[str, Measured]:
    return {"towns": replace(TASKS["towns"], **changes)}


def tuned(**changes: Any) -> dict[tuple[str, bool], Checkpoint]:
    return CHECKPOINTS | {("xs", True): replace(CHECKPOINTS["xs", True], **changes)}


def test_every_ablation_is_a_trial_and_what_tunes_nothing_is_none() -> None:
    trials = found()
    assert list(trials) == list(ABLATIONS)
    assert len({trial.fingerprint for trial in trials.values()}) == len(trials)
    for method, trial in trials.items():
        assert trial.name == f"{method}-xs-s0-{trial.fingerprint[:8]}"
        assert trial.recipe == RECIPES[method] and trial.train_size == 12
        assert trial.model == ("tuned" if trial.recipe.instruction_tuned else "twin")
        assert trial.learning_rates == ((2e-4,) if trial.recipe.peft else (2e-5,))
        assert campaign.needs_rationales(trial) == (method == "fiat")


def test_trials_are_tasks_times_tunables_times_methods_times_seeds() -> None:
    several = replace(CONFIG, tunables={"xs": TunableConfig(), "s": TunableConfig()}, seeds=[0, 1, 2], methods=["icl", "fiat", "no_peft"])
    tasks = TASKS | {"rivers": replace(TASKS["towns"], rows="other rows")}
    checkpoints = {(name, True): Checkpoint(name, name, 1024, {"towns": 8, "rivers": 9}) for name in ("xs", "s")}
    trials, missing = campaign.trials(several, tasks, checkpoints)
    assert len(trials) == len({t.fingerprint for t in trials}) == len({t.name for t in trials}) == 2 * 2 * 2 * 3 and not missing
    assert {(t.task, t.answer_tokens) for t in trials} == {("towns", 8), ("rivers", 9)}


def test_drafts_of_instructions_for_the_same_rows_have_a_trial_each() -> None:
    """Two tasks that differ in instructions alone: recipes without instructions see no difference, and yet each task has its own."""
    drafts = {"v1": TASKS["towns"], "v2": replace(TASKS["towns"], i_tau="Say the answer.", rationales="others")}
    rivers = {"rivers": replace(TASKS["towns"], rows="other rows")}
    checkpoints = {key: replace(one, answer_tokens=dict.fromkeys((*drafts, *rivers), 8)) for key, one in CHECKPOINTS.items()}
    several = replace(CONFIG, seeds=[0, 1], train_size=[6, 12])
    both, _ = campaign.trials(several, drafts | rivers, checkpoints)
    assert len({trial.name for trial in both}) == len({trial.fingerprint for trial in both}) == len(both) == 3 * len(ABLATIONS) * 2 * 2
    turned, _ = campaign.trials(several, dict(reversed((drafts | rivers).items())), checkpoints)
    assert set(turned) == set(both), "the order of tasks decides nothing"

    def names(trials: list[Trial], task: str) -> dict[str, set[str]]:
        return {method: {trial.name for trial in trials if (trial.task, trial.method) == (task, method)} for method in ABLATIONS}

    for name, measured in (drafts | rivers).items():
        alone = names(campaign.trials(several, {name: measured}, checkpoints)[0], name)
        kept = [method for method in ABLATIONS if names(both, name)[method] == alone[method]]
        assert kept == list(ABLATIONS if name == "rivers" else ABLATIONS[:2]), "names change only where two tasks had one"


def test_without_a_pretrained_twin_the_last_ablation_says_so() -> None:
    only = {("xs", True): CHECKPOINTS["xs", True]}
    trials, missing = campaign.trials(CONFIG, TASKS, only)
    assert [trial.method for trial in trials] == list(ABLATIONS[:-1])
    assert [(m.task, m.method, m.tunable, m.config_key) for m in missing] == [("towns", "no_instruction_tuned", "xs", "tunables.xs.pretrained")]
    assert "pretrained twin" in missing[0].reason
    assert fingerprints(CONFIG, TASKS, only) == {m: f for m, f in fingerprints().items() if m != "no_instruction_tuned"}


@pytest.mark.parametrize(
    "change",
    [
        {"where": Where(gpus=8, cpus=1, replicas=3, workers=2, zero=3)},
        {"store": "elsewhere"},
        {"tracking_uri": "http://server"},
        {"notes": ["a note"]},
        {"languages": ["hi", "bn"]},  # which rows there are is in the rows' own fingerprint
        {"data": "elsewhere"},
        {"limit": {"train": 3}},
        {"methods": [*reversed(ABLATIONS)]},
        {"seeds": [0]},
        {"exemplars": "all"},  # is in the rationales' keys
        {"recipes": {"unused": Recipe(cot="distilled")}},
        {"reasoner": ReasonerConfig(model="another", dtype="float32", stop=["\n"], max_length=99)},
        {"tunables": {"xs": TunableConfig(model="another/name/of/the/same", max_length=1024)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_no_trial_changes_no_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprints(replace(CONFIG, **change)) == fingerprints()


def test_names_do_not_decide() -> None:
    renamed = replace(CONFIG, methods=["mine"], recipes={"mine": RECIPES["fiat"]}, tunables={"small": TunableConfig()})
    checkpoints = {("small", True): replace(CHECKPOINTS["xs", True], model="the same files elsewhere")}
    mine = found(renamed, TASKS, checkpoints)["mine"]
    assert mine.fingerprint == fingerprints()["fiat"] and mine.name.startswith("mine-small-s0-")
    tasks = {"cities": TASKS["towns"]}
    assert fingerprints(CONFIG, tasks, {key: replace(c, answer_tokens={"cities": 8}) for key, c in CHECKPOINTS.items()}) == fingerprints()


@pytest.mark.parametrize(
    ("config", "tasks", "checkpoints", "changed"),
    [
        pytest.param(replace(CONFIG, seeds=[1]), TASKS, CHECKPOINTS, ABLATIONS, id="seed"),
        pytest.param(replace(CONFIG, batch_size=4), TASKS, CHECKPOINTS, ABLATIONS, id="batch size"),
        pytest.param(replace(CONFIG, epochs=2.0), TASKS, CHECKPOINTS, ABLATIONS, id="epochs"),
        pytest.param(replace(CONFIG, steps=3), TASKS, CHECKPOINTS, ABLATIONS, id="steps"),
        pytest.param(replace(CONFIG, validation=ValidationConfig(times=2)), TASKS, CHECKPOINTS, ABLATIONS, id="validations"),
        pytest.param(replace(CONFIG, validation=ValidationConfig(rows=2)), TASKS, CHECKPOINTS, ABLATIONS, id="validation rows"),
        pytest.param(CONFIG, task(rows="other"), CHECKPOINTS, ABLATIONS, id="rows"),
        pytest.param(CONFIG, task(labels=("no", "yes")), CHECKPOINTS, ABLATIONS, id="labels"),
        pytest.param(CONFIG, TASKS, tuned(hash="other"), ABLATIONS[:-1], id="weights"),
        pytest.param(CONFIG, TASKS, tuned(answer_tokens={"towns": 9}), ABLATIONS[:-1], id="answer tokens"),
        pytest.param(replace(CONFIG, lora=Lora(rank=8)), TASKS, CHECKPOINTS, ABLATIONS[:3], id="lora"),
        pytest.param(replace(CONFIG, learning_rate=LearningRates(lora=[1e-3])), TASKS, CHECKPOINTS, ABLATIONS[:3], id="LoRA's rate"),
        pytest.param(replace(CONFIG, learning_rate=LearningRates(full=[1e-3])), TASKS, CHECKPOINTS, ABLATIONS[3:], id="full tuning's rate"),
        pytest.param(CONFIG, task(i_tau="Other."), CHECKPOINTS, ABLATIONS[:2], id="i_tau"),
        pytest.param(CONFIG, task(rationales="other"), CHECKPOINTS, ABLATIONS[:1], id="rationales"),
        pytest.param(replace(CONFIG, reasoner=ReasonerConfig(max_tokens=99)), TASKS, CHECKPOINTS, ABLATIONS[:1], id="rationale tokens"),
    ],
)
def test_what_decides_a_trial_changes_its_fingerprint_and_no_other(config: Config, tasks: Any, checkpoints: Any, changed: tuple[str, ...]) -> None:
    before, after = fingerprints(), fingerprints(config, tasks, checkpoints)
    assert tuple(method for method in ABLATIONS if before[method] != after[method]) == tuple(changed)


def test_epochs_do_not_count_beside_steps() -> None:
    assert fingerprints(replace(CONFIG, steps=3, epochs=2.0)) == fingerprints(replace(CONFIG, steps=3))


@pytest.mark.parametrize("ingredient", [field.name for field in dataclasses.fields(Recipe)])
def test_every_ingredient_is_in_the_fingerprint(ingredient: str) -> None:
    other = {"cot": "distilled", "rationale": "answer_only"}.get(ingredient, False)
    mine = replace(CONFIG, methods=["mine"], recipes={"mine": replace(RECIPES["fiat"], **{ingredient: other})})  # type: ignore[arg-type]
    same = CHECKPOINTS | {("xs", False): CHECKPOINTS["xs", True]}
    assert fingerprints(mine, TASKS, same)["mine"] != fingerprints()["fiat"]


def test_who_needs_the_reasoner() -> None:
    def needs(*methods: str) -> bool:
        return campaign.needs_reasoner(config.load({"task": "t", "methods": list(methods), "recipes": {"mine": {"cot": "distilled"}}}))

    assert needs("icl") and needs("no_cot", "fiat") and needs("distilled_cot") and needs("mine")
    assert not needs("majority", "no_cot", "no_peft")
