"""The layout of a run directory: where everything lies, and how the task as used is kept there. A run is self-contained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fiat_ray import artifact, augmented
from fiat_ray.augmented import Example
from fiat_ray.errors import UserError
from fiat_ray.length import Lengths
from fiat_ray.task import Exemplar, Task


class RunFolder:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def scores(self) -> Path:
        return self.path / "scores.parquet"

    @property
    def rationales(self) -> Path:
        return self.path / "rationales"

    def augmented(self, task: str) -> Path:
        return self.path / "augmented" / f"task={task}"

    def trial(self, name: str) -> Path:
        return self.path / "trials" / name

    def untuned(self, task: str, method: str) -> Path:
        """Predictions of ``icl`` and ``majority``."""
        return self.path / "untuned" / f"{task}-{method}.parquet"

    def task(self, name: str) -> Path:
        return self.path / "task" / name

    def save_task(self, task: Task, lengths: Lengths) -> None:
        """Prompts, exemplars, labels and rows as used."""
        folder = self.task(task.name)
        artifact.write_text(folder / "i_beta.txt", task.i_beta + "\n")
        artifact.write_text(folder / "i_tau.txt", task.i_tau + "\n")
        lines = [
            json.dumps({"language": e.language, **e.fields, "rationale": e.rationale, "target": e.target}, ensure_ascii=False) for e in task.exemplars
        ]
        artifact.write_text(folder / "exemplars.jsonl", "".join(f"{line}\n" for line in lines))
        artifact.write_json(folder / "labels.json", list(task.labels))
        definition = {key: getattr(task, key) for key in ("name", "input", "cut", "metric", "target", "language", "built_in")}
        artifact.write_json(folder / "task.json", {**definition, "exemplars_shown": lengths.exemplars})
        augmented.write_rows_of_task(folder / "rows.parquet", task.rows, lengths)

    def load_task(self, name: str) -> Task:
        """The task as this run used it, without rows (see ``examples``)."""
        folder = self.task(name)
        definition = artifact.read_json(folder / "task.json")
        if definition is None:
            raise UserError(f"{folder}: no task '{name}' in this run")
        definition.pop("exemplars_shown")
        task = Task(
            **definition,
            labels=tuple(artifact.read_json(folder / "labels.json")),
            i_beta=(folder / "i_beta.txt").read_text("utf-8").removesuffix("\n"),
            i_tau=(folder / "i_tau.txt").read_text("utf-8").removesuffix("\n"),
            exemplars=(),
            rows=(),
        )
        exemplars = [json.loads(line) for line in (folder / "exemplars.jsonl").read_text("utf-8").split("\n") if line]
        known = ("language", "rationale", "target")
        return replace(
            task,
            exemplars=tuple(Exemplar(e["language"], {k: v for k, v in e.items() if k not in known}, e["rationale"], e["target"]) for e in exemplars),
        )

    def exemplars_shown(self, name: str) -> dict[str, int]:
        """Language → how many exemplars its reasoner prompts hold."""
        return dict(artifact.read_json(self.task(name) / "task.json")["exemplars_shown"])

    def examples(self, task: str, with_rationales: bool) -> list[Example]:
        """Rows of all splits: from the augmented set, or without rationales from the task alone."""
        if with_rationales:
            return augmented.read(self.augmented(task))
        return augmented.read_rows_of_task(self.task(task) / "rows.parquet")
