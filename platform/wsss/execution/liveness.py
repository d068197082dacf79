"""Whether the Ray under this process lives, found out without asking Ray.

Ray's client ends a process whose raylet is gone without a word, and one whose head is gone after a minute, with words
of its own. Whoever looks here before it asks Ray can end with a message of ours and with the run's record in order.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray._private import worker

from wsss.errors import WsssError

# Ray's client gives the head up after 60 s (RAY_gcs_rpc_server_reconnect_timeout_s).
HEAD_SECONDS = 45.0
_ANSWER_SECONDS = 2.0


class RayEndedError(WsssError):
    """Ray ended while a stage ran on it."""


@dataclass
class _Joined:
    """A Ray that this process did not start.

    Attributes:
        head: host and port of its GCS.
        raylet: id of the process through which this one speaks to Ray; 0 where the system does not tell.
        answered: when the head last took a connection, by the monotonic clock.
    """

    head: tuple[str, int]
    raylet: int
    answered: float = field(default_factory=time.monotonic)


CONTINUES = (
    "the same command continues; finished stages and shards are kept, a training goes on from its last checkpoint"
)
_joined: dict[str, _Joined] = {}  # the one that is joined now, by its address


def remember_joined() -> None:
    """Keep what `head_answers` looks at; called once Ray is joined."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    _joined.clear()
    _joined[f"{host}:{port}"] = _Joined((host, int(port)), raylet_here())


def raylet_here() -> int:
    """Id of the process through which this one speaks to Ray; 0 where the system does not tell."""
    return _process_of(getattr(worker._global_node, "raylet_socket_name", ""))


def forget_joined() -> None:
    """Ray is left."""
    _joined.clear()


def ray_ended() -> str:
    """What of the Ray under this process has ended, in words; empty: nothing, or there is none."""
    node = worker._global_node
    if node is None:
        return ""
    if not node.remaining_processes_alive():
        return "the Ray that this command started has lost one of its processes (killed, or out of memory)"
    for address, joined in _joined.items():
        if joined.raylet and not _lives(joined.raylet):
            return "the Ray node (raylet) of this machine has ended"
        if time.monotonic() - joined.answered > HEAD_SECONDS:
            return f"the head of the Ray cluster at {address} has not answered for {HEAD_SECONDS:.0f} s"
    return ""


def head_answers(stage: str) -> bool:
    """Whether Ray may be asked; while False is returned, its head is away, and may come back.

    Raises:
        RayEndedError: it will not come back.
    """
    answers = True
    for joined in _joined.values():
        answers = _takes_connections(joined.head)
        if answers:
            joined.answered = time.monotonic()
    if ended := ray_ended():
        raise RayEndedError(
            ended,
            f"stage {stage}",
            f"{'start the cluster again; ' if _joined else ''}{CONTINUES}",
        )
    return answers


def _takes_connections(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=_ANSWER_SECONDS):
            return True
    except OSError:
        return False


def _process_of(raylet_socket: str) -> int:
    """Id of the raylet that listens at a socket; its command line names it."""
    if raylet_socket:
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"--raylet_socket_name={raylet_socket}".encode() in command.read_bytes().split(b"\0"):
                    return int(command.parent.name)
    return 0


def _lives(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked after (a zombie) does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # of another user, or a system without /proc
        return True
