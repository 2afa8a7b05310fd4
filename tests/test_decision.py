"""The table for the person who must choose: quality and cost of ICL, fine-tuning and FIAT, with known tokens, times and prices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from run_directory import rewrite_rationales, write_run

from fiat_ray.report import decision, facts, page
from fiat_ray.report.answer import answers
from fiat_ray.report.decision import Cost
from fiat_ray.report.read import read, records
from fiat_ray.report.results import Results
from fiat_ray.report.section import Section
from fiat_ray.significance import NO_SPREAD

ROWS = 24


def written(folder: Path, gpus: int = 0, price: float | None = None, methods: tuple[str, ...] = ("fiat", "no_peft"), **options: Any) -> Path:
    """96 train rows; a rationale takes 100 tokens in, 10 out (of a train row 20), 0.5 s; a fine-tuned prediction 0.1 s, FIAT's own part 0.2 s."""
    options = {"right": {"fiat": 20, "no_peft": 8, "icl": 6}} | options
    write_run(folder, methods=methods, rows=ROWS, seeds=(0, 1), **options)
    rewrite_rationales(folder, lambda row: "Answer: x", tokens=10)
    store = pd.read_parquet(folder / "rationales" / "part-0.parquet")
    store.loc[store["key"].str.startswith("train"), "output_tokens"] = 20
    store.to_parquet(folder / "rationales" / "part-0.parquet")
    (folder / "reasoning.json").write_text(json.dumps({"rivers": {"rows": 20, "seconds": 10.0, "gpu_seconds": 10.0 * 2 * gpus}}))
    for path in folder.glob("trials/*/trial.json"):
        trial = json.loads(path.read_text())
        seconds, tokens = (200.0, 3000) if trial["seed"] else (100.0, 1000)
        path.write_text(json.dumps(trial | {"seconds": seconds, "tokens": tokens, "gpus": gpus, "validation_rows": 4}))
        took = {"rows": 10, "seconds": 2.0 if trial["method"] == "fiat" else 1.0, "prompt_tokens": 500, "answer_tokens": 30, "gpus": gpus}
        (path.parent / "evaluation.json").write_text(json.dumps(took))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"where": {"gpu_hour_price": price}}))
    return folder


def section(folder: Path) -> Section:
    return decision.section(Results(read(folder)))


def rows(of: Section) -> dict[str, dict[str, Any]]:
    """Method → its columns in both tables."""
    merged = [a | b for a, b in zip(*(records(table.frame) for table in of.tables), strict=True)]
    return {row["method"]: row for row in merged}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return rows(section(written(tmp_path_factory.mktemp("decision"))))


def test_quality_has_its_interval(found: dict[str, dict[str, Any]]) -> None:
    assert [found[method]["f1"] for method in ("icl", "no_peft", "fiat")] == pytest.approx([100 * x / ROWS for x in (5.5, 7.5, 19.5)])
    assert all(row["f1_low"] < row["f1"] < row["f1_high"] for row in found.values())


def test_an_interval_ends_where_scores_end(tmp_path: Path) -> None:
    icl = rows(section(written(tmp_path, right={"fiat": 9, "no_peft": 8, "icl": ROWS})))["icl"]
    assert 90 < icl["f1_low"] < icl["f1"] < icl["f1_high"] == 100


def test_where_all_rows_are_right_or_none_there_is_no_interval_and_a_note_says_why(tmp_path: Path) -> None:
    of = section(written(tmp_path, languages=("fi", "bn"), right={"fiat": ROWS, "no_peft": 0, "icl": ROWS}))
    found = {row["method"]: row for row in records(of.tables[0].frame)}
    assert [found[method]["f1"] for method in ("icl", "no_peft", "fiat")] == [100, 0, 100]
    assert all(pd.isna(row["f1_low"]) and pd.isna(row["f1_high"]) and row["note"] == NO_SPREAD for row in found.values())
    assert not of.tables[1].frame["note"].any()
    [said] = of.sentences
    assert f"gains 100.0 points of F1 ({NO_SPREAD})" in said and f"shows no sure difference: +0.0 points of F1 ({NO_SPREAD})" in said
    [answer] = answers(Results(read(tmp_path)))
    assert "FIAT equals prompting (few-shot ICL)" in answer and "to +0.0" not in answer


def test_icl_costs_a_rationale_and_no_tuning(found: dict[str, dict[str, Any]]) -> None:
    icl = found["icl"]
    assert [icl[f"per_1000_{name}"] for name in ("reasoner_tokens_in", "reasoner_tokens_out", "seconds")] == pytest.approx([1e5, 1e4, 500])
    assert [icl[name] for name in ("per_1000_tunable_tokens_in", "tuning_seconds", "tuning_tokens", "tuning_reasoner_tokens")] == [0, 0, 0, 0]


