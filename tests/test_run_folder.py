"""A run directory alone suffices to run again: its task folders hold the rows, with the ids, groups and order that they had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from test_own_task import questions
from test_tasks import attriqa_row, attriqa_tree, qa_tree, write

import fiat_ray as fiat
from fiat_ray import config, runs
from fiat_ray.errors import UserError
from fiat_ray.length import Lengths
from fiat_ray.prepare import drawn, load_tasks, prepare
from fiat_ray.progress import Console
from fiat_ray.reason import requests
from fiat_ray.run_folder import ABANDONED, DRAWN, RunFolder
from fiat_ray.task import Task, limited

ODD = 'lone \ud800 surrogate, line\u2028separator, "quoted", <|im_start|>, \x00 and \x1b'


def settings(**changes: Any) -> config.Config:
    return config.load({"task": "own_task", "methods": ["majority"], **changes})


def carried_out(folder: Path, tasks: dict[str, Task] | None = None, stages: tuple[str, ...] = ("tune",), **changes: Any) -> Path:
    """A run of the majority baseline, which needs no Ray; without the last stage no report either, which takes seconds."""
    return runs.run_config(settings(**changes), folder / "run", tasks=tasks, stages=stages, console=Console(quiet=True))[0].path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_rerun(run: Path) -> None:
    """``fiat-ray run RUN``, in a process of its own where no Ray can be reached, changes no file."""
    before = contents(run)
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-m", "fiat_ray", "run", str(run)], capture_output=True, text=True, env=environment, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert contents(run) == before and (run / "report" / "index.html").is_file()


def same(found: Task, expected: Task) -> bool:
    return all(getattr(found, field.name) == getattr(expected, field.name) for field in fields(Task))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What makes a run whole, report and MLflow included; one store for all tests, because making it takes seconds."""
    return {"stages": runs.schedule.STAGES, "tracking_uri": f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"}


@pytest.mark.parametrize("labels", [None, ["no", "yes"]])
def test_rows_given_from_python_are_kept_as_they_were(tmp_path: Path, labels: list[str] | None) -> None:
    rows = questions()
    rows[4]["question"] = rows[5]["context"] = ODD
    rows[6] |= {"answer": ["Land 6", "the sixth land"]}
    rows += [row | {"lang": "te"} for row in rows[:12]]  # groups over languages, and rows of one group apart from each other
    if labels:
        rows = [row | {"answer": labels[number % 2]} for number, row in enumerate(rows)]
    task = Task.from_rows(rows * 2, target="answer", language="lang", labels=labels, group="context", i_beta=" Think: \n no\tyes \n")
    task = replace(task, rows=tuple(row for row in task.rows if row.id.endswith("-2") or row.split != "train"))  # ids that tell what is not there
    run = carried_out(tmp_path, {"own_task": task})
    again = load_tasks(config.load(run))["own_task"]
    assert same(again, replace(limited(task, {}), built_in=True))
    assert again.rows[0].place == f"{run}/task/own_task/train.jsonl, row 1"


def test_a_run_from_python_runs_again_from_its_directory(tmp_path: Path, whole: dict[str, Any]) -> None:
    check_rerun(carried_out(tmp_path, {"own_task": Task.from_rows(questions(), target="answer", language="lang")}, **whole))


def test_a_task_of_one_undetermined_language_is_kept(tmp_path: Path) -> None:
    task = Task.from_rows(questions(), target="answer", input="{question}", name="plain.1")
    run = carried_out(tmp_path, {"plain.1": task}, task="plain.1", limit={"train": 3})
    assert same(load_tasks(config.load(run))["plain.1"], replace(limited(task, {"train": 3}), built_in=True))


@pytest.mark.parametrize("name", ["xor_attriqa", "xtreme_up_qa"])
def test_a_built_in_task_runs_again_when_its_data_are_gone(tmp_path: Path, name: str, whole: dict[str, Any], ray_local: None) -> None:
    tree = attriqa_tree() if name == "xor_attriqa" else qa_tree()
    if name == "xor_attriqa":  # a row that the leakage guard takes out, and one that stands there twice
        tree["xor_attriqa/in-language/val.jsonl"] += [tree["xor_attriqa/in-language/fi.jsonl"][0], attriqa_row(99), attriqa_row(99)]
    data = write(tmp_path / "data", tree)
    limit = {"train": 1, "validation": 2}
    (tmp_path / "script.py").write_text("def reason(row):\n    return 'It says so.\\nAnswer: ' + row['targets'][0]\n")
    reasoned = {"methods": ["majority", "icl"], "reasoner": {"kind": "scripted", "script": str(tmp_path / "script.py")}}
    run = carried_out(tmp_path, task=name, data=str(data), limit=limit, **(whole | reasoned if name == "xor_attriqa" else {}))
    expected = load_tasks(settings(task=name, data=str(data), limit=limit))[name]
    shutil.rmtree(data)
    assert same(load_tasks(config.load(run))[name], expected)
    assert bool(expected.removed) == (name == "xor_attriqa")
    if name == "xor_attriqa":
        assert list(run.glob("augmented/*/*/*/*.parquet"))
        check_rerun(run)
    assert same(load_tasks(config.load(run.rename(tmp_path / "elsewhere")))[name], expected)


def test_a_runs_task_folder_is_a_task_folder(tmp_path: Path) -> None:
    """Read as any other it has the same rows and prompts, and the same rows are one group."""
    task = Task.from_rows(questions(), target="answer", language="lang", group="context")
    run = carried_out(tmp_path, {"own_task": task})
    other = Task.load(run / "task" / "own_task")
    assert (other.i_beta, other.i_tau, other.exemplars, other.input) == (task.i_beta, task.i_tau, task.exemplars, task.input)
    expected = limited(task, {}).rows
    assert [(r.split, r.language, r.fields, r.targets) for r in other.rows] == [(r.split, r.language, r.fields, r.targets) for r in expected]
    groups: dict[str, set[str]] = defaultdict(set)
    for row, kept in zip(other.rows, expected, strict=True):
        groups[kept.group].add(row.group)
    assert all(len(names) == 1 for names in groups.values()) and len(set.union(*groups.values())) == len(groups)


def test_of_a_task_that_is_handed_over_the_languages_that_are_asked_for_count(tmp_path: Path) -> None:
    task = Task.from_rows(questions(), target="answer", language="lang")
    removed = tuple({"id": language, "split": "train", "language": language, "overlaps": "test"} for language in task.languages)
    run = carried_out(tmp_path, {"own_task": replace(task, removed=removed)}, languages=["fi", "sw"], limit={"train": 3})
    kept = load_tasks(config.load(run))["own_task"]
    assert [row.id for row in kept.rows] == [row.id for row in limited(task, {"train": 3}).rows if row.language != "bn"]
    assert kept.languages == ["fi", "sw"] and kept.removed == removed[1:]
    with pytest.raises(UserError, match="own_task: no rows in language xx; its languages are bn, fi, sw"):
        carried_out(tmp_path, {"own_task": task}, languages=["fi", "xx"])


def test_other_rows_are_drawn_anew(tmp_path: Path) -> None:
    data = write(tmp_path / "data", qa_tree())
    run = carried_out(tmp_path, task="xtreme_up_qa", data=str(data), limit={"train": 1})
    assert len(load_tasks(config.load(run))["xtreme_up_qa"].split("train")) == 3
    assert len(load_tasks(config.load(run, ["limit.train=2"]))["xtreme_up_qa"].split("train")) == 6
    assert load_tasks(config.load(run, ["languages=[hi]"]))["xtreme_up_qa"].languages == ["hi"]
    assert load_tasks(config.load(run, ["batch_size=3"]))["xtreme_up_qa"].rows[0].place.startswith(str(run))
    (run / "task" / "xtreme_up_qa" / DRAWN).unlink()  # as if killed while its files were written
    assert load_tasks(config.load(run))["xtreme_up_qa"].rows[0].place.startswith(str(data))
    shutil.rmtree(data)
    with pytest.raises(UserError, match="data: no such folder"):
        load_tasks(config.load(run))


def test_what_came_from_python_is_pointed_to(tmp_path: Path) -> None:
    run = carried_out(tmp_path, {"own_task": Task.from_rows(questions(), target="answer")})
    with pytest.raises(UserError, match=rf"neither a built-in .*; task={run}/task/own_task would take the rows of this run"):
        load_tasks(config.load(run, ["limit.train=3"]))
    pointed = load_tasks(config.load(run, ["limit.train=3", f"task={run}/task/own_task"]))
    assert len(pointed["own_task"].split("train")) == 3


def test_an_unchanged_task_is_not_written_again(tmp_path: Path) -> None:
    task = tiny_model.task()
    folder, lengths = RunFolder(tmp_path / "run"), Lengths({row.id: "text" for row in task.rows}, {row.id: 0 for row in task.rows}, {"bn": 2})
    settings_of = drawn(settings())[0]

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.task("towns").iterdir()}

    folder.save_task(task, lengths, settings_of)
    before = times()
    assert set(before) == {
        *("task.yaml", "i_beta.txt", "i_tau.txt", "exemplars.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl"),
        *("rows.parquet", DRAWN),
    }
    folder.save_task(task, lengths, settings_of)
    assert times() == before
    (folder.task("towns") / "rows.parquet").unlink()
    folder.save_task(task, lengths, settings_of)
    assert set(times()) == set(before)
    for other in (replace(lengths, texts=lengths.texts | {task.rows[0].id: "cut"}), replace(lengths, exemplars={"bn": 1})):
        before = times()
        folder.save_task(task, other, settings_of)
        assert times() != before
    assert folder.exemplars_shown("towns") == {"bn": 1}


