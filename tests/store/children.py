"""What tests let other processes do, and how those die at a chosen moment. Run as a script:

python children.py ACTION URL CACHE LEASE_SECONDS [ARGUMENT...]
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wsss.store import Artifact, Store, open_store
from wsss.store.backend import sha256_of

STAGE, KEY = "cam", "0123abcd"
SHARDS = 3


def records(index: int) -> dict[str, dict[str, np.ndarray]]:
    """Three images whose arrays depend on the shard alone, about 200 KB."""
    random = np.random.default_rng(index)
    return {
        f"2007_{index:03d}{image:03d}": {
            "cam": random.random((2, 120, 130)).astype(np.float16),
            "keys": np.asarray([1, 1 + image], np.uint8),
        }
        for image in range(3)
    }


def check_content(artifact: Artifact) -> None:
    """Every file has the size and the sha256 that the manifest says."""
    artifact.check()
    for file, entry in artifact.files.items():
        stored = artifact.backend.read(f"{artifact.folder}/{file}")
        assert stored is not None and sha256_of(stored)[0] == entry["sha256"], f"{file} has another content"


def compute(store: Store) -> None:
    """Everything that is still missing, then publication."""
    writer = store.writer(STAGE, KEY)
    finished = set(writer.finished_images())
    for index in range(SHARDS):
        if index not in finished:
            writer.add_shard(index, records(index))
    writer.add_file("counts.json", b'{"images": 9}')
    writer.publish({"code": "test"}, shards=range(SHARDS))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def compute_and_die(store: Store, where: str) -> None:
    """Compute, and be killed while shard 1 is written (`in_shard`), before its note, or before the manifest."""
    if where == "in_shard":
        _die_in_shard_1()
    else:
        suffix = {"before_note": "finished/shard-00001.zip.json", "before_manifest": "manifest.json"}[where]
        backend = type(store.backend)
        write: Callable[..., None] = backend.write

        def write_or_die(self: Any, path: str, content: bytes | Path) -> None:
            if path.endswith(suffix):
                die()
            write(self, path, content)

        backend.write = write_or_die  # type: ignore[method-assign]
    compute(store)


def _die_in_shard_1() -> None:
    fsync, send = os.fsync, http.client.HTTPConnection.send

    def fsync_or_die(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if "shard-00001.zip-" in path.name:
            os.truncate(path, 1000)  # as after a power cut: only a part reached the disk
            die()
        fsync(descriptor)

    sent = {"bytes": 0}

    def send_or_die(self: http.client.HTTPConnection, data: Any) -> None:
        content = data if isinstance(data, bytes) else data.read()
        if b"shard-00001.zip HTTP/" in content[:400]:
            sent["bytes"] = 1
        elif sent["bytes"]:
            send(self, content[: len(content) // 2])
            time.sleep(0.2)
            die()
        send(self, content)

    os.fsync = fsync_or_die
    http.client.HTTPConnection.send = send_or_die  # type: ignore[method-assign]


def add_one(store: Store, index: str) -> None:
    store.writer(STAGE, KEY).add_shard(int(index), records(int(index)))


def race(store: Store, journal: str) -> None:
    """Compute unless somebody else has; one line in the journal for each computation."""
    with store.single_flight(STAGE, KEY):
        if store.find(STAGE, KEY) is None:
            with Path(journal).open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.3)
            compute(store)
    found = store.find(STAGE, KEY)
    assert found is not None
    print(len(found.images()), flush=True)


def hold(store: Store, with_child: str = "") -> None:
    """Hold the single flight for a minute, perhaps with a forked child that outlives this process."""
    with store.single_flight(STAGE, KEY, on_wait=lambda holder: print(f"waiting for {holder}", flush=True)):
        if with_child and os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        print("held", flush=True)
        time.sleep(60)


ACTIONS: dict[str, Callable[..., None]] = {
    "compute_and_die": compute_and_die,
    "add_one": add_one,
    "race": race,
    "hold": hold,
}

if __name__ == "__main__":
    action, url, cache, lease_seconds, *arguments = sys.argv[1:]
    ACTIONS[action](open_store(url, Path(cache), float(lease_seconds)), *arguments)
