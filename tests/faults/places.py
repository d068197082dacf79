"""Places that fail on command: a small disk, a cluster of two nodes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = b"\0" * (1 << 16)


class NoMount(Exception):
    """This system does not let its user mount a disk."""


@dataclass(frozen=True)
class SmallDisk:
    """A disk of its own at a folder: an ext4 file system in a file."""

    folder: Path
    image: Path

    def fill(self) -> None:
        """Use up all that is free."""
        for _ in range(4):  # what the file system had set aside for a file is free again once that is on the disk
            with self._filler.open("ab", buffering=0) as file:
                for block in (_BLOCK, b"\0"):
                    with suppress(OSError):
                        while True:
                            file.write(block)
                os.fsync(file.fileno())

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink(missing_ok=True)

    def allow_writing(self, allowed: bool) -> None:
        """Let the file system refuse all writing, also to open files, as after a disk's error; or mount it again."""
        if allowed:
            _run("umount", str(self.folder))
            _mount(self.image, self.folder)
        else:
            os.sync()  # what is not on the disk yet would be lost
            _run("mount", "-o", "remount,abort", str(self.folder))

    @property
    def _filler(self) -> Path:
        return self.folder / ".filler"


@contextmanager
def small_disk(folder: Path, megabytes: int = 70) -> Iterator[SmallDisk]:
    """A disk that is mounted while the block runs. NoMount where that is not allowed."""
    folder.mkdir(parents=True)
    image = folder.with_name(f"{folder.name}.disk")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    # No journal, no blocks that only root may fill.
    _run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
    _mount(image, folder)
    with suppress(OSError):
        (folder / "lost+found").rmdir()
    try:
        yield SmallDisk(folder, image)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _mount(image: Path, folder: Path) -> None:
    _run("mount", "-o", "loop", str(image), str(folder))


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoMount(f"there is no program {words[0]}") from error
    if done.returncode:
        raise NoMount(f"{' '.join(words)}: {done.stderr.strip()}")


class Nodes:
    """A Ray without CPUs on its head, and nodes with `cpus` CPUs each.

    Attributes:
        address: of the head.
    """

    def __init__(self, cpus: Sequence[int] = (1, 1)) -> None:
        self._cpus = cpus
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        # A dead node is noticed after 10 s and not after half a minute; much less, and a busy node is taken for dead.
        settings = {"health_check_period_ms": 500, "health_check_timeout_ms": 5000}
        settings["health_check_failure_threshold"] = 20
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
            | {"dashboard_port": _free_port(), "_system_config": settings, "object_store_memory": 100 * 2**20},
        )
        for count in self._cpus:
            self.add(count)
        self.address = str(self._cluster.address)

    def fill(self) -> None:
        """Add nodes in the place of those that have ended. Ray takes none from another thread than the main one."""
        for count in self._cpus[len(self.raylets()) :]:
            self.add(count)

    def add(self, cpus: int = 1) -> None:
        """One more node."""
        self._cluster.add_node(num_cpus=cpus, object_store_memory=100 * 2**20)

    def raylets(self) -> list[int]:
        """Process ids of the raylets of the nodes that live, that of the head apart."""
        found = [node.all_processes["raylet"][0].process for node in self._cluster.worker_nodes]
        return sorted(process.pid for process in found if process.poll() is None)

    def kill(self, raylet: int) -> None:
        """SIGKILL of a raylet; afterwards it has ended."""
        with suppress(ProcessLookupError):
            os.kill(raylet, signal.SIGKILL)
        while raylet in self.raylets():
            time.sleep(0.05)

    def workers(self) -> dict[int, str]:
        """Process id -> title of the worker processes of the nodes."""
        raylets, found = set(self.raylets()), {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and title.startswith("ray::"):
                    found[int(folder.name)] = title
        return found

    @property
    def head_lives(self) -> bool:
        """Whether GCS and raylet of the head run."""
        return all(self._head[name][0].process.poll() is None for name in ("gcs_server", "raylet"))

    @property
    def _head(self) -> dict[str, list[Any]]:
        assert self._cluster.head_node is not None
        return self._cluster.head_node.all_processes

    def take_away(self, raylet: int, seconds: int) -> None:
        """Tell Ray, as a cloud does of a spot machine, that a node ends in so many seconds."""
        words = Path(f"/proc/{raylet}/cmdline").read_text().split("\0")
        (node,) = (word.removeprefix("--node_id=") for word in words if word.startswith("--node_id="))
        command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", self.address, "--node-id", node]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"})

    def kill_head(self, *parts: str) -> None:
        """SIGKILL of parts of the head: gcs_server, raylet."""
        for part in parts:
            self._head[part][0].process.kill()

    def restart(self) -> None:
        """Another cluster in its place, with another address."""
        self.shutdown()
        self._start()

    def shutdown(self) -> None:
        """End all of it, by the ids of its processes."""
        for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def two_nodes(environment: Mapping[str, str]) -> Iterator[Nodes]:
    """A Ray of three raylets here while the block runs; it inherits `environment`."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # raylets and their workers inherit it
    try:
        nodes = Nodes()
        try:
            yield nodes
        finally:
            nodes.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
