"""``infer`` as a batch job: killed at any moment it goes on, its output is there whole or not at all, and it holds a piece of the rows in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import infer_sitting
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle
from run_directory import note_as_tuned
from test_break import raylet_of
from test_cli import config_file, own_task

from benchmarks.interruption import FLUSHED_AFTER
from fiat_ray import artifact, config, evaluate, infer, runs
from fiat_ray.errors import UserError
from fiat_ray.progress import Console, Work
from fiat_ray.recipe import RECIPES
from fiat_ray.rows import read_rows
from fiat_ray.schema import INFERRED

PIECE = 64

SCRIPT = """
import time
from pathlib import Path

CALLS = Path(__file__).with_name("calls")

def reason(row):
    time.sleep({seconds})
    with CALLS.open("a") as calls:
        calls.write(f"{{row['fields']['question']}} {{time.time()}}\\n")
    return f"I read {{row['fields']['question']}}.\\nAnswer: t"
"""


def make_run(folder: Path, tiny: Path, seconds: float, passage: str = "c", methods: tuple[str, ...] = ("fiat",)) -> Path:
    """A run whose last trial is written down as tuned; nothing was. Its reasoner takes ``seconds`` a row."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT.format(seconds=seconds))
    changes = {"reasoner": {"kind": "scripted", "script": "script.py"}, "tunables": {"xs": {"model": str(tiny)}}}
    test = json.dumps({"question": "q", "context": passage, "target": "t", "language": "en"})
    path = config_file(folder, task=str(own_task(folder, **{"test.jsonl": test})), limit={}, methods=list(methods), **changes)
    done, _ = runs.run_config(config.load(path), folder / "run", stages=(), console=Console(quiet=True))
    note_as_tuned(done.path, cot=RECIPES[methods[-1]].cot)
    return done.path


def row(number: int) -> dict[str, Any]:
    """Every tenth row asks what the one before it does."""
    question = number - (number % 10 == 9)
    return {"question": f"q{question}", "context": "c", "language": ("en", "bn")[question % 2], "mine": number}


def sitting(run: Path, source: Path, output: Path, piece: int = PIECE) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(Path(__file__).with_name("infer_sitting.py")), str(run), str(source), str(output), str(piece)]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def killed_when(there: Callable[[], bool], driver: subprocess.Popen[str]) -> float:
    while not there():
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    at = time.time()
    driver.communicate()
    return at


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def repeated(log: Path, kills: list[float]) -> list[str]:
    """What stands in a log twice though the first time was finished, and time enough to be written, before a kill."""
    times = defaultdict(list)
    for line in lines(log):
        what, _, at = line.rpartition(" ")
        times[what].append(float(at))
    excused = {what for what, (first, *more) in times.items() for kill in kills if more and abs(first - kill) < FLUSHED_AFTER}
    return [what for what, found in times.items() if len(found) > 1 and what not in excused]


def check_answers(output: Path, rows: int) -> None:
    found = [json.loads(line) for line in output.open()]
    assert len(found) == rows
    for number, answer in enumerate(found):
        asked = row(number)
        said = {"rationale": f"I read {asked['question']}.\nAnswer: t", "status": "ok"}
        assert answer == asked | said | {"prediction": f"question: {asked['question']} context: c"}


def test_killed_while_reasoning_and_while_answering(tmp_path: Path, tiny: Path) -> None:
    run, source, output = make_run(tmp_path / "it", tiny, 0.01), tmp_path / "rows.parquet", tmp_path / "answers.jsonl"
    rows = 600
    pq.write_table(pa.Table.from_pylist([row(number) for number in range(rows)]), source, row_group_size=100)
    folder = tmp_path / ".answers.jsonl.parts"

    kills = [killed_when(lambda: len(lines(run / "calls")) > 150, sitting(run, source, output))]
    assert not output.exists() and not list(folder.glob("answers-*"))
    kills.append(killed_when(lambda: len(list(folder.glob("answers-*.parquet"))) > 3, sitting(run, source, output)))
    assert not output.exists()
    reasoned, answered = len(lines(run / "calls")), len(list(folder.glob("answers-*.parquet")))

    last = sitting(run, source, output)
    out, log = last.communicate()
    assert last.returncode == 0, log
    assert f"{rows} rows with predictions: {output}" in out
    assert f"{answered * PIECE:,} of {rows:,} rows are answered" in log and "rows measured" not in log
    check_answers(output, rows)
    assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "it", "rows.parquet"] and not list(run.glob(".*.tmp"))

    assert len(lines(run / "calls")) == reasoned, "killed while it answers, it asks the reasoner nothing again"
    assert not repeated(run / "calls", kills)
    counts = Counter(line.rpartition(" ")[0] for line in lines(run / "answered"))
    assert len(counts) == 10 and sum(counts.values()) <= 10 + 2, "two pieces were in flight"
    asked = {line.rpartition(" ")[0] for line in lines(run / "calls")}
    assert asked == {row(number)["question"] for number in range(rows)}


