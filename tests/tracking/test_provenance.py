from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from wsss.tracking.provenance import collect_provenance, git_state, library_versions, ray_job_id


def _git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_git_state_tells_commit_and_changes(tmp_path: Path) -> None:
    _git(tmp_path, "init")
    (tmp_path / "a.py").write_text("1")
    _git(tmp_path, "add", "a.py")
    _git(tmp_path, "commit", "-m", "first")
    commit, dirty = git_state(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path) == (commit, True)
    tags = collect_provenance(tmp_path).tags()
    assert tags["git_commit"] == f"{commit}-dirty"


def test_no_git_and_no_repository_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("WSSS_GIT_COMMIT", raising=False)
    assert git_state(tmp_path) == ("", None)
    monkeypatch.setenv("WSSS_GIT_COMMIT", "abc")
    assert git_state(tmp_path) == ("abc", None)
    monkeypatch.delenv("WSSS_GIT_COMMIT")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = collect_provenance(tmp_path)
    assert found.git_commit == ""
    assert found.tags()["git_commit"] == "unknown"
    assert found.machine["cores"] >= 1
    assert found.machine["memory_gib"] > 0
    json.dumps(found.as_dict())


def test_versions_skip_what_is_not_installed() -> None:
    found = library_versions(["numpy", "no-such-distribution-here"])
    assert set(found) == {"python", "numpy"}


def test_the_job_id_comes_from_the_submitted_job() -> None:
    config = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}})
    assert ray_job_id({"RAY_JOB_CONFIG_JSON_ENV_VAR": config}) == "raysubmit_1"
    assert ray_job_id({"RAY_JOB_CONFIG_JSON_ENV_VAR": "not json"}) == ""
    assert ray_job_id({}) == ""
