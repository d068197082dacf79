import json

import pytest

from wsss.execution.cluster import _worker_environment


def test_variables_that_the_job_sets_are_not_named_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("WSSS_DEBUG", "1")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert {"AWS_DEFAULT_REGION", "WSSS_DEBUG"} <= set(_worker_environment())
    config = {"runtime_env": {"env_vars": {"AWS_DEFAULT_REGION": "eu-central-1"}}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert "AWS_DEFAULT_REGION" not in _worker_environment() and "WSSS_DEBUG" in _worker_environment()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "no json")
    assert "AWS_DEFAULT_REGION" in _worker_environment()
