"""A small synthetic run directory with real Parquet files, as the engine writes it, for tests of what reads one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fiat_ray import schema
from fiat_ray.metrics import selecting_metric
from fiat_ray.recipe import RECIPES
from fiat_ray.scoring import score_predictions

QUESTIONS = {
    "en": "Which town lies at the river {n}?",
    "fi": "Mikä kaupunki on joen {n} varrella?",
    "bn": "নদী {n} এর পাশে কোন শহর?",
    "ur": "دریا {n} کے کنارے کون سا شہر ہے؟",
    "ja": "川{n}のそばの町はどこですか。",
}
LEARNING_RATES = (1e-4, 2e-4)
TEMPLATE = "question: {question} title: {title} context: {context}"


def write_run(
    folder: Path,
    task: str = "rivers",
    languages: Iterable[str] = ("fi", "bn", "ur", "ja"),
    methods: Iterable[str] = ("fiat", "no_cot", "no_instructions", "no_peft"),
    tunables: Iterable[str] = ("xs",),
    seeds: Iterable[int] = (0,),
    labels: tuple[str, ...] = (),
    metric: str = "",
    rows: int = 12,
    right: dict[str, int] | None = None,
    chance: Callable[[str, str], float] | None = None,
    passage: str = "",
) -> Path:
    """Writes a finished run of one task. ``metric``: default F1, of labels accuracy; ``rows``: test rows a language; ``right``: how many
    of each language a method gets right.

    ``chance``: instead of ``right``, the probability that a row of a language is right under a method. ``passage``: what contexts end with.
    """
    run = Run(folder, task, list(languages), labels, metric or ("accuracy" if labels else "f1"), rows, chance, passage)
    right = {"icl": 3, "majority": 1, "no_instructions": 5, "no_peft": 4, "no_cot": 8, "fiat": 11} | (right or {})
    trials = [run.trial(method, tunable, seed, right.get(method, 6)) for tunable in tunables for method in methods for seed in seeds]
    for method in ("icl", "majority"):
        run.untuned(method, right[method])
    run.task_files()
    run.augmented()
    write(folder / "scores.parquet", schema.SCORES, run.scores)
    missing = {"task": task, "method": "no_instruction_tuned", "reason": "no pretrained twin", "config_key": "tunables.{}.pretrained"}
    twins = missing["method"] in methods
    not_run = [] if twins else [missing | {"tunable": t, "config_key": missing["config_key"].format(t)} for t in tunables]
    run.manifest(trials, list(tunables), not_run)
    return folder


def note_as_tuned(run: Path, cot: str) -> None:
    """Write the last trial of a run directory down as tuned, without weights."""
    *_, trial = json.loads((run / "manifest.json").read_text())["trials"]
    record = {name: kind() if isinstance(kind, type) else kind[-1]() for name, kind in schema.TRIAL.items()}
    record |= {**trial, "recipe": {"cot": cot}, "answer_tokens": 8, "selection_value": 1.0}
    (run / "trials" / trial["name"] / "adapter").mkdir(parents=True)
    (run / "trials" / trial["name"] / "trial.json").write_text(json.dumps(record))


class Run:
    def __init__(
        self,
        folder: Path,
        task: str,
        languages: list[str],
        labels: tuple[str, ...],
        metric: str,
        rows: int,
        chance: Callable[[str, str], float] | None,
        passage: str,
    ) -> None:
        self.chance, self.metric, self.passage = chance, metric, passage
        self.selecting = selecting_metric(metric, labels)
        self.folder, self.task, self.languages, self.labels, self.n = folder, task, languages, labels, rows
        self.scores: list[dict[str, Any]] = []
        self.rows = [self.row(split, language, number) for split in ("train", "test") for language in languages for number in range(rows)]

    def row(self, split: str, language: str, number: int) -> dict[str, Any]:
        question = QUESTIONS[language if language in QUESTIONS else "en"].format(n=number)
        target = self.labels[number % 2] if self.labels else f"Town {number}"
        context = f"Town {number} lies at the river {number} <b>of</b> the plain.{self.passage}"
        fields = {"question": question, "title": "Rivers & towns", "context": context}
        return {
            "id": f"{split}-{language}-{number}",
            "split": split,
            "language": language,
            "input": TEMPLATE.format(**fields),
            "fields": fields,
            "targets": [target],
            "group": f"g{number}",
            "cut_characters": 0,
        }

    def predictions(self, method: str, right: int, status: str | None, scored: bool, seed: int = 0) -> list[dict[str, Any]]:
        """The first languages get ``right`` rows right, each next pair of them one less; or as many as ``chance`` will have it."""
        luck = random.Random(f"{method} {seed}")
        result = []
        for row in (row for row in self.rows if row["split"] == "test"):
            gold, is_right = row["targets"][0], int(row["id"].rsplit("-", 1)[1]) < right - self.languages.index(row["language"]) // 2
            if self.chance:
                is_right = luck.random() < self.chance(method, row["language"])
            wrong = next((label for label in self.labels if label != gold), "")
            prediction = gold if is_right else wrong
            score = (0.9 if prediction == self.labels[-1] else 0.1) if self.labels and scored else None
            result.append({k: row[k] for k in ("id", "language", "group", "targets")} | {"prediction": prediction, "score": score, "status": status})
        return result

    def score(self, predictions: list[dict[str, Any]], **trial: Any) -> list[dict[str, Any]]:
        of = {"task": self.task, "split": "test", "tunable": None, "seed": None, "train_size": None} | trial
        scores = [of | score for score in score_predictions(self.task, self.metric, self.labels, predictions, icl=of["method"] == "icl")]
        self.scores += scores
        return scores

    def untuned(self, method: str, right: int) -> None:
        predictions = self.predictions(method, right, "ok" if method == "icl" else None, scored=method != "icl")
        write(self.folder / "untuned" / f"{self.task}-{method}.parquet", schema.PREDICTIONS, predictions)
        self.score(predictions, method=method)

    def trial(self, method: str, tunable: str, seed: int, right: int) -> dict[str, Any]:
        name = f"{method}-{tunable}-s{seed}-{abs(hash((method, tunable, seed))) % 16**8:08x}"
        which = {
            "name": name,
            "fingerprint": f"{name}-full",
            "task": self.task,
            "method": method,
            "tunable": tunable,
            "seed": seed,
            "train_size": len(self.languages) * self.n,
        }
        folder = self.folder / "trials" / name
        recipe = RECIPES[method]
        predictions = self.predictions(method, right, "ok" if recipe.cot == "augmented" else None, scored=True, seed=seed)
        write(folder / "predictions.parquet", schema.PREDICTIONS, predictions)
        keys = {k: which[k] for k in ("method", "tunable", "seed", "train_size")}
        (folder / "scores.json").write_text(json.dumps(self.score(predictions, **keys)))
        answers = {step: self.predictions(method, right + (step == 8), None, scored=True, seed=seed) for step in (0, 4, 8, 12)}
        validated = [row | {"step": step} for step, rows in answers.items() for row in rows]
        write(folder / "validation.parquet", schema.VALIDATED, validated)
        selected = {"language": "mean", "metric": self.selecting, "value": 10.0 + 4 * right, "n": 4}
        self.scores.append({**keys, "task": self.task, "split": "validation", **selected})
        write(folder / "history.parquet", schema.HISTORY, self.history(right))
        details = {
            "recipe": vars(recipe),
            "answer_tokens": 8,
            "augmented": None,
            "learning_rate": LEARNING_RATES[1],
            "learning_rates_tried": list(LEARNING_RATES),
            "step": 8,
            "steps": 12,
            "kept_step_0": False,
            "selection_metric": self.selecting,
            "selection_value": 10.0 + 4 * right,
            "validation": {},
            "validation_rows": 4,
            "train_groups": 4,
            "tokens": 5678,
            "supervised_tokens": 1234,
            "seconds": 12.5,
            "gpus": 0,
        }
        (folder / "trial.json").write_text(json.dumps(which | details))
        weights = folder / ("adapter" if recipe.peft else "checkpoint")
        weights.mkdir()
        (weights / ("adapter_config.json" if recipe.peft else "config.json")).write_text("{}")
        return which

    def history(self, right: int) -> list[dict[str, Any]]:
        of = {"metric": self.selecting, "validation_loss": 1.0, "seconds": 1.0}
        return [
            of
            | {
                "learning_rate": rate,
                "step": step,
                "epoch": step / 12,
                "train_loss": None if step == 0 else 2.0 - step / 12,
                "value": 10.0 + right / 2 * min(step, 16 - step) * (0.8 if rate == LEARNING_RATES[0] else 1.0),
                "selected": rate == LEARNING_RATES[1] and step == 8,
            }
            for rate in LEARNING_RATES
            for step in (0, 4, 8, 12)
        ]

    def task_files(self) -> None:
        folder = self.folder / "task" / self.task
        write(folder / "rows.parquet", schema.ROWS, self.rows)
        (folder / "task.yaml").write_text(yaml.safe_dump({"input": TEMPLATE, "cut": "context"}))
        test = ({**row["fields"], "@id": row["id"]} for row in self.rows if row["split"] == "test")
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
        (folder / "i_beta.txt").write_text("Reason step by step.")
        (folder / "i_tau.txt").write_text("Answer the question.")
        (folder / "exemplars.jsonl").write_text(json.dumps({"language": "bn", "question": "?", "rationale": "Because.", "target": "x"}) + "\n")
        (folder / "labels.json").write_text(json.dumps(list(self.labels)))

    def augmented(self) -> None:
        columns = pa.schema([field for field in schema.AUGMENTED if field.name not in ("split", "language")])
        for split in ("train", "test"):
            for language in self.languages:
                rows = [row for row in self.rows if (row["split"], row["language"]) == (split, language)]
                text = "The passage says so.\nAnswer: Town </script><script>alert(1)</script>"
                filled = [row | {"key": row["id"], "rationale": text, "status": "ok", "finish_reason": "stop"} for row in rows]
                path = self.folder / "augmented" / f"task={self.task}" / f"split={split}" / f"language={language}" / "part-0.parquet"
                write(path, columns, filled)

    def manifest(self, trials: list[dict[str, Any]], tunables: list[str], not_run: list[dict[str, Any]]) -> None:
        of_task = {
            "data": "fingerprint of rows",
            "prompts": "fingerprint of prompts",
            "exemplars": dict.fromkeys(self.languages, 4),
            "languages": self.languages,
            "metric": self.metric,
            "labels": list(self.labels),
            "rows": {split: dict.fromkeys(self.languages, self.n) for split in ("train", "test")},
            "removed": [],
            "cut": dict.fromkeys(self.languages, 0),
            "gold_cut": dict.fromkeys(self.languages, 0),
        }
        manifest = {
            "fiat_ray": "0.1.0",
            "versions": {"python": "3.11", "torch": "2.13.0"},
            "created": "2026-01-02T03:04:05+00:00",
            "command": "fiat-ray run rivers.yaml --out runs/rivers",
            "tasks": {self.task: of_task},
            "models": {name: {"name": "embedded", "hash": "abc123"} for name in ("reasoner", *(f"tunables.{tunable}" for tunable in tunables))},
            "trials": trials,
            "not_run": not_run,
            "notes": ["One 135 M model plays both parts: this shows that everything works, not what FIAT gains."],
        }
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump({"task": self.task, "methods": ["icl", "majority", *dict.fromkeys(trial["method"] for trial in trials)], "seeds": [0]})
        )


def write(path: Path, columns: pa.Schema, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=columns), path)


def rewrite_rationales(folder: Path, text: Callable[[dict[str, Any]], str], tokens: int = 7) -> None:
    """Gives each row of a written run the rationale ``text(row)``, in its augmented set and in its store; an empty text is an engine error."""
    store = []
    for path in sorted(folder.glob("augmented/*/*/*/*.parquet")):
        rows = pq.ParquetFile(path).read().to_pylist()
        for row in rows:
            said = text(row)
            row |= {"rationale": said, "status": "ok" if said else "engine_error"}
            store.append({"key": row["key"], "status": row["status"], "text": said, "prompt_tokens": 100, "output_tokens": tokens, "tries": 1})
        write(path, pa.schema([field for field in schema.AUGMENTED if field.name not in ("split", "language")]), rows)
    write(folder / "rationales" / "part-0.parquet", schema.RATIONALES, store)


def rewrite_predictions(folder: Path, method: str, answer: Callable[[dict[str, Any]], str]) -> None:
    """Gives each test row of a method's trials in a written run the prediction ``answer(row)``, and scores them anew."""
    [(name, of_task)] = json.loads((folder / "manifest.json").read_text())["tasks"].items()
    scores = pq.ParquetFile(folder / "scores.parquet").read().to_pylist()
    for path in folder.glob("trials/*/predictions.parquet"):
        trial = json.loads((path.parent / "trial.json").read_text())
        if trial["method"] == method:
            rows = [row | {"prediction": answer(row)} for row in pq.ParquetFile(path).read().to_pylist()]
            write(path, schema.PREDICTIONS, rows)
            keys = {k: trial[k] for k in ("task", "method", "tunable", "seed", "train_size")}
            scores = [s for s in scores if s["split"] != "test" or any(s[k] != value for k, value in keys.items())]
            scores += [keys | {"split": "test"} | score for score in score_predictions(name, of_task["metric"], of_task["labels"], rows)]
    write(folder / "scores.parquet", schema.SCORES, scores)


