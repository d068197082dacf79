"""The launcher of a real object store: refusals before anything is installed, and objects that survive a restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.store.children import KEY, STAGE, check_content, compute
from tests.store.conftest import NO_INSTALL, use

from wsss.store import open_store


@pytest.fixture
def launcher() -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("object_store.py")), "start"]


def _fails(command: list[str], **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stderr


def test_a_taken_port_is_named(launcher: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = _fails([*launcher, "--folder", str(tmp_path / "store"), "--port", port])
    assert status == 1
    assert f"port {port} is taken" in said


def test_a_folder_without_extended_attributes_is_refused(launcher: list[str]) -> None:
    status, said = _fails([*launcher, "--folder", "/proc/wsss", "--port", "0"])
    assert status == 1
    assert "/proc/wsss cannot hold objects" in said
    assert "extended attributes" in said


@pytest.mark.slow
def test_an_unreachable_package_index_has_its_own_status(launcher: list[str], tmp_path: Path) -> None:
    command = [*launcher, "--folder", str(tmp_path / "store"), "--environment", str(tmp_path / "venv"), "--port", "0"]
    status, said = _fails(command, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null")
    assert status == NO_INSTALL
    assert "check that pip reaches its package index" in said
    assert not (tmp_path / "venv" / ".complete").exists()


@contextmanager
def _running(launcher: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    command = [*launcher, "--folder", str(folder), "--port", "0", "--bucket", "kept"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        said = []
        for line in process.stdout:
            if line.strip() == "ready":
                break
            said.append(line.strip().removeprefix("export ").partition("="))
        else:
            pytest.fail(f"the store did not start: {process.stderr.read()}")
        yield process, {name: value for name, _, value in said}
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_objects_survive_a_restart_and_no_server_outlives_it(
    launcher: list[str],
    tmp_path: Path,
    swift_environment: dict[str, str],  # skips where Swift cannot be had
    monkeypatch: pytest.MonkeyPatch,
    end: signal.Signals,
) -> None:
    folder = tmp_path / "objects"
    with _running(launcher, folder) as (process, environment):
        use(environment, monkeypatch)
        compute(open_store("s3://kept/x", tmp_path / "cache"))
        status, said = _fails([*launcher, "--folder", str(folder), "--port", "0"])
        assert status == 1
        assert "another launcher serves" in said
        process.send_signal(end)
        assert process.wait(timeout=30) == (-9 if end == signal.SIGKILL else 0)
        deadline = time.monotonic() + 15
        while _servers(folder):
            assert time.monotonic() < deadline, _servers(folder)
            time.sleep(0.1)
    with _running(launcher, folder) as (_, environment):
        use(environment, monkeypatch)
        found = open_store("s3://kept/x", tmp_path / "cache").find(STAGE, KEY)
        assert found is not None
        check_content(found)
    secret = folder / "etc" / "secret"
    assert secret.stat().st_mode & 0o077 == 0
    assert environment["AWS_SECRET_ACCESS_KEY"] == secret.read_text()


def _servers(folder: Path) -> list[int]:
    """Processes whose command line names a configuration file in this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has just ended
                continue
            if f"{folder}/etc/" in line:
                found.append(int(process.name))
    return found
