"""What a run found, for a terminal: its answer and Table 3 as plain text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd

from fiat_ray.report.answer import answers
from fiat_ray.report.read import read, records
from fiat_ray.report.results import Results
from fiat_ray.report.tables import methods, metric_title, missing, scope_notes, score_columns, signed
from fiat_ray.text import WIDTH, count


def console_table(run_dir: str | Path) -> str:
    """Table 3 as plain text of at most 110 columns, for a terminal; what was not run, and the run's notes, below."""
    results = Results(read(run_dir))
    frame = methods(results)
    blocks = [_console_block(results, task, frame[frame["task"] == task]) for task in results.run.tasks]
    notes = [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in (*answers(results), *results.run.manifest["notes"])]
    return "\n\n".join((*blocks, "\n".join(notes))) + "\n"


def _console_block(results: Results, task: str, frame: pd.DataFrame) -> str:
    columns = score_columns(results, task)[:2]
    changed = frame[[name for name in map(str, frame) if name.endswith("_change")]].notna().any(axis=None)
    heads = [text for _, metric, _ in columns for text in (metric_title(metric), *(["change"] if changed else []))]
    lines = [["method", "tunable", *heads, "seeds", ""]]
    footnotes: dict[str, int] = {}
    for row in records(frame):
        cells = [row["row"], row["tunable"] or "–"]
        for name, _, _ in columns:
            change, p = row.get(f"{name}_change"), row.get(f"{name}_change_p")
            cells.append("–" if pd.isna(row[name]) else f"{row[name]:.1f}")
            if changed:
                cells.append("" if pd.isna(change) else signed(change) + (" " if pd.isna(p) or p >= 0.05 else "*"))
        notes = [missing(row["reason"], row["config_key"]) if row["reason"] else row["note"]] if row["reason"] or row["note"] else []
        if row["method"] == "icl" and not pd.isna(row["unparsed"]):
            to_do = ": raise reasoner.max_tokens" if row["length"] >= 0.5 else ""
            notes.append(f"{row['unparsed']:.0f} % unparsed, {row['length']:.0f} % cut off at the token limit{to_do}")
        marks = "".join(f"[{footnotes.setdefault(note, len(footnotes) + 1)}]" for note in notes)
        lines.append([*cells, "–" if pd.isna(row["seeds"]) else f"{row['seeds']:.0f}", marks])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [text.ljust(w) if i in (0, 1, len(widths) - 1) else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    text = ["  ".join(line).rstrip() for line in aligned]
    rule = "─" * max(map(len, text))
    average = results.averages(task)[0]
    languages = results.behind(task, results.metrics(task)[0], average)
    legend = "; change: to the row above, * holds at 5 %" if changed else ""
    what = f"means of {count(len(languages), 'language')}" if len(languages) > 1 else "scores"
    heading = textwrap.fill(f"{task}: {what} on test ({' '.join(languages)}){legend}", WIDTH)
    notes = [textwrap.fill(f"[{number}] {note}", WIDTH, subsequent_indent="    ") for note, number in footnotes.items()]
    notes += [textwrap.fill(note, WIDTH) for note in scope_notes(results, task)]
    return "\n".join([heading, "", text[0], rule, *text[1:], rule, *notes])
