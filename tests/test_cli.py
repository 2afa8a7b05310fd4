"""The command line: exit codes, and one clear line for each kind of bad input."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import fiat_ray as fiat
from fiat_ray import progress, schedule
from fiat_ray.cli import _default_out, _mlflow_at, _without_secrets, main
from fiat_ray.errors import Unfinished
from fiat_ray.schedule.trials import Outcome


def config_file(folder: Path, **changes: object) -> Path:
    values: dict[str, object] = {"task": "country_facts", "limit": {"train": 2, "validation": 1, "test": 2}, "methods": ["majority"], **changes}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says when it refuses its input."""
    assert main(arguments) == 2
    return one_line(capsys.readouterr().err)


def one_line(said: str) -> str:
    """The only one beside those of progress, which a busy machine may show."""
    [line] = [line for line in said.splitlines() if not line.startswith("[")]
    return line


def test_a_log_of_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_file(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert main(["run", str(config), "--out", str(tmp_path / "run"), "--json"]) == 0
    said = capsys.readouterr()
    assert f" ui --tracking-uri sqlite:///{tmp_path}/mlflow.db\n" in said.out
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert {line["stage"] for line in lines} == {"prepare", "report"}
    assert all(isinstance(line["time"], float) and line["message"] for line in lines)
    [rows] = [line for line in lines if "train" in line]
    assert rows["task"] == "country_facts" and rows["train"] > rows["trials"] == 0

    for command in ("run", "reason", "tune", "evaluate"):
        assert main([command, str(config), "methods=[nothing]", "--json"]) == 2
        [line] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert (line["stage"], line["exit_code"]) == ("end", 2) and "unknown method 'nothing'" in line["message"]


def own_task(folder: Path, **files: str) -> Path:
    task = folder / "mytask"
    task.mkdir()
    row = json.dumps({"question": "q", "context": "c", "target": "t", "language": "en"})
    other = [json.dumps({"question": f"q{at}", "context": "c", "target": "t", "language": "en"}) for at in range(3)]
    contents = {
        "task.yaml": "input: 'question: {question} context: {context}'\ncut: context\nlanguage: language\n",
        "i_beta.txt": "Think.",
        "i_tau.txt": "Answer.",
        "exemplars.jsonl": json.dumps({"question": "a", "context": "b", "rationale": "r", "target": "t", "language": "en"}),
        "train.jsonl": other[0],
        "validation.jsonl": other[1],
        "test.jsonl": row,
        **files,
    }
    for name, content in contents.items():
        (task / name).write_text(content)
    return task


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tsk": "x"}, "unknown key 'tsk'; did you mean 'task'?"),
        ({"languages": ["id", "xx"]}, "no rows in language xx"),
        ({"task": "country_fact"}, "neither a built-in task"),
        ({"methods": ["fiatt"]}, "unknown method 'fiatt'"),
        ({"limit": {"dev": 3}}, "no split 'dev'"),
        ({"batch_size": 0}, "batch_size: must be above 0"),
        ({"seeds": ["a"]}, "seeds[0]: must be a whole number"),
        ({"reasoner": {"kind": "scripted"}, "methods": ["icl"]}, "reasoner.script"),
        ({"reasoner": {"model": "./nowhere"}, "methods": ["icl"]}, "no such folder"),
        ({"focus": "indic"}, "unknown option 'focus'"),
        ({"learning_rate": {"lora": [1e-4, 1e-3], "full": [1e-5]}}, "equally many"),
    ],
)
def test_bad_config(tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str) -> None:
    path = config_file(tmp_path, **changes)
    line = refused(capsys, "run", str(path), "--out", str(tmp_path / "out"))
    assert said in line
    assert str(path) in line
    assert not (tmp_path / "out").exists(), "something was started"


