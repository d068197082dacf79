"""CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contributing import commands, write_example

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path: Path) -> None:
    for name in ("platform", "methods", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("reproduce.py", "pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    write_example(tmp_path)
    assert len(commands()) == 4
    code = f"{tmp_path / 'platform'}{os.pathsep}{tmp_path / 'methods'}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = ""
    for command in commands():
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": code, "PATH": path},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        told = done.stdout
    assert "cam/miou_train" in told and "not comparable" in told
