"""Controls: are the effects that reports show real, and would the software notice if they were not? Run by ``make controls``.

A positive and a negative control of CoT-augmented tuning with three mutants of it, a control of instructions before tuning, and one of the leakage
guard; all with the embedded model as tunable, through the same code as any campaign. What was found goes into ``controls.json`` of the positive
control's run, ``runs/controls/own``, whose report shows it; the last line on standard output is one JSON object. Exit code 1 where a claim fails.

CoT (paper §2.3, Table 3): on ``lockers`` the answer needs a fact that only the row's own rationale tells. Rationales of their own, none, or those of
other rows in training (three tasks) × the same in test (three kinds of test rows) give the gain over ``no_cot`` and all its controls:

    training   test      what it is
    own        own       positive: the gain
    another    another   negative: every rationale implies another answer
    none       own       mutant: rationales dropped in training only
    own        none      mutant: rationales dropped at inference only
    own        another   mutant: rationales shuffled at inference only
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiat_ray as fiat
from benchmarks import leaky_task, lockers
from fiat_ray import artifact, models
from fiat_ray.augmented import Example
from fiat_ray.leaks import leaking_rows
from fiat_ray.prepare import prepare
from fiat_ray.progress import Console
from fiat_ray.report import page
from fiat_ray.report.controls import CONTROLS
from fiat_ray.runs import versions
from fiat_ray.significance import NO_SPREAD, Comparison, compare

OUT = Path("runs/controls")
SEEDS = [0, 1, 2]
TUNING = {"learning_rate": {"lora": [2e-3], "full": [2e-4]}, "batch_size": 8, "epochs": 1, "validation": {"times": 1, "rows": 8}}
NOTES = {
    "own": "rationales of their own",
    "none": "no rationales (mutant: dropped in training)",
    "another": "rationales of other rows, which imply another answer (negative control)",
}
ASKED_IN = ["ar", "el", "id", "ja", "ko", "ru", "sw"]
"""Of the country facts' languages seven of the eight whose rows cost the tunable's tokenizer the fewest tokens; 60 test rows each."""


@dataclass(frozen=True)
class Claim:
    text: str
    holds: bool
    found: Comparison | None
    """What it is about; None: no difference."""


@dataclass(frozen=True)
class Controls:
    """What was measured. Gains are differences in F1 from ``no_cot`` on the same rows, 0–100."""

    gain: Comparison
    shuffled: Comparison
    apart: Comparison
    """The gain less the shuffled one's; ``no_cot`` is the same in both."""
    no_train: Comparison
    no_infer: Comparison
    shuffled_infer: Comparison
    instructions: Comparison
    leak_caught: bool

    def summary(self) -> dict[str, Any]:
        return {
            "cot_gain": self.gain.difference,
            "cot_p": self.gain.p,
            "shuffled_gain_high": self.shuffled.high,
            "no_train_gain": self.no_train.difference,
            "no_infer_gain": self.no_infer.difference,
            "shuffled_infer_gain": self.shuffled_infer.difference,
            "instruction_gain_low": self.instructions.low,
            "leak_caught": self.leak_caught,
            "n": self.gain.n_rows,
            "seeds": self.gain.n_seeds[0],
        }

    def gains(self) -> dict[str, Comparison]:
        return {
            "rationales of their own": self.gain,
            "of other rows (negative control)": self.shuffled,
            "mutant: dropped in training": self.no_train,
            "mutant: dropped at inference": self.no_infer,
            "mutant: shuffled at inference": self.shuffled_infer,
            "i_tau, before tuning": self.instructions,
        }

    def claims(self) -> list[Claim]:
        gain, half = _known(self.gain.difference), _known(self.gain.difference) / 2
        return [
            Claim("own rationales gain at least 20 points", gain >= 20, self.gain),
            Claim("p of that gain is below 0.01", _known(self.gain.p) < 0.01, self.gain),
            Claim("rationales of other rows gain at most 5 points (upper end)", _end(self.shuffled, self.shuffled.high) <= 5, self.shuffled),
            Claim("own rationales gain more than those (lower end)", _end(self.apart, self.apart.low) > 0, self.apart),
            Claim("dropped in training, they lose at least half of the gain", _known(self.no_train.difference) <= half, self.no_train),
            Claim("dropped at inference, they lose at least half of it", _known(self.no_infer.difference) <= half, self.no_infer),
            Claim("shuffled at inference, they lose at least half of it", _known(self.shuffled_infer.difference) <= half, self.shuffled_infer),
            Claim("instructions help before tuning (lower end)", _end(self.instructions, self.instructions.low) > 0, self.instructions),
            Claim("the leakage check catches a leak, and only that", self.leak_caught, None),
        ]


def _known(value: float | None) -> float:
    """NaN for what is not defined: no bound holds then."""
    return float("nan") if value is None else value


def _end(found: Comparison, end: float | None) -> float:
    """An end of its interval; of a gain that is the same in all rows, and so has none, the gain: two methods that are wrong everywhere are alike."""
    return _known(found.difference if found.note == NO_SPREAD else end)


