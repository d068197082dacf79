"""What every test shares: a quiet, bounded environment, the folder of real data, a home of its own."""

import os
from pathlib import Path

import hypothesis
import pytest

# The processes of a parallel test run have the width of a terminal, which tables would be cut to.
os.environ.pop("COLUMNS", None)

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports Ray, torch or MLflow: the values are read once.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="20",
    RAY_USAGE_STATS_ENABLED="0",
    GIT_PYTHON_REFRESH="quiet",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A developer's own cluster, store and tracking server are not for tests.
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "WSSS_HOME", "WSSS_STORE", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)

# A property holds or does not; how long an example takes is a matter of the machine.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real pictures and reference outputs (environment variable WSSS_SHARED); skips when absent."""
    folder = Path(os.environ.get("WSSS_SHARED", ROOT.parent / "shared")).resolve()
    if not (folder / "parity").is_dir():
        pytest.skip("no shared data: set WSSS_SHARED to the folder that holds data/ and parity/")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for runs, store and tracking; also what WSSS_HOME says during the test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("WSSS_HOME", str(folder))
    return folder
