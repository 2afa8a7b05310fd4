"""The layout of a run directory: where everything lies, and how the task as used is kept there. A run is self-contained."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from fiat_ray import artifact, augmented
from fiat_ray.augmented import Example
from fiat_ray.errors import UserError
from fiat_ray.length import Lengths
from fiat_ray.task import Exemplar, Task


class RunFolder:
    def __init__(self, path: str | Path) -> None:
        if re.match(r"\w{2,}:/", str(path)):
            raise UserError(f"{path}: a run directory lies on a file system that all nodes share; object stores are not supported yet")
        if str(path) in ("", "."):
            raise UserError("a run directory needs a name; the working folder is none")
        try:
            self.path = Path(path).resolve()
            existing = next(p for p in (self.path, *self.path.parents) if p.exists())
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{str(path)[:200]!r}: a run directory can't be made there ({error})") from None
        if not existing.is_dir():
            raise UserError(f"{existing}: is a file; a run directory can't be made there")

    def sweep(self) -> None:
        """Remove what a killed run left half-written. Only under the run's lock: nobody else writes here."""
        for path in [*self.path.glob(".ray-train-*"), *self.path.glob("trials/*/.*"), *self.path.glob("**/.*.tmp")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

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
        """Rows of all splits, by id, so that all recipes see them in one order: from the augmented set, or without rationales from the task alone."""
        found = augmented.read(self.augmented(task)) if with_rationales else augmented.read_rows_of_task(self.task(task) / "rows.parquet")
        return sorted(found, key=lambda example: example.id)