def test_fine_tuning_costs_no_rationale(found: dict[str, dict[str, Any]]) -> None:
    tuned = found["no_peft"]
    assert (tuned["tuning_seconds"], tuned["tuning_tokens"], tuned["tuning_supervised_tokens"]) == (150, 2000, 1234)  # means over seeds
    assert (tuned["tuning_reasoner_tokens"], tuned["per_1000_reasoner_tokens_in"]) == (0, 0)
    assert [tuned[f"per_1000_{name}"] for name in ("tunable_tokens_in", "tunable_tokens_out", "seconds")] == pytest.approx([5e4, 3e3, 100])


def test_fiat_costs_both(found: dict[str, dict[str, Any]]) -> None:
    fiat = found["fiat"]
    assert fiat["per_1000_seconds"] == pytest.approx(500 + 200)
    assert (fiat["per_1000_reasoner_tokens_in"], fiat["per_1000_tunable_tokens_in"]) == pytest.approx((1e5, 5e4))
    assert fiat["tuning_reasoner_tokens"] == pytest.approx(120 * (96 + 4))  # of train rows and of those that validation looked at
    assert fiat["tuning_seconds"] == pytest.approx(150 + 0.5 * (96 + 4))


def test_the_sentence_compares_cost_and_quality(tmp_path: Path) -> None:
    [said] = section(written(tmp_path)).sentences
    assert said.startswith("rivers, tunable xs: FIAT costs 7.0 times fine-tuning per 1,000 predictions (time) and gains 50.0 points of F1 (+")
    assert "; FIAT costs 1.4 times few-shot ICL per 1,000 predictions (time) and gains 58.3 points of F1 (+" in said


def test_an_interval_with_0_in_it_is_no_gain(tmp_path: Path) -> None:
    [said] = section(written(tmp_path, right={"fiat": 9, "no_peft": 8, "icl": 23})).sentences
    assert "and shows no sure difference: +4.2 points of F1 (−" in said
    assert "few-shot ICL per 1,000 predictions (time) and loses 58.3 points of F1 (−" in said


def test_methods_that_are_not_weighed_are_named(tmp_path: Path) -> None:
    notes = decision.section(Results(read(write_run(tmp_path, methods=("fiat", "no_cot"))))).tables[0].footnotes
    assert notes[-1] == "rivers: only the tables above have Majority answer, LoRA tuning with instructions (no_cot)."


def test_prices_are_those_of_gpu_time(tmp_path: Path) -> None:
    priced = section(written(tmp_path, gpus=2, price=3.6))
    found = rows(priced)
    assert found["icl"]["per_1000_price"] == pytest.approx(2000 / 1000)  # 0.5 s of 4 GPUs each, 0.001 a GPU second
    assert found["no_peft"]["per_1000_price"] == pytest.approx(0.2)
    assert found["fiat"]["per_1000_price"] == pytest.approx(2.4)
    assert found["no_peft"]["tuning_price"] == pytest.approx(150 * 2 / 1000)
    assert found["icl"]["tuning_price"] == 0
    assert "FIAT costs 12.0 times fine-tuning per 1,000 predictions (GPU time)" in priced.sentences[0]
    assert any("at 3.6 an hour" in note for note in priced.tables[0].footnotes)


def remote(folder: Path, gpus: int, price: float | None, **reasoner: Any) -> Section:
    """The same run, its rationales from an endpoint."""
    written(folder, gpus, price)
    took = {"rows": 20, "seconds": 10.0, "gpu_seconds": 0.0}
    (folder / "reasoning.json").write_text(json.dumps({"rivers": took}))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"reasoner": {"kind": "openai", **reasoner}}))
    return section(folder)


def test_a_remote_reasoner_is_paid_by_token(tmp_path: Path) -> None:
    priced = remote(tmp_path, 2, 3.6, price_in=10.0, price_out=100.0)
    found = rows(priced)
    rationale = 1000 * (100 * 10 + 10 * 100) / 1e6
    assert found["icl"]["per_1000_price"] == pytest.approx(rationale)
    assert found["no_peft"]["per_1000_price"] == pytest.approx(0.2)
    assert found["fiat"]["per_1000_price"] == pytest.approx(rationale + 0.4)
    assert found["fiat"]["tuning_price"] == pytest.approx(0.3 + 100 * 100 * 10 / 1e6 + 100 * 20 * 100 / 1e6, rel=0.05)  # of 100 rows; 4 have 10 out
    assert "GPU time)" not in priced.sentences[0]  # nobody knows the endpoint's
    assert any("A million tokens: 10 in, 100 out" in note for note in priced.tables[0].footnotes)
    costs = facts.costs(Results(read(tmp_path))).frame.iloc[0]
    assert facts.costs(Results(read(tmp_path))).footnotes[-1].startswith("Charged: by a remote endpoint")
    assert costs["charged"] == pytest.approx((10 * costs["prompt_tokens"] + 100 * costs["output_tokens"]) / 1e6)


