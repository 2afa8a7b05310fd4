"""Every table and figure of the paper in every report, and what the figures say; runs are synthetic, pretrained twins in them too."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
from run_directory import write_run

from fiat_ray.config import Config
from fiat_ray.gain_slope import GainSlopes, Slope
from fiat_ray.metrics import FULL
from fiat_ray.recipe import ABLATIONS, FIGURE_6, LEAVE_ONE_OUT, PAPER, TITLES, UNTUNED
from fiat_ray.report import cells, facts, figures, page, paper_figures, per_language, published, tables
from fiat_ray.report.paper_figures import verdict
from fiat_ray.report.picture import picture
from fiat_ray.report.read import read
from fiat_ray.report.results import Results
from fiat_ray.significance import benjamini_hochberg, holm

TUNED = [method for method in PAPER if method not in UNTUNED]
STEMS = (
    *("table2_overall", "table3_ablations", "leave_one_out", "table4_sizes", "table5_sizes"),
    *("table6_per_language", "table7_per_language", "table8_per_language", "language_differences"),
    *("figure3_gain_by_language", "figure4_distilled_cot", "figure5_training", "figure6_instruction_tuned_base"),
)
CHANCE = {"fiat": 0.75, "no_cot": 0.6, "no_instructions": 0.5, "no_peft": 0.45, "no_instruction_tuned": 0.3, "full_instructed": 0.65}


def results(folder: Path) -> Results:
    return Results(read(folder))


def drawn(of: Results) -> dict[str, paper_figures.Figure]:
    return {figure.table.name[:7]: figure for figure in paper_figures.figures(of, facts.curves(of).frame)}


def copied(source: Path, run: Path, trial: dict, **changed: object) -> dict:
    """Copies a trial of a run directory into ``run``, under another name; returns it as the manifest has it."""
    folder = run / "trials" / str(changed["name"])
    shutil.copytree(source / "trials" / trial["name"], folder)
    (folder / "trial.json").write_text(json.dumps(json.loads((folder / "trial.json").read_text()) | changed))
    return trial | changed


def rows(frame: pd.DataFrame, **wanted: object) -> list[dict]:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame.to_dict("records")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sizes, all methods of the paper, two seeds, six languages."""
    folder = tmp_path_factory.mktemp("whole")
    languages = ("as", "bho", "hi", "ta", "ur", "brx")
    return write_run(folder, "xtreme_up_qa", languages, TUNED, ("xs", "s"), (0, 1), rows=40, chance=lambda method, _: CHANCE.get(method, 0.55))


@pytest.fixture(scope="module")
def of(whole: Path) -> Results:
    return results(whole)


@pytest.fixture(scope="module")
def of_whole(of: Results) -> dict[str, paper_figures.Figure]:
    return drawn(of)


