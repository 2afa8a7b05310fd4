"""The data-scaling curve: scores by train size, their intervals and changes, and the figure."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_directory import add_train_size, write_run

from fiat_ray import cli
from fiat_ray.errors import UserError
from fiat_ray.recipe import PLAIN
from fiat_ray.report import page, per_language, scaling, tables, terminal
from fiat_ray.report.intervals import Curve, log_chart
from fiat_ray.report.read import read, records
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section
from fiat_ray.runs import Run
from fiat_ray.significance import holm

ROWS = 24


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 train rows in 4 languages, and again 48 and 12 of them."""
    folder = write_run(tmp_path_factory.mktemp("sizes"), methods=("fiat", "no_cot"), rows=ROWS, right={"fiat": 20, "no_cot": 12}, seeds=(0, 1))
    add_train_size(folder, 48, right=12, groups=6)
    add_train_size(folder, 12, right=6, groups=3)
    return folder


@pytest.fixture(scope="module")
def section(run_dir: Path) -> Section:
    return scaling.section(Results(read(run_dir)))


def rows(section: Section, method: str) -> list[dict[str, Any]]:
    [table] = section.tables
    return records(table.frame[table.frame["row"].isin([tables.title_of(method), f"{PLAIN.get(method)} ({method})"])])


def test_every_size_has_its_rows_questions_and_score(section: Section) -> None:
    found = rows(section, "fiat")
    assert [(row["rows"], row["seeds"]) for row in found] == [(12, 2), (48, 2), (96, 2)]
    assert [row["f1"] for row in found] == pytest.approx([25, 50, 100 * 19.5 / ROWS])
    assert [row["questions"] for row in found] == [3, 6, 4]
    assert all(0 <= row["f1_low"] < row["f1"] < row["f1_high"] <= 100 for row in found)


def test_tables_of_the_largest_size_name_the_others(run_dir: Path) -> None:
    said, results = "Trials with 96 train rows; the report's section More data has those with 12, 48.", Results(read(run_dir))
    for table in (tables.table2_overall(results), tables.table3_ablations(results), per_language.per_language(results, "rivers")):
        assert any(said in note for note in table.footnotes)
    assert said in terminal.console_table(run_dir)


def test_changes_are_from_the_next_smaller_size(section: Section) -> None:
    first, second, third = rows(section, "fiat")
    assert pd.isna(first["f1_change"])
    assert second["f1_change"] == pytest.approx(second["f1"] - first["f1"]) == 25
    assert third["f1_change"] == pytest.approx(third["f1"] - second["f1"])
    assert third["f1_change_low"] < third["f1_change"] < third["f1_change_high"]
    assert rows(section, "no_cot")[2]["f1_change"] == pytest.approx(-2.0833, abs=1e-3)


def test_changes_of_a_method_are_marked_after_holms_correction(run_dir: Path, section: Section) -> None:
    by_size = [Results(read(run_dir), size) for size in (12, 48, 96)]
    frames = [results.predictions("rivers", "no_cot", "xs") for results in by_size]
    raw = [by_size[0].differences("rivers", larger, smaller, "f1")["mean"].p for smaller, larger in pairwise(frames)]
    assert [row["f1_change_p"] for row in rows(section, "no_cot")[1:]] == pytest.approx(holm([p for p in raw if p is not None]))


def test_tables_of_the_paper_stay_those_of_the_largest_size(run_dir: Path) -> None:
    results = Results(read(run_dir))
    assert results.value("rivers", "fiat", "xs", "f1") == pytest.approx(100 * 19.5 / ROWS)
    assert Results(results.run, 12).value("rivers", "fiat", "xs", "f1") == pytest.approx(25)
    assert {trial["train_size"] for trial in results.trials()} == {96}
    assert Results(results.run, 12).value("rivers", "icl", "", "f1") == results.value("rivers", "icl", "", "f1")


def test_the_best_trial_is_one_on_most_rows(run_dir: Path) -> None:
    run = Run(run_dir)
    assert [run.best_trial(name)["train_size"] for name in (None, "fiat", "no_cot", "no_cot-xs-s1")] == [96] * 4
    smaller = next(trial["name"] for trial in run.trials if trial["train_size"] == 12)
    assert run.best_trial(smaller)["name"] == smaller


def test_infer_is_offered_with_the_trial_that_led_on_validation(tmp_path: Path) -> None:
    folder = write_run(tmp_path, methods=("fiat", "no_cot"))
    offered = []
    for leader in ("fiat", "no_cot"):
        for path in folder.glob("trials/*/trial.json"):
            record = json.loads(path.read_text())
            path.write_text(json.dumps(record | {"selection_value": 0.6 if record["method"] == leader else 0.5}))
        offered.append(cli._trial_option(Run(folder)))
    assert offered[0] == "" and offered[1].startswith(" --trial no_cot-")


