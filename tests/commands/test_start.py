"""What ends a command while it loads its modules: Ctrl-C, in a second and more; a package that is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The first import of a package stands for the moment of Ctrl-C; compiled ones make another error of it.
DISTURBED = """
import runpy, sys

class Disturbance:
    def find_spec(self, name, path=None, target=None):
        if name == package:
            if how == "missing":
                raise ModuleNotFoundError("no module", name=name)
            if how == "wrapped":
                raise ImportError("initialization failed") from KeyboardInterrupt()
            raise KeyboardInterrupt

package, how = sys.argv[1:3]
sys.meta_path.insert(0, Disturbance())
sys.argv = sys.argv[3:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__")
"""


def disturbed(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("platform", "methods"))}
    return subprocess.run(
        [sys.executable, "-c", DISTURBED, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )


PROGRAMS = pytest.mark.parametrize(
    "words",
    [
        ("reproduce.py", "--method", "ssc", "--dry-run"),
        ("tune.py", "--method", "ssc", "--metric", "cam/miou_train", "--dry-run"),
        ("wsss.commands.main", "plan", "ssc"),
    ],
    ids=lambda words: words[0],
)


@PROGRAMS
def test_a_package_that_is_not_installed_is_told_with_what_to_do(words: tuple[str, ...]) -> None:
    done = disturbed("numpy", "missing", *words)
    assert done.returncode == 2 and not done.stdout
    first, where, remedy = done.stderr.splitlines()
    assert first == "error: the Python package 'numpy' is not installed"
    assert sys.executable in where and "pip install -e ." in remedy


@pytest.mark.parametrize("how", ["plain", "wrapped"])
@PROGRAMS
def test_ctrl_c_is_told_in_one_line(words: tuple[str, ...], how: str) -> None:
    done = disturbed("numpy", how, *words)
    assert done.returncode == 130
    assert done.stderr.strip() == "Stopped before it began." and not done.stdout


@pytest.mark.parametrize("how", ["plain", "wrapped"])
def test_ctrl_c_while_a_verb_loads_what_it_needs(how: str, tmp_path: Path) -> None:
    done = disturbed("matplotlib", how, "reproduce.py", "--method", "ssc", "--recipe", "demo", "--home", str(tmp_path))
    assert done.returncode == 130
    assert done.stderr.strip().startswith("Stopped. Nothing that was finished is lost") and not done.stdout
