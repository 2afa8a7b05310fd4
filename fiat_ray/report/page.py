"""The report: one HTML file without anything from outside, and beside it every table as CSV and every figure as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import yaml

from fiat_ray.artifact import write_text
from fiat_ray.metrics import FULL
from fiat_ray.report import decision, facts, figures, scaling, tables, worth
from fiat_ray.report.examples import examples
from fiat_ray.report.read import read, records
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section
from fiat_ray.report.tables import AVERAGE_TITLES, METRIC_TITLES, PAPER, Table, missing, signed, title_of

HERE = Path(__file__).parent
PAGE = Template((HERE / "page.html").read_text("utf-8"))
ALWAYS_HIDDEN = {"method", "compared_with", "train_size"}
WORDS = {"row": "method", "what": "", "all": "all", "steps": "of steps", "config_key": "config key that adds it", "count": "number"}
WORDS |= {"fiat": "FIAT", "no_cot": "w/o rationales", "same_answer": "same answer %: FIAT", "same_answer_no_cot": "same answer %: w/o rationales"}
WORDS |= {"readable": "readable %", "latin": "Latin letters %", "answered": "has an answer %", "right": "answer right %"}


def build(run_dir: str | Path) -> Path:
    """Writes ``report/`` of a run directory anew, each file whole or not at all, and returns the path of ``index.html``."""
    results = Results(read(run_dir))
    folder = results.run.path / "report"
    table2, table3 = tables.table2_overall(results), tables.table3_ablations(results)
    per_language = tables.per_language_tables(results)
    sizes = [facts.sizes(results, task) for task in results.run.tasks]
    curves, rest = facts.curves(results), [facts.trials(results), facts.rationales(results), facts.costs(results), facts.not_run(results)]
    drawn = figures.validation_figures(curves.frame)
    beyond = {"worth": worth.section(results), "scaling": scaling.section(results), "decision": decision.section(results)}
    files = {f"{table.name}.csv": table.frame.to_csv(index=False) for table in (table2, table3, *per_language, *sizes, curves, *rest)}
    files |= {f"{table.name}.csv": table.frame.to_csv(index=False) for section in beyond.values() for table in section.tables}
    files |= {f"{name}.svg": figures.standalone(svg) for name, svg, _ in (*drawn, *(f for section in beyond.values() for f in section.figures))}
    for name, text in files.items():
        write_text(folder / name, text)
    # An edited config shows only its own results: files of tasks and tables that it no longer has would contradict the page.
    for stale in [path for path in folder.iterdir() if path.suffix in (".csv", ".svg") and path.name not in files]:
        stale.unlink()
    trials, rationales, costs, not_run = rest
    page = PAGE.substitute(
        title=escape(results.run.path.name),
        style=figures.STYLE + (HERE / "style.css").read_text("utf-8"),
        script=(HERE / "page.js").read_text("utf-8"),
        answers="".join(f"<p>{escape(answer)}</p>" for answer in tables.answers(results)) or "<p>No trial of this run has a score yet.</p>",
        notes=_list(results.run.manifest["notes"], "caveats"),
        asked=_asked(results) + "".join(_table(table) for table in sizes),
        table2=_by_task(table2, results),
        table3=_by_task(table3, results),
        languages="".join(map(_per_language, per_language)),
        curves="".join(f"<figure>{svg}<figcaption>{key}</figcaption></figure>" for _, svg, key in drawn) or "<p>No trial has a history yet.</p>",
        examples=_embedded(examples(results)),
        names=_embedded({code: language_name(code) for task in results.run.tasks for code in results.languages(task)}),
        trials=_table(trials),
        rationales=_table(rationales),
        not_run=_table(not_run),
        costs=_table(costs),
        paper=_table(tables.paper_overall(), linked=False),
        reproduce=_reproduce(results),
        **{name: _section(section) for name, section in beyond.items()},
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def language_name(code: str) -> str:
    """English name of a language code where CLDR has one, else the code."""
    from babel import Locale

    return str(Locale("en").languages.get(code, code))


def _asked(results: Results) -> str:
    manifest, run = results.run.manifest, results.run
    pairs = [
        (f"Task {task}", f"{METRIC_TITLES[of['metric']]} on {sum(of['rows'].get('test', {}).values())} test rows in {len(of['languages'])} languages")
        for task, of in manifest["tasks"].items()
    ]
    pairs += [("Reasoner" if name == "reasoner" else f"Tunable {name}", _model(model)) for name, model in run.models.items()]
    pairs.append(("Trials", f"{sum(trial['tuned'] for trial in run.trials)} of {len(run.trials)} tuned"))
    return _pairs(pairs)


def _model(model: dict[str, Any]) -> str:
    return f"{model['name']}, content hash {str(model['hash'])[:12]}"


def _reproduce(results: Results) -> str:
    manifest = results.run.manifest
    pairs = [("Made", manifest["created"]), ("fiat_ray", manifest["fiat_ray"]), *manifest["versions"].items()]
    pairs += [(f"Model {name}", f"{model['name']} · {model['hash']}") for name, model in results.run.models.items()]
    config = yaml.safe_dump(results.run.config, sort_keys=False, allow_unicode=True)
    return f"{_code(manifest['command'])}<p>Its config, with all defaults filled in:</p>{_code(config)}{_pairs(pairs)}"


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def _pairs(pairs: Iterable[tuple[str, Any]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs) + "</dl>"


def _list(items: Sequence[str], css: str) -> str:
    return f'<ul class="{css}">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>' if items else ""


def _embedded(value: Any) -> str:
    """JSON for a script element: no character in it can end the element or start another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _by_task(table: Table, results: Results) -> str:
    """One HTML table a task: their columns differ."""
    notes = _list(results.run.manifest["notes"], "caveats")
    parts = []
    for task in results.run.tasks:
        of_task = [note for note in table.footnotes if note.startswith(f"{task}:") or not any(note.startswith(f"{t}:") for t in results.run.tasks)]
        parts.append(_table(Table(table.name, f"{table.title} · {task}", table.frame[table.frame["task"] == task].drop(columns="task"), of_task)))
    return "".join(parts) + notes