def test_a_broken_off_write_leaves_no_rows_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.from_rows(questions(), target="answer")
    run = carried_out(tmp_path, {"own_task": task})
    how = drawn(config.load(run))[0]
    assert RunFolder(run).drawn_task(how) is not None

    def broken(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("fiat_ray.augmented.write_rows_of_task", broken)
    with pytest.raises(OSError):
        carried_out(tmp_path, {"own_task": Task.from_rows(questions(29), target="answer")})
    assert RunFolder(run).drawn_task(how) is None


def test_a_place_decides_nothing(tiny: Path, tmp_path: Path) -> None:
    model = {"model": str(tiny)}
    chosen = settings(task="towns", methods=["icl", "fiat"], reasoner=model | {"max_tokens": 32}, tunables={"xs": model})
    task = tiny_model.task()
    placed = replace(task, rows=tuple(replace(row, place=f"train.jsonl, row {number}") for number, row in enumerate(task.rows)))
    assert placed == task
    first, second = prepare(chosen, {"towns": task}), prepare(chosen, {"towns": placed})
    assert (first.data, first.trials, first.requests["towns"].keys) == (second.data, second.trials, second.requests["towns"].keys)
    assert first.asked("towns") == second.asked("towns")
    for name, prepared in (("first", first), ("second", second)):
        RunFolder(tmp_path / name).save_task(prepared.tasks["towns"], prepared.lengths["towns"], {})
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_a_script_is_kept_and_its_rationales_are_known_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("# ভাষা\ndef reason(row):\n    return 'Answer: x'\n", "utf-8")
    reasoner = {"kind": "scripted", "script": str(script)}
    run = carried_out(tmp_path, {"own_task": Task.from_rows(questions(), target="answer")}, reasoner=reasoner, methods=["icl"])
    keys = prepare(config.load(run)).requests["own_task"].keys
    script.unlink()
    moved = run.rename(tmp_path / "moved")
    again = config.load(moved)
    assert again.reasoner.script == str(moved / "reasoner.py")
    assert prepare(again).requests["own_task"].keys == keys
    runs.run_config(again, moved, stages=(), console=Console(quiet=True))
    assert prepare(config.load(moved)).requests["own_task"].keys == keys


def test_two_drivers_are_not_at_work_in_one_run(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.only_one(), pytest.raises(UserError, match="another fiat-ray is at work in this run directory"), second.only_one():
        raise AssertionError("both are at work")
    with second.only_one():
        assert (tmp_path / "run").is_dir()


def test_another_tasks_run_is_not_written_over(tmp_path: Path) -> None:
    run = carried_out(tmp_path, {"own_task": Task.from_rows(questions(), target="answer")})
    before = contents(run)
    with pytest.raises(UserError, match="run: holds a run of own_task, and this config is about country_facts; give another --out"):
        carried_out(tmp_path, task="country_facts", limit={"train": 1, "validation": 1, "test": 1})
    assert contents(run) == before


def test_an_edited_config_is_told_what_it_leaves(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunables = {"xs": {"model": str(tiny)}}
    for seeds, rows in (([0, 1], 30), ([1, 2], 30), ([1, 2], 29)):
        task = Task.from_rows(questions(rows), target="answer")
        runs.run_config(settings(methods=["no_cot"], seeds=seeds, tunables=tunables), tmp_path / "run", tasks={"own_task": task}, stages=("reason",))
        said = capsys.readouterr().err
        assert ("1 of 2 trials in" in said) == (seeds == [1, 2] and rows == 30)
        assert ("own_task: its rows are not those of the last run" in said) == (rows == 29)


def test_a_run_that_was_made_by_an_older_version_is_refused_with_words(tmp_path: Path) -> None:
    run = carried_out(tmp_path, {"own_task": Task.from_rows(questions(), target="answer")})
    (run / "task" / "own_task" / DRAWN).unlink()
    with pytest.raises(UserError, match="no task 'own_task' in this run, or one that an older version wrote; run its config again"):
        fiat.open_run(run).folder.load_task("own_task")


def test_what_a_killed_run_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    left = [".ray-train-1/lane/x", ".evaluation-stalled.tmp", "trials/a/.adapter-1234/weights", "trials/a/.scores.json.tmp", "tasks/t/.rows.tmp"]
    stays = ["manifest.json", "trials/a/adapter/weights", "trials/a/scores.json", "tasks/t/rows.parquet", "store/part-0.parquet"]
    for name in [*left, *stays, run.stop.relative_to(tmp_path)]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    run.sweep()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(stays)


def test_what_others_are_at_in_a_run_stays(tmp_path: Path) -> None:
    """An ``infer``, whose reasoners read its requests and whose output may lie in the run, and campaigns that share the run's store."""
    run, now = RunFolder(tmp_path / "run"), time.time()
    requests.write(tmp_path / "requests.parquet", [[requests.Request("a")]])
    theirs = {run.rationales / ".part.tmp": 60.0, run.path / "said" / ".answers.jsonl.parts" / ".rows.tmp": 0.0}
    left = {run.rationales / ".old.tmp": ABANDONED + 60.0, run.path / ".requests-killed.tmp": 0.0}
    for path, age in (theirs | left).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        os.utime(path, (now - age, now - age))
    with requests.Requests(tmp_path / "requests.parquet").shared(run.path, "infer") as shared:
        run.sweep()
        assert len(shared) == 1 and all(path.exists() for path in theirs) and not any(path.exists() for path in left)
    assert not shared.file.exists()


def test_the_requests_of_a_killed_infer_go(tmp_path: Path) -> None:
    requests.write(tmp_path / "requests.parquet", [[requests.Request("a")]])
    program = (
        "import os, signal, sys; from pathlib import Path; from fiat_ray.reason.requests import Requests\n"
        "with Requests(Path(sys.argv[1]) / 'requests.parquet').shared(Path(sys.argv[1]) / 'run'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    assert len(list(run.path.iterdir())) == 1
    run.sweep()
    assert not list(run.path.iterdir())
