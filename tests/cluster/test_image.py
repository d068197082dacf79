"""The image: built and used where Docker or Buildah and its base image are at hand, its steps without them elsewhere.

Options of the build that a machine needs, such as a folder of wheels that stands in for an unreachable index, come from
WSSS_IMAGE_BUILD_OPTIONS.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    check_what_runs(run, str(tmp_path / "home"))
    run("python -c 'import psycopg2, pycocotools, cmaes'")


@contextmanager
def built_image(tag: str) -> Iterator[Callable[[str], str]]:
    """Build the image; gives what runs a shell command in it and returns its output. Skips where nothing can build."""
    options = [*shlex.split(os.environ.get("WSSS_IMAGE_BUILD_OPTIONS", "")), "-f", "cluster/Dockerfile", "-t", tag, "."]
    base = "python:3.11-slim"
    if _status("docker", "info") == 0:
        if _status("docker", "pull", base) and _status("docker", "image", "inspect", base):
            pytest.skip(f"the base image {base} cannot be fetched")
        _output("docker", "build", *options)
        yield lambda command: _output("docker", "run", "--rm", "-e", "RAY_AUTH_MODE=disabled", tag, "sh", "-c", command)
        _output("docker", "image", "rm", tag)
        return
    if shutil.which("buildah") is None:
        pytest.skip("neither a Docker engine nor buildah")
    if _status("buildah", "pull", base) and _status("buildah", "inspect", "--type", "image", base):
        pytest.skip(f"the base image {base} cannot be fetched")
    _output("buildah", "build", "--isolation=chroot", "--ignorefile", "cluster/Dockerfile.dockerignore", *options)
    container = _output("buildah", "from", "--pull-never", tag).strip()
    run = ("buildah", "run", "--isolation=chroot", "--env", "RAY_AUTH_MODE=disabled", container, "--", "sh", "-c")
    yield lambda command: _output(*run, command)
    _output("buildah", "rm", container)
    _output("buildah", "rmi", tag)


def _status(*words: str) -> int:
    if shutil.which(words[0]) is None:
        return 127
    return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=STEP_SECONDS).returncode


def _output(*words: str) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=STEP_SECONDS)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_the_image_builds_and_runs_as_its_user() -> None:
    with built_image("localhost/wsss:test") as run:
        assert run("id -un").strip() == "ray"
        check_what_runs(run, "/home/ray/home")
        run("wget --version && ps --version")  # KubeRay's probes and Ray's launcher
        run("python -c 'import psycopg2, pycocotools, cmaes, torch; assert not torch.cuda.is_available()'")
        assert not {"tests", "cluster", ".git", ".wsss"} & set(run("ls -A").split())


def check_what_runs(run: Callable[[str], str], home: str) -> None:
    """Plans of the five methods and of a sweep, and the commands of the servers."""
    for method in ("ssc", "sbnet", "i2crc", "msa", "wsfcn"):
        assert "segmentation" in run(f"python reproduce.py --method {method} --dry-run --home {home}")
    tune = "python tune.py --method ssc --space ssc_postprocessing --metric pseudo_label/miou_train --trials 2"
    assert "2 trials" in run(f"{tune} --dry-run --home {home}")
    assert run("mlflow --version") and run("ray --version")
