"""Whatever is wrong with a file, a model, a folder or a command line: one line that names it, exit code 2, nothing started, nothing left behind."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_directory import note_as_tuned
from test_cli import config_file, own_task, refused

from fiat_ray import arguments, cli, runs
from fiat_ray.progress import Console

ROW = {"question": "q", "context": "c", "target": "t", "language": "en"}
EXEMPLAR = {"question": "a", "context": "b", "rationale": "r", "target": "t", "language": "en"}


def line(row: object, **changes: object) -> str:
    return json.dumps(row | changes if isinstance(row, dict) else row) + "\n"


def said_of_run(capsys: pytest.CaptureFixture[str], folder: Path, config: Path, *overrides: str) -> str:
    """What ``run`` and ``plan`` say of a config, both the same; and nothing is there afterwards."""
    lines = [refused(capsys, "run", str(config), "--out", str(folder / "out"), *overrides), refused(capsys, "plan", str(config), *overrides)]
    assert lines[0] == lines[1] and str(config) in lines[0]
    assert not (folder / "out").exists(), "something was started"
    return lines[0]


# Command lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND; see `fiat-ray --help`"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run"], "required: CONFIG; see `fiat-ray run --help`"),
        (["run", ""], "CONFIG is empty"),
        (["run", "demo", "--foo"], "unrecognized arguments: --foo; see `fiat-ray run --help`"),
        (["run", "demo", "limit.train"], "'limit.train': an override has the form key=value"),
        (["run", "demo", "epochs=["], "'epochs=[': the value is not valid YAML"),
        (["run", "demo", "--out", ""], "a run directory needs a name"),
        (["run", "a\nb\x1b[31m.yaml"], "config 'a b [31m.yaml': no such file"),
        (["plan", "demo", "--zz", "limit.train=1"], "unrecognized arguments: --zz"),
        (["score", "a", "b"], "unrecognized arguments: b; see `fiat-ray score --help`"),
        (["score", "--task", "zz", "a.jsonl"], "task 'zz': neither a built-in task"),
        (["score"], "required: FILE.jsonl"),
        (["prompt", "demo", "--row", "x"], "argument --row: invalid int value: 'x'"),
        (["prompt", "demo", "--for", "x"], "argument --for: invalid choice: 'x'"),
        (["infer", "run", "--input"], "argument --input: expected one argument"),
        (["infer", "nowhere", "--input", "a", "--output", "b"], "nowhere: no manifest.json in it, so it is no run directory; give the folder that"),
        (["ui", "--port", "0"], "--port 0: there are ports from 1 to 65535"),
        (["ui", "--tracking-uri", "foo://x"], "'foo://x' is none of sqlite:///FILE"),
        (["ui", "--tracking-uri", ""], "'' is none of sqlite:///FILE"),
    ],
)
def test_bad_command_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def commands() -> list[str]:
    [choices] = [action.choices for action in arguments.build()._actions if isinstance(action, argparse._SubParsersAction)]
    return list(choices)


@pytest.mark.parametrize("command", ["", *commands(), "data fetch", "data validate"])
def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr()
    example = shown.out.splitlines()[-1]
    assert ended.value.code == 0 and not shown.err
    assert example.startswith(f"example: fiat-ray {command}")
    parsed = arguments.parse(example.removeprefix("example: fiat-ray ").split())
    assert parsed.command in cli.COMMANDS, "the example is no command that can be given"


# Configs


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must be a mapping"),
        (b"- task\n", "must be a mapping"),
        (b"task: \xff\n", "not valid YAML ('utf-8'"),
        ("task: t\n".encode("utf-16"), "not valid YAML"),
        (b"task: a\0b\n", "not valid YAML"),
        (b"task: a\x1b[31mb\n", "not valid YAML"),
        (b"task: t\ntask: u\n", "key 'task' stands twice"),
        (b"task: t\nreasoner: {model: a, model: b}\n", "key 'model' stands twice"),
        (b"task: [\n", "not valid YAML"),
        (b"task: " + b"[" * 1200, "not valid YAML"),
        (b"task: &a [*a]\n", "recursive"),
        (b"task: t\nreasoner: &a {model: *a}\n", "recursive"),
        (b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)), "more than 100,000 values"),
        (b"task: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        (b"task: t\nbatch_size: " + b"9" * 5000, "not valid YAML"),
        (b"task: 2020-01-01\n", "task: must be a list"),
        (b"\xef\xbb\xbftask: nothing\r\n", "task 'nothing': neither a built-in task"),
        (b'task: "a\\nb\\0\\ud800"\n', "neither a built-in task"),
        (b"task: [./a, '']\n", "task"),
    ],
)
def test_bad_config_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert said in said_of_run(capsys, tmp_path, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": "/x"}, "unknown key 'run'"),
        ({"reasoner": {"model": ""}, "methods": ["icl"]}, "model: is empty"),
        ({"reasoner": {"stop": [""]}}, "reasoner.stop: an empty string"),
        ({"reasoner": {"script": "./a\0b.py"}}, "reasoner.script"),
        ({"tunables": {"v1.5": {"model": "./m"}}}, "tunables: 'v1.5' is no name"),
        ({"tunables": {"x" * 200: {}}}, "is no name for one"),
        ({"recipes": {"..": {}}}, "recipes: '..' is no name"),
        ({"data": ""}, "data: is empty"),
        ({"data": "a\0b"}, "is no path"),
        ({"task": "~nosuchuser/x"}, "neither a built-in task"),
        ({"store": ""}, "store: is empty"),
        ({"store": "s3://key:secret@bucket/x"}, "store: holds credentials"),
        ({"store": "nosuch://bucket/x"}, "nosuch://bucket/x: no place for a rationale store"),
        ({"store": "/dev/null"}, "/dev/null: is a file; a store can't be made there"),
        ({"store": "mine.yaml/x"}, "mine.yaml: is a file; a store can't be made there"),
        ({"tracking_uri": "file:///tmp/mlruns"}, "tracking_uri: 'file:///tmp/mlruns' is none of sqlite:///FILE"),
        ({"tracking_uri": "./mlruns"}, "tracking_uri: './mlruns' is none of"),
        ({"tracking_uri": "sqlite://"}, "tracking_uri: 'sqlite://' is none of"),
        ({"tracking_uri": "sqlite:///:memory:"}, "tracking_uri: 'sqlite:///:memory:' is none of"),
        ({"tracking_uri": "ftp://host/x"}, "tracking_uri: 'ftp://host/x' is none of"),
        ({"limit": {"train": -1}}, "limit.train: must be above 0"),
        ({"seeds": [2**32]}, "seeds: 4294967296 is none"),
        ({"where": {"workers": -3}}, "where.workers: must be above 0"),
    ],
)
def test_bad_values(tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str) -> None:
    assert said in said_of_run(capsys, tmp_path, config_file(tmp_path, **changes))


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:SECRET@host/db",
        "postgresql+psycopg2://me:half/SECRET@host:5432/db",
        "postgresql://me:SECRET%40@host/db",
        "postgresql://me@host/db?sslmode=require&password=SECRET",
        "mysql://host/db?user=me&passwd=SECRET",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3DSECRET",
        "http://me:SECRET@host:5000",
        "HTTPS://SECRET@host",
        "https://host/?token=SECRET",
        "ftp://me:SECRET@host/x",
    ],
)
def test_a_password_of_the_tracking_store_stands_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str], uri: str) -> None:
    """It would be written into the run's config, its report, MLflow and the warning of a store that is away."""
    said = said_of_run(capsys, tmp_path, config_file(tmp_path), f"tracking_uri={uri}")
    assert "tracking_uri: holds a password" in said and "PGPASSWORD" in said and "MLFLOW_TRACKING_PASSWORD" in said and "SECRET" not in said
    assert not any("SECRET" in path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "SECRET" not in refused(capsys, "ui", "--tracking-uri", uri)


@pytest.mark.parametrize(
    "uri",
    [
        *("sqlite:///a/b.db", "sqlite:////a:b@c/mlflow.db", "http://host:5000", "HTTPS://host", "databricks", "databricks://profile"),
        *("postgresql+psycopg2://me@host/x", "postgresql://me@host:5432/x?passfile=/home/me/.pgpass&sslmode=require", "mysql://h/x"),
    ],
)
def test_stores_that_mlflow_has_are_taken(uri: str) -> None:
    from fiat_ray.tracking_store import check_uri

    check_uri(uri)


def test_a_tracking_store_is_checked_without_mlflow() -> None:
    code = "import sys; from fiat_ray import config; config.load({'task': 't', 'tracking_uri': 'sqlite:///x'}); sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Tasks


def parquet(**columns: list[Any]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)


def not_utf8(path: Path) -> None:
    parquet(question=["abcdefgh"], context=["c"], target=["t"], language=["en"])(path)
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abc\xff\xfefgh"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.jsonl", "", ["no rows in split train"]),
        ("train.jsonl", line(ROW) + '{"question": "q", "cont', ["train.jsonl, row 2", "not JSON"]),
        ("train.jsonl", line(ROW) + "\ufeff" + line(ROW), ["train.jsonl, row 2", "BOM"]),
        ("train.jsonl", line(ROW).encode() + b'{"question": "\xe0\xa4"}\n', ["train.jsonl, line 2", "not UTF-8"]),
        ("train.jsonl", line(ROW).encode("utf-16"), ["train.jsonl, line 1", "not UTF-8"]),
        ("train.jsonl", line(ROW) + "\0\n", ["train.jsonl, row 2", "not JSON"]),
        ("train.jsonl", line(ROW) + "[" * 100_000, ["train.jsonl, row 2"]),
        ("train.jsonl", line(ROW, target=["t", 3]), ["train.jsonl, row 1", "'target'"]),
        ("train.jsonl", line(ROW, target=[]), ["train.jsonl, row 1", "'target'"]),
        ("train.jsonl", line(ROW, language="a/b\n"), ["train.jsonl, row 1", "'language'"]),
        ("train.jsonl", line(ROW, language=None), ["train.jsonl, row 1", "'language'", "NoneType"]),
        ("train.jsonl", Path.mkdir, ["no train file"]),
        ("train.jsonl", os.mkfifo, ["no train file"]),
        ("train.csv", "question,context,target,language\na,b,c,en\n", ["both claim to be the train split"]),
        ("validation.parquet", b"PAR1junkPAR1", ["both claim"]),
        ("exemplars.jsonl", os.mkfifo, ["exemplars.jsonl: is no file"]),
        ("exemplars.jsonl", line(EXEMPLAR, language=None), ["exemplars.jsonl, row 1", "'language'"]),
        ("exemplars.jsonl", line(EXEMPLAR, target=3), ["exemplars.jsonl, row 1", "'target'"]),
        ("exemplars.jsonl", line(EXEMPLAR) + line(EXEMPLAR | ROW), ["test.jsonl, row 1 (test, language en) is also an exemplar, number 2"]),
        ("train.jsonl", line(ROW, question="q9") + line(ROW), ["train.jsonl, row 2 (train, language en)", "test.jsonl, row 1 (test, language en)"]),
        ("i_tau.txt", " \n", ["i_tau.txt: is empty"]),
        ("i_beta.txt", b"\xff", ["i_beta.txt, line 1: not UTF-8"]),
        ("task.yaml", "input: '{question} {target}'\n", ["task.yaml", "the answer would stand in the question"]),
        ("task.yaml", "input: '{question}'\nlabels: &a [*a]\n", ["task.yaml", "recursive"]),
        ("task.yaml", "input: '{question}'\nname: " + "x" * 300, ["task.yaml", "no name for a task"]),
        ("task.py", "def rows(data):\n    yield 'p', 'train', 3\n", ["task.py: rows(): TypeError: a row must be a dict, not int"]),
        ("task.py", "def rows(data):\n    yield 3\n", ["task.py: rows(): TypeError"]),
        ("task.py", "def rows(data):\n    raise SystemExit(0)\n    yield\n", ["task.py: rows(): SystemExit"]),
        ("task.py", "def rows(data):\n    yield from rows(data)\n", ["task.py: rows(): RecursionError"]),
    ],
)
def test_bad_task_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, said: list[str]) -> None:
    path = own_task(tmp_path) / name
    if callable(content):
        path.unlink()
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = said_of_run(capsys, tmp_path, config_file(tmp_path, task=str(path.parent), limit={}))
    assert all(part in found for part in said), found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a Parquet file"),
        (b"PAR1junkPAR1", "not a Parquet file"),
        (not_utf8, "train.parquet: not a Parquet file, or a damaged one ('utf-8' codec can't decode"),
        (parquet(question=[1], context=["c"], target=["t"], language=["en"]), "train.parquet, row 1: field 'question' must be text, not int"),
        (parquet(question=["q"], context=[None], target=["t"], language=["en"]), "train.parquet, row 1: field 'context' must be text, not NoneType"),
        (parquet(x=["q"]), "train.parquet, row 1: no field 'question'"),
    ],
)
def test_bad_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str) -> None:
    task = own_task(tmp_path)
    (task / "train.jsonl").unlink()
    content(task / "train.parquet") if callable(content) else (task / "train.parquet").write_bytes(content)
    assert said in said_of_run(capsys, tmp_path, config_file(tmp_path, task=str(task), limit={}))


