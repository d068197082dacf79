"""What the stack of one command refuses, and how it finds what it has to end. Nothing of it is started."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of the command, as they find each other when it is run."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(CLUSTER)


@pytest.fixture
def stack() -> ModuleType:
    return importlib.import_module("stack")


@pytest.fixture
def services() -> ModuleType:
    return importlib.import_module("stack_services")


def test_a_machine_without_postgresql_is_told_what_to_install(
    stack: ModuleType,
    services: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stack, "find_spec", lambda name: name)
    monkeypatch.setattr(services.shutil, "which", lambda name, path: None)
    assert stack.main(["up", "--folder", str(tmp_path / "stack")]) == 1
    said = capsys.readouterr().err
    assert "initdb and postgres were not found" in said and "apt install postgresql" in said and "--sqlite" in said
    monkeypatch.setattr(stack, "find_spec", lambda name: None)
    assert stack.main(["up", "--folder", str(tmp_path / "stack")]) == 1
    assert "pip install -e '.[tracking-server]'" in capsys.readouterr().err
    assert not (tmp_path / "stack").exists()


@pytest.mark.parametrize("sqlite", [False, True])
def test_mlflow_keeps_numbers_in_postgresql_or_a_file(services: ModuleType, sqlite: bool, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    class Started(services.Stack):
        def start(self, name: str, command: list[str], **given: Any) -> None:
            commands.append(command)

        def wait(self, service: Any, ready: Any) -> None:
            pass

    started = Started(tmp_path, tmp_path)
    if not sqlite:
        started.variables["WSSS_STUDY"] = services.database_address(5432, "studies")
    address = services.start_mlflow(started)
    (command,) = commands
    database = command[command.index("--backend-store-uri") + 1]
    expected = f"sqlite:///{tmp_path}/mlflow.db" if sqlite else "postgresql+psycopg2://wsss@127.0.0.1:5432/mlflow"
    assert database == expected and started.variables["MLFLOW_TRACKING_URI"] == address
    assert command[command.index("--artifacts-destination") + 1] == "s3://wsss/mlflow"


def test_down_without_a_stack_says_so(stack: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stack.main(["down", "--folder", str(tmp_path)]) == 0
    assert "nothing runs" in capsys.readouterr().out
    (tmp_path / "lock").write_text("1")  # of one that has ended
    assert stack.main(["down", "--folder", str(tmp_path)]) == 0
    assert "nothing runs" in capsys.readouterr().out


def test_what_stems_from_a_process_is_found() -> None:
    processes = importlib.import_module("stack_processes")
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = processes.descendants()
        assert child.pid in found and any(
            Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"sleep") for process in found
        )
        for process in found:
            if process == child.pid or Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"sleep"):
                os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("cpus", ["0", "-1", "two", "1e3"])
def test_a_wrong_number_of_cpus_is_refused(stack: ModuleType, cpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stack.main(["up", "--cpus", cpus])
    assert "no number of CPUs" in capsys.readouterr().err
