"""Tables by language: Tables 6–8, and FIAT's difference from its baselines on each language."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fiat_ray.recipe import ABLATIONS, UNTUNED
from fiat_ray.report import published
from fiat_ray.report.cells import language_columns
from fiat_ray.report.columns import NO_INTERVAL, interval
from fiat_ray.report.results import Results
from fiat_ray.report.tables import PAPER, Table, absent, not_held, scope_notes, title_of
from fiat_ray.significance import benjamini_hochberg


def per_language(results: Results, task: str) -> Table:
    """Table 6, 7 or 8: every method on every language, the paper's rows below."""
    languages, averages = results.languages(task), results.averages(task)
    columns = language_columns(languages)
    scored = columns | {average: average for average in averages}
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys((*UNTUNED, *ABLATIONS, *results.methods(task))):
        for tunable in results.places(task, method) if results.shows(task, method) else ():
            row = {"tunable": tunable, "method": method, "row": results.title(method), "source": "this run"}
            if not results.has(task, method, tunable):
                rows.append(row | dict(zip(("reason", "config_key"), results.why_missing(task, method, tunable), strict=True)))
                continue
            for metric in results.metrics(task):
                values = {column: results.value(task, method, tunable, metric, name) for name, column in scored.items()}
                rows.append(row | {"metric": metric} | values)
    setting = published.setting_of(task, languages)
    name = _stem(setting) if setting else "per_language"
    for metric, table in published.per_language(setting).items() if setting else ():
        for (size, method), of in table.items():
            printed = published.overall(setting or "")[metric][size, method]
            row = {"tunable": size, "method": method, "row": title_of(method), "metric": metric, "source": PAPER}
            rows.append(row | {column: of.get(language) for language, column in columns.items()} | {averages[0]: printed})
    if setting:
        rows += [{"source": "this run", "row": title, **row} for title, row in not_held(results, [setting])]
    ends = {"note": "", "reason": "", "config_key": ""}
    names = ["tunable", "method", "row", "metric", "source", *scored.values(), *ends]
    frame = pd.DataFrame([ends | {"metric": ""} | row for row in rows], columns=names)
    number = f" · Table {published.TABLE_OF_LANGUAGES[setting]}" if setting else ""
    return Table(name, f"Per language{number} · {task}", frame, _notes(results, task, setting))


def per_language_tables(results: Results) -> list[Table]:
    """One a task; names of further tasks that are not the paper's get the task's name added."""
    tables = [per_language(results, task) for task in results.run.tasks]
    taken: set[str] = set()
    for i, (table, task) in enumerate(zip(tables, results.run.tasks, strict=True)):
        if table.name in taken:
            tables[i] = Table(f"{table.name}_{task}", table.title, table.frame, table.footnotes)
        taken.add(table.name)
    return tables


def absent_tables(results: Results) -> list[Table]:
    """Tables 6, 7 and 8 where the run is of another of the paper's settings."""
    lacking = {setting: title for setting, title in published.SETTINGS.items() if results.settings and setting not in results.settings}
    return [absent(_stem(setting), f"{_number(setting)} · {title}", results.why_no_setting(setting)) for setting, title in lacking.items()]


def differences(results: Results) -> Table:
    """FIAT less the same without CoT, and less fine-tuning, on each language."""
    rows: list[dict[str, Any]] = []
    for task in results.run.tasks:
        for tunable in results.tunables(task):
            fine_tune = "no_instruction_tuned" if results.has(task, "no_instruction_tuned", tunable) else "no_peft"
            of_tunable = {"task": task, "tunable": tunable}
            cells: dict[str, dict[str, Any]] = {language: {} for language in results.languages(task)}
            for other in (method for method in ("no_cot", fine_tune) if results.shows(task, method)):
                without = next((method for method in ("fiat", other) if not results.has(task, method, tunable)), None)
                if without:
                    reason, key = results.why_missing(task, without, tunable)
                    rows.append(of_tunable | {"language": f"FIAT − {results.title(other)}", "reason": f"{without}: {reason}", "config_key": key})
                    continue
                for language, tested in _tested(results, task, tunable, other).items():
                    cells[language] |= tested
            rows += [of_tunable | {"language": language} | tested for language, tested in cells.items() if tested]
    rows += [{"language": title, **row} for title, row in not_held(results)]
    ends = {"note": "", "reason": "", "config_key": ""}
    frame = pd.DataFrame([ends | row for row in rows], columns=None if rows else list(ends)).drop(columns="method", errors="ignore")
    frame = frame[[name for name in frame if name not in ends] + list(ends)]
    notes = ["Intervals are 95 %, from resampled groups of rows. " + NO_INTERVAL]
    notes.append("* Holds at 5 % after Benjamini and Hochberg's correction over the languages.")
    return Table("language_differences", "FIAT's difference on each language", frame, notes)


def _tested(results: Results, task: str, tunable: str, other: str) -> dict[str, dict[str, float | None]]:
    """Language → its columns: differences in each metric, p adjusted over languages."""
    cells: dict[str, dict[str, float | None]] = {}
    for metric in results.metrics(task):
        name = f"{metric}_from_{other}"
        found = results.by_language(task, ("fiat", tunable), (other, tunable), metric)
        known = {language: compared.p for language, compared in found.items() if compared.p is not None}
        adjusted = dict(zip(known, benjamini_hochberg(list(known.values())), strict=True))
        for language, compared in found.items():
            values = {name: compared.difference} | interval(name, compared) | {f"{name}_p": adjusted.get(language)}
            cells.setdefault(language, {}).update(values)
    return cells


def _stem(setting: str) -> str:
    return f"table{published.TABLE_OF_LANGUAGES[setting]}_per_language"


def _number(setting: str) -> str:
    return f"Table {published.TABLE_OF_LANGUAGES[setting]}"


def _notes(results: Results, task: str, setting: str | None) -> list[str]:
    notes = scope_notes(results, task)
    if setting:
        of_paper = next(iter(next(iter(published.per_language(setting).values())).values()))
        lacking = [language for language in of_paper if language not in results.languages(task)]
        notes += [f"This run lacks {len(lacking)} of the paper's {len(of_paper)} languages: {' '.join(lacking)}."] if lacking else []
        notes += [f"In the paper: {text}." for text in published.disagreements() if text.startswith(f"{_number(setting)} ")]
    return notes
