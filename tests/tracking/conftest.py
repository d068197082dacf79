"""A migrated MLflow database copied per test, and real `mlflow server` processes on the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 90


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class MlflowServer:
    """An `mlflow server` with its own database and artifact folder; `kill` and `start` again keep both."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **settings},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                self.kill()
                pytest.fail(f"mlflow server did not start in {START_SECONDS} s: {tail}")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL the server and the worker it started (its own process group)."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file; creating one takes seconds, copying it does not."""
    from wsss.tracking.delivery import Destination
    from wsss.tracking.location import default_uri

    home = tmp_path_factory.mktemp("template")
    Destination(default_uri(home), home)
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, template_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a ready database, seen from an empty working folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copyfile(template_database, folder / "mlflow.db")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture(scope="session")
def session_server(tmp_path_factory: pytest.TempPathFactory, template_database: Path) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(template_database, folder / "server.db")
    server = MlflowServer(folder, free_port())
    yield server
    server.kill()


@pytest.fixture
def server(session_server: MlflowServer) -> MlflowServer:
    """The session's server, running (a test may have killed it)."""
    if session_server.process is None:
        session_server.start()
    return session_server
