"""Places that fail on command: a small disk, a cluster of two nodes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class TwoNodes:
    """A Ray without CPUs on its head, and two nodes with one CPU each."""

    address: str


@contextmanager
def two_nodes(environment: Mapping[str, str], cpus: tuple[int, ...] = (1, 1)) -> Iterator[TwoNodes]:
    """Start a Ray of several raylets here; all of it ends with the block, by its process ids."""
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # raylets and their workers inherit it
    try:
        # A dead node is noticed after 3 s and not after half a minute.
        settings = {"health_check_period_ms": 500, "health_check_failure_threshold": 6, "health_check_timeout_ms": 2000}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
            | {"_system_config": settings, "object_store_memory": 100 * 2**20},
        )
        try:
            for count in cpus:
                cluster.add_node(num_cpus=count, object_store_memory=100 * 2**20)
            yield TwoNodes(str(cluster.address))
        finally:
            cluster.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
