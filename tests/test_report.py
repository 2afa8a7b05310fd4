"""The report: the paper's numbers, the tables, the figures and the page, from a small run directory with real files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from run_directory import write_run

from fiat_ray.errors import UserError
from fiat_ray.recipe import ABLATIONS, TITLES
from fiat_ray.report import answer, figures, page, per_language, published, tables, terminal
from fiat_ray.report.intervals import Curve, forest, log_chart
from fiat_ray.report.picture import picture
from fiat_ray.report.read import read
from fiat_ray.report.results import Results
from fiat_ray.report.tables import Table
from fiat_ray.significance import Comparison


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("rivers"))


@pytest.fixture(scope="module")
def results(run_dir: Path) -> Results:
    return Results(read(run_dir))


def row(frame: pd.DataFrame, method: str, tunable: str = "xs") -> dict:
    found = frame[(frame["method"] == method) & (frame["tunable"] == tunable)].to_dict("records")
    assert found
    return found[0]


class TestPublished:
    @pytest.mark.parametrize("setting", published.SETTINGS)
    def test_every_row_is_a_known_method_on_all_languages_of_its_table(self, setting: str) -> None:
        languages = {"xor_attriqa": 5, "xtreme_up_qa_indic": 20, "xtreme_up_qa_full": 27}[setting]
        for table in published.per_language(setting).values():
            assert {method for _, method in table} <= {*ABLATIONS, "icl"} <= set(TITLES)
            assert {len(values) for values in table.values()} == {languages}
        for scores in published.overall(setting).values():
            assert {key for key in scores if key[1] in ABLATIONS} == {(size, method) for size in ("xs", "s") for method in ABLATIONS}

    def test_values_are_the_printed_ones(self) -> None:
        assert published.overall("xtreme_up_qa_indic")["f1"]["s", "fiat"] == 77.3
        assert published.overall("xor_attriqa")["auc_pr"]["xs", "no_cot"] == 80.3
        assert published.overall("xtreme_up_qa_full")["f1"]["", "icl"] == 69.2
        assert published.per_language("xtreme_up_qa_indic")["f1"]["xs", "no_instructions"]["ur"] == 72.48
        assert published.per_language("xtreme_up_qa_full")["f1"]["s", "no_peft"]["ko"] == 89.2
        assert published.per_language("xor_attriqa")["auc_pr"]["s", "fiat"]["te"] == 93.9

    def test_means_agree_with_table_3_but_for_the_known_rows(self) -> None:
        differing = {
            (setting, metric, *key)
            for setting in published.SETTINGS
            for metric, table in published.per_language(setting).items()
            for key, values in table.items()
            if abs(published.average(setting, values) - published.overall(setting)[metric][key]) > published.ROUNDING
        }
        assert differing == {
            ("xor_attriqa", "accuracy", "s", "no_cot"),
            ("xor_attriqa", "auc_pr", "s", "fiat"),
            ("xor_attriqa", "auc_pr", "s", "no_cot"),
            ("xtreme_up_qa_indic", "f1", "", "icl"),
            ("xtreme_up_qa_indic", "f1", "xs", "fiat"),
            ("xtreme_up_qa_indic", "f1", "s", "no_instructions"),
            ("xtreme_up_qa_full", "f1", "", "icl"),
            ("xtreme_up_qa_full", "f1", "xs", "fiat"),
            ("xtreme_up_qa_full", "f1", "xs", "no_peft"),
            ("xtreme_up_qa_full", "f1", "s", "fiat"),
            ("xtreme_up_qa_full", "f1", "s", "no_cot"),
        }

    def test_shifted_and_copied_rows_are_found(self) -> None:
        assert [found[:2] for found in published.shifted("xtreme_up_qa_indic")] == [("f1", ("xs", "no_peft"))]
        assert [found[:2] for found in published.shifted("xtreme_up_qa_full")] == [("f1", ("s", "no_cot"))]
        assert published.shifted("xor_attriqa") == []
        [(_, one, other, languages)] = published.copied("xtreme_up_qa_full")
        assert (one, other, languages[0], len(languages)) == (("xs", "fiat"), ("xs", "no_cot"), "sa", 10)

    def test_disagreements_name_table_and_row_once_each(self) -> None:
        found = published.disagreements()
        assert len(found) == len(set(found)) == 15
        assert sum("gain" in text for text in found) == 2  # +3.5 / +26.0 are those of XS, printed as "vs S fine-tune"


class TestTables:
    def test_table_2_has_baselines_fiat_and_both_gains(self, results: Results) -> None:
        frame = tables.table2_overall(results).frame
        assert row(frame, "icl", "")["f1"] == pytest.approx(250 / 12)  # 3, 3, 2, 2 of 12 rows
        assert row(frame, "icl", "")["unparsed"] == pytest.approx(100 - 250 / 12)
        fiat, tuned = row(frame, "fiat"), row(frame, "no_cot")
        test, validation = frame[frame["method"] == "gain"].to_dict("records")
        assert test["f1"] == pytest.approx(fiat["f1"] - tuned["f1"])
        assert test["f1_low"] < test["f1"] < test["f1_high"]
        assert "test-sample error only" in test["note"]
        assert pd.isna(validation["f1"]) and "not every baseline" in validation["note"]

    def test_table_2_gains_over_what_the_answer_compares_with(self, tmp_path: Path) -> None:
        of = Results(read(write_run(tmp_path / "own", methods=("fiat", "no_cot"), right={"fiat": 4, "no_cot": 10, "icl": 2})))
        frame = tables.table2_overall(of).frame
        test, _ = frame[frame["method"] == "gain"].to_dict("records")
        assert test["f1"] == pytest.approx(row(frame, "fiat")["f1"] - row(frame, "no_cot")["f1"]) and test["f1"] < -40
        assert test["note"].startswith("over LoRA tuning with instructions (no_cot) (") and "paper" not in test["row"]
        assert f"FIAT loses to LoRA tuning with instructions (no_cot) by {-test['f1']:.1f} points" in answer.answers(of)[0]
        of_paper = write_run(tmp_path / "paper", "xtreme_up_qa", ("as", "ur"), right={"fiat": 4, "no_cot": 10, "icl": 2})
        frame = tables.table2_overall(Results(read(of_paper))).frame
        test, _ = frame[frame["method"] == "gain"].to_dict("records")
        assert "no_cot" not in set(frame["method"]) and f"over {tables.NO_TWIN}" in test["note"]

    def test_the_second_gain_takes_the_baseline_that_validation_chose(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        scores = pd.read_parquet(tmp_path / "scores.parquet")
        overall = scores[scores["method"].isin(["icl", "majority"]) & (scores["language"] == "mean") & (scores["metric"] == "f1")]
        better = overall.assign(split="validation", value=overall["method"].map({"icl": 90.0, "majority": 0.0}))
        pd.concat([scores, better]).to_parquet(tmp_path / "scores.parquet")
        frame = tables.table2_overall(Results(read(tmp_path))).frame
        _, validation = frame[frame["method"] == "gain"].to_dict("records")
        assert validation["f1"] == pytest.approx(row(frame, "fiat")["f1"] - row(frame, "icl", "")["f1"])
        assert "over Few-shot ICL" in validation["note"]

    @pytest.mark.parametrize("icl", [90.0, 1.0])
    def test_where_test_and_validation_choose_the_same_baseline_there_is_one_gain(self, tmp_path: Path, icl: float) -> None:
        write_run(tmp_path, methods=("fiat", "no_peft"), right={"fiat": 11, "no_peft": 8, "icl": 3})
        scores = pd.read_parquet(tmp_path / "scores.parquet")
        untuned = scores[scores["method"].isin(["icl", "majority"]) & (scores["language"] == "mean")]
        on_validation = untuned.assign(split="validation", value=untuned["method"].map({"icl": icl, "majority": 0.0}))
        tuned = scores[(scores["split"] == "validation") & (scores["metric"] == "f1")].assign(metric="exact_match")
        pd.concat([scores, on_validation, tuned]).to_parquet(tmp_path / "scores.parquet")
        frame = tables.table2_overall(Results(read(tmp_path))).frame
        gains = frame[frame["method"] == "gain"]["row"].tolist()
        on_test = "Gain over the best baseline, chosen on test"
        assert gains == ([on_test, "Gain over the best baseline, chosen on validation"] if icl == 90 else [f"{on_test}, the same as on validation"])

    def test_a_language_that_is_not_stated_is_explained(self, tmp_path: Path) -> None:
        said = "und: rows whose language is not stated."
        of = write_run(tmp_path / "one", languages=("und",), methods=("fiat", "no_peft"))
        assert said in terminal.console_table(of).splitlines() and f"rivers: {said}" in tables.table2_overall(Results(read(of))).footnotes
        assert said not in terminal.console_table(write_run(tmp_path / "two", languages=("fi",), methods=("fiat", "no_peft")))

    def test_a_method_that_was_not_asked_for_is_told_from_an_unfinished_one(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        scores = pd.read_parquet(tmp_path / "scores.parquet")
        scores[scores["method"] != "majority"].to_parquet(tmp_path / "scores.parquet")
        assert "not finished" in row(tables.table2_overall(Results(read(tmp_path))).frame, "majority", "")["reason"]
        (tmp_path / "config.yaml").write_text("methods: [icl, fiat]")
        assert "majority" not in set(tables.table2_overall(Results(read(tmp_path))).frame["method"])

    def test_a_papers_task_has_a_row_for_a_method_that_was_not_asked_for(self, tmp_path: Path) -> None:
        frame = tables.table3_ablations(Results(read(write_run(tmp_path, "xtreme_up_qa", ("as", "ur"), methods=("fiat",))))).frame
        assert row(frame, "no_cot")["config_key"] == "methods" and row(frame, "no_cot")["row"] == TITLES["no_cot"]

    def test_without_a_twin_full_tuning_is_not_called_the_papers_baseline(self, tmp_path: Path) -> None:
        frame = tables.table2_overall(Results(read(write_run(tmp_path, "xtreme_up_qa", ("as", "ur"))))).frame
        assert row(frame, "no_peft")["row"].lower() == tables.NO_TWIN
        absent = row(frame, "no_instruction_tuned")
        assert pd.isna(absent["f1"])
        assert (absent["note"], absent["reason"], absent["config_key"]) == ("", "no pretrained twin", "tunables.xs.pretrained")

    def test_table_3_is_cumulative(self, results: Results) -> None:
        frame = tables.table3_ablations(results).frame
        assert list(frame["method"])[2:] == [*ABLATIONS]
        changed = row(frame, "no_instructions")
        assert changed["f1_change"] == pytest.approx(changed["f1"] - row(frame, "no_cot")["f1"])
        assert changed["compared_with"] == "no_cot"
        assert pd.isna(row(frame, "no_instruction_tuned")["f1_change"])

    def test_the_papers_words_for_an_ablation_stand_in_its_cumulative_table_alone(self, run_dir: Path, results: Results) -> None:
        assert row(tables.table3_ablations(results).frame, "no_peft")["row"] == TITLES["no_peft"]
        page.build(run_dir)
        named = {path.name for path in (run_dir / "report").iterdir() if TITLES["no_peft"] in path.read_text("utf-8")}
        assert named == {"index.html", "table3_ablations.csv", "table3_ablations.svg"}

    def test_without_two_adjacent_steps_there_are_no_ablations_but_what_to_run(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", methods=("fiat", "no_peft"))
        (manifest := json.loads((run / "manifest.json").read_text()))["not_run"] = []
        (run / "manifest.json").write_text(json.dumps(manifest))
        table = tables.table3_ablations(Results(read(run)))
        [absent] = table.frame.to_dict("records")
        assert (absent["task"], absent["reason"], absent["config_key"]) == ("rivers", tables.NO_STEPS, "methods") and not table.footnotes
        html = page.build(run).read_text("utf-8")
        part = html[html.index('<section id="table3"') : html.index('<section id="languages"')]
        assert "cumulative" not in html and "no_peft" not in part
        assert f"{tables.NO_STEPS} (config key that adds it: methods)" in part and "ablations and leave_one_out" in tables.NO_STEPS
        assert "Nothing that the config asks for is missing." in html
        assert "full fine-tuning (no_peft)" in terminal.console_table(run)

    @pytest.mark.parametrize(
        ("methods", "title"),
        [
            (("fiat", "no_cot", "no_instructions"), "Ablations: each removal is cumulative with the one above"),
            (("fiat", "no_cot", "no_peft"), "All methods"),
            (("fiat", "fiat_without_peft"), "Ablations"),
        ],
    )
    def test_removals_are_called_cumulative_where_none_is_left_out(self, tmp_path: Path, methods: tuple[str, ...], title: str) -> None:
        run = write_run(tmp_path / "run", methods=methods)
        (manifest := json.loads((run / "manifest.json").read_text()))["not_run"] = []
        (run / "manifest.json").write_text(json.dumps(manifest))
        table = tables.table3_ablations(Results(read(run)))
        assert table.title == title and len(table.frame) == (0 if title == "Ablations" else 2 + len(methods))
        assert page.build(run).is_file()

    def test_other_methods_are_compared_with_fiat(self, tmp_path: Path) -> None:
        frame = tables.table3_ablations(Results(read(write_run(tmp_path, methods=("fiat", "distilled_cot"))))).frame
        other = row(frame, "distilled_cot")
        assert other["compared_with"] == "fiat"
        assert other["f1_change"] == pytest.approx(other["f1"] - row(frame, "fiat")["f1"])
        assert "no_cot" not in set(frame["method"])

    def test_seeds_are_averaged_and_counted(self, tmp_path: Path) -> None:
        write_run(tmp_path, "xor_attriqa", ("bn", "te"), seeds=(0, 1, 2), labels=("no", "yes"))
        scores = pd.read_parquet(tmp_path / "scores.parquet")
        changed = (scores["method"] == "fiat") & (scores["seed"] == 1)
        scores.loc[changed, "value"] -= 30
        scores.to_parquet(tmp_path / "scores.parquet")
        results = Results(read(tmp_path))
        fiat = row(tables.table2_overall(results).frame, "fiat")
        plain = scores[(scores["method"] == "fiat") & (scores["metric"] == "accuracy") & (scores["language"] == "mean")]["value"]
        assert fiat["seeds"] == 3
        assert fiat["accuracy"] == pytest.approx(plain.mean())
        assert fiat[f"{tables.PAPER} accuracy"] == 94.0

    def test_older_trials_and_smaller_train_sizes_are_not_shown(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        scores = pd.read_parquet(tmp_path / "scores.parquet")
        before = tables.table3_ablations(Results(read(tmp_path))).frame
        older = scores[scores["method"] == "fiat"].assign(seed=7, value=0.0)
        pd.concat([scores, older]).to_parquet(tmp_path / "scores.parquet")
        pd.testing.assert_frame_equal(tables.table3_ablations(Results(read(tmp_path))).frame, before)

    @pytest.mark.parametrize(
        ("task", "languages", "name"),
        [("xor_attriqa", "bn te", "table6"), ("xtreme_up_qa", "as ur", "table7"), ("xtreme_up_qa", "as ko", "table8"), ("rivers", "fi", "per")],
    )
    def test_the_per_language_table_is_the_papers(self, tmp_path: Path, task: str, languages: str, name: str) -> None:
        write_run(tmp_path, task, languages.split(), labels=("no", "yes") if task == "xor_attriqa" else ())
        table = per_language.per_language(Results(read(tmp_path)), task)
        assert table.name.startswith(name)
        assert set(languages.split()) <= set(table.frame)
        assert (tables.PAPER in set(table.frame["source"])) == (task != "rivers")
        assert any("lacks" in note for note in table.footnotes) == (task != "rivers")

    def test_full_is_averaged_in_all_three_ways(self, tmp_path: Path) -> None:
        write_run(tmp_path, "xtreme_up_qa", ["as", "bn", "hi", "fi"])
        results = Results(read(tmp_path))
        fiat = row(tables.table2_overall(results).frame, "fiat")
        by_language = {x: results.value("xtreme_up_qa", "fiat", "xs", "f1", x) for x in ["as", "bn", "hi", "fi"]}
        assert fiat["f1_mean_22"] == pytest.approx((by_language["as"] + by_language["bn"] + by_language["hi"]) / 3)
        assert fiat["f1_mean_21"] == pytest.approx((by_language["as"] + by_language["bn"]) / 2)
        assert any("lacks" in note and "mean of 22" in note for note in tables.table2_overall(results).footnotes)

    def test_a_kept_step_0_is_marked(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        path = next((tmp_path / "trials").glob("no_cot-*/trial.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kept_step_0": True}))
        assert "kept step 0 (1 of 1 seeds)" in row(tables.table3_ablations(Results(read(tmp_path))).frame, "no_cot")["note"]

    @pytest.mark.parametrize(
        ("fiat", "full", "starts", "compared"),
        [
            (11, 4, "Both, on rivers", "FIAT beats full fine-tuning (no_peft) by"),
            (4, 4, "No sure choice between fine-tune alone and both", "FIAT equals full fine-tuning (no_peft)."),
            (3, 4, "No sure choice between fine-tune alone and both", "below full fine-tuning (no_peft), which does not hold (95 % interval"),
            (4, 11, "Fine-tune alone, on rivers", "FIAT loses to full fine-tuning (no_peft) by"),
        ],
    )
    def test_the_answer_is_to_the_question(self, tmp_path: Path, fiat: int, full: int, starts: str, compared: str) -> None:
        of = Results(read(write_run(tmp_path, methods=("fiat", "no_peft"), right={"fiat": fiat, "no_peft": full, "icl": 2})))
        [said] = answer.answers(of)
        assert said.startswith(starts) and compared in said
        for method, title in (("fiat", "both (FIAT)"), ("no_peft", "full fine-tuning (no_peft)"), ("icl", "prompting (few-shot ICL)")):
            value = of.value("rivers", method, "" if method == "icl" else "xs", "f1")
            assert re.search(rf"{value:.1f} (F1 )?for {re.escape(title)}", said)
        found = of.difference("rivers", ("fiat", "xs"), ("no_peft", "xs"), "f1")
        assert found is not None and (fiat == full or f"{tables.signed(found.low or 0.0)} to {tables.signed(found.high or 0.0)}" in said)

    def test_the_answer_takes_the_best_tuning_without_rationales_and_tests_the_first_two(self, tmp_path: Path) -> None:
        right = {"fiat": 1, "no_cot": 11, "no_peft": 6, "icl": 3}
        [said] = answer.answers(Results(read(write_run(tmp_path, methods=("fiat", "no_cot", "no_peft"), right=right))))
        best = "LoRA tuning with instructions (no_cot, the best of 2 such methods on validation)"
        assert said.startswith("Fine-tune alone, on rivers") and f"FIAT loses to {best}" in said
        assert f"{best} beats prompting (few-shot ICL) by" in said

    def test_the_answer_chooses_among_tunings_on_validation(self, tmp_path: Path) -> None:
        """Not on test, where the best of several equal methods would seem to beat FIAT too often."""
        right = {"fiat": 8, "no_cot": 7, "no_peft": 6, "icl": 2}
        write_run(tmp_path, methods=("fiat", "no_cot", "no_peft"), right=right)
        scores = pd.read_parquet(tmp_path / "scores.parquet")
        scores.loc[(scores["split"] == "validation") & (scores["method"] == "no_peft"), "value"] = 99.0
        scores.to_parquet(tmp_path / "scores.parquet")
        [said] = answer.answers(of := Results(read(tmp_path)))
        assert "full fine-tuning (no_peft, the best of 2 such methods on validation)" in said and "no_cot" not in said
        gain, _ = (frame := tables.table2_overall(of).frame)[frame["method"] == "gain"].to_dict("records")
        assert gain["f1"] == pytest.approx(row(frame, "fiat")["f1"] - row(frame, "no_peft")["f1"])
        assert "over full fine-tuning (no_peft)" in gain["note"] and "of 2 tunings the best on validation" in gain["note"]
        scores[(scores["split"] == "test") | (scores["method"] != "no_peft")].to_parquet(tmp_path / "scores.parquet")
        [said] = answer.answers(Results(read(tmp_path)))
        assert "(no_cot, the best of 2 such methods on test, not all having a score on validation)" in said and "no_peft" not in said

    def test_an_answer_without_fiat_says_why(self, tmp_path: Path) -> None:
        [said] = answer.answers(Results(read(write_run(tmp_path, methods=("no_peft",), right={"no_peft": 11}))))
        assert said.startswith("Fine-tune alone") and said.endswith("FIAT has no score: not among this config's methods.")

    def test_the_console_table_is_aligned_and_narrow(self, run_dir: Path) -> None:
        lines = terminal.console_table(run_dir).splitlines()
        assert max(map(len, lines)) <= 110
        header = next(line for line in lines if line.startswith("method"))
        fiat = next(line for line in lines if line.startswith("FIAT"))
        assert fiat[: header.index("F1") + 2].endswith("87.5")
        assert any("no pretrained twin" in line for line in lines)
        assert lines[-1].startswith("One 135 M model")

    @pytest.mark.parametrize(("cut", "advised"), [(0.0, False), (17.0, True)])
    def test_rationales_that_were_cut_off_come_with_what_to_do(self, tmp_path: Path, cut: float, advised: bool) -> None:
        write_run(tmp_path)
        scores = pd.read_parquet(tmp_path / "scores.parquet")
        scores.loc[(scores["method"] == "icl") & (scores["metric"] == "length"), "value"] = cut
        scores.to_parquet(tmp_path / "scores.parquet")
        text = terminal.console_table(tmp_path)
        assert f"{cut:.0f} % cut off at the token limit" in text and ("raise reasoner.max_tokens" in text) == advised


class TestFigures:
    def test_ticks_are_round_and_cover_the_range(self) -> None:
        assert figures.ticks(0, 12) == [0, 5, 10, 15]
        for low, high in ((0, 1), (17.3, 18.1), (-4, 97), (0, 3000), (3, 3)):
            found = figures.ticks(low, high)
            assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8

    def test_a_chart_marks_the_selected_point_and_is_well_formed(self) -> None:
        line = figures.Line("a < b", [(0, 10.0), (4, 30.0), (8, 20.0)], marked=(4, 30.0))
        for text in (svg := figures.line_chart("t & u", "step", "F1", [line]), figures.standalone(svg)):
            root = ElementTree.fromstring(text)
            rings = [x for x in root.iter() if x.get("class") == "ring"]
            dots = [x for x in root.iter() if x.get("class") == "dot"]
            assert len(dots) == 3
            assert [(x.get("cx"), x.get("cy")) for x in rings] == [(dots[1].get("cx"), dots[1].get("cy"))]
        assert "prefers-color-scheme: dark" in figures.standalone(svg)


class Outside(HTMLParser):
    """Collects what a page would load, and the ids that links point to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        self.loaded += [values[name] or "" for name in ("src", "srcset", "poster") if name in values]
        self.loaded += [values.get("href") or ""] if tag == "link" else []
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "a" and (values.get("href") or "").startswith("#"):
            self.anchors.append((values["href"] or "")[1:])


