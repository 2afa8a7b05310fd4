"""Replaying a run directory into a real MLflow store (SQLite): complete, idempotent, and harmless where there is no server."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port
from run_directory import write_run

from benchmarks.fault_surroundings import Postgres
from fiat_ray import tracking, tracking_store
from fiat_ray.report.page import build
from fiat_ray.report.read import read

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"), methods=("fiat", "no_peft"))
    build(folder)
    return folder


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns' / 'mlflow.db'}"


def snapshot(uri: str) -> dict[str, tuple]:
    """All MLflow runs: name → params, tags, number of metric points, artifacts."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    points = {run.info.run_id: {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics} for run in runs}
    files = {run.info.run_id: sorted(item.path for item in client.list_artifacts(run.info.run_id)) for run in runs}
    return {
        run.info.run_name: (
            run.data.params,
            run.data.tags,
            {name: [(point.step, point.value) for point in of] for name, of in points[run.info.run_id].items()},
            files[run.info.run_id],
        )
        for run in runs
    }


def test_a_campaign_is_one_parent_with_a_child_a_trial(run_dir: Path, uri: str) -> None:
    parent = tracking.track(run_dir, uri)
    runs = snapshot(uri)
    trials = {path.name for path in (run_dir / "trials").iterdir()}
    assert set(runs) == {run_dir.name, "rivers-icl", "rivers-majority", *trials}
    params, tags, metrics, files = next(value for name, value in runs.items() if name.startswith("fiat-"))
    assert tags["mlflow.parentRunId"] == parent
    assert (params["recipe.cot"], params["learning_rate"], params["seed"], params["tunable"]) == ("augmented", "0.0002", "0", "xs")
    assert {"test/f1/bn", "test/f1/ur", "test/f1/mean", "test/exact_match/mean"} <= set(metrics)
    assert [step for step, _ in metrics["validation/f1"]] == [0, 4, 8, 12]
    assert {"adapter", "predictions.parquet", "trial.json"} <= set(files)
    params, tags, metrics, files = runs["rivers-icl"]
    assert tags["mlflow.parentRunId"] == parent and params == {"task": "rivers", "method": "icl"}
    assert {"test/f1/bn", "test/f1/mean", "test/unparsed/mean"} <= set(metrics) and files == ["rivers-icl.parquet"]
    assert {"test/f1/bn", "test/f1/ur"} <= set(runs["rivers-majority"][2])
    _, _, metrics, files = runs[run_dir.name]
    assert {"config.yaml", "manifest.json", "report"} <= set(files)
    assert list(Path(uri.removeprefix("sqlite:///")).parent.glob("artifacts/*/artifacts/report/index.html"))


