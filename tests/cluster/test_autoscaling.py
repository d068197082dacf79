"""A run on a cluster that has no nodes when it begins: Ray's autoscaler, with raylets of this machine as its nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.fake_autoscaler import AutoscalingHead, autoscaling_head

from wsss.run_record import find_runs

ROOT = Path(__file__).resolve().parents[2]
PYTHON_PATH = os.pathsep.join(str(ROOT / folder) for folder in ("platform", "methods", ""))
SMALL = (
    "dataset.shapes.train=24",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=2",
    "dataset.shapes.size=48",
)
RUN_SECONDS = 900

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head() -> Iterator[AutoscalingHead]:
    folder = Path(tempfile.mkdtemp(prefix="as"))  # short: the path of a socket has at most 107 characters
    environment = {**os.environ, "PYTHONPATH": PYTHON_PATH, "RAY_AUTH_MODE": "disabled"}
    types = {"cpu": {"CPU": 1, "max": 3}, "gpu": {"CPU": 1, "GPU": 1, "max": 2}}
    try:
        with autoscaling_head(folder, types, environment, idle_minutes=0.75) as started:
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def nodes(head: AutoscalingHead) -> list[str]:
    """Names of the types of the worker nodes that are alive, seen from outside any job."""
    code = (
        f"import ray; ray.init(address={head.address!r}, log_to_driver=False, logging_level=40); "
        "print('ALIVE', *(('gpu' if n['Resources'].get('GPU') else 'cpu') for n in ray.nodes() "
        "if n['Alive'] and n['Resources'].get('CPU')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ALIVE")]
    return line.split()[1:]


def run_toy(head: AutoscalingHead, home: Path, *overrides: str, **environment: str) -> tuple[int, str]:
    """One run of the toy method on the cluster; its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.execution.toy_method", str(home), *SMALL, *overrides],
        env={
            **os.environ,
            "PYTHONPATH": PYTHON_PATH,
            "RAY_ADDRESS": head.address,
            "TOY_VERBOSE": "1",
            "WSSS_WAIT_MINUTES": "15",
            **environment,
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
    )
    return done.returncode, done.stdout


def test_a_run_grows_the_cluster_trains_on_two_nodes_and_leaves_none(head: AutoscalingHead, tmp_path: Path) -> None:
    assert nodes(head) == []
    code, said = run_toy(head, tmp_path, "execution.device=cpu", "execution.train_workers=2")
    assert code == 0, said
    assert "the cluster grows: cpu (1 CPU, 0 of at most 3 here)" in said
    assert "asks for up to 3 cpu: toy_train 2, toy_score 3, toy_mean 1" in said
    assert "toy_train: waits for 2 x (1 CPU)" in said and "toy_train: has its nodes after" in said
    assert "(raylet)" not in said
    (record,) = find_runs(tmp_path)
    workers = {stage.name: stage.workers for stage in record.stages}
    assert workers == {"toy_train": 2, "toy_score": 3, "toy_mean": 1}
    assert "gpu" not in nodes(head), "no GPU node is started for work without a GPU"
    deadline = time.monotonic() + 300
    while nodes(head) and time.monotonic() < deadline:
        time.sleep(5)
    assert nodes(head) == []


def test_what_can_not_come_is_refused_and_what_does_not_come_ends_the_wait(
    head: AutoscalingHead, tmp_path: Path
) -> None:
    code, said = run_toy(head, tmp_path, "execution.device=cpu", "execution.train_workers=9")
    assert code != 0 and "9 workers with 1 CPU each are asked for; 5 fit at a time" in said
    assert find_runs(tmp_path) == []
    # More is declared than the autoscaler can start: six of its nodes never come.
    promised = {"WSSS_NODE_TYPES": "{cpu: {CPU: 1, max: 6}}", "WSSS_WAIT_MINUTES": "1"}
    code, said = run_toy(head, tmp_path, "execution.device=cpu", "execution.train_workers=6", **promised)
    assert code != 0 and "6 x (1 CPU)" in said and "did not come in 1 min" in said, said
    assert "WSSS_WAIT_MINUTES" in said


def test_a_plan_names_the_gpu_nodes_it_would_ask_for(head: AutoscalingHead, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "reproduce.py", "--method", "ssc", "--dry-run", "--home", str(tmp_path)],
        env={**os.environ, "RAY_ADDRESS": head.address},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 x 1 CPU + 1 GPU" in done.stdout and "asks for up to 2 gpu: cam_train 2" in done.stdout


def test_a_submitted_job_grows_the_cluster(head: AutoscalingHead, tmp_path: Path) -> None:
    small = ("dataset.shapes.train=12", "dataset.shapes.train_aug_extra=4", "dataset.shapes.val=4")
    source = tmp_path / "source"
    for name in ("platform", "methods", "search_spaces", "cluster"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "reproduce.py", source)
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--working-dir", "."]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", sys.executable, "reproduce.py", "--method", "ssc"]
    command += ["--home", str(tmp_path / "home"), "--until", "superpixels", *small]
    dropped = ("RAY_ADDRESS", "PYTHONPATH", "WSSS_HOME", "WSSS_STORE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        command,
        cwd=source,
        env={**environment, "RAY_API_SERVER_ADDRESS": head.dashboard},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the cluster grows" in done.stdout and "superpixels: done in" in done.stdout
    (record,) = find_runs(tmp_path / "home")
    assert record.status == "finished", json.dumps(record.error)
