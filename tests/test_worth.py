"""What rationales are worth: facts about their texts, and what the tunable makes of right and of wrong ones, on a run with known numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_directory import rewrite_predictions, rewrite_rationales, write_run

from fiat_ray.augmented import Example
from fiat_ray.predict import icl
from fiat_ray.report import page, worth
from fiat_ray.report.columns import adjust
from fiat_ray.report.rationale_facts import judged, scripts
from fiat_ray.report.read import read, records
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section
from fiat_ray.scoring import score_predictions
from fiat_ray.significance import holm
from fiat_ray.task import Task, parse_answer, without_answer

ROWS = 24
LANGUAGES = ("fi", "bn", "ur", "ja")
BENGALI = "উত্তর"


def number(row: dict[str, Any]) -> int:
    return int(row["id"].rsplit("-", 1)[1])


def rationale(row: dict[str, Any]) -> str:
    """Right for rows 0–11, wrong for 12–19, without an answer for 20–22; row 23 has none."""
    if number(row) == 23:
        return ""
    answer = row["targets"][0].upper() + "!" if number(row) < 12 else "Elsewhere"
    return f"So {BENGALI}." + ("" if number(row) >= 20 else f"\nAnswer: {answer}")


def fiat(row: dict[str, Any]) -> str:
    """Right for rows 0–15; it repeats the wrong answer of rows 16–19."""
    return row["targets"][0] if number(row) < 16 else "the elsewhere" if number(row) < 20 else "nothing"


def no_cot(row: dict[str, Any]) -> str:
    """Right for rows 0–5; in Finnish it says "Elsewhere" of row 12 too."""
    return row["targets"][0] if number(row) < 6 else "Elsewhere" if (row["language"], number(row)) == ("fi", 12) else "nothing"


def written(folder: Path, methods: tuple[str, ...] = ("fiat", "no_cot", "fiat_without_answer"), **options: Any) -> Results:
    write_run(folder, languages=LANGUAGES, methods=methods, rows=ROWS, right={"fiat_without_answer": 10}, **options)
    rewrite_rationales(folder, rationale)
    rewrite_predictions(folder, "fiat", fiat)
    rewrite_predictions(folder, "no_cot", no_cot)
    return Results(read(folder))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return written(tmp_path_factory.mktemp("worth"))


@pytest.fixture(scope="module")
def section(results: Results) -> Section:
    return worth.section(results)


def row(section: Section, table: str, what: str, language: str = "mean") -> dict[str, Any]:
    [frame] = [t.frame for t in section.tables if t.name == table]
    [found] = records(frame[(frame["what"] == what) & (frame["language"] == language)])
    return found


class TestFacts:
    def test_coverage_length_script_and_answers_are_counted(self, section: Section) -> None:
        for found in (row(section, "rationale_worth", "Rationales"), row(section, "rationale_worth", "", "bn")):
            assert found["readable"] == pytest.approx(100 * 23 / 24)
            assert found["answered"] == pytest.approx(100 * 20 / 24)
            assert found["right"] == pytest.approx(50)
            assert found["tokens"] == 7
        assert (row(section, "rationale_worth", "Rationales")["rows"], row(section, "rationale_worth", "", "bn")["rows"]) == (96, 24)
        of_bengali, texts = row(section, "rationale_worth", "", "bn"), [rationale(one) for one in rows_of("bn")]
        assert of_bengali["characters"] == pytest.approx(sum(map(len, texts)) / 23)
        letters = [sum(x.isascii() and x.isalpha() for x in text) for text in texts]
        foreign = [sum(x.isalpha() and not x.isascii() for x in text) for text in texts]
        assert of_bengali["latin"] == pytest.approx(100 * sum(letters) / (sum(letters) + sum(foreign)))
        assert "Scripts: at most the 3 most frequent, from 0.5 % of the letters on." in section.tables[0].footnotes
        assert of_bengali["scripts"] == f"Latin {of_bengali['latin']:.0f} %, Bengali {100 - of_bengali['latin']:.0f} %"

    def test_the_reasoners_own_answer_is_judged_as_icl_is_scored(self, results: Results, section: Section) -> None:
        rows = [one for one in results.run.augmented("rivers") if one["split"] == "test"]
        examples = [Example(r["id"], "test", r["language"], r["input"], tuple(r["targets"]), r["group"], r["rationale"], r["status"]) for r in rows]
        task = Task("rivers", "{question}", None, "f1", (), "", "", (), ())
        scores = {s["language"]: s["value"] for s in score_predictions("rivers", "f1", (), icl(task, examples)) if s["metric"] == "exact_match"}
        assert scores["mean"] == pytest.approx(row(section, "rationale_worth", "Rationales")["right"])
        assert scores["ja"] == pytest.approx(row(section, "rationale_worth", "", "ja")["right"])

    def test_a_label_is_right_where_it_is_the_gold_label(self, tmp_path: Path) -> None:
        write_run(tmp_path, "xor_attriqa", ("bn", "te"), labels=("no", "yes"))
        rewrite_rationales(tmp_path, lambda row: "I see.\nAnswer: **Yes**")
        rows = judged(Results(read(tmp_path)), "xor_attriqa")
        assert {(r["targets"][0], r["answer"], r["verdict"]) for r in rows} == {("yes", "yes", "right"), ("no", "yes", "wrong")}

    def test_a_text_cut_before_its_first_word_is_not_readable(self, tmp_path: Path) -> None:
        write_run(tmp_path, methods=("fiat",), rows=ROWS)
        rewrite_rationales(tmp_path, rationale)
        for path in tmp_path.glob("augmented/*/*/*/*.parquet"):
            pd.read_parquet(path).assign(status="length").to_parquet(path)
        assert row(worth.section(Results(read(tmp_path))), "rationale_worth", "Rationales")["readable"] == pytest.approx(100 * 23 / 24)

    def test_a_scripts_tokens_are_not_counted(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        rewrite_rationales(tmp_path, rationale, tokens=0)
        assert pd.isna(row(worth.section(Results(read(tmp_path))), "rationale_worth", "Rationales")["tokens"])

    def test_scripts_are_named_by_their_letters(self) -> None:
        assert scripts(["ab প্র", "Я, 漢 12!"]) == pytest.approx({"Latin": 100 / 3, "Bengali": 100 / 3, "Cyrillic": 100 / 6, "CJK": 100 / 6})
        assert scripts(["12 !"]) == {}

    @settings(deadline=None)
    @given(st.lists(st.text(), min_size=1))
    def test_shares_of_scripts_add_up(self, texts: list[str]) -> None:
        found = scripts(texts)
        assert sum(found.values()) == pytest.approx(100 if any(x.isalpha() for text in texts for x in text) else 0)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def rows_of(language: str) -> list[dict[str, Any]]:
    return [{"id": f"test-{language}-{n}", "language": language, "targets": [f"Town {n}"]} for n in range(ROWS)]


class TestUse:
    def test_scores_are_those_of_the_rows_of_a_kind(self, section: Section) -> None:
        right, wrong, none = (row(section, "rationale_use", what) for what in worth.VERDICTS.values())
        assert (right["rows"], wrong["rows"], none["rows"]) == (48, 32, 16)
        assert (right["fiat"], right["no_cot"]) == (100, 50)
        assert (wrong["fiat"], wrong["no_cot"]) == (50, 0)
        assert (none["fiat"], none["no_cot"]) == (0, 0)
        assert row(section, "rationale_use", "Its answer is right", "bn")["rows"] == 12

    def test_differences_are_of_the_same_rows_with_an_interval(self, section: Section) -> None:
        for language in ("mean", *LANGUAGES):
            for what in worth.VERDICTS.values():
                found = row(section, "rationale_use", what, language)
                assert found["f1_from_no_cot"] == pytest.approx(found["fiat"] - found["no_cot"])
        right = row(section, "rationale_use", "Its answer is right")
        assert right["f1_from_no_cot_low"] < 50 < right["f1_from_no_cot_high"] <= 100
        assert right["f1_from_no_cot_p"] < 0.05

    def test_few_questions_give_no_interval(self, section: Section) -> None:
        none = row(section, "rationale_use", "It holds no answer")  # 4 questions in every language
        assert pd.isna(none["f1_from_no_cot_low"]) and none["f1_from_no_cot"] == 0

    def test_copies_are_told_after_normalisation_and_beside_a_model_that_never_read_them(self, section: Section) -> None:
        right, wrong, none = (row(section, "rationale_use", what) for what in worth.VERDICTS.values())
        assert (right["same_answer"], right["same_answer_no_cot"]) == (100, 50)
        assert (wrong["same_answer"], wrong["same_answer_no_cot"]) == (50, pytest.approx(100 / 8 / 4))  # one Finnish row of eight
        assert pd.isna(none["same_answer"])

    def test_seeds_are_averaged(self, tmp_path: Path) -> None:
        written(tmp_path, seeds=(0, 1))
        for path in tmp_path.glob("trials/fiat-xs-s1-*/predictions.parquet"):
            pd.read_parquet(path).assign(prediction="").to_parquet(path)
        found = row(worth.section(Results(read(tmp_path))), "rationale_use", "Its answer is right")
        assert (found["fiat"], found["same_answer"]) == (50, 50)

    def test_the_sentence_says_what_the_numbers_say(self, section: Section) -> None:
        [said] = section.sentences
        assert said.startswith("rivers, tunable xs: 96 % of test rows have a readable rationale, 50 % one with the right answer. FIAT's F1 against")
        assert "+50.0 where the answer is right (+" in said and "+50.0 where the answer is wrong (+" in said
        assert said.endswith("FIAT repeats 50 % of the wrong answers; without having read them, the same tuning gives 3 %.")

    def test_where_no_cot_was_not_asked_for_nothing_speaks_of_it_but_the_key_that_adds_it(self, section: Section, tmp_path: Path) -> None:
        alone = worth.section(written(tmp_path, methods=("fiat",)))
        [said], [compared, table] = alone.sentences, [next(t for t in s.tables if t.name == "rationale_use") for s in (section, alone)]
        assert said.endswith("FIAT's F1 is 100.0 where the answer is right, 50.0 where the answer is wrong. FIAT repeats 50 % of the wrong answers.")
        assert table.title == "FIAT where its rationale's answer is right, wrong or missing" and "the same tuning" in compared.title
        assert table.footnotes == [worth.MEANS, worth.UNASKED] and "no_cot" in worth.UNASKED and worth.MARKED in compared.footnotes
        html = page.build(tmp_path).read_text("utf-8")
        part = html[html.index('id="worth"') : html.index('id="scaling"')]
        assert "gives its answer %: FIAT" in part and "w/o" not in part and "* Holds" not in part

    def test_the_gains_of_average_and_languages_are_drawn(self, section: Section) -> None:
        [(stem, svg)] = section.figures
        assert stem == "rationale_use_rivers_xs" and "tunable xs" in svg
        assert svg.count('class="dot"') == 2 * (1 + len(LANGUAGES))

    def test_without_no_cot_there_is_no_difference_but_a_row_that_says_why(self, tmp_path: Path) -> None:
        section = worth.section(written(tmp_path, methods=("fiat",), task="xor_attriqa"))
        [frame] = [t.frame for t in section.tables if t.name == "rationale_use"]
        assert pd.isna(row(section, "rationale_use", "Its answer is right")["no_cot"])
        [absent] = records(frame[frame["reason"] != ""])
        assert (absent["what"], absent["config_key"]) == ("w/o CoT-augmented tuning", "methods")
        assert section.figures == []

    def test_an_average_of_some_languages_leaves_the_others_out(self, tmp_path: Path) -> None:
        write_run(tmp_path, "xtreme_up_qa", ("as", "bn", "fi"), rows=ROWS)
        rewrite_rationales(tmp_path, lambda r: rationale(r) if "-fi-" in r["id"] else "I do not know.")
        rewrite_predictions(tmp_path, "fiat", fiat)
        section = worth.section(Results(read(tmp_path)))
        [frame] = [t.frame for t in section.tables if t.name == "rationale_use"]
        assert row(section, "rationale_worth", "Rationales", "mean_22")["right"] == 0
        assert set(frame[frame["what"] == "Its answer is right"]["language"]) == {"fi"}
        none = row(section, "rationale_use", "It holds no answer", "mean_22")
        assert none["rows"] == 2 * ROWS
        assert none["f1_from_no_cot"] == pytest.approx(none["fiat"] - none["no_cot"]) == 100 * (16 - 8) / ROWS


class TestParts:
    def test_each_part_is_compared_with_the_whole(self, results: Results, section: Section) -> None:
        whole, part, nothing = (row(section, "rationale_parts", f"Reads {worth.PARTS[m]}") for m in ("fiat", "fiat_without_answer", "no_cot"))
        assert (whole["f1"], nothing["f1"]) == (results.value("rivers", "fiat", "xs", "f1"), results.value("rivers", "no_cot", "xs", "f1"))
        assert part["f1"] == pytest.approx(100 * (10 + 10 + 9 + 9) / 4 / ROWS)
        assert part["f1_from_fiat"] == pytest.approx(part["f1"] - whole["f1"])
        assert part["f1_from_fiat_low"] < part["f1_from_fiat"] < part["f1_from_fiat_high"]
        assert pd.isna(whole["f1_from_fiat"])
        assert row(section, "rationale_parts", "Reads without its answer", "ja")["f1"] == pytest.approx(100 * 9 / ROWS)

    def test_a_part_that_was_not_run_is_one_row_of_a_papers_task_and_none_of_another(self, section: Section, tmp_path: Path) -> None:
        [own] = [t.frame for t in section.tables if t.name == "rationale_parts"]
        assert not own["reason"].any() and "Reads its answer only" not in set(own["what"])
        of_paper = worth.section(written(tmp_path, task="xtreme_up_qa"))
        [frame] = [t.frame for t in of_paper.tables if t.name == "rationale_parts"]
        [absent] = records(frame[frame["reason"] != ""])
        assert (absent["what"], absent["reason"], absent["config_key"]) == ("Reads its answer only", "not among this config's methods", "methods")


def test_p_values_of_a_family_are_adjusted_together() -> None:
    rows: list[dict[str, Any]] = [{"x_p": 0.01}, {"x_p": None}, {"x_p": 0.04}, {}]
    adjust(rows, "x", holm)
    assert rows == [{"x_p": 0.02}, {"x_p": None}, {"x_p": 0.04}, {}]


def test_without_rationales_one_row_says_why(tmp_path: Path) -> None:
    write_run(tmp_path, methods=("no_cot",))
    for path in tmp_path.glob("augmented/*/*/*/*"):
        path.unlink()
    [table] = worth.section(Results(read(tmp_path))).tables
    [only] = records(table.frame)
    assert (only["what"], only["config_key"]) == ("Rationales", "methods")


def test_the_page_shows_averages_and_folds_languages(results: Results) -> None:
    html = page.build(results.run.path).read_text("utf-8")
    part = html[html.index('id="worth"') : html.index('id="scaling"')]
    shown, folded = part.split("<details>", 1)
    assert "96 % of test rows" in shown and "Finnish" not in shown
    assert "Finnish · Its answer is right" in folded
    assert "not run" not in part
    report = results.run.path / "report"
    for name in ("rationale_worth.csv", "rationale_use.csv", "rationale_parts.csv", "rationale_use_rivers_xs.svg"):
        assert (report / name).stat().st_size > 0


@pytest.mark.parametrize(("said", "answer"), [("x\nAnswer: a\nAnswer: b", "b"), ("no line", ""), ("**Answer:** c ", "c")])
def test_the_answer_is_on_the_last_answer_line(said: str, answer: str) -> None:
    assert parse_answer(said) == answer


@pytest.mark.parametrize(
    ("labels", "said", "answer"),
    [
        (("+", "-"), "Answer: -", "-"),
        (("+", "-"), "no line", ""),
        (("Yes", "yes"), "Answer: yes", "yes"),
        (("no", "yes"), "Answer: **Yes**.", "yes"),
        (("no", "yes"), "Answer: maybe", ""),
    ],
)
def test_the_label_is_the_one_that_is_most_alike(labels: tuple[str, ...], said: str, answer: str) -> None:
    assert parse_answer(said, labels) == answer


NO_YES, SIGNS = ("no", "yes"), ("-1", "0", "1")


@pytest.mark.parametrize(
    ("labels", "said", "answer"),
    [
        (SIGNS, "Answer: 1.", "1"),
        (SIGNS, "Answer: **-1**.", "-1"),
        (SIGNS, "Answer: –1", ""),  # an en dash: read as 1 it would be another label
        (("C", "C++"), "Answer: C++.", "C++"),
        (("C", "C++"), "Answer: “c”", "C"),
        (("C", "C#"), "Answer: C#", "C#"),
        (("A", "A*"), "Answer: A*", "A*"),
        (("Yes", "yes"), "Answer: yes.", "yes"),
        (("Yes", "yes"), "Answer: YES", ""),
        (NO_YES, "Answer: “yes”", "yes"),
        (NO_YES, "**Answer:**\nyes", "yes"),
        (NO_YES, "**Answer: **\n\n**Yes**.", "yes"),
        (NO_YES, "> **Answer:**\n> yes", "yes"),
        (NO_YES, "> Answer: yes", "yes"),
        (NO_YES, "- Answer: yes", "yes"),
        (NO_YES, "`Answer: yes`", "yes"),
        (NO_YES, "Answer: yes\n\n**Answer:**", "yes"),
        (NO_YES, "Answer:\n**Answer:** yes", "yes"),
        (NO_YES, "Answer: yes\nAnswer: maybe", ""),
        (("否", "是"), "Answer：是", "是"),
        (("否", "是"), "Answer: 是。", "是"),
        (("नहीं", "हाँ"), "Answer: हाँ।", "हाँ"),
        (("لا", "نعم"), "Answer: \u200fنعم", "نعم"),
        ((), "> Answer: \u200fParis, it says.", "Paris, it says."),
        ((), "- **Answer:**\r\n\r\n_Paris_\r\n", "Paris"),
        ((), "Answer: -1", "-1"),
    ],
)
def test_answers_are_read_as_they_are_written(labels: tuple[str, ...], said: str, answer: str) -> None:
    assert parse_answer(said, labels) == answer
    assert parse_answer(f"Why it is so.\n\n{said}\n", labels) == answer
    assert without_answer(f"Why it is so.\n\n{said}\n") == "Why it is so."