def test_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refused(capsys, "run", str(tmp_path / "none.yaml"))
    assert "no such file" in refused(capsys, "score", str(tmp_path / "none.jsonl"))
    assert "no run directory" in refused(capsys, "report", str(tmp_path))
    assert "no such folder" in refused(capsys, "run", str(config_file(tmp_path, task="xtreme_up_qa", data=str(tmp_path / "gone"))))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.jsonl": '{"question": "q", "context": "c", "language": "en"}'}, ["train.jsonl, row 1", "'target'"]),
        ({"train.jsonl": '{"question": "q", "target": "t", "language": "en"}'}, ["train.jsonl, row 1", "'context'"]),
        ({"test.jsonl": '{"question": "q", "context": 7, "target": "t", "language": "en"}'}, ["test.jsonl, row 1", "'context'", "int"]),
        ({"test.jsonl": '{"question": "q", "context": "c", "target": "t"}'}, ["test.jsonl, row 1", "'language'"]),
        ({"test.jsonl": "{"}, ["test.jsonl, row 1", "not JSON"]),
        ({"test.jsonl": "[1]"}, ["test.jsonl, row 1", "object"]),
        ({"test.jsonl": '{"question": "q0", "context": "c", "target": "t", "language": "en"}'}, ["train", "test", "1 row of train"]),
        ({"task.yaml": "input: '{question}'\ncutt: context\n"}, ["task.yaml", "'cutt'"]),
        ({"task.yaml": "input: '{question.x}'\n"}, ["question.x"]),
        ({"task.yaml": "input: '{question!r}'\n"}, ["task.yaml", "question"]),
        ({"task.yaml": "input: '{question}'\nname: ../../escaped\n"}, ["task.yaml", "no name for a task"]),
        ({"task.yaml": "input: '{question}'\nlabels: [no, yes]\n"}, ["task.yaml", "labels", "in quotes"]),
        ({"task.yaml": "input: '{question}'\ngroup: 5\n"}, ["task.yaml", "group"]),
        ({"task.yaml": "input: '{question}'\ninput: '{context}'\n"}, ["task.yaml", "'input' stands twice"]),
        ({"task.py": "def rows(data:\n"}, ["task.py", "SyntaxError"]),
        ({"task.py": "import sys\nsys.exit(0)\n"}, ["task.py", "SystemExit"]),
        ({"task.py": "def rows(data):\n    raise ValueError('a\\nb')\n"}, ["task.py", "ValueError: a b"]),
        ({"test.jsonl": '{"question": "q", "context": "c", "target": "t", "language": "mean"}'}, ["test.jsonl, row 1", "'language'", "'mean'"]),
    ],
)
def test_bad_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], said: list[str]) -> None:
    task = own_task(tmp_path, **files)
    path = config_file(tmp_path, task=str(task), limit={})
    line = refused(capsys, "run", str(path), "--out", str(tmp_path / "out"))
    assert all(part in line for part in [*said, str(path)])
    assert not (tmp_path / "out").exists()


def test_one_input_with_two_answers_in_two_splits_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the task's groups say otherwise."""
    for number, (definition, group) in enumerate((("", {}), ("group: author\n", {"author": "another"}))):
        rows = [{"question": f"q{at}", "context": "c", "target": f"t{at}", "language": "en", "author": f"a{at}"} for at in range(3)]
        train, validation, test = (json.dumps(row) for row in (rows[2] | {"target": "other"} | group, *rows[1:]))
        (tmp_path / str(number)).mkdir()
        task = own_task(tmp_path / str(number), **{"train.jsonl": train, "validation.jsonl": validation, "test.jsonl": test})
        (task / "task.yaml").write_text((task / "task.yaml").read_text() + definition)
        assert main(["data", "validate", str(task)]) == 2
        said = capsys.readouterr()
        assert "overlap    rows of train that are examples of test too: 1 (train.jsonl, row 1 = test.jsonl, row 1)" in said.out
        assert "1 row of train or validation is also in a later split" in said.err


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("mytask/config.yaml", "runs/mytask"),
        ("mytask", "runs/mytask"),
        ("first.yaml", "runs/first"),
        ("demo", "runs/demo"),
        ("runs/done", "runs/done"),
        ("runs/done/config.yaml", "runs/done"),
    ],
)
def test_where_a_run_goes_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mytask/config.yaml", "first.yaml", "runs/done/config.yaml", "runs/done/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert _default_out(source) == Path(out)
    monkeypatch.chdir(tmp_path / "mytask")
    assert _default_out("config.yaml") == Path("runs/mytask")


def test_out_must_be_a_place_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(config_file(tmp_path))
    assert "object stores" in refused(capsys, "run", config, "--out", "s3://bucket/run")
    assert "is a file" in refused(capsys, "run", config, "--out", f"{config}/run")
    assert "not empty" in refused(capsys, "run", config, "--out", str(tmp_path))


