"""What is said of a Ray that cannot be joined or started, before Ray waits for it."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    with pytest.raises(AddressError, match="nobody answers"):
        check_address("no-such-host.invalid:6379")
    check_address("auto")


class Answering(socketserver.BaseRequestHandler):
    """Answers with the bytes of its server, then ends."""

    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(self.server.answer)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.answer = answer  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"\0\0\0\4"],
    ids=["a web page", "redis", "ssh", "silence", "too short"],
)
def test_another_program_than_ray_answers(answer: bytes) -> None:
    begun = time.monotonic()
    with (
        answering(answer) as address,
        pytest.raises(AddressError, match=f"answers at .* = {address} is no Ray") as caught,
    ):
        check_address(address)
    assert "6379" in caught.value.remedy and "unset RAY_ADDRESS" in caught.value.remedy
    assert time.monotonic() - begun < 20


def test_an_encrypted_ray_is_not_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with answering(b"") as address:
        check_address(address)


def test_a_server_of_grpc_is_taken_for_ray() -> None:
    with answering(bytes([0, 0, 18, 4, 0, 0, 0, 0, 0]) + bytes(18)) as address:
        check_address(address)
        check_address(f"ray://{address}")


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
