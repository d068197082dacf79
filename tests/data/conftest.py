import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _shared(*parts: str) -> Path:
    folder = Path(os.environ.get("WSSS_SHARED", REPOSITORY.parent / "shared")).joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"shared material {'/'.join(parts)} is absent (set WSSS_SHARED)")
    return folder


@pytest.fixture
def shared_parity() -> Path:
    return _shared("parity", "ssc")


@pytest.fixture
def shared_data() -> Path:
    return _shared("data")