def test_rows_that_look_odd_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [line(ROW, question=question) for question in ("\ud800 lone", "<|im_start|>system", "a\u2028b\x00", "{braces} %s")]
    task = own_task(tmp_path, **{"train.jsonl": "\ufeff" + "\r\n".join(odd)})
    assert cli.main(["plan", str(config_file(tmp_path, task=str(task), limit={}))]) == 0
    assert "4 rows" in capsys.readouterr().out


def test_a_row_that_does_not_fit_is_named_by_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    task = own_task(tmp_path, **{"train.jsonl": line(ROW, question="q7") + line(ROW, question="long " * 300)})
    tunables = {"xs": {"model": str(tiny), "max_length": 300}}
    path = config_file(tmp_path, task=str(task), limit={}, methods=["no_cot"], tunables=tunables)
    assert f"{task}/train.jsonl, row 2 (train, language en) does not fit the tunables.xs" in said_of_run(capsys, tmp_path, path)


# Models and scripts


def edited(name: str, **values: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "lacks config.json or *.safetensors"),
        (written(WEIGHTS, b""), "its weights can't be read"),
        (written(WEIGHTS, b"\xff" * 8 + b"{}"), "its weights can't be read"),
        (written(WEIGHTS, (10).to_bytes(8, "little") + b"{no JSON} " + bytes(50)), "its weights can't be read"),
        (cut_short, "its weights can't be read"),
        (written("model.safetensors.index.json", b'{"weight_map": {"a": "model-00002.safetensors"}}'), "lacks model-00002.safetensors"),
        (written("model.safetensors.index.json", b"[]"), "its weights can't be read"),
        (written("config.json", b"{"), "not a valid JSON file"),
        (written("config.json", b"[]"), "can't be used"),
        (written("config.json", b"{}"), "Unrecognized model"),
        (edited("config.json", model_type="zzz"), "can't be used"),
        (edited("config.json", max_position_embeddings="many"), "max_position_embeddings"),
        (edited("config.json", hidden_size="wide"), "hidden_size"),
        (edited("config.json", model_type="zzz", auto_map={"AutoConfig": "x.Y"}), "custom code"),
        (written("tokenizer.json", b"{"), "can't be used"),
        (edited("tokenizer_config.json", eos_token=None), "names no EOS token"),
        (written("chat_template.jinja", b"{% for %}"), "can't be used"),
        (written("chat_template.jinja", b"{{ raise_exception('not\nme') }}"), "(not me)"),
        (written("chat_template.jinja", b"hello"), "the chat template leaves out, repeats or reorders what is said"),
        (written("chat_template.jinja", b"{{ messages[0].content }}"), "the chat template leaves out"),
    ],
)
def test_bad_models(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Path, change: Callable[[Path], object], said: str) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    change(model)
    for method, which in (("icl", {"reasoner": {"model": str(model)}}), ("no_cot", {"tunables": {"xs": {"model": str(model)}}})):
        found = said_of_run(capsys, tmp_path, config_file(tmp_path, methods=[method], **which))
        assert said in found and str(model) in found


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("def reason(row:\n", "SyntaxError when loaded"),
        ("raise ValueError('a\\nb')\n", "ValueError when loaded: a b"),
        ("raise SystemExit(0)\n", "SystemExit when loaded"),
        ("x = 1\n", "defines no function reason(row)"),
        ("reason = 3\n", "defines no function reason(row)"),
        ("def reason(): return ''\n", "defines no function reason(row)"),
        ("\0", f"{'SyntaxError' if sys.version_info >= (3, 11, 4) else 'ValueError'} when loaded"),
    ],
)
def test_bad_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, said: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(script)
    config = config_file(tmp_path, methods=["icl"], reasoner={"kind": "scripted", "script": str(path)})
    assert f"{path}: {said}" in said_of_run(capsys, tmp_path, config)
    other = path.rename(tmp_path / "script.txt")
    config = config_file(tmp_path, methods=["icl"], reasoner={"kind": "scripted", "script": str(other)})
    assert f"{other}: no such Python file" in said_of_run(capsys, tmp_path, config)


