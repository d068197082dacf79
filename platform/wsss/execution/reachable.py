"""What can be known of a Ray before it is joined or started: whether its address answers, where its sockets go.

Ray itself waits two minutes for an address that nobody answers, and says nothing meanwhile.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from wsss.errors import WsssError
from wsss.text_file import shortened

# A path of a Unix socket has at most 107 bytes; of these Ray's own folders and names take so many.
_LONGEST_SOCKET = 107
_OF_RAY = len("/ray/session_2026-01-01_00-00-00_123456_4194304/sockets/plasma_store.sock")
_SHORT_FOLDER = Path("/tmp")
# Ray's ports speak gRPC: HTTP/2, whose server answers this beginning with a frame of type 4, its settings.
_HTTP2_BEGINNING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS, _HTTP2_HEADER = 4, 9


class AddressError(WsssError):
    """RAY_ADDRESS is no address, or nobody answers there."""


class SessionFolderError(WsssError):
    """There is no folder that Ray can use for its sockets."""


def check_address(address: str, seconds: float = 10.0) -> None:
    """Return when something listens at an address of Ray: host:port, or ray://host:port. `auto` and `local` are Ray's.

    Args:
        seconds: how long a host is asked again that refuses or does not answer.

    Raises:
        AddressError: it is no address, nobody listens there, or another program than Ray does.
    """
    if address in ("auto", "local"):
        return
    parts = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", address)
    if parts is None or not 0 < int(parts[2]) < 65536:
        raise AddressError(
            f"RAY_ADDRESS = {shortened(address)!r} is no address of a Ray cluster",
            "RAY_ADDRESS",
            "write host:port (the port of `ray start --head`, 6379), ray://host:10001 or auto; `unset RAY_ADDRESS` "
            "uses this machine alone",
        )
    host, port = parts[1].strip("[]"), int(parts[2])
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, until - time.monotonic())) as connection:
                if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):  # else nothing is said before the certificates
                    _require_grpc(connection, address)
            return
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError | TimeoutError)
            if not refused or time.monotonic() + 1 > until:
                raise AddressError(
                    f"nobody answers at RAY_ADDRESS = {address}: {error.strerror or 'no answer in time'}",
                    "RAY_ADDRESS",
                    "start the cluster there, or correct the address; `unset RAY_ADDRESS` uses this machine alone",
                ) from error
        time.sleep(1)


def _require_grpc(connection: socket.socket, address: str) -> None:
    answer = b""
    with suppress(OSError):
        connection.settimeout(5.0)
        connection.sendall(_HTTP2_BEGINNING)
        while len(answer) < _HTTP2_HEADER and (more := connection.recv(_HTTP2_HEADER - len(answer))):
            answer += more
    if len(answer) < _HTTP2_HEADER or answer[3] != _HTTP2_SETTINGS:
        raise AddressError(
            f"what answers at RAY_ADDRESS = {address} is no Ray",
            "RAY_ADDRESS",
            "give the port of `ray start --head`, 6379, or of ray://, 10001; 8265 is the dashboard's, for "
            "`ray job submit`; `unset RAY_ADDRESS` uses this machine alone",
        )


def session_folder() -> str | None:
    """Where a Ray that is started here keeps its sockets: None for Ray's own choice, else a short folder.

    Ray takes RAY_TMPDIR, else TMPDIR, else /tmp. A TMPDIR that is too long for a socket is left to other programs.

    Raises:
        SessionFolderError: RAY_TMPDIR is too long, or a folder cannot be written to.
    """
    named = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    folder = Path(os.environ[named]) if named else _SHORT_FOLDER
    if len(os.fsencode(folder)) + _OF_RAY <= _LONGEST_SOCKET:
        _require_writable(folder, named)
        return None
    if named == "RAY_TMPDIR":
        raise SessionFolderError(
            f"RAY_TMPDIR is too long: {len(os.fsencode(folder))} bytes, and the paths of Ray's sockets leave "
            f"{_LONGEST_SOCKET - _OF_RAY}",
            str(folder),
            "set RAY_TMPDIR to a short folder, such as /tmp",
        )
    _require_writable(_SHORT_FOLDER, "RAY_TMPDIR")
    print(f"TMPDIR is too long for Ray's sockets; Ray uses {_SHORT_FOLDER} (RAY_TMPDIR names another)", file=sys.stderr)
    return str(_SHORT_FOLDER / f"ray-{os.getuid()}")


def _require_writable(folder: Path, named: str) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise SessionFolderError(
            f"Ray cannot write to {named or 'its folder'}",
            str(folder),
            "set RAY_TMPDIR to a short folder that you may write to",
        )