def test_before_it_is_tuned_on_most_rows_a_method_has_no_best_trial(tmp_path: Path) -> None:
    folder = write_run(tmp_path, methods=("fiat", "no_cot"))
    [(full, smaller)] = [(trial["name"], f"{trial['name']}-12") for trial in Run(folder).trials if trial["method"] == "no_cot"]
    add_train_size(folder, 12, right=6)
    (folder / "trials" / full / "trial.json").unlink()
    with pytest.raises(UserError, match=f"no such trial on all 48 rows is tuned yet; on fewer, name one: {smaller}$"):
        Run(folder).best_trial("no_cot")
    with pytest.raises(UserError, match="no predictions of method 'no_cot'"):
        Run(folder).predictions("no_cot")
    assert Run(folder).best_trial(smaller)["train_size"] == 12 and Run(folder).best_trial()["method"] == "fiat"


def test_the_figure_has_a_line_a_method_bars_and_icls_level(section: Section) -> None:
    [(stem, svg)] = section.figures
    assert stem == "scaling_rivers_xs" and "by number of train rows" in svg
    *_, chart = ElementTree.fromstring(svg).findall("{*}svg")  # below title and key
    groups = chart.findall("{*}g")
    lines, bars = groups[:3], groups[3:]
    assert [len(group.findall("{*}circle")) for group in lines] == [3, 3, 3]
    assert [len(group.findall("{*}line")) for group in bars] == [3, 3, 0]
    assert [group.get("class") for group in lines] == [group.get("class") for group in bars] == ["s0", "s1", "s2"]
    assert {"12", "48", "96"} <= {text.text for text in chart.findall("{*}text")}


def test_equal_factors_are_equally_far_apart() -> None:
    root = ElementTree.fromstring(log_chart("t", "x", "y", [Curve("a", [(10, 0.0), (100, 50.0), (1000, 100.0)])]))
    xs = [float(circle.get("cx", "")) for circle in root.iter() if circle.get("class") == "dot"]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_one_size_is_one_row_with_the_config_key(tmp_path: Path) -> None:
    section = scaling.section(Results(read(write_run(tmp_path))))
    [table] = section.tables
    [only] = records(table.frame)
    assert (only["reason"], only["config_key"]) == ("one train size only: 48 rows", "train_size")
    assert section.figures == []


def test_an_unfinished_size_says_so_and_the_next_is_compared_with_the_last_known(run_dir: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path, methods=("fiat",), rows=ROWS, right={"fiat": 20})
    add_train_size(folder, 48, right=12)
    add_train_size(folder, 12, right=6)
    scores = pd.read_parquet(folder / "scores.parquet")
    scores[scores["train_size"] != 48].to_parquet(folder / "scores.parquet")
    for record in folder.glob("trials/*/trial.json"):
        if json.loads(record.read_text())["train_size"] == 48:
            record.unlink()
    first, second, third = rows(scaling.section(Results(read(folder))), "fiat")
    assert math.isnan(second["f1"]) and second["reason"] == "not finished; the same command goes on"
    assert third["f1_change"] == pytest.approx(third["f1"] - first["f1"])


def test_what_does_not_fit_into_the_figure_is_named(tmp_path: Path) -> None:
    names = ("fiat", "no_cot", "no_instructions", "no_peft", "distilled_cot", "fiat_without_peft")
    folder = write_run(tmp_path, methods=names)
    add_train_size(folder, 12, right=3)
    [(_, svg)] = scaling.section(Results(read(folder))).figures
    title, key, _ = (" ".join(part.itertext()) for part in ElementTree.fromstring(svg).findall("{*}svg"))
    assert "in the table only: FIAT less PEFT only" in title
    assert "FIAT less PEFT only" not in key and "Distilled CoT" in key and "Few-shot ICL" in key


def test_the_page_shows_it(run_dir: Path) -> None:
    html = page.build(run_dir).read_text("utf-8")
    part = html[html.index('id="scaling"') : html.index('id="decision"')]
    assert "<small>to the row above</small>" in part
    low, high = (f"{rows(scaling.section(Results(read(run_dir))), 'fiat')[0][f'f1_{end}']:.1f}" for end in ("low", "high"))
    assert f"25.0<small>{low} to {high}</small>" in part  # a score's interval bears no signs
    frame = pd.read_csv(run_dir / "report" / "scaling.csv")
    assert len(frame) == 6 and json.loads(frame["rows"].to_json(orient="values")) == [12, 48, 96] * 2
    ElementTree.parse(run_dir / "report" / "scaling_rivers_xs.svg")
