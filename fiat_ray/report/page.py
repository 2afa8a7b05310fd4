"""The report: one HTML file without anything from outside, and beside it every table as CSV and every figure as SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import yaml

from fiat_ray.artifact import write_text
from fiat_ray.report import controls, decision, estimates, facts, figures, per_language, scaling, tables, worth
from fiat_ray.report.answer import answers
from fiat_ray.report.cells import Cell, cell, columns, displayed, heading, is_numeric, language_name
from fiat_ray.report.example_data import ExampleData, embedded, example_data
from fiat_ray.report.paper_figures import Figure
from fiat_ray.report.paper_figures import figures as paper_figures
from fiat_ray.report.picture import picture
from fiat_ray.report.read import read, records
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section
from fiat_ray.report.tables import AVERAGE_TITLES, PAPER, Table, metric_title
from fiat_ray.text import count

HERE = Path(__file__).parent
PAPER_NOTE = (
    "<p>Made with PaLM-2, which cannot be had: shown beside this run, not comparable with it. "
    "The list below the table names where the paper’s own tables disagree with each other.</p>"
)
EMPTY = {"not_run": "Nothing that the config asks for is missing."}
"""What stands for a table without rows."""
PAGE = Template((HERE / "page.html").read_text("utf-8"))


def build(run_dir: str | Path) -> Path:
    """Writes ``report/`` of a run directory anew, each file whole or not at all, and returns the path of ``index.html``."""
    results = Results(read(run_dir))
    folder = results.run.path / "report"
    table2, table3, leave_one_out = (make(results) for make in (tables.table2_overall, tables.table3_ablations, tables.leave_one_out))
    by_language, differences = per_language.per_language_tables(results), per_language.differences(results)
    sizes = [*(facts.sizes(results, task) for task in results.run.tasks), *facts.absent_sizes(results)]
    absent = per_language.absent_tables(results)
    of_paper = [t for t in (table2, table3, leave_one_out, *sizes, *by_language, *absent, differences) if len(t.frame)]
    curves = facts.curves(results)
    rest = [make(results) for make in (facts.trials, facts.rationales, facts.costs, facts.not_run, estimates.table)]
    current = curves.frame["trial"].isin([trial["name"] for trial in results.trials()])
    validation, drawn = figures.validation_figures(curves.frame[current], results.title), paper_figures(results, curves.frame[current])
    beyond = {
        "worth": worth.section(results),
        "scaling": scaling.section(results),
        "decision": decision.section(results),
        "controls": controls.section(results),
    }
    more = [table for section in beyond.values() for table in section.tables]
    shown = example_data(results)
    files = {"examples.json": shown.table}
    files |= {f"{t.name}.csv": t.frame.to_csv(index=False) for t in (*of_paper, *(figure.table for figure in drawn), *more, curves, *rest)}
    pictures = {table.name: picture(table) for table in (*of_paper, *more)} | {figure.table.name: figure.svg for figure in drawn}
    pictures |= dict(validation) | {name: svg for section in beyond.values() for name, svg in section.figures}
    files |= {f"{name}.svg": figures.standalone(svg) for name, svg in pictures.items()}
    for name, text in files.items():
        write_text(folder / name, text)
    # An edited config shows only its own results: files of tasks and tables that it no longer has would contradict the page.
    for stale in [path for path in folder.iterdir() if path.suffix in (".csv", ".svg") and path.name not in files]:
        stale.unlink()
    sections = {
        "asked": _asked(results) + "".join(map(_table, sizes)),
        "table2": _by_task(table2, results),
        "table3": _by_task(table3, results) + _by_task(leave_one_out, results),
        "languages": "".join(map(_per_language, by_language)) + "".join(map(_table, absent)) + _by_task(differences, results),
        "figures": _optional("figures", "The paper’s figures", "".join(map(_figure, drawn))),
        "curves": "".join(f"<figure>{svg}</figure>" for _, svg in validation) or "<p>No trial has a history yet.</p>",
        **{table.name: _table(table) if len(table.frame) else f"<p>{EMPTY.get(table.name, 'None.')}</p>" for table in rest},
        **{name: _section(section) for name, section in beyond.items()},
    }
    write_text(folder / "index.html", _page(results, sections, shown))
    return folder / "index.html"


def _page(results: Results, sections: dict[str, str], shown: ExampleData) -> str:
    caveats = _list(results.run.manifest["notes"], "caveats")
    return PAGE.substitute(
        sections,
        table2=sections["table2"] + caveats,
        table3=sections["table3"] + caveats,
        title=escape(results.run.path.name),
        style=figures.STYLE + (HERE / "style.css").read_text("utf-8"),
        script="".join((HERE / name).read_text("utf-8") for name in ("sort.js", "examples.js")),
        answers="".join(f"<p>{escape(answer)}</p>" for answer in answers(results)) or "<p>No trial of this run has a score yet.</p>",
        notes=caveats,
        examples=shown.json,
        of_examples=_of_examples(results, shown),
        names=embedded({code: language_name(code) for task in results.run.tasks for code in results.languages(task)}),
        paper=_optional("paper", "The paper’s numbers", PAPER_NOTE + _table(tables.paper_overall(), linked=False)) if results.settings else "",
        to_figures=_link("figures", "Figures") if sections["figures"] else "",
        to_paper=_link("paper", "The paper") if results.settings else "",
        reproduce=_reproduce(results),
    )


def _optional(name: str, title: str, content: str) -> str:
    """A section that a report without the paper's tasks may lack."""
    heading = f'<h2 id="h-{name}">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="h-{name}">{heading}{content}</section>' if content else ""