def _per_language(table: Table) -> str:
    """This run's rows, and below them the paper's as a table of their own."""
    ours, of_paper = (table.frame[(table.frame["source"] == PAPER) == is_paper].drop(columns="source") for is_paper in (False, True))
    if of_paper.empty:
        return _table(Table(table.name, table.title, ours, table.footnotes))
    return _table(Table(table.name, table.title, ours), linked=False) + _table(
        Table(table.name, f"{table.title} · {PAPER}", of_paper, table.footnotes)
    )


def _section(section: Section) -> str:
    """Sentences, figures, and tables: of those with languages the averages, and below them the languages, folded away."""
    figures = "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for _, svg, caption in section.figures)
    parts = [*(f"<p>{escape(sentence)}</p>" for sentence in section.sentences), f'<div class="figures">{figures}</div>']
    for table in section.tables:
        alike = [name for name in ("task", "tunable", "metric") if name in table.frame and table.frame[name].nunique() == 1]
        frame = table.frame.drop(columns=[*alike, "reason", "config_key"])
        frame["note"] = [missing(row["reason"], row["config_key"]) if row["reason"] else row["note"] for row in records(table.frame)]
        single = ~frame["language"].isin(["", *AVERAGE_TITLES]) if "language" in frame else pd.Series(False, frame.index)
        parts.append(_table(Table(table.name, table.title, frame[~single], table.footnotes)))
        if single.any():
            what = frame["language"].map(language_name).str.cat(frame["what"], sep=" · ").str.removesuffix(" · ")
            folded = Table(table.name, f"{table.title}, by language", frame.assign(what=what).drop(columns="language")[single])
            parts.append(f"<details><summary>{escape(folded.title)}</summary>{_table(folded, linked=False)}</details>")
    return "".join(parts)


def _table(table: Table, linked: bool = True) -> str:
    """A table under its title, scrolling sideways in a region of its own, its footnotes and its CSV below."""
    frame = table.frame.dropna(axis="columns", how="all")
    parts = {f"{column}{end}" for column in frame for end in ("_low", "_high", "_p")}
    columns = [name for name in map(str, frame) if name not in parts | ALWAYS_HIDDEN and not (frame[name].astype(str) == "").all()]
    columns.sort(key=_rank)
    head = "".join(f'<th scope="col"{_number_class(frame, name)}>{_heading(name)}</th>' for name in columns)
    body = "".join(_row(row, columns) for row in records(frame))
    title = escape(table.title)
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
    caption = f'<p class="caption" aria-hidden="true">{title}</p>'
    shown = f'{caption}{region}<table aria-label="{title}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    link = "" if not linked else f'<p class="file"><a href="{escape(table.name)}.csv">{escape(table.name)}.csv</a></p>'
    return f'<div class="table">{shown}{_list(table.footnotes, "footnotes")}{link}</div>'


