"""The steps of the image without Docker: what it installs, and what its context holds, in an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
STEP_SECONDS = 1800

pytestmark = pytest.mark.slow


def install_step() -> str:
    """The command of the step that installs the dependencies."""
    joined = re.sub(r"\\\n\s*", "", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"))
    (step,) = [line.removeprefix("RUN ") for line in joined.splitlines() if line.startswith("RUN ") and "pip" in line]
    return step


def context() -> list[str]:
    """Of the files under version control those that the build sees; the last rule that fits decides."""
    rules = [
        line
        for line in (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in listed if not ignored(name, rules)]


def ignored(name: str, rules: list[str]) -> bool:
    found = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        parts = [name, *(str(parent) for parent in Path(name).parents)]
        if any(fnmatch(part, pattern) or fnmatch(f"/{part}", pattern.replace("**", "*")) for part in parts):
            found = not rule.startswith("!")
    return found


def test_the_steps_of_the_image_give_what_runs_a_method(tmp_path: Path) -> None:
    source, environment = tmp_path / "source", tmp_path / "environment"
    source.mkdir()
    venv.create(environment, with_pip=True)
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name in ("HOME", "LANG")}
    kept |= {"PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin", "RAY_AUTH_MODE": "disabled"}

    def run(command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command], cwd=source, env=kept, capture_output=True, text=True, timeout=STEP_SECONDS
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    shutil.copy(ROOT / "pyproject.toml", source)
    run(install_step())
    files = context()
    assert any(name.endswith(".pth") for name in files), "the demos start from these"
    assert not [name for name in files if name.startswith(("tests/", "cluster/", "benchmarks/", ".ci"))]
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for method in ("ssc", "sbnet", "i2crc", "msa", "wsfcn"):
        assert "segmentation" in run(f"python reproduce.py --method {method} --dry-run --home {tmp_path / 'home'}")
    tune = "python tune.py --method ssc --space ssc_postprocessing --metric pseudo_label/miou_train --trials 2"
    assert "2 trials" in run(f"{tune} --dry-run --home {tmp_path / 'home'}")
    assert run("mlflow --version") and run("ray --version")
    run("python -c 'import psycopg2, pycocotools, cmaes'")