def test_a_raylet_that_is_killed_while_it_answers(tmp_path: Path, tiny: Path) -> None:
    run, source, output = make_run(tmp_path / "it", tiny, 0), tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(row(number)) + "\n" for number in range(80)))
    driver = sitting(run, source, output, piece=4)
    while len(list((tmp_path / ".answers.jsonl.parts").glob("answers-*.parquet"))) < 3:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)
    os.kill(raylet_of(driver.pid), signal.SIGKILL)
    said = driver.communicate(timeout=60)[1]
    assert driver.returncode == 1 and said.count("fiat-ray: Ray's raylet on this machine has ended") == 1, said
    assert not output.exists()
    last = sitting(run, source, output, piece=4)
    assert "0 of 20 pieces" not in last.communicate()[1] and last.returncode == 0
    check_answers(output, 80)


def test_other_rows_start_over(
    tmp_path: Path, tiny: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(infer_sitting.Repeating):
        def infer(self, *_: Any) -> list[dict[str, Any]]:
            raise RuntimeError("no engine")

    cloudpickle.register_pickle_by_value(infer_sitting)
    run, source, output = runs.open_run(make_run(tmp_path / "it", tiny, 0)), tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(row(number)) + "\n" for number in range(20, 60)))
    with pytest.raises(Exception, match="no engine"), monkeypatch.context() as patch:
        patch.setattr(evaluate, "Evaluator", Broken)
        infer.infer_file(run, source, output, console=Console(quiet=True))
    assert not output.exists() and (tmp_path / ".answers.jsonl.parts" / "measured.json").is_file()

    monkeypatch.setattr(evaluate, "Evaluator", infer_sitting.Repeating)
    source.write_text("".join(json.dumps(row(number)) + "\n" for number in range(30)))
    assert infer.infer_file(run, source, output, console=Console(quiet=True)) == infer.Inferred(30, [])
    check_answers(output, 30)
    capsys.readouterr()
    assert run.infer([row(0)])[0]["prediction"] == "question: q0 context: c"
    assert "infer: 1 row measured" in capsys.readouterr().err, "a call from Python shows how far it is"
    infer.infer_file(run, source, output.with_suffix(".parquet"), console=Console(quiet=True))
    assert pq.read_table(output.with_suffix(".parquet")).to_pylist() == [json.loads(line) | {"score": None} for line in output.open()]


