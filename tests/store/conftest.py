"""Object stores that tests start for themselves: one in memory (moto), one real (OpenStack Swift)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

BUCKET = "wsss-tests"
NO_INSTALL = 3  # exit status of the launcher when the package index does not answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


@pytest.fixture(scope="session")
def moto_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables for a moto server with an empty bucket."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "the moto server did not start"
                time.sleep(0.1)
        environment = _environment(endpoint, "test", "test-secret")
        _client(environment).create_bucket(Bucket=BUCKET)
        yield environment
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture(scope="session")
def swift_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables for a real Swift with an empty bucket; skips where it cannot be had."""
    folder = tmp_path_factory.mktemp("swift")
    try:
        os.setxattr(folder, "user.probe", b"1")
    except OSError as error:
        pytest.skip(f"Swift needs extended attributes, which {folder} lacks: {error.strerror}")
    launcher = [sys.executable, str(Path(__file__).with_name("object_store.py")), "start", "--port", "0"]
    with (folder / "output").open("wb") as output:
        server = subprocess.Popen(
            [*launcher, "--folder", str(folder / "store"), "--bucket", BUCKET], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 180
        ready = folder / "store" / "environment.sh"
        while not ready.is_file():
            said = (folder / "output").read_text()
            if server.poll() == NO_INSTALL:
                pytest.skip(f"Swift cannot be installed here: {said[-300:]}")
            assert server.poll() is None, said
            assert time.monotonic() < deadline, f"Swift did not start: {said}"
            time.sleep(0.2)
        lines = (line.removeprefix("export ").partition("=") for line in ready.read_text().splitlines())
        yield {name: value for name, _, value in lines}
    finally:
        server.terminate()
        server.wait(timeout=30)


def _environment(endpoint: str, key: str, secret: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _client(environment: dict[str, str]):
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set these variables and none of the developer's own that would change which store is meant."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def moto(moto_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of the moto bucket, whose environment is set during the test."""
    use(moto_environment, monkeypatch)
    return f"s3://{BUCKET}"


@pytest.fixture
def swift(swift_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of the Swift bucket, whose environment is set during the test."""
    use(swift_environment, monkeypatch)
    return f"s3://{BUCKET}"
