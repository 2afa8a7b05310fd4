"""Where MLflow keeps things: which stores there are, how one is reached, and its pages."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from fiat_ray.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOLDS_SECRET = re.compile(r"(https?://.*|[\w+]+://[^/@:]*:[^@]+)@|.*[?&;](\w*password|passwd|pwd|\w*token|\w*secret)\s*=", re.IGNORECASE)
"""A database's password may hold a slash, as SQLAlchemy reads it; its user alone is none. Before a server's host even a user may be a token."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Of databases whose URI names none. What other kinds of URI name in a host's place, such as Databricks a profile, is no host."""
EXPERIMENT = "fiat-ray"
VIEW = "mlflow.sharedViewState.scores"
"""The experiment's tag in which MLflow keeps a view of its table of runs."""
PATIENCE = 5
"""Seconds to wait for a server before going on without it."""


def default_store() -> str:
    """``./mlruns/mlflow.db``: MLflow 3 has no file store, and only the driver writes, so SQLite will do."""
    return f"sqlite:///{Path.cwd() / 'mlruns' / 'mlflow.db'}"


def check_uri(uri: str) -> None:
    """``UserError`` unless MLflow has stores of this kind, so that a campaign does not learn it at its end, and where it holds a password.

    MLflow is not imported for it. MLflow 3.17 has no file store any more; SQLite in memory would be gone with the process.
    """
    if HOLDS_SECRET.match(unquote(uri)):  # the message must not repeat it
        raise UserError(
            "tracking_uri: holds a password, which would be written into the run; PostgreSQL's stands in PGPASSWORD or ~/.pgpass, "
            "an MLflow server's in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    kinds = r"sqlite:///(?!:memory:).+|(postgresql|mysql|mssql)(\+\w+)?://.+|https?://[^/]+.*|databricks(://.+)?"
    if not re.fullmatch(kinds, uri, re.IGNORECASE):
        raise UserError(f"tracking_uri: {uri[:100]!r} is none of sqlite:///FILE, http(s)://HOST, postgresql://…, mysql://…, mssql://… and databricks")


def ui(tracking_uri: str | None = None, host: str = "127.0.0.1", port: int = 5000) -> int:
    """MLflow's pages on the right store, on this machine's own address only unless told otherwise; returns the server's exit code."""
    uri = default_store() if tracking_uri is None else tracking_uri
    check_uri(uri)
    if not 0 < port < 2**16:
        raise UserError(f"--port {port}: there are ports from 1 to 65535")
    _prepare(uri)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    artifacts = artifact_root(uri)
    if artifacts:
        command += ["--default-artifact-root", artifacts]
    # The server's own line stands among warnings.
    print(f"MLflow's pages are at {_first_page(uri, f'http://{host}:{port}')} in some seconds; Ctrl-C ends", flush=True)
    # Without this, MLflow starts eight processes of 240 MB each for jobs that a campaign has no use for.
    server = subprocess.Popen(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    try:
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        return server.wait()


def _first_page(uri: str, address: str) -> str:
    """The table of runs with their scores, once there is a run."""
    try:
        found = open_store(uri).get_experiment_by_name(EXPERIMENT)
    except Exception:  # of MLflow, SQLAlchemy or a socket: the server meets it too, and says it
        found = None
    if found is None or VIEW not in found.tags:
        return address
    return f"{address}/#/experiments/{found.experiment_id}/runs?viewStateShareKey={VIEW.rpartition('.')[2]}"


def _prepare(uri: str) -> None:
    """Before MLflow is imported: short waits, no noise, and a folder for SQLite."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # once it answered, a server may take its time with an adapter
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)


def open_store(uri: str) -> MlflowClient:
    _prepare(uri)
    _reach(uri)
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _reach(uri: str) -> None:
    """One short request first: MLflow's own retries would hold up the campaign. Any answer will do; ``OSError`` where there is none."""
    if urlsplit(uri).scheme in ("http", "https"):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            return
    elif address := _server(uri):
        socket.create_connection(address, PATIENCE).close()


def _server(uri: str) -> tuple[str, int] | None:
    """Host and port of a database's server; None where the URI names none, but a socket, an ODBC data source, or an instance of SQL Server."""
    where = urlsplit(uri)
    kind, _, driver = where.scheme.partition("+")
    if kind not in PORTS or not where.hostname or "\\" in where.hostname:
        return None
    if driver == "pyodbc" and not where.path.strip("/"):  # SQLAlchemy takes a host without a database for a data source's name
        return None
    return where.hostname, where.port or PORTS[kind]


def artifact_root(uri: str) -> str | None:
    """Where artifacts lie: beside a SQLite file; a server decides for itself."""
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri() if uri.startswith("sqlite:///") else None
