"""Scores of a run, averaged over seeds, and the differences between its methods, with intervals: the numbers of every table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from fiat_ray.metrics import FULL, NAMED_AVERAGES, shown_metrics
from fiat_ray.recipe import ABLATIONS, TITLES, UNTUNED, plain_title
from fiat_ray.report import published
from fiat_ray.report.read import Run, records
from fiat_ray.significance import OF_ALL_ROWS, Comparison, Rows, compare, compare_rows, from_zero, row_values

Frames = list[list[dict[str, Any]]]
"""A method's predictions (schema.PREDICTIONS), one list of rows a seed."""


@dataclass(frozen=True)
class Results:
    """Where a method or tunable plays no part its name is ``""``. All values are 0–100, means over the seeds that have one."""

    run: Run
    train_size: int | None = None
    """Rows that the trials were trained on; None: the largest size of each task."""

    @cached_property
    def _scores(self) -> dict[tuple[str, ...], dict[int | None, float]]:
        """(split, task, method, tunable, language, metric) → seed → value, of current trials of one train size."""
        current = {(t["task"], t["method"], t["tunable"], t["seed"], t["train_size"]) for t in self.trials()}
        result: dict[tuple[str, ...], dict[int | None, float]] = {}
        for score in records(self.run.scores):
            task, method, value = score["task"], score["method"], score["value"]
            untuned = method in UNTUNED
            tunable, seed = ("", None) if untuned else (score["tunable"], int(score["seed"]))
            if untuned and task in self.run.tasks or (task, method, tunable, seed, score["train_size"]) in current:
                result.setdefault((score["split"], task, method, tunable, score["language"], score["metric"]), {})[seed] = value
        return result

    def value(self, task: str, method: str, tunable: str, metric: str, language: str = "mean", split: str = "test") -> float | None:
        """None where there is no score, or none that is defined."""
        values = self._scores.get((split, task, method, tunable, language, metric), {}).values()
        known = [value for value in values if value == value]  # NaN: not defined
        return fmean(known) if known else None

    def headline(self, task: str, method: str, tunable: str) -> float | None:
        """The task's own metric under its first average. None also where a method has scores, but not this one: ICL has no AUC-PR."""
        return self.value(task, method, tunable, self.metrics(task)[0], self.averages(task)[0])

    def seeds(self, task: str, method: str, tunable: str) -> int:
        """Seeds behind a method's scores; 0 for methods that tune nothing."""
        metric = self.metrics(task)[0]
        return sum(seed is not None for seed in self._scores.get(("test", task, method, tunable, "mean", metric), {}))

    def has(self, task: str, method: str, tunable: str) -> bool:
        return any(self.value(task, method, tunable, metric) is not None for metric in self.metrics(task))

    def trials(self, task: str | None = None, method: str | None = None, tunable: str | None = None) -> list[dict[str, Any]]:
        """Current trials of one train size."""
        full: dict[str, int] = {}
        for trial in self.run.trials:
            full[trial["task"]] = self.train_size or max(trial["train_size"], full.get(trial["task"], 0))
        wanted = {"task": task, "method": method, "tunable": tunable}
        of_full = [trial for trial in self.run.trials if trial["train_size"] == full[trial["task"]]]
        return [trial for trial in of_full if all(value in (None, trial[name]) for name, value in wanted.items())]

    def metrics(self, task: str) -> tuple[str, str]:
        """The task's own, and the one beside it."""
        of = self.run.manifest["tasks"][task]
        return shown_metrics(of["metric"], of["labels"])

    def row_metric(self, task: str) -> str:
        """The task's metric, or where that is of all rows at once, accuracy: what a single row has a score of."""
        metric = self.metrics(task)[0]
        return "accuracy" if metric in OF_ALL_ROWS else metric

    def languages(self, task: str) -> list[str]:
        """Those with test rows: a task may be tuned on others."""
        of = self.run.manifest["tasks"][task]
        return [language for language in of["languages"] if language in of["rows"]["test"]]

    def averages(self, task: str) -> list[str]:
        """Names of the task's averages, the headline first: ``mean``, or for cross-lingual QA, Full, ``mean_22``.

        ``mean`` is left out where it is ``mean_27``.
        """
        found = {language for _, name, _, _, language, _ in self._scores if name == task}
        named: list[str] = [name for name in ("mean_22", "mean_27", "mean_21") if name in found and self.averaged(task, name)]
        return named if named and set(self.languages(task)) == set(FULL) else [*named, "mean"]

    def averaged(self, task: str, average: str) -> list[str]:
        """The run's languages in an average."""
        return [language for language in self.languages(task) if language in NAMED_AVERAGES.get(average, self.languages(task))]

    def undefined(self, task: str, metric: str) -> list[str]:
        """Languages in which no method has a score where others have one: AUC-PR of those without positive test rows."""
        scored = [(method, tunable) for method in self.methods(task) for tunable in self.places(task, method)]
        known = {x for x in self.languages(task) for which in scored if self.value(task, *which, metric, x) is not None}
        return [language for language in self.languages(task) if language not in known] if known else []

    def behind(self, task: str, metric: str, average: str) -> list[str]:
        """The languages behind a metric's average: those in it that are not ``undefined``."""
        undefined = self.undefined(task, metric)
        return [language for language in self.averaged(task, average) if language not in undefined]

    def tunables(self, task: str) -> list[str]:
        entries = [*self.run.manifest["trials"], *self.run.manifest["not_run"]]
        named = [entry["tunable"] for entry in entries if entry["task"] == task and entry["tunable"]]
        return list(dict.fromkeys([*named, *self.run.config.get("tunables", ())]))

    @property
    def settings(self) -> dict[str, str]:
        """The paper's settings that this run is of, each with its task."""
        found = {published.setting_of(task, self.languages(task)): task for task in self.run.tasks}
        return {setting: task for setting, task in found.items() if setting}

    def shows(self, task: str, method: str) -> bool:
        """Whether a method has its rows: of a paper's task each, with or without scores; of another those that were asked for or have scores."""
        return task in published.ROWS or method in self._asked(task) or any(self.has(task, method, tunable) for tunable in self.places(task, method))

    def _asked(self, task: str) -> set[str]:
        entries = [entry["method"] for entry in (*self.run.manifest["trials"], *self.run.manifest["not_run"]) if entry["task"] == task]
        return {*self.run.config.get("methods", ()), *entries}

    def title(self, method: str) -> str:
        """In the paper's words where its tasks are run; else what is done, not what is lacking."""
        return TITLES.get(method, method) if self.settings else plain_title(method)

    def step_title(self, method: str) -> str:
        """``title`` in the table of ablations, which is the paper's where its whole ladder is run."""
        is_ladder = all(set(ABLATIONS) <= self._asked(task) for task in self.run.tasks)
        return TITLES.get(method, method) if is_ladder else self.title(method)

    def methods(self, task: str) -> list[str]:
        """Methods with scores: those that tune nothing, the paper's ablations, then others as the config orders them."""
        named = dict.fromkeys((*UNTUNED, *ABLATIONS, *(trial["method"] for trial in self.trials(task))))
        return [method for method in named if any(self.has(task, method, tunable) for tunable in self.places(task, method))]

    def places(self, task: str, method: str) -> list[str]:
        """The tunables of a method; ``[""]`` for one that tunes nothing."""
        return [""] if method in UNTUNED else self.tunables(task)

    def best(self, task: str, methods: Iterable[tuple[str, str]], metric: str, split: str) -> tuple[str, str] | None:
        """Of the (method, tunable) pairs with a test score that with the highest one on ``split``.

        None where there is none, or where one of them has no score on ``split``: a choice among the others would not be fair.
        """
        average = self.averages(task)[0]
        there = [pair for pair in methods if self.value(task, *pair, metric, average) is not None]
        scored = {pair: self.value(task, *pair, metric, average, split) for pair in there}
        known = {pair: value for pair, value in scored.items() if value is not None}
        return max(known, key=known.__getitem__, default=None) if len(known) == len(scored) else None

    def plain_tunings(self, task: str, tunable: str) -> list[tuple[str, str]]:
        """(method, tunable) of what has scores and was tuned without rationales."""

        def is_plain(method: str) -> bool:
            trials = [trial for trial in self.trials(task, method, tunable) if trial["tuned"]]
            return self.has(task, method, tunable) and all((trial.get("recipe") or {}).get("cot") == "none" for trial in trials)

        return [(method, tunable) for method in self.methods(task) if method not in UNTUNED and is_plain(method)]

    def best_tuning(self, task: str, tunable: str) -> tuple[tuple[str, str] | None, str]:
        """(The best of ``plain_tunings`` on a split, this split): validation, where all have a score on it, else test.

        The best on test of many equal ones would seem to beat FIAT too often.
        """
        metric, tuned = self.metrics(task)[0], self.plain_tunings(task, tunable)
        on_validation = self.best(task, tuned, metric, "validation")
        return (on_validation, "validation") if on_validation else (self.best(task, tuned, metric, "test"), "test")

    def predictions(self, task: str, method: str, tunable: str) -> Frames:
        """Test predictions, one list a seed; those that are there."""
        if method in UNTUNED:
            found = [self.run.untuned_predictions(task, method)]
        else:
            found = [self.run.predictions(trial["name"]) for trial in self.trials(task, method, tunable)]
        return [rows for rows in found if rows]

    def through_training(self, task: str, a: tuple[str, str], b: tuple[str, str], metric: str, *, kept: bool) -> Comparison | None:
        """(method, tunable) a less b on validation rows, at the step that each trial kept, or at step 0, over all languages.

        None where those predictions are not there.
        """
        return self._compare_predictions(task, self._validated(task, *a, kept), self._validated(task, *b, kept), metric)

    def _validated(self, task: str, method: str, tunable: str, kept: bool) -> Frames:
        """Predictions on validation rows, one list a seed."""
        trials = [trial for trial in self.trials(task, method, tunable) if trial["tuned"]]
        found = [[row for row in self.run.validated(trial["name"]) if row["step"] == (trial["step"] if kept else 0)] for trial in trials]
        return [rows for rows in found if rows]

    def row_values(self, task: str, method: str, tunable: str, metric: str = "") -> Rows | None:
        """Each test row's own score, a line a seed; None where there are no predictions.

        ``metric``: none of ``OF_ALL_ROWS``; default: see ``row_metric``.
        """
        key = (task, method, tunable, metric or self.row_metric(task))
        if key not in self._rows:
            frames = self.predictions(task, method, tunable)
            self._rows[key] = row_values(frames, key[-1]) if frames else None
        return self._rows[key]

    def difference(self, task: str, a: tuple[str, str], b: tuple[str, str], metric: str, average: str = "") -> Comparison | None:
        """(method, tunable) a less b, over an average of the task, its headline by default.

        None where a method has no such scores.
        """
        average = average or self.averages(task)[0]
        if any(self.value(task, *pair, metric, average) is None for pair in (a, b)):
            return None
        key = (task, a, b, metric, average)
        if key not in self._compared:
            self._compared[key] = self._compare(task, a, b, metric, self.averaged(task, average))
        return self._compared[key]

    def _compare(self, task: str, a: tuple[str, str], b: tuple[str, str], metric: str, languages: list[str]) -> Comparison | None:
        if metric in OF_ALL_ROWS:
            return self._compare_predictions(task, self.predictions(task, *a), self.predictions(task, *b), metric, languages)
        first, second = (self.row_values(task, *pair, metric) for pair in (a, b))
        return compare_rows(first.only(languages), second.only(languages)) if first and second else None

    def _compare_predictions(self, task: str, a: Frames, b: Frames, metric: str, languages: list[str] | None = None) -> Comparison | None:
        return compare(a, b, metric, positive=self._positive(task), languages=languages) if a and b else None

    def _positive(self, task: str) -> str | None:
        return next(reversed(self.run.manifest["tasks"][task]["labels"]), None)

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str, str], Rows | None]:
        """Scores of rows computed so far: a method stands in several comparisons."""
        return {}

    @cached_property
    def _compared(self) -> dict[tuple[Any, ...], Comparison | None]:
        """Differences computed so far: several tables show the same ones."""
        return {}

    def by_language(self, task: str, a: tuple[str, str], b: tuple[str, str], metric: str) -> dict[str, Comparison]:
        """(method, tunable) a less b on each of the task's languages; empty where ``difference`` is None."""
        found = self.difference(task, a, b, metric, "mean")
        return found.by_language if found else {}

    def differences(self, task: str, a: Frames, b: Frames, metric: str) -> dict[str, Comparison]:
        """The headline average, and each language → the score of predictions a less that of b, about the same rows, which may be some."""
        average = self.averages(task)[0]
        averaged = self.averaged(task, average)
        found = compare(a, b, metric, positive=self._positive(task))
        if set(found.by_language) <= set(averaged):
            return {average: found, **found.by_language}
        if not set(found.by_language) & set(averaged):
            return found.by_language
        return {average: compare(a, b, metric, positive=self._positive(task), languages=averaged), **found.by_language}

    def interval(self, task: str, method: str, tunable: str) -> Comparison | None:
        """The headline score with its interval."""
        metric, average = self.metrics(task)[0], self.averages(task)[0]
        frames = self.predictions(task, method, tunable)
        if self.headline(task, method, tunable) is None or not frames:
            return None
        return from_zero(frames, metric, positive=self._positive(task), languages=self.averaged(task, average))

    def why_missing(self, task: str, method: str, tunable: str) -> tuple[str, str]:
        """(reason, config key that adds it) of a method without scores."""
        for entry in self.run.manifest["not_run"]:
            if (entry["task"], entry["method"]) == (task, method) and entry["tunable"] in (None, "", tunable):
                return entry["reason"], entry["config_key"]
        wanted = method in self.run.config.get("methods", ()) if method in UNTUNED else self.trials(task, method, tunable)
        return ("not finished; the same command goes on", "") if wanted else ("not among this config's methods", "methods")

    def why_no_setting(self, setting: str) -> tuple[str, str]:
        """(reason, config key that adds it) of one of the paper's settings that this run is not of."""
        task = "xor_attriqa" if setting == "xor_attriqa" else "xtreme_up_qa"
        if task not in self.run.tasks:
            return f"{task} is not among this config's tasks", "task"
        other = next(title for name, title in published.SETTINGS.items() if self.settings.get(name) == task)
        return f"this run's languages are those of {other}", "languages" if self.run.config.get("languages") else "focus"

    def why_no_size(self, size: str) -> tuple[str, str]:
        """(reason, config key that adds it) of one of the paper's sizes that no tunable of this run is called after."""
        return f"no tunable of this config is called {size}", f"tunables.{size}"
