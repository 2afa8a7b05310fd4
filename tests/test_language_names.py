"""Names of languages: whatever they are called, each keeps its rows, its exemplars and its column of the report."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from run_directory import write_run
from test_own_task import Rows, questions, task

from fiat_ray import Task
from fiat_ray.infer import _row
from fiat_ray.report import page
from fiat_ray.rows import Place
from fiat_ray.task_folder import definition_files, read_definition


def test_languages_that_are_called_like_columns_of_the_report_have_their_own(tmp_path: Path) -> None:
    """Two of them, ``all`` and ``row``, are codes, of Allar and of Dela-Oenale."""
    plain = write_run(tmp_path / "plain", languages=["fi"])
    page.build(plain)
    own = {str(column) for frame in tables(plain) for column in frame} | {"absent", "train_size", "count", "f1", "fi_low"}
    languages = ["fi", *sorted(own - {"fi", "mean"})]
    run = write_run(tmp_path / "run", languages=languages, rows=14, right={"fiat": 14})
    html = page.build(run).read_text("utf-8")
    sizes, scores = tables(run)
    names = ["fi", *(f"language {name}" for name in languages[1:])]
    assert list(sizes.columns) == ["what", *names, "all"] and list(scores.columns[5:-4]) == names
    assert sizes.loc[0, "what"] == "train rows" and set(sizes.loc[0, names]) == {14} and sizes.loc[0, "all"] == 14 * len(names)
    [fiat] = scores[(scores["method"] == "fiat") & (scores["metric"] == "f1")].to_dict("records")
    assert [fiat[name] for name in names] == pytest.approx([100 * (14 - n // 2) / 14 for n in range(len(names))])
    assert fiat["row"].startswith("FIAT") and fiat["source"] == "this run"
    assert all(html.count(f">{name.replace('_', ' ')}</") >= 2 for name in names), "a heading in both tables"


def tables(run: Path) -> list[pd.DataFrame]:
    return [pd.read_csv(run / "report" / f"{name}.csv") for name in ("sizes", "per_language")]


def test_white_space_at_its_ends_makes_no_other_language() -> None:
    spaced = [row | {"lang": f"{row['lang']} "} if n % 2 else row for n, row in enumerate(questions())]
    assert task(spaced).languages == ["bn", "fi", "sw"]
    assert _row(task(), Place("row 1"), {"question": "q", "context": "c", "lang": "fi "}).language == "fi"


def worked(**fields: str) -> Rows:
    return [{"question": f"Which land is Oulu in, {n}?", "context": "Oulu.", "rationale": "It says so.", "answer": "Finland", **fields} for n in "ab"]


@pytest.mark.parametrize("fields", [{"lang": "fi"}, {"language": "fi"}, {"lang": "", "language": "fi "}, {"lang": "fi", "language": "Finnish"}])
def test_exemplars_say_their_language_by_the_rows_name_for_it_or_by_language(tmp_path: Path, fields: dict[str, str]) -> None:
    given = task(exemplars=worked(**fields) + worked(lang="sw"))
    assert [exemplar.language for exemplar in given.exemplars] == ["fi", "fi", "sw", "sw"]
    written(tmp_path, given)
    (tmp_path / "exemplars.jsonl").write_text("".join(json.dumps(row | {"target": "Finland"}) + "\n" for row in worked(**fields)))
    assert [exemplar.language for exemplar in read_definition(tmp_path).exemplars] == ["fi", "fi"]


def test_exemplars_of_no_language_stay_so_where_the_input_shows_one(tmp_path: Path) -> None:
    drafted = task(input="{lang} {question} {context}")
    assert {exemplar.language for exemplar in drafted.exemplars} == {"und"}
    assert written(tmp_path, drafted).exemplars == drafted.exemplars


def written(folder: Path, of: Task) -> Task:
    for name, text in definition_files({}, of, {}).items():
        (folder / name).write_text(text, "utf-8")
    return read_definition(folder)
