"""Where tracking goes: the default database beside the results, or the address the user gave."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import quote, unquote

from wsss.tracking.redact import REDACTED, redact_text
from wsss.tracking.spool import TrackingError

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")

_UI_PORT = 5000
# MLflow 3 opens on language model traces; this argument opens it on training runs, and the browser remembers it.
_TRAINING_RUNS_PAGE = "/#/experiments?workflowType=machine_learning"


def default_uri(home: Path) -> str:
    """`sqlite:////<home>/mlflow.db`; absolute, because Ray changes the working folder."""
    return sqlite_uri(home.absolute() / "mlflow.db")


def artifact_root(home: Path) -> Path:
    """Folder of the artifacts when tracking goes straight to a database (a server keeps its own)."""
    return home.absolute() / "mlartifacts"


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite file; percent signs and question marks in the path are escaped."""
    return "sqlite:///" + quote(str(path.absolute()), safe="/ !$&'()*+,;=:@~")


def sqlite_path(uri: str) -> Path | None:
    """The file that an `sqlite:////...` address names, None for other addresses."""
    scheme, _, rest = uri.partition("://")
    return Path(unquote(rest.partition("?")[0])[1:]) if scheme.partition("+")[0] == "sqlite" else None


def check_uri(uri: str) -> str:
    """The address unchanged when tracking can use it.

    Raises:
        TrackingError: no scheme, a folder (MLflow 3 refuses folders), or a relative SQLite path.
    """
    scheme, separator, _ = uri.partition("://")
    family = scheme.partition("+")[0].lower()
    if not separator or family not in _SCHEMES:
        raise TrackingError(
            f"Tracking cannot use the address {redact_text(uri)!r}.",
            "tracking uri",
            "Give http://host:port of an MLflow server, sqlite:////absolute/file.db or postgresql://host/name; "
            "MLflow 3 no longer writes to a folder.",
        )
    path = sqlite_path(uri)
    if path is not None and not path.is_absolute():
        raise TrackingError(
            f"The SQLite address {uri!r} is relative, so it would depend on the working folder.",
            "tracking uri",
            "Write four slashes and the absolute path: sqlite:////absolute/file.db",
        )
    return uri


def uri_with_credentials(recorded: str) -> str | None:
    """The usable form of an address from a record, None when its credentials were left out of the record.

    `MLFLOW_TRACKING_URI` supplies them when it is the same address.
    """
    if REDACTED not in recorded:
        return recorded
    offered = os.environ.get("MLFLOW_TRACKING_URI", "")
    return offered if redact_text(offered) == recorded else None


def ui_command(home: Path, uri: str | None = None) -> str:
    """How to see the runs: the command that serves the local database with the page to open behind a `#`, or the
    page of the server."""
    address = check_uri(uri or default_uri(home))
    if address.lower().startswith(("http://", "https://")):
        return redact_text(address).rstrip("/") + _TRAINING_RUNS_PAGE
    words = ["mlflow", "ui", "--backend-store-uri", redact_text(address)]
    words += ["--artifacts-destination", str(artifact_root(home)), "--workers", "1", "--port", str(_UI_PORT)]
    return f"{shlex.join(words)}  # then open http://127.0.0.1:{_UI_PORT}{_TRAINING_RUNS_PAGE}"


def bound_requests() -> None:
    """Let a dead server fail in seconds; call it before threads start. What the user has set stays.

    No retries below ours: a repeated create_run would make a second run, and ours looks for the first one.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