# Places


@pytest.mark.parametrize(
    "out", ["/dev/null", "mine.yaml", "mine.yaml/x", "/proc/x", "a\0b", "x" * 300, "fifo", "loop", "a\udcff", "s3://bucket/run", "/"]
)
def test_places_where_no_run_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    config = config_file(tmp_path)
    before = sorted(os.listdir())
    assert str(config) in refused(capsys, "run", str(config), "--out", out)
    assert sorted(os.listdir()) == before


def test_a_store_that_can_not_be_written_is_refused_before_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_file(tmp_path, store="/proc/x")
    assert "/proc/x: the rationale store can't be written" in refused(capsys, "run", str(config), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# Predictions, new rows, damaged runs


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no rows"),
        (line({"target": "a", "prediction": None}), "row 1: field 'prediction' must be text, not NoneType"),
        (line({"target": "a", "prediction": 3}), "row 1: field 'prediction'"),
        (line({"prediction": "a"}), "row 1: no field 'target'"),
        (line({"target": [], "prediction": "a"}), "row 1: field 'target'"),
        (line({"target": "a", "prediction": "a", "language": "x"}) + line({"target": "a", "prediction": "a"}), "row 2: no field 'language'"),
        (line({"label": "yes", "score": None}), "row 1: field 'score'"),
        ('{"label": "yes", "score": NaN}', "row 1: field 'score'"),
        (line({"label": "yes", "score": 2}), "row 1: field 'score'"),
        (line({"label": "yes", "score": True}), "row 1: field 'score'"),
        (line({"label": ["yes"], "score": 0.5}), "row 1: field 'label'"),
        (line({"label": "yes", "score": 0.5}) + line({"target": "a", "prediction": "b"}), "row 2"),
        ("[]", "row 1: a row must be a JSON object"),
    ],
)
def test_bad_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(content)
    found = refused(capsys, "score", str(path))
    assert said in found and str(path) in found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A run with one trial that is written down as tuned; nothing was."""
    folder = tmp_path_factory.mktemp("run")
    path = config_file(folder, task=str(own_task(folder)), limit={}, methods=["no_cot"], tunables={"xs": {"model": str(tiny)}})
    done, _ = runs.run_config(cli_config(path), folder / "out", stages=("reason",), console=Console(quiet=True))
    note_as_tuned(done.path, cot="none")
    return done.path


def cli_config(path: Path) -> Any:
    from fiat_ray import config

    return config.load(path)


@pytest.mark.parametrize(
    ("content", "output", "said"),
    [
        (line({"question": "q"}), "answers.jsonl", "rows.jsonl, row 1: no field 'context'"),
        (line({"question": "q", "context": None}), "answers.jsonl", "rows.jsonl, row 1: field 'context' must be text"),
        ("{", "answers.jsonl", "rows.jsonl, row 1: not JSON"),
        ("", "answers.jsonl", "rows.jsonl: no rows"),
        (line({"question": "long " * 9000, "context": "c", "language": "aa"}), "answers.jsonl", "row 1 (test, language aa) does not fit"),
        (line({"question": "q", "context": "c"}), "answers.jsonl", "rows.jsonl, row 1: no field 'language'"),
        (line(ROW), "rows.jsonl", "is the input; give another file"),
        (line(ROW), ".", "is a folder; give another file"),
        (line(ROW), "rows.jsonl/x", "rows.jsonl: a file can't be made there"),
        (line(ROW), "/proc/answers.jsonl", "/proc: a file can't be made there"),
    ],
)
def test_bad_rows_to_infer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path, content: str, output: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(content)
    assert said in refused(capsys, "infer", str(run), "--input", "rows.jsonl", "--output", output)
    assert os.listdir() == ["rows.jsonl"] and Path("rows.jsonl").read_text() == content


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"tasks": 3, "trials": []}'])
@pytest.mark.parametrize("command", ["plan", "report", "infer"])
def test_a_damaged_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path, command: str, content: str) -> None:
    damaged = Path(shutil.copytree(run, tmp_path / "run"))
    (damaged / "manifest.json").write_text(content)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(line(ROW))
    more = ["--input", str(rows), "--output", str(tmp_path / "answers.jsonl")] if command == "infer" else []
    assert f"{damaged}/manifest.json: damaged" in refused(capsys, command, str(damaged), *more)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"fingerprint": null}'])
@pytest.mark.parametrize("command", ["plan", "report", "infer"])
def test_a_damaged_trial_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path, command: str, content: str) -> None:
    damaged = Path(shutil.copytree(run, tmp_path / "run"))
    [record] = damaged.glob("trials/*/trial.json")
    record.write_text(content)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(line(ROW))
    more = ["--input", str(rows), "--output", str(tmp_path / "answers.jsonl")] if command == "infer" else []
    assert f"{record}: damaged" in refused(capsys, command, str(damaged), *more)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("task.yaml", "{", "task.yaml: not valid YAML"),
        ("i_beta.txt", None, "i_beta.txt: no such file"),
        ("train.jsonl", None, "no train file"),
        ("train.jsonl", line(ROW), "train.jsonl, row 1: no field '@id'"),
        ("drawn.json", "[]", "drawn.json: damaged"),
    ],
)
def test_damaged_rows_of_a_run_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path, name: str, content: str | None, said: str
) -> None:
    damaged = Path(shutil.copytree(run, tmp_path / "run"))
    path = damaged / "task" / "mytask" / name
    path.unlink() if content is None else path.write_text(content)
    for command in ("plan", "run", "prompt"):
        assert said in refused(capsys, command, str(damaged))


def test_a_run_directory_alone_is_planned_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    task = run.parent / "mytask"
    hidden = task.rename(tmp_path / "gone")
    try:
        assert cli.main(["plan", str(moved)]) == 0
        planned = capsys.readouterr().out
        assert cli.main(["prompt", str(moved), "--for", "tunable", "--recipe", "no_cot", "--row", "2"]) == 0
        assert "1 trial" in planned and "mytask, row 2: test, language en" in capsys.readouterr().out
    finally:
        hidden.rename(task)