def add_train_size(folder: Path, size: int, right: int, groups: int | None = None) -> None:
    """Adds to a written run a smaller train size: each trial once more, with ``right`` rows of each language right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    [(task, of_task)] = manifest["tasks"].items()
    scores = pq.ParquetFile(folder / "scores.parquet").read().to_pylist()
    for trial in [trial for trial in manifest["trials"] if trial["train_size"] == max(t["train_size"] for t in manifest["trials"])]:
        source, smaller = folder / "trials" / trial["name"], trial | {"name": f"{trial['name']}-{size}", "train_size": size}
        target = folder / "trials" / smaller["name"]
        shutil.copytree(source, target)
        record = json.loads((source / "trial.json").read_text()) | smaller | ({} if groups is None else {"train_groups": groups})
        (target / "trial.json").write_text(json.dumps(record))
        rows = pq.ParquetFile(source / "predictions.parquet").read().to_pylist()
        rows = [row | {"prediction": row["targets"][0] if int(row["id"].rsplit("-", 1)[1]) < right else ""} for row in rows]
        write(target / "predictions.parquet", schema.PREDICTIONS, rows)
        keys = {k: smaller[k] for k in ("task", "method", "tunable", "seed", "train_size")}
        scores += [keys | {"split": "test"} | score for score in score_predictions(task, of_task["metric"], of_task["labels"], rows)]
        manifest["trials"].append(smaller)
    write(folder / "scores.parquet", schema.SCORES, scores)
    (folder / "manifest.json").write_text(json.dumps(manifest))