def _link(name: str, title: str) -> str:
    return f'<li><a href="#{name}">{title}</a></li>'


def _asked(results: Results) -> str:
    manifest, run = results.run.manifest, results.run
    pairs = []
    for task, of in manifest["tasks"].items():
        rows = count(sum(of["rows"].get("test", {}).values()), "test row")
        pairs.append((f"Task {task}", f"{metric_title(of['metric'])} on {rows} in {count(len(results.languages(task)), 'language')}"))
    pairs += [("Reasoner" if name == "reasoner" else f"Tunable {name}", _model(model)) for name, model in run.models.items()]
    pairs.append(("Trials", f"{sum(trial['tuned'] for trial in run.trials)} of {len(run.trials)} tuned"))
    return _pairs(pairs)


def _model(model: dict[str, Any]) -> str:
    return f"{model['name']}, content hash {model['hash'][:12]}" if model["hash"] else f"{model['name']}, a remote endpoint"


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


def _of_examples(results: Results, shown: ExampleData) -> str:
    """What the example browser does not show."""
    rows = f"{shown.rows:,} of {count(shown.of, 'test row')}, drawn evenly from all languages; the others do not fit into this page."
    places = [(task, method, tunable) for task in results.run.tasks for method in results.methods(task) for tunable in results.places(task, method)]
    several = any(results.seeds(*place) > 1 for place in places)
    said = [*([rows] if shown.rows < shown.of else []), *(["Answers are those of each method’s first seed."] if several else [])]
    return f'<p class="scope">{" ".join(said)}</p>' if said else ""


def _by_task(table: Table, results: Results) -> str:
    """One HTML table a task: their columns differ."""
    parts = []
    for task in results.run.tasks:
        of_task = [note for note in table.footnotes if note.startswith(f"{task}:") or not any(note.startswith(f"{t}:") for t in results.run.tasks)]
        frame = table.frame[table.frame["task"] == task].drop(columns="task") if len(table.frame) else table.frame
        parts += [_table(Table(table.name, f"{table.title} · {task}", frame, of_task))] if len(frame) else []
    return "".join(parts)


