"""Ctrl-C while a command loads its modules, which takes a second and more on a busy machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The first import of numpy stands for the moment of Ctrl-C.
INTERRUPTED = """
import runpy, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.argv = sys.argv[1:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "words",
    [
        ("reproduce.py", "--method", "ssc", "--dry-run"),
        ("tune.py", "--method", "ssc", "--metric", "cam/miou_train", "--dry-run"),
        ("wsss.commands.main", "plan", "ssc"),
    ],
    ids=lambda words: words[0],
)
def test_ctrl_c_is_told_in_one_line(words: tuple[str, ...]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("platform", "methods"))}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "Stopped before it began." and not done.stdout
