"""`ray job submit` of the repository to a cluster: a local head node, started and ended by its own process id."""

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
import yaml

from wsss.run_record import find_runs
from wsss.search.records import find_sweeps, load_trials, sweep_folder

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120
JOB_SECONDS = 400

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Cluster:
    """A running head node, and a clean copy of the repository to submit."""

    address: str
    source: Path
    home: Path

    def submit(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- python PROGRAM ...`, waiting for the end."""
        runtime_env = self.source / "job_env.yaml"
        shipped = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
        # AWS_* in the job's own environment must not collide with what the driver sets for its workers.
        shipped["env_vars"] = {"WSSS_HOME": str(self.home), "AWS_DEFAULT_REGION": "us-east-1", "OMP_NUM_THREADS": "1"}
        runtime_env.write_text(yaml.safe_dump(shipped))
        command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--working-dir", "."]
        command += ["--runtime-env", runtime_env.name, "--", sys.executable, program, *arguments]
        return subprocess.run(
            command,
            cwd=self.source,
            env={**clean_environment(), "RAY_API_SERVER_ADDRESS": self.address, "AWS_DEFAULT_REGION": "us-east-1"},
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS,
        )


def clean_environment() -> dict[str, str]:
    """This environment without what would point to another Ray or to this checkout's code."""
    dropped = ("RAY_ADDRESS", "PYTHONPATH", "WSSS_HOME", "WSSS_STORE")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {"RAY_AUTH_MODE": "disabled"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_up(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert head.poll() is None, f"the head node ended:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no dashboard after {START_SECONDS} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("platform", "methods", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("reproduce.py", "tune.py"):
        shutil.copy(ROOT / name, source)
    port, dashboard = free_port(), free_port()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += ["--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    log = folder / "head.log"
    address = f"http://127.0.0.1:{dashboard}"
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=clean_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_up(address, head, log)
            yield Cluster(address, source, folder / "home")
        finally:
            head.send_signal(signal.SIGTERM)
            try:
                head.wait(timeout=60)
            except subprocess.TimeoutExpired:
                head.kill()


def test_job_succeeds_and_leaves_its_results(cluster: Cluster) -> None:
    small = ("dataset.shapes.train=12", "dataset.shapes.train_aug_extra=4", "dataset.shapes.val=4")
    done = cluster.submit("reproduce.py", "--method", "ssc", "--until", "superpixels", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "superpixels: done in" in done.stdout
    (record,) = find_runs(cluster.home)
    assert record.status == "finished" and [stage.name for stage in record.stages] == ["superpixels"]
    assert record.provenance["ray_job_id"].startswith("raysubmit_")


def test_a_sweep_is_a_job_as_well(cluster: Cluster) -> None:
    overrides = ("cam.crop_size=64", "cam.resize_long_min=56", "cam.resize_long_max=80", "cam.num_epochs=1")
    overrides += ("cam.batch_size=8", "superpixels.segments=20", "affinity.crop_size=64", "affinity.num_epochs=1")
    overrides += ("affinity.batch_size=8", "random_walk.input_size=64", "dataset.shapes.size=64")
    overrides += ("dataset.shapes.train=12", "dataset.shapes.train_aug_extra=4", "dataset.shapes.val=4")
    sweep = ("--method", "ssc", "--space", "ssc_postprocessing", "--metric", "pseudo_label/miou_train", "--trials", "4")
    done = cluster.submit("tune.py", *sweep, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = find_sweeps(cluster.home)
    assert record.status == "finished" and record.best is not None
    trials = load_trials(sweep_folder(cluster.home, record.sweep_id))
    assert [trial.number for trial in trials if trial.status == "finished"] == [0, 1, 2, 3]
    executed = [use.name for trial in trials for use in trial.stages if use.executed]
    assert executed.count("affinity_train") == executed.count("edge") == 1 and executed.count("random_walk") == 4
    again = cluster.submit("tune.py", *sweep, *overrides)
    assert again.returncode == 0 and load_trials(sweep_folder(cluster.home, record.sweep_id)) == trials


def test_failing_job_fails_the_command(cluster: Cluster) -> None:
    done = cluster.submit("reproduce.py", "--method", "ssc", "cam.learning_rat=1")
    assert done.returncode == 1
    assert "did you mean 'cam.learning_rate'?" in done.stdout + done.stderr
