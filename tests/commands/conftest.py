"""A checkout of its own with the example method of CONTRIBUTING.md, and one finished run of it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contributing import EXAMPLE, write_example

import wsss_methods

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "dataset.shapes.train=12",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=2",
    "dataset.shapes.size=48",
)


@dataclass(frozen=True)
class Checkout:
    """A copy of the code with one more method, and the home that its runs use."""

    root: Path
    home: Path

    def reproduce(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python reproduce.py ...` in the copy, from a bare checkout."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, "reproduce.py", *arguments],
            cwd=self.root,
            env={**variables, "WSSS_HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            timeout=180,
        )


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("platform", "methods"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("reproduce.py", "tune.py"):
        shutil.copy(ROOT / script, root)
    write_example(root)
    return Checkout(root, root / "home")


@pytest.fixture
def example(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the example method, importable in this process too."""
    folder = str(checkout.root / "methods" / "wsss_methods")
    monkeypatch.setattr(wsss_methods, "__path__", [*wsss_methods.__path__, folder])
    monkeypatch.setenv("WSSS_HOME", str(checkout.home))
    return EXAMPLE


@pytest.fixture(scope="session")
def finished(checkout: Checkout) -> subprocess.CompletedProcess[str]:
    """The first reproduction of the example: a real one, on Ray."""
    done = checkout.reproduce("--method", EXAMPLE, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
