"""How fast and how exactly trials are tuned. Run by ``make bench-tune``; the last line is one JSON object.

    trl_best_ratio     supervised rows a second ÷ those of TRL's SFTTrainer with the fastest settings of ``baselines.VARIANTS``, LoRA: see ``_best``
    trl_default_ratio  the same ÷ its default settings, as they compared when they were tried
    bare_loop_ratio    the same ÷ a bare PyTorch loop's, LoRA or full tuning, whichever is worse: what Ray, DeepSpeed and keeping a resumable
                       state cost (MLflow is written to after tuning, by the driver)
    loss_parity        largest relative difference from TRL's loss in 100 steps of a tiny model, LoRA or full tuning
    mfu                on a GPU: FLOPs that full tuning of a model of 0.6 billion parameters really needs (``benchmarks.flops``), a second, ÷ ``PEAK``

Cross-lingual QA, the embedded model, ``BATCH`` rows in a step; one sequence of rows for all, on as many threads as there are CPUs, long enough for
the fastest to take ``SECONDS`` a round after the first step, which does not count. Rows are read from the folder that ``FIAT_DATA`` names (default
``../shared/data``); where there is none, generated questions take their place. Ours is a trial's whole path: a campaign with one trial, its time from
the first update's end to the last one's. Systems run in processes of their own and take turns, step by step (``benchmarks.turns``), for ``ROUNDS``
rounds; the ratios of each round are compared, and their medians count. Ray's processes are stopped while others have their turn.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch

from benchmarks.baselines import VARIANTS, Mark, Work, bare, environment, reorders, trl
from benchmarks.flops import PEAK, SHAPE, flops_of_step
from benchmarks.reasoning import DATA
from benchmarks.turns import Seat, Turn, take_turns
from fiat_ray import config as configs
from fiat_ray import models, runs
from fiat_ray.augmented import Example
from fiat_ray.campaign import Trial
from fiat_ray.draw import steps_of, train_subset, validation_subset
from fiat_ray.predict import shown_rationales
from fiat_ray.prepare import Prepared, prepare
from fiat_ray.progress import Console
from fiat_ray.render import Renderer
from fiat_ray.tune.memory import FULL_SPEED
from fiat_ray.tune.resume import KEEP_SECONDS, MOST_SHARE
from fiat_ray.tune.tunable import supervised

SECONDS, ROUNDS = 60, 3
ON_GPU = torch.cuda.is_available()
BATCH = 64 if ON_GPU else 8
TRIED_STEPS = 2
"""Of each way that is tried. The first one counts too: without its rows, a way that reorders them would be compared by others."""
TRIED_BATCH = BATCH if ON_GPU else BATCH // 2
"""Rows of TRL's: ways that take all at once are no slower with fewer, as less is padded."""
PARITY_STEPS = 100
KEEP_AFTER = 20.0
"""Seconds after which a trial's state is kept here, so that it happens in a run of a minute; what it costs is then spread over ``KEEP_SECONDS``."""