def test_a_trial_that_was_tuned_anew_starts_over(tmp_path: Path, tiny: Path) -> None:
    """Under its old name, on rationales that were sealed anew: answers of its weights and of those before must not stand in one file."""
    run = runs.open_run(make_run(tmp_path / "it", tiny, 0))

    def go_on() -> list[Path]:
        infer._Job(run, None, tmp_path, Console(quiet=True)).go_on("rows")
        return list(tmp_path.glob("answers-*"))

    go_on()
    artifact.write_rows(tmp_path / "answers-000000.parquet", [], INFERRED)
    assert len(go_on()) == 1
    [record] = run.path.glob("trials/*/trial.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"augmented": "another"}))
    assert go_on() == []


def test_a_trial_that_leads_where_fiat_answers_is_named(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.open_run(make_run(tmp_path / "it", tiny, 0, methods=("no_peft", "fiat")))
    no_peft, fiat = run.folder.read_manifest()["trials"]
    [record] = run.trials
    (run.folder.trial(no_peft["name"]) / "adapter").mkdir(parents=True)

    def said(no_peft_scores: float, trial: str | None = None) -> str:
        other = record | no_peft | {"selection_value": no_peft_scores}
        artifact.write_json(run.folder.trial(no_peft["name"]) / "trial.json", other)
        infer._Job(run, trial, tmp_path, Console())
        return capsys.readouterr().err

    named = f"infer: {fiat['name']} answers, the best of FIAT; on validation {no_peft['name']} leads: --trial {no_peft['name']}\n"
    assert said(record["selection_value"] + 1).endswith(named)
    assert said(record["selection_value"] - 1) == said(record["selection_value"] + 1, "fiat") == ""


def test_a_passage_is_cut_as_the_runs_were(tmp_path: Path, tiny: Path) -> None:
    """Asked of a trial without CoT in a run with FIAT, whose rows left room for its rationales."""
    run = runs.open_run(make_run(tmp_path / "it", tiny, 0, "word " * 3000, ("fiat", "no_cot")))
    job = infer._Job(run, "no_cot", tmp_path, Console(quiet=True))
    job._measure(read_rows(run.path / "task/mytask/test.jsonl"), Work("measuring"))
    [new] = artifact.read_rows(job._piece("rows", 0))
    [old] = [row.input for row in run.folder.examples("mytask", with_rationales=False) if row.split == "test"]
    assert new["input"] == old and 500 < old.count("word") < 3000


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_that_were_answered_before_keep_nothing_of_it(tmp_path: Path, tiny: Path, suffix: str) -> None:
    """Asked of a trial without CoT. Its answers lie there as if killed before they were put together, so no engine starts."""
    folder = make_run(tmp_path / "it", tiny, 0, methods=("no_cot",))
    run, source, output = runs.open_run(folder), tmp_path / "rows.jsonl", tmp_path / f"answers{suffix}"
    earlier = {"prediction": "old", "score": 0.5, "rationale": "old", "status": "engine_error"}
    source.write_text("".join(json.dumps(row(number) | earlier) + "\n" for number in range(3)))
    parts = tmp_path / f".{output.name}.parts"
    parts.mkdir()
    job = infer._Job(run, None, parts, Console(quiet=True))
    job.go_on(infer._state(source))
    job._measure(read_rows(source), Work("measuring"))
    answers = [{"prediction": f"new {number}", "score": None, "rationale": None, "status": None} for number in range(3)]
    artifact.write_rows(job._piece("answers", 0), answers, INFERRED)
    assert infer.infer_file(run, source, output, console=Console(quiet=True)) == infer.Inferred(3, [])
    unset = {"score": None, "rationale": None, "status": None} if suffix == ".parquet" else {}
    assert [found for _, found in read_rows(output)] == [row(number) | unset | {"prediction": f"new {number}"} for number in range(3)]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_thousand_rows(tmp_path: Path, tiny: Path) -> None:
    """Killed twice; and what a driver holds does not grow with the rows."""
    memory, kills = {}, []
    for rows in (10_000, 100_000):
        place = tmp_path / str(rows)
        run, source, output = make_run(place, tiny, 0), place / "rows.jsonl", place / "answers.jsonl"
        with source.open("w") as file:
            file.writelines(json.dumps(row(number)) + "\n" for number in range(rows))
        parts = place / ".answers.jsonl.parts"
        if rows == 100_000:
            kills.append(killed_when(lambda run=run: len(lines(run / "calls")) > 30_000, sitting(run, source, output, 2048)))
            kills.append(killed_when(lambda parts=parts: len(list(parts.glob("answers-*"))) > 20, sitting(run, source, output, 2048)))
            assert not output.exists()
        driver = sitting(run, source, output, 2048)
        out, log = driver.communicate()
        assert driver.returncode == 0, log
        check_answers(output, rows)
        memory[rows] = int(out.splitlines()[-1])
        assert not repeated(run / "calls", kills)
    assert memory[100_000] < memory[10_000] + 100, memory


def test_a_run_that_a_node_does_not_see_is_refused_before_an_engine_starts(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two nodes, of which only the first has the folder; where the answers go nobody else needs to see."""
    run = make_run(tmp_path / "campaign", tiny, 0)
    first, second = "1" * 56, "2" * 56
    nodes = [{"NodeID": node, "Alive": True, "NodeManagerAddress": f"10.0.0.{node[0]}", "Resources": {"CPU": 2}} for node in (first, second)]

    def remote(**_: Any) -> Callable[[Callable[..., bool]], Any]:
        return lambda see: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda path, node: node == first and see(path, node)))

    for name, there in {"is_initialized": lambda: True, "nodes": lambda: nodes, "remote": remote, "get": lambda seen: seen}.items():
        monkeypatch.setattr(ray, name, there)
    source, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text(json.dumps(row(1)) + "\n")
    with pytest.raises(UserError, match=rf"^{run}: node 10.0.0.2 does not see this folder; the run must lie on storage all nodes share$"):
        infer.infer_file(runs.open_run(run), source, output, console=Console(quiet=True))
    assert not output.exists() and not list(run.glob(".probe-*"))
