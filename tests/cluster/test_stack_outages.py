"""Services of the stack that are killed on request, with a small program in the place of each."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
# Serves a folder as `stack.py up` does. Each service writes its process id and that of a child, which outlives it.
STACK = """
import sys, time
from functools import partial
from pathlib import Path
import stack_outages as outages
from stack_processes import inherit_orphans, kill_descendants

SERVICE = '''
import os, subprocess, time
print(os.getpid(), subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
time.sleep(600)
'''

def start(stack, name):
    service = stack.start(name, [sys.executable, "-c", SERVICE])
    stack.wait(service, lambda: service.log.read_text().strip())

def start_ray(stack):
    for name in (outages.HEAD, *outages.WORKER_NAMES):
        start(stack, name)

for name in outages.START:
    outages.START[name] = partial(start, name=name)
outages.START[outages.HEAD] = start_ray

folder = Path(sys.argv[1])
(folder / "logs").mkdir()
inherit_orphans()
stack = outages.Stack(folder, folder)
for name in ("object_store", "mlflow", outages.HEAD):
    outages.START[name](stack)
served = outages.Outages(stack)
served.begin()
(folder / "environment.sh").write_text("export WSSS_STORE=s3://wsss/store\\n")
while not (folder / "end").exists():
    time.sleep(0.05)
    stack.check()
    served.step()
kill_descendants()
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stack needs Linux")


@pytest.fixture
def outages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(CLUSTER)
    return importlib.import_module("stack_outages")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of a stack that runs."""
    command = [sys.executable, "-B", "-c", STACK, str(tmp_path)]
    with subprocess.Popen(command, env={"PYTHONPATH": str(CLUSTER), "PATH": "/usr/bin:/bin"}) as process:
        while not (tmp_path / "environment.sh").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield tmp_path
        (tmp_path / "end").touch()
        assert process.wait(60) == 0


def processes(folder: Path, name: str) -> tuple[int, ...]:
    """Ids of a service and of its child."""
    return tuple(map(int, (folder / "logs" / f"{name}.log").read_text().split()))


def living(*found: int) -> list[int]:
    return [each for each in found if Path(f"/proc/{each}").exists()]


def test_a_service_is_killed_with_its_children_and_there_again(
    outages: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, others = processes(folder, "mlflow"), processes(folder, "object_store")
    began = time.monotonic()
    outages.request(folder, "mlflow", 2, lambda: True)
    assert time.monotonic() - began > 2
    assert "mlflow was killed, and is there again after" in capsys.readouterr().out
    assert living(*before) == [] and living(*others) == list(others)
    again = processes(folder, "mlflow")
    assert living(*again) == list(again) and not set(again) & set(before)


def test_a_new_head_takes_the_nodes_with_it_and_another_outage_of_them_is_refused_meanwhile(
    outages: ModuleType, folder: Path
) -> None:
    names = (outages.HEAD, *outages.WORKER_NAMES)
    before = [process for name in names for process in processes(folder, name)]
    thread = threading.Thread(target=outages.request, args=(folder, outages.HEAD, 3, lambda: True))
    thread.start()
    deadline = time.monotonic() + 30
    while living(*before):
        assert time.monotonic() < deadline, "what the head had started lives on"
        time.sleep(0.05)
    for name in (outages.HEAD, outages.WORKER_NAMES[0]):
        with pytest.raises(outages.StackError, match="ray_head is away already"):
            outages.request(folder, name, 1, lambda: True)
    thread.join(60)
    after = [process for name in names for process in processes(folder, name)]
    assert len(after) == 2 * len(names) and living(*after) == after


def test_what_cannot_be_killed_is_refused(outages: ModuleType, folder: Path) -> None:
    with pytest.raises(outages.StackError, match="started with --sqlite"):
        outages.request(folder, "postgres", 1, lambda: True)
    with pytest.raises(outages.StackError, match="start it first"):
        outages.request(folder, "mlflow", 1, lambda: False)


def test_a_stack_that_ends_meanwhile_is_told(outages: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "environment.sh").touch()
    (tmp_path / "outages").mkdir()
    answers = [True, True, False]
    with pytest.raises(outages.StackError, match="has ended"):
        outages.request(tmp_path, "mlflow", 1, lambda: answers.pop(0))


@pytest.mark.parametrize("seconds", ["-1", "soon", "86401"])
def test_a_wrong_time_or_service_is_refused(
    outages: ModuleType, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = importlib.import_module("stack")
    with pytest.raises(SystemExit):
        stack.main(["outage", "mlflow", "--seconds", seconds])
    assert "no number of seconds" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        stack.main(["outage", "swift"])
    assert "object_store" in capsys.readouterr().err