def test_mlflow_reads_the_table_of_examples(run_dir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    parent, client = tracking.track(run_dir, uri), MlflowClient(uri)
    table = client.load_table(client.get_run(parent).info.experiment_id, "report/examples.json", run_ids=[parent])
    test = [row for row in read(run_dir).rows("rivers") if row["split"] == "test"]
    assert len(table) == len(test) and set(table.id) == {row["id"] for row in test}
    assert {"Few-shot ICL", "FIAT · xs"} <= set(table.columns) and (table.gold != "").all()


def test_what_mlflow_shows_of_a_campaign_first(run_dir: Path, uri: str) -> None:
    """Its pages for training, scores in words, times of the work itself, and what it was made of."""
    from mlflow import MlflowClient

    parent = tracking.track(run_dir, uri)
    client = MlflowClient(uri)
    campaign = client.get_run(parent)
    assert client.get_experiment(campaign.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    manifest = json.loads((run_dir / "manifest.json").read_text())
    [task] = manifest["tasks"]
    said = campaign.data.tags["mlflow.note.content"]
    assert said.startswith(f"{task}, f1 on test, mean over languages: ") and "fiat xs " in said and "no_peft xs " in said
    for run in (campaign, *client.search_runs([campaign.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")):
        [rows] = run.inputs.dataset_inputs
        assert (rows.dataset.name, rows.dataset.digest) == (task, manifest["tasks"][task]["data"][:32])
        assert run.info.start_time <= run.info.end_time
        if run.info.run_name.startswith(("fiat", "no_peft")):
            record = run_dir / "trials" / run.info.run_name / "trial.json"
            assert run.info.end_time - run.info.start_time >= 999 * json.loads(record.read_text())["seconds"]


def test_the_table_of_runs_opens_with_the_scores_of_all_campaigns(run_dir: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    labels = write_run(tmp_path / "labels", methods=("fiat",))
    manifest = json.loads((labels / "manifest.json").read_text())
    manifest["tasks"]["rivers"] |= {"metric": "accuracy", "labels": ["no", "yes"]}
    (labels / "manifest.json").write_text(json.dumps(manifest))
    for run in (run_dir, labels, run_dir):
        tracking.track(run, uri)
    experiment = MlflowClient(uri).get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    columns = json.loads(experiment.tags[tracking.VIEW])["selectedColumns"]
    scores = [f"metrics.`test/{metric}/mean`" for metric in ("f1", "exact_match", "accuracy", "auc_pr")]
    assert columns[-4:] == scores and "params.`method`" in columns and len(set(columns)) == len(columns)
    shown = tracking_store._first_page(uri, "http://host")
    assert shown == f"http://host/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=scores"
    assert tracking_store._first_page(f"sqlite:///{tmp_path}/none.db", "http://host") == "http://host"
    assert tracking_store._first_page("http://127.0.0.1:1", "http://host") == "http://host"


def test_a_second_call_adds_nothing(run_dir: Path, uri: str) -> None:
    first = tracking.track(run_dir, uri)
    before = snapshot(uri)
    assert tracking.track(run_dir, uri) == first
    assert snapshot(uri) == before


def test_the_best_on_validation_is_registered_once_with_an_alias(run_dir: Path, uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for _ in range(2):
        tracking.track(run_dir, uri)
        [model] = client.search_registered_models()
        [version] = client.search_model_versions(f"name = '{model.name}'")
    records = [json.loads(path.read_text()) for path in run_dir.glob("trials/*/trial.json")]
    best = max(record["selection_value"] for record in records)
    chosen = client.get_model_version_by_alias(model.name, "best")
    assert model.name == f"{run_dir.name}-rivers" and chosen.version == version.version
    assert best == next(r["selection_value"] for r in records if r["name"] == chosen.tags[tracking.TRIAL_TAG])
    kind = "adapter" if chosen.tags["method"] != "no_peft" else "checkpoint"
    assert (Path(chosen.source.removeprefix("file://")) / ("adapter_config.json" if kind == "adapter" else "config.json")).is_file()


def test_another_best_becomes_another_version_and_other_runs_keep_theirs(tmp_path: Path, uri: str) -> None:
    from mlflow import MlflowClient

    client, here, there = MlflowClient(uri), *(write_run(tmp_path / name / "named", methods=("fiat", "no_cot"), seeds=(0, 1)) for name in "ab")
    for run in (here, there):
        tracking.track(run, uri)
    assert len({model.name for model in client.search_registered_models() if "named-rivers" in model.name}) == 2
    before = client.get_model_version_by_alias("named-rivers", "best")
    record = next(p for p in here.glob("trials/*/trial.json") if json.loads(p.read_text())["name"] != before.tags[tracking.TRIAL_TAG])
    record.write_text(json.dumps(json.loads(record.read_text()) | {"selection_value": 99.9}))
    tracking.track(here, uri)
    after = client.get_model_version_by_alias("named-rivers", "best")
    assert after.tags[tracking.TRIAL_TAG] == record.parent.name and after.version != before.version
    assert client.get_model_version("named-rivers", before.version).tags == before.tags


def test_missing_pieces_are_sent_and_sent_ones_stay_single(run_dir: Path, uri: str) -> None:
    from mlflow import MlflowClient

    tracking.track(run_dir, uri)
    before = snapshot(uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    broken = next(run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name.startswith("fiat-"))
    client.delete_tag(broken.info.run_id, tracking.DONE_TAG)  # as if broken off before the end
    shutil.rmtree(Path(broken.info.artifact_uri.removeprefix("file://")) / "adapter")
    tracking.track(run_dir, uri)
    assert snapshot(uri) == before


def test_a_trial_that_was_sent_before_it_was_evaluated_has_its_curve_once(tmp_path: Path) -> None:
    """Its files are newer afterwards than they were."""
    folder, uri = write_run(tmp_path / "run", methods=("fiat",)), f"sqlite:///{tmp_path / 'mlflow.db'}"
    [scores], later = folder.glob("trials/*/scores.json"), time.time() + 100
    held = scores.rename(tmp_path / "scores.json")
    tracking.track(folder, uri)
    held.rename(scores)
    os.utime(scores, (later, later))
    tracking.track(folder, uri)
    _, _, metrics, _ = next(value for name, value in snapshot(uri).items() if name.startswith("fiat-"))
    assert [step for step, _ in metrics["validation/f1"]] == [0, 4, 8, 12]
    assert all(len(metrics[name]) == 1 for name in ("seconds", "selection_value"))


def test_trials_of_an_older_config_are_kept_and_marked(run_dir: Path, uri: str) -> None:
    tracking.track(run_dir, uri)
    manifest = run_dir / "manifest.json"
    text = manifest.read_text()
    edited = json.loads(text)
    dropped = edited["trials"].pop()
    manifest.write_text(json.dumps(edited))
    try:
        tracking.track(run_dir, uri)
        runs = snapshot(uri)
        assert runs[dropped["name"]][1][tracking.CURRENT_TAG] == "no"
        assert runs[edited["trials"][0]["name"]][1][tracking.CURRENT_TAG] == "yes"
    finally:
        manifest.write_text(text)


def test_languages_in_brackets_and_in_other_scripts_have_metrics_of_their_own(tmp_path: Path) -> None:
    languages = ["Portuguese (Brazil)", "Portuguese )Brazil(", "Portuguese -Brazil-", "中文", "pt"]
    folder, uri = write_run(tmp_path / "run", languages=languages, methods=("fiat",)), f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert tracking.track(folder, uri)
    _, _, metrics, _ = next(value for name, value in snapshot(uri).items() if name.startswith("fiat-"))
    named = {metric: {name.removeprefix(metric) for name in metrics if name.startswith(metric)} for metric in ("test/f1/", "test/exact_match/")}
    assert {"Portuguese -Brazil-", "中文", "pt", "mean"} < named["test/f1/"] == named["test/exact_match/"]
    assert len(named["test/f1/"]) == len(languages) + 1


@given(st.text("aé中9_ .()-", max_size=49).map(lambda text: f"a{text}".strip()))
def test_mlflow_takes_the_metrics_of_every_language(language: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    name = tracking._metric_name({"split": "test", "metric": "scores:same_length", "language": language})
    _validate_metric_name(name)  # raises for what it does not take
    assert name.startswith("test/scores:same_length/")


def test_large_checkpoints_stay_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", methods=("no_peft",))
    monkeypatch.setattr(tracking, "LARGEST_CHECKPOINT", 1)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking.track(folder, uri)
    assert "checkpoint" not in next(value for name, value in snapshot(uri).items() if name.startswith("no_peft"))[3]


def test_a_server_that_is_not_there_costs_a_warning(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused, caplog.at_level(logging.WARNING):
        unused.bind(("127.0.0.1", 0))
        assert tracking.track(run_dir, f"http://127.0.0.1:{unused.getsockname()[1]}") is None
    assert len(caplog.records) == 1
    assert "Nothing is lost" in caplog.text


def test_a_server_that_never_answers_costs_seconds(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_store, "PATIENCE", 0.5)
    start = time.monotonic()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert tracking.track(run_dir, f"http://127.0.0.1:{silent.getsockname()[1]}") is None
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("postgresql://me@db/x", ("db", 5432)),
        ("postgresql+psycopg2://me@[::1]:7777/x", ("::1", 7777)),
        ("mysql+pymysql://db/x", ("db", 3306)),
        ("mssql+pyodbc://me@db/x?driver=ODBC+Driver+18", ("db", 1433)),
        ("postgresql:///x?host=/run/postgresql", None),
        ("mssql+pyodbc://me@source", None),
        ("mssql+pyodbc://me@db\\instance/x", None),
        ("databricks://prod", None),
        ("databricks", None),
        ("sqlite:////a/mlflow.db", None),
    ],
)
def test_the_server_that_must_answer_is_the_one_mlflow_will_ask(uri: str, server: tuple[str, int] | None) -> None:
    tracking_store.check_uri(uri)
    assert tracking_store._server(uri) == server


def test_what_stands_in_a_hosts_place_but_is_none_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "create_connection", lambda *address: asked.append(address))
    tracking_store._reach("databricks://no-such-profile")
    assert not asked


def test_the_default_store_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.default_store() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def test_progress_becomes_metrics_over_time_each_line_once(tmp_path: Path) -> None:
    folder, uri = write_run(tmp_path / "run", methods=("fiat",)), f"sqlite:///{tmp_path / 'mlflow.db'}"
    log = folder / "progress.jsonl"
    lines = [json.dumps({"time": 1000.0 + 60 * n, "task": "rivers", "numbers": {"rows": 10 * n, "cached_share": 0.9}}) + "\n" for n in range(3)]
    log.write_text("".join(lines[:2]))
    tracking.track_progress(folder, uri)
    log.write_text("".join(lines))
    for _ in range(2):
        tracking.track(folder, uri)
    _, _, metrics, _ = snapshot(uri)["run"]
    assert metrics["reason/rivers/rows"] == [(0, 0), (1, 10), (2, 20)]
    assert metrics["reason/rivers/cached_share"] == [(0, 0.9), (1, 0.9), (2, 0.9)]


def test_progress_is_silent_where_there_is_no_server(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        tracking.track_progress(run_dir, f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert not caplog.records


def test_the_first_line_of_ui_is_an_address_that_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fiat_ray", "ui", "--port", str(free_port()), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        [address] = re.findall(r"http://\S+", server.stdout.readline())
        try:
            while server.poll() is None:
                try:
                    assert urllib.request.urlopen(f"{address}/health").status == 200
                    break
                except OSError:
                    time.sleep(0.2)
            assert server.poll() is None
        finally:
            server.terminate()


@pytest.mark.slow
@pytest.mark.skipif(not Postgres.programs(), reason="needs Debian's postgresql")
def test_a_databases_password_comes_from_the_environment_and_stands_nowhere(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    password = "half/of:it@SECRET"
    monkeypatch.chdir(tmp_path)
    database = Postgres(password)
    try:
        assert tracking.track(run_dir, database.uri) is None and "no password supplied" in caplog.text
        monkeypatch.setenv("PGPASSWORD", password)
        parent = tracking.track(run_dir, database.uri)
        assert parent is not None
        assert password not in caplog.text + str(MlflowClient(database.uri).get_run(parent).to_dictionary())
        assert not any(password.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    finally:
        database.remove()
