"""Ctrl-C while a command loads its modules, which takes a second and more on a busy machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The first import of a package stands for the moment of Ctrl-C; compiled ones make another error of it.
INTERRUPTED = """
import runpy, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == package:
            if wrapped:
                raise ImportError("initialization failed") from KeyboardInterrupt()
            raise KeyboardInterrupt

package, wrapped = sys.argv[1], sys.argv[2] == "wrapped"
sys.meta_path.insert(0, Interrupt())
sys.argv = sys.argv[3:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__")
"""


def interrupted(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("platform", "methods"))}
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("how", ["plain", "wrapped"])
@pytest.mark.parametrize(
    "words",
    [
        ("reproduce.py", "--method", "ssc", "--dry-run"),
        ("tune.py", "--method", "ssc", "--metric", "cam/miou_train", "--dry-run"),
        ("wsss.commands.main", "plan", "ssc"),
    ],
    ids=lambda words: words[0],
)
def test_ctrl_c_is_told_in_one_line(words: tuple[str, ...], how: str) -> None:
    done = interrupted("numpy", how, *words)
    assert done.returncode == 130
    assert done.stderr.strip() == "Stopped before it began." and not done.stdout


@pytest.mark.parametrize("how", ["plain", "wrapped"])
def test_ctrl_c_while_a_verb_loads_what_it_needs(how: str, tmp_path: Path) -> None:
    done = interrupted(
        "matplotlib", how, "reproduce.py", "--method", "ssc", "--recipe", "demo", "--home", str(tmp_path)
    )
    assert done.returncode == 130
    assert done.stderr.strip().startswith("Stopped. Nothing that was finished is lost") and not done.stdout