class TestEverywhere:
    @pytest.mark.parametrize("case", ["own", "labels", "indic", "full", "icl alone", "unfinished"])
    def test_every_result_has_its_file_and_its_picture(self, tmp_path: Path, case: str) -> None:
        if case == "labels":
            write_run(tmp_path, "xor_attriqa", ("bn", "te"), labels=("no", "yes"))
        elif case in ("indic", "full"):
            write_run(tmp_path, "xtreme_up_qa", ("as", "ur") if case == "indic" else ("as", "ko"), tunables=("xs", "s"))
        else:
            write_run(tmp_path)
        if case == "icl alone":
            manifest = json.loads((tmp_path / "manifest.json").read_text())
            (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"trials": [], "not_run": []}))
            (tmp_path / "config.yaml").write_text("methods: [icl]\ntunables: {xs: {model: embedded}}")
        for path in (*tmp_path.glob("trials/*/*"), tmp_path / "scores.parquet") if case == "unfinished" else ():
            path.unlink() if path.is_file() else None
        html = page.build(tmp_path).read_text("utf-8")
        files = {path.stem for path in (tmp_path / "report").iterdir()}
        own = {"own", "icl alone", "unfinished"} & {case}
        assert not own or not {stem for stem in files if "table4" <= stem[:6] <= "table8"} | ({"leave_one_out"} & files)
        for stem in (stem for stem in STEMS if not own or stem in files):
            frame = pd.read_csv(tmp_path / "report" / f"{stem}.csv", keep_default_na=False)
            assert len(frame) > 0, stem
            ElementTree.parse(tmp_path / "report" / f"{stem}.svg")
            assert f'href="{stem}.csv"' in html
            for row in frame.to_dict("records") if "config_key" in frame else ():
                assert not row["config_key"] or row["reason"]
                assert row["config_key"].partition(".")[0] in ("", *(field.name for field in dataclasses.fields(Config))), row
        assert ('"sizes.csv"' in html) == (case not in ("labels", "indic", "full"))

    def test_a_table_of_another_setting_is_one_row_with_reason_and_key(self, tmp_path: Path) -> None:
        write_run(tmp_path, "xtreme_up_qa", ("as", "ur"))
        page.build(tmp_path)
        found = {stem: pd.read_csv(tmp_path / "report" / f"{stem}.csv") for stem in STEMS}
        assert found["table8_per_language"].to_dict("records") == [
            {"reason": f"this run's languages are those of {published.SETTINGS['xtreme_up_qa_indic']}", "config_key": "focus"}
        ]
        for stem in ("table4_sizes", "table6_per_language"):
            assert found[stem].to_dict("records") == [{"reason": "xor_attriqa is not among this config's tasks", "config_key": "task"}]
            picture = (tmp_path / "report" / f"{stem}.svg").read_text("utf-8")
            assert "xor_attriqa is not among this" in picture
        for stem in ("table2_overall", "table3_ablations", "leave_one_out", "table7_per_language", "language_differences", "figure5_training"):
            frame = found[stem]
            of_run = frame[frame["source"] == "this run"] if "source" in frame else frame
            size = rows(of_run, tunable="s")
            assert [row["config_key"] for row in size] == ["tunables.s"], stem
        (tmp_path / "config.yaml").write_text("languages: [as, ur]")
        assert results(tmp_path).why_no_setting("xtreme_up_qa_full")[1] == "languages"

    def test_two_tasks_of_one_run_share_the_files(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", "xor_attriqa", ("bn", "te"), labels=("no", "yes"))
        folder = write_run(tmp_path / "b", "xtreme_up_qa", ("as", "ur"))
        first, second = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
        both = {"tasks": first["tasks"] | second["tasks"], "not_run": []}
        both["trials"] = [copied(tmp_path / "a", folder, trial, name=f"xor-{trial['name']}") for trial in first["trials"]] + second["trials"]
        (folder / "manifest.json").write_text(json.dumps(second | both))
        scores = [pd.read_parquet(tmp_path / name / "scores.parquet") for name in "ab"]
        pd.concat(scores).to_parquet(folder / "scores.parquet")
        for part in ("task", "augmented", "untuned"):
            for path in (tmp_path / "a" / part).iterdir():
                (folder / part / path.name).symlink_to(path)
        page.build(folder)
        for stem in ("table2_overall", "table3_ablations", "leave_one_out", *STEMS[-4:]):
            frame = pd.read_csv(folder / "report" / f"{stem}.csv")
            assert {"xor_attriqa", "xtreme_up_qa"} <= set(frame["task"]), stem
        assert "reason" not in pd.read_csv(folder / "report" / "table4_sizes.csv")

    def test_sizes_stand_beside_the_papers(self, tmp_path: Path) -> None:
        write_run(tmp_path, "xtreme_up_qa", ("as", "hi", "ko"))
        table = facts.sizes(results(tmp_path), "xtreme_up_qa")
        of = {row["what"]: row for row in table.frame.to_dict("records")}
        assert (of["test rows"]["hi"], of["test rows in the paper"]["hi"]) == (12, 1049)
        assert of["train rows in the paper"]["all"] == 323 + 326 + 3327
        assert any("22,500" in note and "21,706" in note for note in table.footnotes)
        assert any("lacks 24" in note for note in table.footnotes)

    def test_what_was_not_run_is_listed_once(self, tmp_path: Path) -> None:
        frame = facts.not_run(results(write_run(tmp_path, "xtreme_up_qa", ("as", "ur")))).frame
        assert [row["method"] for row in rows(frame, config_key="tunables.xs.pretrained")] == ["no_instruction_tuned"]
        [others] = rows(frame, config_key="methods")
        assert set(others["method"].split()) == set(TUNED) - set(ABLATIONS)


class TestTables:
    def test_holm_is_over_the_adjacent_ablations_alone(self, of: Results) -> None:
        frame = tables.table3_ablations(of).frame
        shown = [rows(frame, tunable="xs", method=method)[0]["f1_change_p"] for method in ABLATIONS[1:]]
        pairs = zip(ABLATIONS[1:], ABLATIONS, strict=False)
        raw = [of.difference("xtreme_up_qa", (new, "xs"), (old, "xs"), "f1").p for new, old in pairs]  # type: ignore[union-attr]
        assert shown == pytest.approx(holm(raw))
        assert not {*frame["method"]} & ({*LEAVE_ONE_OUT} - {*ABLATIONS})

    def test_leave_one_out_compares_each_with_fiat(self, of: Results) -> None:
        frame = tables.leave_one_out(of).frame
        block = rows(frame, tunable="s")
        assert [row["method"] for row in block] == list(LEAVE_ONE_OUT)
        for row in block[1:]:
            assert row["f1_from_fiat"] == pytest.approx(row["f1"] - block[0]["f1"])
            assert row["f1_from_fiat_low"] < row["f1_from_fiat"] < row["f1_from_fiat_high"]
        raw = [of.difference("xtreme_up_qa", (method, "s"), ("fiat", "s"), "f1").p for method in LEAVE_ONE_OUT[1:]]  # type: ignore[union-attr]
        assert [row["f1_from_fiat_p"] for row in block[1:]] == pytest.approx(holm(raw))

    def test_each_language_has_its_difference_and_a_mark_only_where_it_holds(self, of: Results) -> None:
        frame = per_language.differences(of).frame
        shown = rows(frame, tunable="xs")
        assert [row["language"] for row in shown] == of.languages("xtreme_up_qa")
        for other in ("no_cot", "no_instruction_tuned"):
            found = of.by_language("xtreme_up_qa", ("fiat", "xs"), (other, "xs"), "f1")
            adjusted = benjamini_hochberg([found[row["language"]].p for row in shown])  # type: ignore[misc]
            assert [row[f"f1_from_{other}_p"] for row in shown] == pytest.approx(adjusted)
            for row in shown:
                values = [of.value("xtreme_up_qa", method, "xs", "f1", row["language"]) for method in ("fiat", other)]
                assert row[f"f1_from_{other}"] == pytest.approx(values[0] - values[1])
                cell = cells.cell(row, f"f1_from_{other}")
                assert cell.text.endswith("*") == (row[f"f1_from_{other}_p"] < 0.05)
                assert " to " in cell.small

    def test_full_has_the_difference_of_languages_outside_its_headline(self, tmp_path: Path) -> None:
        frame = per_language.differences(results(write_run(tmp_path, "xtreme_up_qa", ("as", "bn", "ko", "fi")))).frame
        assert {"ko", "fi"} <= {row["language"] for row in rows(frame, task="xtreme_up_qa") if row["f1_from_no_cot"] > 0}

    def test_a_difference_that_cannot_be_is_a_row_with_the_reason(self, tmp_path: Path) -> None:
        frame = per_language.differences(results(write_run(tmp_path, "xor_attriqa", ("bn", "fi", "ja", "te"), methods=("fiat", "no_cot")))).frame
        [lacking] = rows(frame, config_key="methods")
        assert lacking["reason"].startswith("no_peft: not among") and lacking["task"] == "xor_attriqa"
        assert len(rows(frame, task="xor_attriqa", reason="")) == 4

    def test_a_picture_shows_every_cell_of_its_table(self, of: Results) -> None:
        table = tables.table2_overall(of)
        root = ElementTree.fromstring(figures.standalone(picture(table)))
        text = " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
        for name in ("f1", "exact_match"):
            assert all(f"{value:.1f}" in text for value in table.frame[name].dropna())
        assert "+8.4" in text and "PaLM-2" in text and "Holds at 5 %." in text


class TestFigure3:
    @pytest.mark.parametrize(
        ("plotted", "split", "said"),
        [
            ((-0.5, -0.1), (-0.4, -0.1), "both slopes support"),
            ((-0.5, -0.1), (-0.4, 0.1), "only the slope as plotted supports"),
            ((-0.5, 0.1), (-0.4, -0.1), "only the slope free of regression to the mean supports"),
            ((-0.5, 0.1), (-0.4, 0.1), "neither slope supports"),
            ((-0.5, 0.1), (0.1, 0.4), "stronger languages gain more"),
            ((-0.5, -0.1), (None, None), "too few languages"),
        ],
    )
    def test_the_caption_says_which_slope_supports_the_claim(self, plotted: tuple, split: tuple, said: str) -> None:
        assert said in verdict(GainSlopes(*(Slope(0.0, low, high) for low, high in (plotted, split))))

    def test_points_are_languages_and_both_slopes_have_intervals(self, of: Results, of_whole: dict) -> None:
        figure = of_whole["figure3"]
        for row in rows(figure.table.frame, tunable="s", row="language"):
            fiat, no_cot = (of.value("xtreme_up_qa", method, "s", "f1", row["language"]) for method in ("fiat", "no_cot"))
            assert (row["baseline"], row["gain"]) == pytest.approx((no_cot, fiat - no_cot))
            assert row["gain_low"] < row["gain"] < row["gain_high"]
        slopes = [row for row in rows(figure.table.frame, tunable="s") if row["row"].startswith("slope")]
        assert len(slopes) == 3 and all(row["slope_low"] < row["slope"] < row["slope_high"] for row in slopes)
        assert tables.PAPER in slopes[2]["row"] and "Table 7" in slopes[2]["row"]
        dots = re.findall(r'class="dot"[^>]*><title>(\w+):', figure.svg)
        assert sorted(dots) == sorted(of.languages("xtreme_up_qa") * 2)
        assert any("slope" in caption and "claim" in caption for caption in figure.captions)

    def test_by_chance_alone_the_plot_falls_and_the_caption_is_not_taken_in(self, tmp_path: Path) -> None:
        """27 languages of one true quality and one true gain."""
        write_run(tmp_path, "xtreme_up_qa", FULL, ("fiat", "no_cot"), rows=30, chance=lambda method, _: CHANCE.get(method, 0.5))
        [caption] = drawn(results(tmp_path))["figure3"].captions
        assert "only the slope as plotted supports" in caption and "With one seed" in caption

    @pytest.mark.parametrize("seed", range(3))
    def test_no_label_is_upon_another_or_upon_a_point(self, seed: int) -> None:
        luck = random.Random(seed)
        points = [(name, luck.gauss(70, 2), luck.gauss(3, 1)) for name in FULL[:-1]] + [("brx", 45.0, 9.0)]
        root = ElementTree.fromstring(figures.scatter("t", "x", "y", points, []))
        names = [element for element in root.iter() if element.get("class") == "name"]
        boxes = [(float(t.get("x", 0)) - len(t.text or "") * 9.5 / 2, float(t.get("y", 0)) - 13, len(t.text or "") * 9.5) for t in names]
        dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in root.iter() if dot.get("class") == "dot"]
        assert len(boxes) == len(dots) == 27
        for i, (left, top, wide) in enumerate(boxes):
            assert not [x for x, y in dots if left < x < left + wide and top < y < top + 18]
            assert not [1 for a, b, c in boxes[:i] if left < a + c - 0.2 and a < left + wide - 0.2 and abs(top - b) < 17.8]