def main() -> int:
    if (OUT / "manifest.json").exists():
        sys.exit(f"{OUT}: is a run directory of another config, which the controls would replace; move it elsewhere")
    shutil.rmtree(OUT, ignore_errors=True)  # controls are about the software as it is now: nothing made before counts
    console = Console()
    console.line("leakage: three tasks that must pass, one that must not …")
    leak = leak_caught()
    console.line(f"instructions: the untuned model answers questions with and without i_tau, in {', '.join(ASKED_IN)} …")
    instructions = instruction_gain()
    mutants = ("none", "another")
    own, others = campaign("own", ("own",), ["fiat", "no_cot"]), campaign("others", mutants, ["fiat"])
    runs = {"own": own} | dict.fromkeys(mutants, others)
    controls = Controls(**cot_gains(runs), instructions=instructions, leak_caught=leak)
    write(controls, runs["own"])
    for claim in controls.claims():
        print(f"{'holds ' if claim.holds else 'FAILS '} {claim.text}")
    print(json.dumps(controls.summary()))
    return 0 if all(claim.holds for claim in controls.claims()) else 1


def write(controls: Controls, run: fiat.Run) -> None:
    """``controls.json`` of the run, and its report anew."""
    claims = [{"claim": claim.text, "holds": bool(claim.holds)} | _measured(claim.found) for claim in controls.claims()]
    gains = [{"what": name} | _measured(found) for name, found in controls.gains().items()]
    artifact.write_json(run.path / CONTROLS, {"claims": claims, "gains": gains, "summary": controls.summary(), "versions": versions()})
    page.build(run.path)


def _measured(found: Comparison | None) -> dict[str, Any]:
    return {"gain": found.difference, "gain_low": found.low, "gain_high": found.high, "gain_p": found.p, "rows": found.n_rows} if found else {}


def campaign(name: str, trainings: Sequence[str], methods: list[str]) -> fiat.Run:
    """``fiat``, tuned with each kind of rationales, on test rows with the kinds that claims are about; or ``no_cot`` too, which reads none."""
    notes = [f"{lockers.name(training)}, a control: in training rows had {NOTES[training]}." for training in trainings]
    return fiat.run(
        [lockers.task(training) for training in trainings],
        reasoner={"kind": "scripted", "script": str(Path(lockers.__file__)), "max_tokens": 16},
        tunable={"model": models.EMBEDDED, "max_length": 128},
        out=OUT / name,
        methods=methods,
        seeds=SEEDS,
        tracking_uri=f"sqlite:///{OUT.resolve()}/mlflow.db",
        notes=[*notes, "The languages are kinds of test rows: with their own rationale, none, another's."],
        **TUNING,
    )


def cot_gains(runs: Mapping[str, fiat.Run]) -> dict[str, Comparison]:
    """By how much ``fiat`` beats ``no_cot``, for what was done to rationales in training and in test."""

    def fiat_(training: str, test: str) -> list[list[dict[str, Any]]]:
        return predictions(runs, training, "fiat", test)

    def no_cot(test: str) -> list[list[dict[str, Any]]]:
        """It reads no rationale: the kind only says which questions were asked."""
        return predictions(runs, "own", "no_cot", test)

    return {
        "gain": compare(fiat_("own", "own"), no_cot("own"), "f1"),
        "shuffled": compare(fiat_("another", "another"), no_cot("own"), "f1"),
        "apart": compare(fiat_("own", "own"), fiat_("another", "another"), "f1"),
        "no_train": compare(fiat_("none", "own"), no_cot("own"), "f1"),
        "no_infer": compare(fiat_("own", "none"), no_cot("none"), "f1"),
        "shuffled_infer": compare(fiat_("own", "another"), no_cot("another"), "f1"),
    }


def predictions(runs: Mapping[str, fiat.Run], training: str, method: str, test: str) -> list[list[dict[str, Any]]]:
    """Predictions on test rows with one kind of rationale, one list a seed; the same question has the same id in every kind."""
    found = runs[training].predictions(method, lockers.name(training))
    return [[row | {"id": row["group"], "language": "all"} for row in rows if row["language"] == test] for rows in found]


def instruction_gain() -> Comparison:
    """By how much the untuned model answers better with i_tau before the row than without, in the same chat template."""
    from fiat_ray.engine import Engine, EngineOptions
    from fiat_ray.predict import EngineTuned, predict
    from fiat_ray.render import Renderer

    config = fiat.load_config({"task": "country_facts", "languages": ASKED_IN, "methods": ["no_cot", "no_instructions"]})
    prepared = prepare(config)
    task, texts = prepared.tasks["country_facts"], prepared.lengths["country_facts"].texts
    examples = [Example(row.id, row.split, row.language, texts[row.id], row.targets, row.group) for row in task.split("test")]
    folder = models.find(models.EMBEDDED)
    engine = Engine(folder, EngineOptions(max_length=1024))
    answers = {
        trial.method: predict(EngineTuned(engine, Renderer(folder), task, trial.recipe, trial.answer_tokens), examples, {}, trial.recipe)
        for trial in prepared.trials
    }
    engine.close()
    return compare([answers["no_cot"]], [answers["no_instructions"]], "f1")


def leak_caught() -> bool:
    """Whether the metamorphic check catches a task that shows annotators' votes, and lets the built-in tasks pass."""
    from fiat_ray.render import Renderer

    renderer = Renderer(models.find(models.EMBEDDED))
    with tempfile.TemporaryDirectory() as folder:
        leaky, data = leaky_task.write(Path(folder))
        caught = leaking_rows(leaky, data, renderer, 8192)
        passing = [("xor_attriqa", data), ("xtreme_up_qa", data), ("country_facts", None)]
        return bool(caught) and not any(leaking_rows(name, where, renderer, 8192) for name, where in passing)


if __name__ == "__main__":
    sys.exit(main())
