"""What is said of a Ray that cannot be joined or started, before Ray waits for it."""

import socket
import time
from pathlib import Path

import pytest

from wsss.execution.reachable import _OF_RAY, AddressError, SessionFolderError, check_address, session_folder


@pytest.mark.parametrize(
    "address", ["here", "host:", ":6379", "host:0", "host:99999", "http://host:8265", "a b:1", "x" * 5000, "host:\0"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(AddressError, match="is no address of a Ray cluster") as caught:
        check_address(address)
    assert "unset RAY_ADDRESS" in caught.value.remedy and len(str(caught.value)) < 400


def test_nobody_answers() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        begun = time.monotonic()
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):  # bound, but not listening
            with pytest.raises(AddressError, match=f"nobody answers at RAY_ADDRESS = {address}") as caught:
                check_address(address, seconds=0.1)
            assert "unset RAY_ADDRESS" in caught.value.remedy
        assert time.monotonic() - begun < 20
        listener.listen()
        check_address(f"127.0.0.1:{port}")
    with pytest.raises(AddressError, match="nobody answers"):
        check_address("no-such-host.invalid:6379")
    check_address("auto")


def test_a_long_folder_is_left_to_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert session_folder() is None
    longest = "/" + "x" * (107 - _OF_RAY - 1)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert session_folder() is None and capsys.readouterr().err == ""
    monkeypatch.setenv("TMPDIR", longest + "x")
    chosen = session_folder()
    assert chosen is not None and len(chosen) < len(longest) and "TMPDIR is too long" in capsys.readouterr().err
    monkeypatch.setenv("RAY_TMPDIR", longest + "x")
    with pytest.raises(SessionFolderError, match="RAY_TMPDIR is too long") as caught:
        session_folder()
    assert "short folder" in caught.value.remedy
    (tmp_path / "file").touch()
    short = Path("/tmp") / f"wsss-{time.time_ns()}"
    short.symlink_to(tmp_path / "file")
    try:
        monkeypatch.setenv("RAY_TMPDIR", str(short))
        with pytest.raises(SessionFolderError, match="cannot write to RAY_TMPDIR"):
            session_folder()
    finally:
        short.unlink()