class TestFigures4To6:
    def test_figure_4_has_three_scores_and_the_intervals_of_their_differences(self, of_whole: dict) -> None:
        frame = of_whole["figure4"].table.frame
        of = {row["method"]: row for row in rows(frame, tunable="xs") if row["method"] == row["method"]}
        assert [of[method][tables.PAPER] for method in ("no_cot", "distilled_cot", "fiat")] == [70.7, 72.5, 73.6]
        differences = [row for row in rows(frame, tunable="xs") if row["difference"] == row["difference"]]
        assert [row["difference"] for row in differences] == pytest.approx(
            [of[a]["value"] - of[b]["value"] for a, b in (("distilled_cot", "no_cot"), ("fiat", "no_cot"), ("fiat", "distilled_cot"))]
        )
        assert all(row["low"] < row["difference"] < row["high"] for row in differences)

    def test_what_a_figure_lacks_is_a_row_and_a_line_in_the_picture(self, tmp_path: Path) -> None:
        figure = drawn(results(write_run(tmp_path, "xtreme_up_qa", ("as", "ur"))))["figure4"]
        [row] = rows(figure.table.frame, method="distilled_cot")
        assert (row["reason"], row["config_key"]) == ("not among this config's methods", "methods")
        assert "distilled_cot: not run" in figure.svg
        assert len(rows(figure.table.frame, method="fiat")) == 1

    def test_figure_5_starts_at_step_0_with_size_s_first(self, of_whole: dict) -> None:
        figure = of_whole["figure5"]
        frame = figure.table.frame[figure.table.frame["reason"] == ""]
        frame = frame[frame["method"].notna()]  # the others are differences
        assert list(dict.fromkeys(frame["tunable"])) == ["s", "xs"]
        assert set(frame["method"]) == {"no_cot", "no_instructions"}
        for _, line in frame.groupby(["tunable", "method", "seed"]):
            assert list(line["step"]) == [0, 4, 8, 12]  # of the chosen learning rate alone
        assert figure.svg.index("tunable s<") < figure.svg.index("tunable xs<")

    def test_figure_5_has_the_gain_of_i_tau_before_tuning_and_after_with_intervals(self, whole: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(whole, tmp_path / "run")
        for path in folder.glob("trials/*/validation.parquet"):
            no_help = json.loads((path.parent / "trial.json").read_text())["method"] == "no_instructions"
            frame = pd.read_parquet(path)
            frame.loc[(frame["step"] == 0) & (no_help or frame["id"].str[-1].isin(list("01234"))), "prediction"] = "nothing"
            frame.to_parquet(path)
        figure = drawn(results(folder))["figure5"]
        before, after = (rows(figure.table.frame, tunable="s", row=f"gain of i_tau {when}")[0] for when in ("before tuning", "at the kept step"))
        assert before["low"] > 15 and before["p"] < 0.01
        assert after["low"] < after["difference"] < after["high"] and after["difference"] < before["difference"]
        assert any("gain of i_tau before tuning +" in caption for caption in figure.captions)
        for path in folder.glob("trials/*/validation.parquet"):  # an older version kept none
            path.unlink()
        assert not [row for row in drawn(results(folder))["figure5"].table.frame["row"] if "gain" in row]

    def test_figure_6_is_two_gains_and_their_difference(self, of: Results, of_whole: dict) -> None:
        frame = of_whole["figure6"].table.frame
        score = {method: of.value("xtreme_up_qa", method, "xs", "f1") for method in FIGURE_6}
        assert {row["method"]: row["value"] for row in rows(frame, tunable="xs") if row["method"] in FIGURE_6} == pytest.approx(score)
        gains = [score[FIGURE_6[0]] - score[FIGURE_6[1]], score[FIGURE_6[2]] - score[FIGURE_6[3]]]  # type: ignore[operator]
        differences = [row for row in rows(frame, tunable="xs") if row["difference"] == row["difference"]]
        assert [row["difference"] for row in differences] == pytest.approx([*gains, gains[0] - gains[1]])
        assert all(row["low"] < row["difference"] < row["high"] for row in differences)

    def test_without_a_twin_figure_6_says_what_would_add_it(self, tmp_path: Path) -> None:
        write_run(tmp_path, methods=("full_instructed", "no_peft"))
        frame = drawn(results(tmp_path))["figure6"].table.frame
        assert [row["config_key"] for row in rows(frame, method="no_instruction_tuned")] == ["tunables.xs.pretrained"]
        [gain] = [row for row in frame.to_dict("records") if row["difference"] == row["difference"]]
        assert gain["row"] == "gain of i_tau, instruction-tuned base"

    def test_only_the_largest_train_size_is_drawn(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        before = {name: figure.table.frame for name, figure in drawn(results(tmp_path)).items()}
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        trials = manifest["trials"]
        smaller = [copied(tmp_path, tmp_path, t, name=f"{t['name']}-small", train_size=t["train_size"] // 2) for t in trials]
        manifest["trials"] = [*trials, *smaller]
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        html = page.build(tmp_path).read_text("utf-8")
        for figure in (path for path in (tmp_path / "report").glob("figure*.csv")):
            again = pd.read_csv(figure)
            assert len(again) == len(before[figure.stem[:7]]), figure
        assert html.count('class="ring"') == 2 + len(trials)  # of Figure 5, and of the curves of all methods

    def test_every_method_has_a_title(self) -> None:
        assert set(PAPER) <= set(TITLES)