def test_a_part_without_a_price_leaves_the_sum_open(tmp_path: Path) -> None:
    found = rows(remote(tmp_path / "unpriced", 2, 3.6))
    assert pd.isna([found[method]["per_1000_price"] for method in ("icl", "fiat")]).all() and found["no_peft"]["per_1000_price"] > 0
    found = rows(remote(tmp_path / "no GPU price", 2, None, price_in=10.0, price_out=100.0))
    assert pd.isna([found[method]["per_1000_price"] for method in ("no_peft", "fiat")]).all() and found["icl"]["per_1000_price"] > 0


@pytest.mark.parametrize(("gpus", "price"), [(0, 3.6), (2, None)])
def test_without_a_gpu_or_a_price_there_is_none(tmp_path: Path, gpus: int, price: float | None) -> None:
    found = rows(section(written(tmp_path, gpus, price)))
    assert pd.isna([found[method]["per_1000_price"] for method in ("icl", "no_peft", "fiat")]).all()


def test_what_was_not_measured_is_empty_and_never_a_part(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "reasoning.json").unlink()
    of = section(folder)
    found = rows(of)
    assert pd.isna(found["fiat"]["per_1000_seconds"]) and found["no_peft"]["per_1000_seconds"] == pytest.approx(100)
    ratio = (110 + 53) / 53
    assert f"FIAT costs {ratio:.1f} times fine-tuning per 1,000 predictions (tokens, of both models together)" in of.sentences[0]
    for path in folder.glob("trials/*/evaluation.json"):
        path.unlink()
    assert "what FIAT costs beside fine-tuning was not measured, and it gains 50.0 points" in section(folder).sentences[0]


def test_a_script_has_no_tokens(tmp_path: Path) -> None:
    folder = written(tmp_path)
    store = folder / "rationales" / "part-0.parquet"
    pd.read_parquet(store).assign(prompt_tokens=0, output_tokens=0).to_parquet(store)
    assert pd.isna(rows(section(folder))["icl"]["per_1000_reasoner_tokens_in"])


def test_what_is_lacking_is_a_row_with_the_config_key(tmp_path: Path) -> None:
    of = section(written(tmp_path, task="xtreme_up_qa", languages=("as", "ur"), methods=("no_peft",)))
    fiat = rows(of)["fiat"]
    assert (fiat["reason"], fiat["config_key"]) == ("not among this config's methods", "methods")
    assert of.sentences == []


def test_of_an_own_task_only_what_was_asked_for_is_shown(tmp_path: Path) -> None:
    found = rows(section(written(tmp_path, methods=("no_peft",))))
    assert list(found) == ["icl", "no_peft"] and found["no_peft"]["row"] == "full fine-tuning (no_peft)"


def test_the_papers_fine_tuning_is_taken_where_it_is_there(tmp_path: Path) -> None:
    found = rows(section(written(tmp_path, methods=("fiat", "no_peft", "no_instruction_tuned"))))
    assert "no_peft" not in found and found["no_instruction_tuned"]["row"].endswith("(no_instruction_tuned)")


numbers = st.one_of(st.none(), st.floats(0, 1e6))
costs = st.builds(Cost, numbers, numbers, numbers, numbers, numbers, numbers)


@settings(deadline=None)
@given(costs, costs)
def test_a_sum_is_known_where_both_parts_are(a: Cost, b: Cost) -> None:
    for name in ("seconds", "gpu_seconds", "tokens"):
        one, other, both = (getattr(cost, name) for cost in (a, b, a + b))
        assert (both is None) == (one is None or other is None)
        assert both is None or both == pytest.approx(one + other)
    assert (a + Cost()) == a


def test_the_page_shows_it(tmp_path: Path) -> None:
    folder = written(tmp_path, gpus=1, price=2.0)
    html = page.build(folder).read_text("utf-8")
    part = html[html.index('id="decision"') : html.index('id="curves"')]
    assert "1,000 predictions: price" in part and "tuning: supervised tokens" in part and "per 1000" not in part
    assert "<p>rivers, tunable xs: FIAT costs" in part
    assert len(pd.read_csv(folder / "report" / "decision.csv")) == len(pd.read_csv(folder / "report" / "decision_tokens.csv")) == 3