def test_commands_say_what_takes_them_a_while(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOOKED_EVERY", 0.001)
    monkeypatch.setattr(progress, "LOGGED_EVERY", 0.0)
    monkeypatch.chdir(tmp_path)
    rows = ({"question": f"q{at}", "answer": f"a{at}", "lang": "en"} for at in range(40))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = str(config_file(tmp_path, task="mytask", limit={}, reasoner={"model": str(tiny), "max_tokens": 8}))
    for command, said in (
        (["init", "mytask", "--train", "rows.jsonl", "--hardware", "api"], ["reading rows, and planning what this machine has time for …"]),
        (["data", "validate", "mytask"], ["reading and comparing rows …"]),
        (["plan", config], ["reading rows and measuring prompts …"]),
        (["prompt", config], ["reading rows and measuring prompts …"]),
        (["run", config, "--out", "run"], ["reading rows and measuring prompts …", "writing the report …"]),
        (["report", "run"], ["writing the report …", "sending the run to MLflow …"]),
    ):
        assert main(command) == 0
        shown = capsys.readouterr()
        lines = [line.partition("] ")[2] for line in shown.err.splitlines()]
        assert [text for text in dict.fromkeys(lines) if text in said] == said
        assert shown.out and not [text for text in said if text in shown.out], "results stand alone"


def test_score_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"target": "Dhaka", "prediction": "the Dhaka."}\n{"target": "x", "prediction": "y"}\n')
    assert main(["score", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"] == {"f1": 50.0, "exact_match": 50.0}
    path.write_text('{"target": "Dhaka", "prediction": null}\n')
    assert "row 1" in refused(capsys, "score", str(path))


def test_a_submitted_job_needs_an_absolute_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "absolute" in refused(capsys, "run", str(config_file(tmp_path)), "--out", "relative")


def test_majority_alone_needs_no_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(config_file(tmp_path)), "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "Majority" in said and " ui\n" in said
    assert (tmp_path / "out" / "scores.parquet").is_file()


def test_python_says_what_is_missing_in_the_end_as_the_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Outcome({"fiat-xs-s0": "ValueError: bad\nTraceback"}, ["a", "b"], "max_cost: 3 is reached", ["towns: no luck"])
    monkeypatch.setattr(schedule, "execute", lambda *given: ended)
    config, out = config_file(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"), tmp_path / "out"
    with pytest.raises(Unfinished) as raised:
        fiat.run(**yaml.safe_load(config.read_text()), out=out)
    said = "max_cost: 3 is reached; with a higher limit the same command goes on; towns: no luck; trial fiat-xs-s0: ValueError: bad; "
    assert str(raised.value) == f"{out}: finished, but not all of it: {said}2 rows without a rationale (engine_error): a, b"
    assert main(["tune", str(config), "--out", str(out)]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == f"fiat-ray: {raised.value}"
    ended = Outcome(engine_errors=["a"])
    assert main(["tune", str(config), "--out", str(out)]) == 3
    assert "not all of it: 1 row without a rationale (engine_error): a" in capsys.readouterr().err


def test_a_run_keeps_its_whole_command_as_it_was_given(tmp_path: Path) -> None:
    config = config_file(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    given = ["evaluate", str(config), "--out", str(tmp_path / "a run"), "seeds=[0, 1]", "--json", "limit.test=1"]
    assert main(given) == 0
    assert shlex.split(json.loads((tmp_path / "a run" / "manifest.json").read_text())["command"]) == ["fiat-ray", *given]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("tracking_uri=postgresql://me:pass@host/db", "tracking_uri=postgresql://***@host/db"),
        ("store=s3://bucket/x?access_key=AB&secret_key=CD&region=eu", "store=s3://bucket/x?access_key=***&secret_key=***&region=eu"),
        ("reasoner.max_tokens=48", "reasoner.max_tokens=48"),
        ("reasoner.base_url=https://host:8000/v1", "reasoner.base_url=https://host:8000/v1"),
    ],
)
def test_a_kept_command_has_no_secrets(given: str, kept: str) -> None:
    assert _without_secrets(given) == kept


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://mlflow.example.org/fiat", ["xdg-open", "https://mlflow.example.org/fiat"]),
        ("sqlite:///my runs/mlflow.db", ["fiat-ray", "ui", "--tracking-uri", "sqlite:///my runs/mlflow.db"]),
        ("postgresql://me@host/db", ["fiat-ray", "ui", "--tracking-uri", "postgresql://me@host/db"]),
        ("databricks://profile", []),
    ],
)
def test_the_store_that_a_run_went_to_is_shown(monkeypatch: pytest.MonkeyPatch, uri: str, shown: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["fiat-ray"])
    assert shlex.split(_mlflow_at(uri)) == shown


def test_a_shell_completes_commands_and_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        (tmp_path / shell).write_text(capsys.readouterr().out)
    assert (tmp_path / "zsh").read_text().startswith("#compdef fiat-ray")
    script = f'source {tmp_path}/bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_fiat_ray fiat-ray "${{@: -1}}" ""; echo "${{COMPREPLY[@]}}"'
    for typed, completed in ((["ex"], "export"), (["prompt", "x.yaml", "--fo"], "--for"), (["data", "va"], "validate")):
        found = subprocess.run(["bash", "-c", script, "bash", "fiat-ray", *typed], capture_output=True, text=True)
        assert found.stdout.split() == [completed], found.stderr