def _figure(figure: Figure) -> str:
    name, said = figure.table.name, "".join(f"<p>{escape(caption)}</p>" for caption in figure.captions)
    links = f'<p class="file"><a href="{name}.csv">{name}.csv</a> · <a href="{name}.svg">{name}.svg</a></p>'
    return f"<h3>{escape(figure.table.title)}</h3><figure>{figure.svg}<figcaption>{said}{links}</figcaption></figure>"


def _per_language(table: Table) -> str:
    """This run's rows, and below them the paper's as a table of their own."""
    ours, of_paper = (table.frame[(table.frame["source"] == PAPER) == is_paper].drop(columns="source") for is_paper in (False, True))
    if of_paper.empty:
        return _table(Table(table.name, table.title, ours, table.footnotes))
    return _table(Table(table.name, table.title, ours), linked=False) + _table(
        Table(table.name, f"{table.title} · {PAPER}", of_paper, table.footnotes)
    )


def _prose(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _section(section: Section) -> str:
    """Sentences, figures, and tables: of those with languages the averages, and below them the languages, folded away."""
    drawn = "".join(f"<figure>{svg}</figure>" for _, svg in section.figures)
    parts = [*(f"<p>{_prose(sentence)}</p>" for sentence in section.sentences), f'<div class="figures">{drawn}</div>']
    for table in section.tables:
        alike = [name for name in ("task", "tunable", "metric") if name in table.frame and table.frame[name].nunique() == 1]
        frame = table.frame.drop(columns=alike)  # the sentences name them
        if "language" not in frame:
            parts.append(_table(Table(table.name, table.title, frame, table.footnotes)))
            continue
        is_average = frame["language"].isin(["", *AVERAGE_TITLES])
        parts.append(_table(Table(table.name, table.title, frame[is_average], table.footnotes)))
        if not is_average.all():
            what = frame["language"].map(language_name).str.cat(frame["what"], sep=" · ").str.removesuffix(" · ")
            folded = Table(table.name, f"{table.title}, by language", frame.assign(what=what).drop(columns="language")[~is_average])
            parts.append(f"<details><summary>{escape(folded.title)}</summary>{_table(folded, linked=False)}</details>")
    return "".join(parts)


def _table(table: Table, linked: bool = True) -> str:
    """A table under its title, scrolling sideways in a region of its own, its footnotes and its CSV below."""
    frame = displayed(table.frame)
    names = columns(frame)
    head = "".join(_head(heading(name), name, is_numeric(frame, name)) for name in names)
    body = "".join(_row(row, names) for row in records(frame))
    title = escape(table.title)
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
    caption = f'<p class="caption" aria-hidden="true">{title}</p>'
    shown = f'{caption}{region}<table aria-label="{title}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    link = "" if not linked else f'<p class="file"><a href="{escape(table.name)}.csv">{escape(table.name)}.csv</a></p>'
    return f'<div class="table">{shown}{_list(table.footnotes, "footnotes")}{link}</div>'


def _head(of: Cell, name: str, is_number: bool) -> str:
    text = escape(of.text) + (f" <small>{escape(of.small)}</small>" if of.small else "")
    spelled = language_name(name)
    text = text if spelled == name else f'<abbr title="{escape(spelled)}">{text}</abbr>'
    return f'<th scope="col"{" class=n" if is_number else ""}>{text}</th>'


def _row(row: dict[str, Any], names: Sequence[str]) -> str:
    kinds = {
        "gain": row.get("method") == "gain",
        "absent": row.get("absent") is True,
        "fiat": row.get("method") == "fiat" and "row" in row,
    }
    css = " ".join(name for name, holds in kinds.items() if holds)
    return f'<tr class="{css}">{"".join(_cell(cell(row, name), first=i == 0) for i, name in enumerate(names))}</tr>'


def _cell(of: Cell, first: bool) -> str:
    tag = "th" if first else "td"
    attributes = ' scope="row"' if first else ""
    attributes += ' class="n"' if of.is_number else ' class="note"' if of.is_prose else ""
    return f"<{tag}{attributes}>{escape(of.text)}{f'<small>{escape(of.small)}</small>' if of.small else ''}</{tag}>"
