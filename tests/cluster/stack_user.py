"""The stack of one command as its user meets it: started, used through its variables, looked into, ended."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import mlflow
import pytest

from wsss.run_record import RunRecord, find_runs

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS, RUN_SECONDS, END_SECONDS = 2400, 1800, 150
NO_INSTALL = "check that pip reaches its package index"
DATA = "s3://wsss/data/small"
SMALL = (
    "dataset.name=voc2012",
    "cam.crop_size=64",
    "cam.resize_long_min=56",
    "cam.resize_long_max=80",
    "cam.num_epochs=1",
)
SMALL += ("cam.batch_size=8", "superpixels.segments=20", "affinity.crop_size=64", "affinity.num_epochs=1")
SMALL += ("affinity.batch_size=8", "random_walk.input_size=64", "execution.device=cpu", "execution.train_workers=2")


@dataclass(frozen=True)
class Started:
    """A program that runs, and what it has printed."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str) -> None:
        """Until it has printed these words."""
        deadline = time.monotonic() + RUN_SECONDS
        while words not in self.said:
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.2)

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(RUN_SECONDS)
        finally:
            self.process.kill()


@dataclass
class Stack:
    """A running stack; `variables` are those of its environment file."""

    folder: Path
    process: subprocess.Popen[str]
    said: str
    variables: dict[str, str]

    def run(self, *command: str, **variables: str) -> str:
        """Run a program in the environment that the stack tells. Returns what it printed."""
        started = self.begin(*command, **variables)
        code = started.wait()
        assert code == 0, started.said
        return started.said

    def begin(self, *command: str, **variables: str) -> Started:
        """Start a program in the environment that the stack tells, with `variables` in place of its own."""
        log = self.folder.parent / f"command-{time.monotonic_ns()}.log"
        environment = {**os.environ, **self.variables, "WSSS_GIT_COMMIT": "0" * 40, **variables}
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *command], env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )
        return Started(process, log)

    def outage(self, service: str, seconds: int) -> None:
        """Have a service killed. Returns when it is there again."""
        self.run(str(ROOT / "cluster" / "stack.py"), "outage", service, "--seconds", str(seconds), *self._place)

    @property
    def _place(self) -> tuple[str, str]:
        return "--folder", str(self.folder)


def has_database(folder: Path) -> bool:
    """Whether PostgreSQL's server and its driver are installed, and its user, whom root becomes, may enter a folder."""
    places = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    if find_spec("psycopg2") is None or shutil.which("initdb", path=places) is None:
        return False
    return os.geteuid() != 0 or all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))


def start(folder: Path, *options: str) -> Stack:
    """Start a stack and wait until it is there. Skips the test where its object store cannot be installed."""
    command = [sys.executable, str(ROOT / "cluster" / "stack.py"), "up", "--folder", str(folder), *options]
    # A job's `python` is that of the head.
    places = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, env=places, stdout=output, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + START_SECONDS
    while not (said := log.read_text()).endswith("ready\n"):
        if process.poll() is not None and NO_INSTALL in said:
            pytest.skip(f"the object store cannot be installed here: {said[-300:]}")
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            pytest.fail(said)
        time.sleep(0.3)
    environment = folder / "environment.sh"
    assert environment.stat().st_mode & 0o077 == 0
    words = [shlex.split(line) for line in environment.read_text().splitlines()]
    return Stack(folder, process, said, dict(word.split("=", 1) for _, word in words))


def first_run(stack: Stack) -> RunRecord:
    return min(find_runs(Path(stack.variables["WSSS_HOME"])), key=lambda record: record.started)


def tracked(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All runs of the MLflow server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.variables["MLFLOW_TRACKING_URI"])
    return mlflow.search_runs(search_all_experiments=True, output_format="list")  # pyright: ignore[reportReturnType]


def objects_of(stack: Stack) -> set[str]:
    pages = _s3(stack).get_paginator("list_objects_v2").paginate(Bucket="wsss")
    return {item["Key"] for page in pages for item in page.get("Contents", ())}


def contents_of(stack: Stack, store: str) -> dict[str, dict[str, str]]:
    """Of each artifact of a store (its prefix), by stage and key: file -> checksum."""
    found = {}
    for name in objects_of(stack):
        if name.startswith(f"{store}/") and name.endswith("/manifest.json") and "/." not in name:
            manifest = json.loads(_s3(stack).get_object(Bucket="wsss", Key=name)["Body"].read())
            place = name.removeprefix(f"{store}/").removesuffix("/manifest.json")
            found[place] = {file: entry["sha256"] for file, entry in manifest["files"].items()}
    return found


def _s3(stack: Stack) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=stack.variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=stack.variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=stack.variables["AWS_SECRET_ACCESS_KEY"],
        region_name=stack.variables["AWS_DEFAULT_REGION"],
    )


def processes_of(folder: Path) -> list[str]:
    """Processes whose command, variables or working folder name the folder; what they are."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            text += os.fsencode((process / "cwd").readlink())
        except OSError:  # it has just ended, or is not ours
            continue
        if os.fsencode(folder) in text and int(process.name) != os.getpid():
            found.append(f"{process.name} {text[:200]!r}")
    return found


def sockets_of(stack: Stack) -> list[str]:
    """Those of its folders for Ray's sockets that are still there."""
    return [str(path) for path in Path("/tmp").glob(f"wsss-{stack.process.pid}-*")]


def nodes_of_training(stack: Stack) -> tuple[int, int]:
    """Workers of trainings that Ray knows, and on how many nodes they were."""
    listed = stack.run(
        *("-m", "ray.scripts.scripts", "list", "actors", "--format", "json", "--detail", "--limit", "1000"),
        *("--filter", "class_name=RayTrainWorker"),
    )
    actors = json.loads(listed[listed.index("[") :])
    return len(actors), len({actor["node_id"] for actor in actors})