def _rank(name: str) -> int:
    """What a row is about first; what few rows have, and explanations, last."""
    return 0 if name in ("row", "what") else 2 if name.startswith(PAPER) else {"unparsed": 3, "length": 3, "seeds": 4, "note": 5}.get(name, 1)


def _row(row: dict[str, Any], columns: Sequence[str]) -> str:
    cells = [_cell(row, name, first=i == 0) for i, name in enumerate(columns)]
    return f'<tr class="{_kinds(row)}">{"".join(cells)}</tr>'


def _kinds(row: dict[str, Any]) -> str:
    """CSS classes of a row: what it is about."""
    kinds = {
        "gain": row.get("method") == "gain",
        "absent": str(row.get("note", "")).startswith("not run"),
        "fiat": row.get("method") == "fiat" and "row" in row,
    }
    return " ".join(name for name, holds in kinds.items() if holds)


def _cell(row: dict[str, Any], name: str, first: bool) -> str:
    value = row[name]
    tag = 'th scope="row"' if first else "td"
    if isinstance(value, str):
        text = METRIC_TITLES.get(value, value) if name in ("metric", "selection_metric") else value
        text = AVERAGE_TITLES.get(value, value) if name == "language" else text
        return f"<{tag}{' class=note' if name in ('note', 'reason') else ''}>{escape(text)}</{tag.split()[0]}>"
    if isinstance(value, bool):
        return f"<{tag}>{'yes' if value else 'no'}</{tag.split()[0]}>"
    if value is None or math.isnan(value):
        is_score = any(name == metric or name.startswith(f"{metric}_mean") for metric in ("f1", "exact_match", "accuracy", "auc_pr"))
        return f'<{tag} class="n">{"not run" if is_score and "absent" in _kinds(row) else ""}</{tag.split()[0]}>'
    change = name.endswith("_change") or "_from_" in name or row.get("method") == "gain"
    write = signed if change else partial(_number, name=name)
    shown = write(value)
    low, high, p = (row.get(f"{name}{end}", math.nan) for end in ("_low", "_high", "_p"))
    if low == low and low is not None:
        shown += ("*" if p < 0.05 else "") + f"<small>{write(low)} to {write(high)}</small>"
    return f'<{tag} class="n">{shown}</{tag.split()[0]}>'


def _number(value: float, name: str) -> str:
    if name == "learning_rate":
        return f"{value:g}"
    if name.endswith("price"):
        return f"{value:.2f}" if value >= 1 else f"{value:.3g}"
    whole = isinstance(value, int) or name in ("seeds", "count", "rows", "questions", "characters") or "tokens" in name
    return f"{value:,.0f}".replace(",", "\u202f") if whole else f"{value:.1f}"


def _number_class(frame: pd.DataFrame, name: str) -> str:
    return ' class="n"' if pd.api.types.is_numeric_dtype(frame[name]) else ""


def _heading(name: str) -> str:
    """A column's name as people read it."""
    if name.startswith(PAPER):
        return f"{escape(METRIC_TITLES[name.removeprefix(PAPER).strip()])} <small>{escape(PAPER)}</small>"
    if name.endswith("_change"):
        return f"Δ {_heading(name.removesuffix('_change'))} <small>to the row above</small>"
    if "_from_" in name:
        changed, _, method = name.partition("_from_")
        return f"Δ {escape(METRIC_TITLES[changed])} <small>from {escape(title_of(method))}</small>"
    metric = next((m for m in METRIC_TITLES if name == m or name.startswith(f"{m}_mean")), None)
    if metric:
        average = name.removeprefix(metric).lstrip("_")
        return escape(METRIC_TITLES[metric]) + (f" <small>{escape(AVERAGE_TITLES[average])}</small>" if average else "")
    if name in AVERAGE_TITLES:
        return escape(AVERAGE_TITLES[name])
    if name in WORDS:
        return WORDS[name]
    if name in FULL or language_name(name) != name:
        return f'<abbr title="{escape(language_name(name))}">{escape(name)}</abbr>'
    return escape(name.replace("per_1000_", "1,000 predictions: ").replace("tuning_", "tuning: ").replace("_", " "))