METHODS = {"LoRA": "no_cot", "full": "full_instructed"}
MOST = FULL_SPEED["cuda" if ON_GPU else "cpu"]
MICRO_BATCHES = {"packed": MOST, "in smaller packs": MOST // 2}
"""Tokens that a bare loop takes at once."""

MFU_BATCH, MFU_STEPS = 256, 60

Values = dict[str, Any]
"""A config's."""


class Found(NamedTuple):
    """What a run says."""

    marks: list[Mark]
    kept: list[float]
    """Seconds that each keeping of a state took, which no clock counts."""

    @property
    def rate(self) -> float:
        """Tokens a second; of the same rows this is rows a second, but for a factor."""
        first, last = self.marks[0], self.marks[-1]
        each = mean(self.kept) if self.kept else 0.0
        return (last.tokens - first.tokens) / (last.clock - first.clock) / (1 + each / max(KEEP_SECONDS, each / MOST_SHARE))

    def rounds(self, number: int) -> list[Found]:
        """So many stretches of as many steps each; the first step is in none."""
        marks = self.marks[1:]
        steps = (len(marks) - 1) // number
        return [self._replace(marks=marks[at * steps : (at + 1) * steps + 1]) for at in range(number)]


class Bench:
    def __init__(self, place: Path, trl: Path) -> None:
        """``trl``: the folder with TRL, for its processes alone."""
        self._place, self._trl = place, trl

    def together(self, systems: Mapping[str, tuple[str, str]], given: Mapping[str, Path]) -> dict[str, Found]:
        """Runs that take turns; ``SystemExit`` where one fails. ``systems``: name → system and its way; ``given``: name → a work, or our config."""
        files = {name: (self._place / f"{name}.found.json", self._place / f"{name}.log") for name in systems}
        seats = {}
        for name, (system, way) in systems.items():
            output, log = files[name]
            output.unlink(missing_ok=True)
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.tuning", system, way, str(given[name]), str(output)]
            seats[name] = Seat(command, environment(self._trl if system == "trl" else None), self._place / f"{name}.turn", log)
        take_turns(list(seats.values()))
        found = {}
        for name, (output, log) in files.items():
            if seats[name].process.returncode or not output.is_file():
                raise SystemExit(f"{name}, {systems[name][1]}: failed; its output: {log.read_text()[-4000:]}")
            values = json.loads(output.read_text())
            found[name] = Found([Mark(*mark) for mark in values["marks"]], values["kept"])
        return found

    def must(self, system: str, way: str, given: Path) -> Found:
        return self.together({system: (system, way)}, {system: given})[system]

    def fastest(self, system: str, ways: Sequence[str], given: Path) -> dict[str, Found]:
        """All that worked, the fastest first."""
        found = {}
        for way in ways:
            try:
                tried = self.must(system, way, given)
            except SystemExit as failed:
                print(f"{system}, {way}: failed: {str(failed).strip().splitlines()[-1][:200]}", flush=True)
            else:
                found[way] = tried
                print(f"tried {system}, {way}: {tried.rate:.1f} tokens/s", flush=True)
        return dict(sorted(found.items(), key=lambda item: -item[1].rate))


def main(trl: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="fiat-bench-tune-") as folder:
        place = Path(folder)
        bench = Bench(place, trl)
        loops = {how: bench.fastest("bare", list(MICRO_BATCHES), _write(place, how, config_of(how, TRIED_STEPS))["work"]) for how in METHODS}
        work = _write(place, "TRL's ways", config_of("LoRA", TRIED_STEPS) | {"batch_size": TRIED_BATCH})["work"]
        tried = bench.fastest("trl", list(VARIANTS), work)
        if not (all(loops.values()) and "defaults" in tried):
            raise SystemExit("what is compared with did not run; see above")
        best = _best(tried)
        ratios = _compare(bench, place, {how: next(iter(found.items())) for how, found in loops.items()}, best)
        parity = max(_parity(bench, place, how) for how in METHODS)
        mfu = _mfu(bench, place) if ON_GPU else None
    figures = {
        "trl_best_ratio": ratios["LoRA trl"],
        "trl_default_ratio": ratios["LoRA trl"] * tried[best].rate / tried["defaults"].rate,
        "bare_loop_ratio": min(ratios[f"{how} bare"] for how in METHODS),
        "loss_parity": parity,
        **({"mfu": mfu} if mfu else {}),
    }
    print(json.dumps(figures))
    return 0


def config_of(how: str, steps: int, model: str = models.EMBEDDED, rate: float = 1e-4, real: bool = True) -> Values:
    """Of a campaign with one trial. ``real``: real rows, where there are any."""
    values: Values = {
        "methods": [METHODS[how]],
        "seeds": [0],
        "tunables": {"xs": {"model": model}},
        "learning_rate": {"lora": [rate], "full": [rate]},
        "steps": steps,
        "batch_size": BATCH,
        "limit": {"train": 20, "validation": 1, "test": 1},
        "validation": {"times": 1, "rows": 1},
    }
    if real and (DATA / "xtreme_up").is_dir():
        return values | {"task": "xtreme_up_qa", "data": str(DATA), "focus": "full"}
    return values | {"task": "country_facts"}


def work_of(prepared: Prepared, trial: Trial, texts: Mapping[str, str] | None = None, *, validate: bool = False) -> Work:
    """What a trial is tuned on, for other systems, and validated on. ``texts``: row id → rationale, where the trial reads them."""
    task, folder, lora = prepared.tasks[trial.task], models.find(trial.model), trial.lora if trial.recipe.peft else None
    renderer = Renderer(folder, chat=trial.recipe.instruction_tuned)
    train = train_subset(examples_of(prepared, trial.task, "train", texts), trial.train_size)
    validated = validation_subset(examples_of(prepared, trial.task, "validation", texts), trial.validation_rows) if validate else []
    shown = shown_rationales(task, renderer, trial.recipe, [*train, *validated], trial.rationale_tokens)

    def rows_of(x: Sequence[Example]) -> list[dict[str, list[int]]]:
        items = supervised(renderer, task, trial.recipe, x, [shown.get(e.id) for e in x])
        return [{"input_ids": item.prompt.ids, "labels": item.prompt.labels} for item in items]

    rows = [row for x in steps_of(train, trial.batch_size, trial.epochs, trial.steps, trial.seed, trial.language_mix) for row in rows_of(x)]
    return Work(str(folder), lora, trial.learning_rates[0], trial.seed, trial.batch_size, rows, rows_of(validated))


def examples_of(prepared: Prepared, task: str, split: str, texts: Mapping[str, str] | None = None) -> list[Example]:
    """Rows as trials get them, in the order of their ids."""
    inputs, texts = prepared.lengths[task].texts, texts or {}
    rows = sorted(prepared.tasks[task].split(split), key=lambda row: row.id)
    return [Example(r.id, r.split, r.language, inputs[r.id], r.targets, r.group, texts.get(r.id), "ok") for r in rows]


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Relative to theirs, over the steps of two loss curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def check_same(found: dict[str, Found]) -> None:
    """Raise ``SystemExit`` unless all systems read as many tokens, and as many supervised ones, in each step."""
    read = {name: [(mark.tokens, mark.supervised) for mark in run.marks] for name, run in found.items()}
    if len({tuple(steps) for steps in read.values()}) > 1:
        raise SystemExit(f"systems did not tune on the same tokens (all, supervised) after each step: {read}")


def _write(place: Path, name: str, values: Values) -> dict[str, Path]:
    """Files with a config and its work. Other systems' steps go on from one epoch into the next, so an epoch is made to be whole steps."""
    values = values | {"tracking_uri": f"sqlite:///{place}/mlflow.db"}
    rows, batch = prepare(configs.load(values)).trials[0].train_size, values["batch_size"]
    values = values | {"train_size": [max(batch, rows - rows % batch)]}
    prepared = prepare(configs.load(values))
    work = work_of(prepared, prepared.trials[0])
    files = {what: place / f"{name} {what}.json" for what in ("config", "work")}
    files["config"].write_text(json.dumps(values))
    work.write(files["work"])
    tokens = sum(len(row["input_ids"]) for row in work.rows)
    print(
        f"{name}: {len(work.rows)} {'real' if 'data' in values else 'generated'} rows, {tokens} tokens, {work.batch} rows a step, "
        f"{os.cpu_count()} CPUs",
        flush=True,
    )
    return files


def _steps_of_a_round(tried: Found) -> int:
    """``tried``: the fastest bare loop."""
    [warm] = tried.rounds(1)
    return math.ceil(SECONDS * warm.rate * TRIED_STEPS / tried.marks[-1].tokens)


def _compare(bench: Bench, place: Path, loops: Mapping[str, tuple[str, Found]], best: str) -> dict[str, float]:
    """How many times as many tokens a second we tune on as each other system, medians. ``loops``: the fastest bare loop for LoRA and for full tuning;
    ``best``: the fastest of TRL's ways."""
    ratios: dict[str, list[float]] = {}
    for how, (loop, tried) in loops.items():
        systems = {"ours": ("ours", "trial"), "bare": ("bare", loop), **({"trl": ("trl", best)} if how == "LoRA" else {})}
        steps = _steps_of_a_round(tried)
        # Rounds follow one another in the same processes, unless one of them reads its rows in another order.
        apart = "trl" in systems and reorders(best)
        sittings, rounds = (ROUNDS, 1) if apart else (1, ROUNDS)
        given = _write(place, how, config_of(how, 1 + rounds * steps))
        print(f"{how}: {ROUNDS} rounds of {steps} steps of {BATCH} rows; the loop's {loop!r}, TRL's {best!r}", flush=True)
        for _ in range(sittings):
            found = bench.together(systems, {name: given["config" if name == "ours" else "work"] for name in systems})
            check_same({name: run._replace(marks=run.marks[-1:]) for name, run in found.items()} if apart else found)
            for of_round in zip(*(run.rounds(rounds) for run in found.values()), strict=True):
                for name, run in zip(systems, of_round, strict=True):
                    kept = f", its state kept in {mean(run.kept):.2f} s" if run.kept else ""
                    print(f"{how} {name}: {run.rate:.1f} tokens/s in {run.marks[-1].clock - run.marks[0].clock:.1f} s{kept}", flush=True)
                    ratios.setdefault(f"{how} {name}", []).append(of_round[0].rate / run.rate)
    return {name: median(of_rounds) for name, of_rounds in ratios.items()}


def _best(tried: Mapping[str, Found]) -> str:
    """The fastest way; of those up to a tenth slower, as chance makes them, rather one that reads rows in order: it is compared step by step."""
    ways = sorted(tried, key=lambda way: (reorders(way), -tried[way].rate))
    return next(way for way in ways if tried[way].rate >= 0.9 * max(found.rate for found in tried.values()))


def _parity(bench: Bench, place: Path, how: str) -> float:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny_model

    model = tiny_model.write(place / "tiny")
    given = _write(place, f"parity, {how}", config_of(how, PARITY_STEPS, str(model), 1e-3, real=False))
    systems = {"ours": ("ours", "trial"), "trl": ("trl", "no checkpointing")}
    found = bench.together(systems, {"ours": given["config"], "trl": given["work"]})
    check_same(found)
    ours, theirs = ([mark.loss for mark in run.marks[1:]] for run in found.values())
    print(f"loss, {how}: {theirs[0]:.4f} to {theirs[-1]:.4f}; largest difference from TRL's {largest_difference(ours, theirs):.2%}", flush=True)
    return largest_difference(ours, theirs)


def _mfu(bench: Bench, place: Path) -> float:
    """Full tuning of random weights of ``SHAPE``, with the embedded model's tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    folder, embedded = place / "0.6b", models.find(models.EMBEDDED)
    config = Qwen3Config(**SHAPE, dtype=torch.bfloat16)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    for path in embedded.iterdir():
        if path.suffix == ".jinja" or path.name.startswith("tokenizer"):
            shutil.copy(path, folder)
    given = _write(place, "mfu", config_of("full", MFU_STEPS, str(folder)) | {"batch_size": MFU_BATCH})
    work, found = Work.read(given["work"]), bench.must("ours", "trial", given["config"])
    needed = sum(flops_of_step(config, work.step(step)) for step in range(1, work.steps))
    return needed / (found.marks[-1].clock - found.marks[1].clock) / PEAK


def _ours(values: Values) -> Found:
    """A campaign's tuning stage, whose worker takes notes."""
    from fiat_ray.tune import lane

    lane._work = watched
    with tempfile.TemporaryDirectory(prefix="fiat-bench-tune-") as folder:
        run, outcome = runs.run_config(configs.load(values), Path(folder) / "run", stages=("tune",), console=Console(quiet=True))
        if outcome.failed:
            raise SystemExit(str(outcome.failed))
        noted = json.loads((run.path / "watched.json").read_text())
    return Found([Mark(*mark) for mark in noted["marks"]], noted["kept"])


def watched(config: dict[str, Any]) -> None:
    """``lane._work``, with a note of each update's end and of each keeping."""
    import time

    from fiat_ray.tune import lane, resume, trial

    noted: dict[str, list[Any]] = {"marks": [], "kept": []}
    turn = Turn()

    class Tunable(trial.DeepSpeedTunable):  # type: ignore[name-defined]
        def gradient(self, x: Any, y_beta: Any) -> None:
            turn.begin()
            noted["marks"] = noted["marks"] or [(turn.clock(), 0, 0, 0.0)]
            super().gradient(x, y_beta)

        def update(self) -> None:
            super().update()
            noted["marks"].append((turn.clock() - sum(noted["kept"]), self.tokens, self.supervised_tokens, self.losses[-1]))
            if self.step == self._steps:
                turn.end()

    class Keeper(resume.Keeper):
        def keep(self, *arguments: Any) -> str:
            start = time.perf_counter()
            said = super().keep(*arguments)
            noted["kept"].append(time.perf_counter() - start)
            return said

    resume.KEEP_SECONDS = KEEP_AFTER
    trial.DeepSpeedTunable, trial.Keeper = Tunable, Keeper  # type: ignore[attr-defined, misc]
    lane._work(config)
    (Path(config["run"]) / "watched.json").write_text(json.dumps(noted))


def _child(system: str, how: str, given: Path) -> Found:
    if system == "ours":
        return _ours(json.loads(given.read_text()))
    work = Work.read(given)
    return Found(bare(work, MICRO_BATCHES[how]) if system == "bare" else trl(work, how), [])


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(main(Path(sys.argv[1])))
    system, how, given, output = sys.argv[1:]
    Path(output).write_text(json.dumps(_child(system, how, Path(given))._asdict()))
