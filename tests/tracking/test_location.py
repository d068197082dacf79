from __future__ import annotations

from pathlib import Path

import pytest

from wsss.tracking import TrackingError, default_uri, ui_command
from wsss.tracking.location import check_uri, sqlite_path, sqlite_uri, uri_with_credentials


def test_the_default_is_absolute_and_inside_home(tmp_path: Path) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_uri(Path("relative")).startswith("sqlite:////")


@pytest.mark.parametrize("name", ["plain", "with space", "per%20cent", "quest?ion", "ümlaut"])
def test_sqlite_addresses_name_their_file(tmp_path: Path, name: str) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    path = tmp_path / name / "mlflow.db"
    assert sqlite_path(sqlite_uri(path)) == path
    assert sqlalchemy.make_url(sqlite_uri(path)).database == str(path)


@pytest.mark.parametrize("uri", ["file:/data/mlruns", "mlruns", "/data/mlruns", "sqlite:///mlflow.db", "ftp://host"])
def test_addresses_that_cannot_work_are_refused(uri: str) -> None:
    with pytest.raises(TrackingError):
        check_uri(uri)


@pytest.mark.parametrize(
    "uri", ["http://h:5000", "https://h/mlflow", "postgresql+psycopg://u:p@h/db", "sqlite:////a/b.db"]
)
def test_addresses_that_can_work_are_taken(uri: str) -> None:
    assert check_uri(uri) == uri


def test_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = "http://[redacted]@host:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert uri_with_credentials("http://host") == "http://host"
    assert uri_with_credentials(recorded) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@host:5000")
    assert uri_with_credentials(recorded) == "http://me:pw@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@other:5000")
    assert uri_with_credentials(recorded) is None


def test_ui_command_serves_the_default_or_names_the_server(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    command = ui_command(home)
    assert command.startswith("mlflow ui --backend-store-uri")
    assert f"'sqlite:///{home}/mlflow.db'" in command
    assert f"'{home}/mlartifacts'" in command
    assert command.endswith("# then open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning")
    page = ui_command(home, "http://me:pw@host:5000")
    assert page == "http://[redacted]@host:5000/#/experiments?workflowType=machine_learning"