def test_the_report_needs_no_engine_and_tracking_loads_mlflow_late() -> None:
    heavy = "{'torch', 'ray', 'vllm', 'deepspeed', 'mlflow', 'transformers'}"
    code = f"import sys, fiat_ray.report.page, fiat_ray.tracking; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


class TestPage:
    @pytest.fixture(scope="class")
    def html(self, run_dir: Path) -> str:
        return page.build(run_dir).read_text("utf-8")

    def test_it_is_one_file_that_loads_nothing(self, html: str) -> None:
        parser = Outside()
        parser.feed(html)
        assert parser.loaded == []
        assert parser.scripts == 3
        assert len(parser.ids) == len(set(parser.ids))
        assert set(parser.anchors) <= set(parser.ids)
        assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)

    def test_texts_of_rows_stay_texts(self, html: str) -> None:
        assert "<script>alert(1)" not in html
        assert "<b>of</b>" not in html
        found = re.search(r'id="example-data">(.*?)</script>', html, re.S)
        assert found and not set("<>&") & set(found[1]), "a tag or a comment may end or hide the script"
        data = json.loads(found[1])
        assert "</script><script>alert(1)</script>" in data["texts"][data["rows"][0]["rationale"]][0]
        assert len(data["rows"]) == 48 and "do not fit into this page" not in html and "first seed" not in html

    def test_a_command_in_a_sentence_is_code(self, html: str) -> None:
        part = html[html.index('<section id="controls"') : html.index('<section id="curves"')]
        assert "<code>make controls</code>" in part and "`" not in part

    def test_names_and_words_of_a_run_stay_texts(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "<hostile> run")
        manifest = json.loads((run / "manifest.json").read_text())
        manifest |= {"command": "<hostile> command", "notes": ["<hostile> note"], "versions": {"<hostile> package": "<hostile> version"}}
        manifest["models"]["reasoner"]["name"] = "<hostile> model"
        (run / "manifest.json").write_text(json.dumps(manifest))
        html = page.build(run).read_text("utf-8")
        assert "<hostile" not in html
        for what in ("run", "command", "note", "package", "version", "model"):
            assert f"&lt;hostile&gt; {what}" in html, what

    def test_right_to_left_texts_say_so(self, html: str) -> None:
        found = re.search(r'id="example-data">(.*?)</script>', html, re.S)
        assert found
        data = json.loads(found[1])
        urdu = next(example for example in data["rows"] if example["language"] == "ur")
        (label, question), (_, title), _ = urdu["input"]
        assert (label, *data["texts"][question][1:]) == ("question", "rtl", "ur")
        assert data["texts"][title][1:] == ["ltr"]

    def test_it_holds_what_a_reader_needs(self, html: str) -> None:
        assert "on rivers with tunable xs: 87.5 F1 for both (FIAT), against 62.5 for LoRA tuning with instructions (no_cot" in html
        assert html.count("One 135 M model plays both parts") == 3
        for text in ("fiat-ray run rivers.yaml --out runs/rivers", "tunables.xs.pretrained", "content hash abc123", "torch"):
            assert text in html
        assert "prefers-color-scheme: dark" in html

    def test_the_papers_numbers_stand_only_beside_its_tasks(self, tmp_path: Path, html: str) -> None:
        of_paper = page.build(write_run(tmp_path, "xtreme_up_qa", ("as", "ur"))).read_text("utf-8")
        means = [f"the mean of its languages is {mean}" for mean in ("95.40", "81.30")]
        for text in (tables.PAPER, "77.3", "XOR-AttriQA", 'href="#paper"', "table6_per_language", "Table 3 ·", *means):
            assert text in of_paper and text not in html, text

    def test_an_own_task_has_one_name_for_a_method_and_no_empty_columns(self, tmp_path: Path) -> None:
        run = write_run(tmp_path, methods=("fiat", "no_peft"))
        (manifest := json.loads((run / "manifest.json").read_text()))["not_run"] = []
        (run / "manifest.json").write_text(json.dumps(manifest))
        text, html = terminal.console_table(run), page.build(run).read_text("utf-8")
        for shown in (text, html):
            assert "full fine-tuning (no_peft)" in shown
            assert not [words for words in ("w/o", "not among", "pretrained twin", "Holds at 5 % after Holm") if words in shown]
        assert "change" not in text and {path.stem for path in (run / "report").glob("figure*")} == set()

    def test_tables_and_figures_lie_beside_it(self, run_dir: Path, html: str) -> None:
        report = run_dir / "report"
        for name in re.findall(r'href="([a-z0-9_]+\.csv)"', html):
            assert len(pd.read_csv(report / name)) > 0, name
        assert {"table2_overall.csv", "table3_ablations.csv", "per_language.csv"} <= {path.name for path in report.iterdir()}
        ElementTree.parse(report / "validation_rivers_xs.svg")
        assert not [path for path in report.iterdir() if path.name.startswith(".")]

    def test_a_rebuild_writes_the_same_bytes_and_drops_stale_tables(self, run_dir: Path, html: str) -> None:
        stale = run_dir / "report" / "sizes_of_another_task.csv"
        stale.write_text("as,bho\n")
        assert page.build(run_dir).read_text("utf-8") == html
        assert not stale.exists()

    def test_a_run_without_scores_has_a_page_too(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        for path in (*tmp_path.glob("trials/*/*"), tmp_path / "scores.parquet", *tmp_path.glob("untuned/*"), *tmp_path.glob("augmented/*/*/*/*")):
            path.unlink() if path.is_file() else None
        html = page.build(tmp_path).read_text("utf-8")
        assert "not finished; the same command goes on" in html
        assert "not finished" in terminal.console_table(tmp_path)

    def test_a_folder_that_is_no_run_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no manifest\.json"):
            page.build(tmp_path)


HOSTILE = '</text><script>alert(1)</script>&"'


def test_pictures_hold_what_they_are_given_as_text() -> None:
    table = Table("t", f"{HOSTILE} title", pd.DataFrame({f"{HOSTILE} column": [f"{HOSTILE} cell"]}), [f"{HOSTILE} note"])
    difference = Comparison(1.0, 0.5, 1.5, 0.01, 10, 10, (1, 1), "")
    drawn = {
        ("title", "column", "cell", "note"): picture(table),
        ("title", "x", "row"): forest(f"{HOSTILE} title", f"{HOSTILE} x", [f"{HOSTILE} row"], {"series": {f"{HOSTILE} row": difference}}),
        ("title", "x", "y", "curve"): log_chart(
            f"{HOSTILE} title", f"{HOSTILE} x", f"{HOSTILE} y", [Curve(f"{HOSTILE} curve", [(1.0, 2.0), (10.0, 3.0)])]
        ),
    }
    for names, svg in drawn.items():
        tree = ElementTree.fromstring(svg)
        assert not [node for node in tree.iter() if "script" in node.tag.lower()]
        said = re.sub(r"\s+", "", "".join(tree.itertext()))
        assert all(re.sub(r"\s+", "", f"{HOSTILE} {name}") in said for name in names), (names, said)
