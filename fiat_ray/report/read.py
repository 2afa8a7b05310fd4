"""A run directory → what the report reads of it. The layout is DESIGN's; column names and types are those of ``fiat_ray.schema``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fiat_ray import schema
from fiat_ray.artifact import read_json, read_rows
from fiat_ray.errors import UserError
from fiat_ray.reason.settings import ReasonerConfig
from fiat_ray.reason.store import Store
from fiat_ray.rows import read_rows as read_file
from fiat_ray.run_folder import RunFolder, no_run
from fiat_ray.typed import typed
from fiat_ray.yaml_file import read_yaml


@dataclass(frozen=True)
class Run:
    """A campaign's results on disk. Only the trials that the manifest names are current; other folders under ``trials/`` are older ones."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        return list(self.manifest["tasks"])

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """The manifest's trials, each with its ``trial.json`` where it is tuned, as ``tuned`` says."""
        records = [read_json(self.path / "trials" / trial["name"] / "trial.json", **schema.TRIAL) for trial in self.manifest["trials"]]
        return [trial | (record or {}) | {"tuned": record is not None} for trial, record in zip(self.manifest["trials"], records, strict=True)]

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """Name and hash of each model: ``reasoner`` where one is asked, then tunables (``xs``) and their pretrained twins (``xs.pretrained``)."""
        return {key.removeprefix("tunables."): model for key, model in self.manifest["models"].items()}

    @cached_property
    def scores(self) -> pd.DataFrame:
        """``scores.parquet``: schema.SCORES; empty before the first evaluation."""
        return _frame(self.path / "scores.parquet", schema.SCORES)

    def history(self, trial: str) -> pd.DataFrame:
        """Validation during a trial's training, every learning rate that was tried: schema.HISTORY."""
        return _frame(self.path / "trials" / trial / "history.parquet", schema.HISTORY)

    def validated(self, trial: str) -> list[dict[str, Any]]:
        """Predictions on validation rows during a trial's training: schema.VALIDATED; empty where an older version made the run."""
        return _rows(self.path / "trials" / trial / "validation.parquet")

    def predictions(self, trial: str) -> list[dict[str, Any]]:
        """Test predictions of a trial: schema.PREDICTIONS; empty before it is evaluated."""
        return _rows(self.path / "trials" / trial / "predictions.parquet")

    def untuned_predictions(self, task: str, method: str) -> list[dict[str, Any]]:
        """Test predictions of a method that tunes nothing: schema.PREDICTIONS."""
        return _rows(RunFolder(self.path).untuned(task, method))

    def rows(self, task: str) -> list[dict[str, Any]]:
        """All rows of a task as rendered: schema.ROWS."""
        return _rows(self.path / "task" / task / "rows.parquet")

    def definition(self, task: str) -> dict[str, Any]:
        """A task's ``task.yaml`` as used; empty where an older version made the run."""
        path = self.path / "task" / task / "task.yaml"
        return read_yaml(path) if path.is_file() else {}

    def raw_rows(self, task: str, split: str) -> Iterator[dict[str, Any]]:
        """A split's rows as a task folder holds them, passages whole; none where an older version made the run."""
        path = self.path / "task" / task / f"{split}.jsonl"
        return (raw for _, raw in read_file(path)) if path.is_file() else iter(())

    def augmented(self, task: str) -> list[dict[str, Any]]:
        """The sealed augmented set, all splits: schema.AUGMENTED; empty before it is sealed. Read once: not to be changed."""
        return self._augmented[task]

    @cached_property
    def _augmented(self) -> dict[str, list[dict[str, Any]]]:
        return {task: self._read_augmented(task) for task in self.tasks}

    def _read_augmented(self, task: str) -> list[dict[str, Any]]:
        folder = self.path / "augmented" / f"task={task}"
        result = []
        for path in sorted(folder.glob("split=*/language=*/*.parquet")):
            split, language = (unquote(part.partition("=")[2]) for part in path.relative_to(folder).parts[:2])
            result += [row | {"split": split, "language": language} for row in _rows(path)]
        return result

    @cached_property
    def rationales(self) -> dict[str, dict[str, Any]]:
        """Key → row of the rationale store (schema.RATIONALES), of those that the augmented sets hold."""
        return Store(self.path / "rationales").read(row["key"] for task in self.tasks for row in self.augmented(task))

    def evaluation(self, trial: str) -> dict[str, Any] | None:
        """What a trial's test predictions took: ``predict.Usage``, and ``gpus``."""
        found: dict[str, Any] | None = read_json(self.path / "trials" / trial / "evaluation.json")
        return found

    @property
    def reasoner(self) -> ReasonerConfig:
        """Of the config's section what says who answers, and at what price."""
        return _reasoner(self.config)

    @property
    def plan(self) -> dict[str, Any] | None:
        """What ``fiat-ray plan`` said before the first part ran; None where an older version made the run."""
        found: dict[str, Any] | None = read_json(self.path / "plan.json", tasks=dict, trials=list, time=dict)
        return found

    @property
    def gpu_seconds(self) -> float | None:
        """Of all engines and workers, over all sittings (see ``schedule.spending``); None where nothing ran."""
        return (read_json(self.path / "spent.json", gpu_seconds=(int, float)) or {}).get("gpu_seconds")

    def reasoning(self, task: str) -> dict[str, float] | None:
        """What a task's rationales took in this run: ``rows``, ``seconds``, ``gpu_seconds``. None where all were stored before, or not measured."""
        return (read_json(self.path / "reasoning.json") or {}).get(task)


def read(run_dir: str | Path) -> Run:
    """Opens a run directory. ``UserError`` where it is none (no ``manifest.json``), or its config can't be read."""
    path = Path(run_dir).resolve()
    manifest = read_json(path / "manifest.json", tasks=dict, trials=list, models=dict)
    if manifest is None:
        raise no_run(run_dir)
    return Run(path, _config(path / "config.yaml"), manifest)


def _config(path: Path) -> dict[str, Any]:
    """Of the config only the sections that are read here are checked: it may be of another version. Empty where there is none."""
    values = read_yaml(path) if path.is_file() else {}
    for key, kind in {"reasoner": dict, "where": dict, "tunables": dict, "methods": list}.items():
        if not isinstance(values.get(key, kind()), kind):
            raise UserError(f"{path}: {key}: must be a {'list' if kind is list else 'mapping'}, not {values[key]!r}")
    try:
        _reasoner(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return values


def _reasoner(config: Mapping[str, Any]) -> ReasonerConfig:
    section = config.get("reasoner", {})
    found: ReasonerConfig = typed(ReasonerConfig, {name: section[name] for name in ("kind", "price_in", "price_out") if name in section}, "reasoner")
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path) if path.is_file() else []


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as dicts by column name."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))


def _frame(path: Path, columns: pa.Schema) -> pd.DataFrame:
    try:
        table = pq.ParquetFile(path).read() if path.is_file() else columns.empty_table()
    except pa.ArrowInvalid:
        raise UserError(f"{path}: damaged; delete it and run again") from None
    return cast(pd.DataFrame, table.to_pandas())
