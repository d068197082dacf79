"""A file server on the loopback for tests of downloads."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


@dataclass
class Server:
    """A file server on the loopback that cuts connections and may not know ranges."""

    content: bytes = CONTENT
    cut_after: int | None = None
    cuts: int = 0
    ranges: bool = True
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def file_server(path: str = "file") -> Iterator[Server]:
    """A running server; its `url` ends with `path`."""
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status is not None:
                self.send_error(state.status)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            total = len(state.content)
            if start >= total > 0 and asked and state.ranges:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if asked and state.ranges else 200)
            if asked and state.ranges:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            body = state.content[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cut_after is not None and state.cuts > 0:
                state.cuts -= 1
                body = body[: state.cut_after]
            self.wfile.write(body)  # the connection is closed after it, whatever was promised

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        state.url = f"http://127.0.0.1:{listener.server_address[1]}/{path}"
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        yield state
        listener.shutdown()
        thread.join()
