"""What a command says that Ray has ended, which can say nothing any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import os, signal, subprocess, sys, time
from wsss.execution.last_words import leave_last_words, take_back

nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
raylet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **nowhere)
leave_last_words(raylet.pid, "its last words")
if "raylet" in sys.argv:
    raylet.kill()
    time.sleep(0.2)
if "in order" in sys.argv:
    take_back()
print(raylet.pid, flush=True)
os._exit(1) if "terminated" in sys.argv else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        (("raylet", "terminated"), "its last words"),
        (("raylet", "in order", "terminated"), ""),
        (("terminated",), ""),
        (("killed",), ""),
    ],
    ids=" ".join,
)
def test_only_a_command_that_its_raylet_has_ended_has_last_words(what: tuple[str, ...], said: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", COMMAND, *what], env=environment, capture_output=True, text=True)
    if "raylet" not in what:
        os.kill(int(done.stdout), signal.SIGKILL)
    assert done.stderr == said
