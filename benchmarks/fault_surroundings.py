"""What a campaign depends on outside of its own processes, to be broken: an endpoint that is asked, an MLflow server and its database, a node."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine, text

from benchmarks.fault_kinds import WORKERS, Fault
from benchmarks.fault_run import Sitting
from tests.chat_server import ChatServer
from tests.ports import free_port

TROUBLES = {"429": "rate", "500": "broken", "garbage": "garbage", "half a response": "half", "nothing": "reset"}
"""What an endpoint answers → the word for it in ``tests/chat_server.py``."""

REQUESTS = 3
"""So many, one after the other, meet the same trouble."""


def trouble(chat: ChatServer, chance: random.Random) -> None:
    """From now on, all troubles come one after the other, some good answers between them."""
    words: list[str] = []
    for word in chance.sample(list(TROUBLES.values()), len(TROUBLES)):
        words += [""] * chance.randint(1, 5) + [word] * REQUESTS
    first = len(chat.requests)
    chat.trouble = lambda number: words[number - first] if number - first < len(words) else ""


class Postgres:
    """A real one, reached from this machine only, with a folder of its own. It refuses to run as root, so that root runs it as ``postgres``.

    ``password``: what it asks for; none by default.
    """

    def __init__(self, password: str = "") -> None:
        self._folder, self._port = Path(tempfile.mkdtemp(prefix="postgres")), free_port()
        self.uri = f"postgresql+psycopg2://postgres@127.0.0.1:{self._port}/postgres"
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")
        with tempfile.NamedTemporaryFile("w") as secret:
            secret.write(password)
            secret.flush()
            if os.geteuid() == 0:
                shutil.chown(secret.name, "postgres")
            auth = ["--auth=scram-sha-256", f"--pwfile={secret.name}"] if password else ["--auth=trust"]
            self._run("initdb", "--pgdata", str(self._folder), "--username=postgres", *auth).wait()
        self.start()

    @staticmethod
    def programs() -> Path | None:
        """Where Debian's package puts them; None where that is not installed."""
        return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)

    def start(self) -> None:
        self._process = self._run("postgres", "-D", str(self._folder), "-p", str(self._port), "-h", "127.0.0.1", "-k", "")
        wait_for(lambda: self._run("pg_isready", "--host=127.0.0.1", f"--port={self._port}").wait() == 0, self._process, "PostgreSQL")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # connections are closed, nothing is waited for
        self._process.wait()

    def restart(self, sitting: Sitting, stage: str) -> None:
        with sitting.run.struck():
            self.stop()
            time.sleep(3)
            self.start()
            assert sitting.wait() == 0, sitting.said()[-2000:]

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        programs = self.programs()
        assert programs is not None, "PostgreSQL is not installed: apt-get install postgresql"
        user = "postgres" if os.geteuid() == 0 else None
        silent = subprocess.DEVNULL
        return subprocess.Popen([str(programs / program), *arguments], user=user, cwd="/", stdout=silent, stderr=silent, start_new_session=True)


def wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert time.monotonic() < deadline and process.poll() is None, f"{what} does not start"
        time.sleep(0.2)


class MlflowServer:
    """A real one, by default on SQLite and on an address that nobody else reaches."""

    def __init__(self, folder: Path, database: str = "") -> None:
        self._folder, self._database = folder, database or f"sqlite:///{folder}/mlflow.db"
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._database, "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--host", "127.0.0.1", "--port", str(self._port)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_for(self._healthy, self._process, "MLflow")

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            return True
        return False

    def send(self, how: signal.Signals) -> None:
        os.killpg(self._process.pid, how)

    def die(self, sitting: Sitting, stage: str) -> None:
        """It is there again when the sitting has ended."""
        with sitting.run.struck():
            self.send(signal.SIGKILL)
            self._process.wait()
            assert sitting.wait() == 0, sitting.said()[-2000:]
        self.start()

    def slow(self, sitting: Sitting, stage: str) -> None:
        """Of every three seconds it works one."""
        with sitting.run.struck():
            while sitting.alive():
                self.send(signal.SIGSTOP)
                time.sleep(2)
                self.send(signal.SIGCONT)
                time.sleep(1)
        assert sitting.wait() == 0, sitting.said()[-2000:]

    def stop(self) -> None:
        self.send(signal.SIGTERM)
        self._process.wait()

    def runs(self) -> int:
        """How many it holds, see ``expected_runs``."""
        with create_engine(self._database).connect() as database:
            return int(database.execute(text("select count(*) from runs")).scalar_one())

    def faults(self) -> list[Fault]:
        return [Fault("MLflow dies", "report", self.die), Fault("MLflow is slow", "report", self.slow)]


def expected_runs(run: Path) -> int:
    """How many runs MLflow should hold of a run directory: one for the campaign, one for each trial and each method that tunes nothing."""
    return 1 + len([*run.glob("trials/*"), *run.glob("untuned/*.parquet")])


@cache
def _token() -> str:
    """One for all clusters: Ray reads a process's token once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def node_faults() -> Iterator[list[Fault]]:
    """A cluster of two nodes: one with the driver, and one that does all the work. When that is killed, another one comes."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2)]

        def kill(sitting: Sitting, stage: str) -> None:
            with sitting.run.struck():
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=2))

        told = {"environment": {"RAY_ADDRESS": cluster.address}}
        yield [Fault("node killed", stage, kill, ends=False, told=told) for stage in WORKERS]
    finally:
        cluster.shutdown()
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            del os.environ[name]
