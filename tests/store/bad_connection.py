"""A connection to an object store that is bad on command."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_ANSWER = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
)


class BadConnection:
    """Stands between clients and an object store: passes on, or does what `set` says, from then on.

    good: everything is passed on. slow: every piece is a third of a second late. unavailable: the answer is 503.
    cut: an answer ends after a few hundred bytes, on every second connection, until there were `cuts`. refused: nobody
    listens.
    """

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (str(target.hostname), int(target.port or 80))
        self._mode, self.cuts, self.faults = "good", 0, 0
        self._connections = 0
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._listen()

    @property
    def url(self) -> str:
        """What clients are told."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: str, cuts: int = 0) -> None:
        """Change what happens; open connections are closed, so that it concerns everybody at once."""
        self._mode, self.cuts = mode, cuts
        if mode == "refused":
            self._stop_listening()
        elif self._server.fileno() < 0:
            self._server = socket.create_server(("127.0.0.1", self.port))
            self._listen()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody listens any more."""
        self.set("refused")

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._mode == "unavailable":
                self.faults += 1
                client.settimeout(1.0)
                client.recv(1 << 16)
                client.sendall(_ANSWER % (len(_SLOW_DOWN), _SLOW_DOWN))
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):  # else the answer could be lost with the rest of the question
                    pass
                return
            limit = None
            self._connections += 1
            if self._mode == "cut" and self.cuts > 0 and self._connections % 2:
                self.cuts -= 1
                self.faults += 1
                limit = 600
            with socket.create_connection(self._target) as upstream:
                self._open |= {client, upstream}
                threading.Thread(target=self._pump, args=(client, upstream, None), daemon=True).start()
                self._pump(upstream, client, limit)
            self._open -= {client, upstream}

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        sent = 0
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if self._mode == "slow" and source in self._open:
                    self.faults += 1
                    time.sleep(0.3)
                content = content if limit is None else content[: limit - sent]
                sink.sendall(content)
                sent += len(content)
                if limit is not None and sent >= limit:
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
