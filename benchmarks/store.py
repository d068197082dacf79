"""What packing per-image arrays into shards is worth: write and read CAM records as shards, and as one file an image.

    python benchmarks/store.py                                  # a temporary folder
    python benchmarks/store.py --url s3://bucket/prefix         # the endpoint that AWS_ENDPOINT_URL names

Prints a Markdown table. Both layouts go through the same back end (files are synced, objects are acknowledged), and the
`numpy` row is the usual folder of `.npy` dictionaries without any syncing. Everything written is removed again.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from wsss.store import Store, open_store

STAGE = "benchmark_cam"
Records = Mapping[str, Mapping[str, np.ndarray]]


def make_records(count: int, classes: int, height: int, width: int) -> dict[str, dict[str, np.ndarray]]:
    """CAM of the present classes at the stride of the network, float16, and their class numbers."""
    random = np.random.default_rng(0)
    return {
        f"2007_{index:06d}": {
            "cam": random.random((classes, height, width), np.float32).astype(np.float16),
            "keys": np.arange(1, classes + 1, dtype=np.uint8),
        }
        for index in range(count)
    }


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def packed(store: Store, records: Records, shard_size: int) -> tuple[float, float, int]:
    """Seconds to write and to read all images in shards, and the number of stored files."""
    key = uuid.uuid4().hex
    names = sorted(records)

    def write() -> None:
        writer = store.writer(STAGE, key)
        for index, start in enumerate(range(0, len(names), shard_size)):
            writer.add_shard(index, {name: records[name] for name in names[start : start + shard_size]})
        writer.publish({})

    def read() -> None:
        artifact = store.find(STAGE, key)
        assert artifact is not None
        for name in artifact.images():
            artifact.arrays(name)

    try:
        return seconds(write), seconds(read), len(store.backend.sizes(f"{STAGE}/{key}"))
    finally:
        store.delete(STAGE, key)


def one_each(store: Store, records: Records) -> tuple[float, float, int]:
    """The same with one `.npz` an image, through the same back end."""
    folder = f"{STAGE}/{uuid.uuid4().hex}"

    def write() -> None:
        for name, arrays in records.items():
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **arrays)
            store.backend.write(f"{folder}/{name}.npz", buffer.getvalue())

    def read() -> None:
        for name in records:
            with np.load(io.BytesIO(store.backend.read(f"{folder}/{name}.npz") or b""), allow_pickle=False) as arrays:
                for array in arrays:
                    arrays[array]

    try:
        return seconds(write), seconds(read), len(store.backend.sizes(folder))
    finally:
        store.backend.remove_folder(folder)


def numpy_folder(folder: Path, records: Records) -> tuple[float, float, int]:
    """The usual folder of one `.npz` an image, as fast as numpy writes it, without syncing."""

    def write() -> None:
        folder.mkdir(parents=True)
        for name, arrays in records.items():
            np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)

    def read() -> None:
        for name in records:
            with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
                for array in arrays:
                    arrays[array]

    try:
        return seconds(write), seconds(read), len(records)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="folder or s3://bucket/prefix (default: a temporary folder)")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--classes", type=int, default=1, help="present classes of each image")
    parser.add_argument("--size", type=int, nargs=2, default=(94, 125), metavar=("H", "W"), help="of a CAM")
    parser.add_argument("--shard-size", type=int, default=128, help="images of one shard")
    parser.add_argument("--repeats", type=int, default=3, help="the median is printed")
    options = parser.parse_args()
    records = make_records(options.images, options.classes, *options.size)
    with tempfile.TemporaryDirectory() as scratch:
        url = options.url or f"{scratch}/store"
        ways: dict[str, Callable[[], tuple[float, float, int]]] = {
            # A fresh cache for each repeat, so that reading from an object store includes the download.
            "packed shards": lambda: packed(
                open_store(url, Path(scratch, uuid.uuid4().hex)), records, options.shard_size
            ),
            "one file an image": lambda: one_each(open_store(url, Path(scratch, "cache")), records),
        }
        if "://" not in url:
            ways["numpy, not synced"] = lambda: numpy_folder(Path(url, "plain"), records)
        measured = {way: [run() for _ in range(options.repeats)] for way, run in ways.items()}
    medians = {
        way: tuple(statistics.median(column) for column in zip(*runs, strict=True)) for way, runs in measured.items()
    }
    base = medians["packed shards"]
    megabytes = sum(array.nbytes for arrays in records.values() for array in arrays.values()) / 1e6
    kind = "object store" if url.startswith("s3://") else "folder"
    print(f"{options.images} CAM records, {megabytes:.1f} MB, {kind}, median of {options.repeats}\n")
    print("| layout | files | write s | read s | write, times packed | read, times packed |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, (write, read, files) in medians.items():
        ratios = f"{write / base[0]:.1f} | {read / base[1]:.1f}"
        print(f"| {way} | {files:.0f} | {write:.2f} | {read:.2f} | {ratios} |")


if __name__ == "__main__":
    main()
