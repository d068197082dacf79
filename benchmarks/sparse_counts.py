"""Per-image threshold curves of 81 classes stored by their non-zero counts, against dense int32, in the same run.

    python benchmarks/sparse_counts.py [--images 64] [--thresholds 46] [--classes 81]

Writes and reads a shard both ways and sums all images; prints bytes and milliseconds for an image, and their ratios.
Fails when the two sums differ in a single count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from wsss.evaluation.counts import Counts
from wsss.evaluation.curves import threshold_confusions
from wsss.store import open_store

HEIGHT, WIDTH = 480, 640  # the usual size of a COCO picture
PRESENT = 3  # COCO has 2.9 categories a picture on average


def curves(images: int, thresholds: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Image name -> confusion matrices (T, C, C) of random maps over blocks of the present classes."""
    rng = np.random.default_rng(0)
    found = {}
    for index in range(images):
        keys = np.sort(rng.choice(np.arange(1, classes), PRESENT, replace=False))
        blocks = rng.choice(np.array([0, 0, *keys]), (HEIGHT // 40, WIDTH // 40))
        truth = np.repeat(np.repeat(blocks, 40, axis=0), 40, axis=1)
        maps = rng.random((PRESENT, HEIGHT, WIDTH), dtype=np.float32)
        found[f"image_{index:06d}"] = threshold_confusions(maps, keys, truth, thresholds, classes)
    return found


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--thresholds", type=int, default=46)
    options.add_argument("--classes", type=int, default=81)
    arguments = options.parse_args()
    found = curves(arguments.images, np.linspace(0.05, 0.5, arguments.thresholds), arguments.classes)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(str(Path(folder) / "store"), Path(folder) / "cache")
        for kind in ("dense", "sparse"):
            started = time.perf_counter()
            records = {
                name: Counts.of(values).arrays() if kind == "sparse" else {"confusion": values.astype(np.int32)}
                for name, values in found.items()
            }
            writer = store.writer(kind, "0" * 32)
            writer.add_shard(0, records)
            artifact = writer.publish({})
            written = time.perf_counter()
            total = np.zeros((arguments.thresholds, arguments.classes, arguments.classes), np.int64)
            for name in artifact.images():
                arrays = artifact.arrays(name)
                if kind == "sparse":
                    Counts.read(arrays).add_to(total)
                else:
                    total += arrays["confusion"]
            done = time.perf_counter()
            results[kind] = (artifact.size, 1000 * (written - started), 1000 * (done - written), total)
    if not np.array_equal(results["dense"][3], results["sparse"][3]):
        raise SystemExit("the two sums differ: the sparse counts are wrong")
    print(f"{arguments.images} images, {arguments.thresholds} thresholds, {arguments.classes} classes; for an image:")
    print("            dense      sparse     ratio")
    for index, (what, unit) in enumerate((("stored", "B"), ("write", "ms"), ("read, sum", "ms"))):
        dense, sparse = (results[kind][index] / arguments.images for kind in ("dense", "sparse"))
        print(f"{what:10}{dense:10.2f} {sparse:10.2f} {dense / sparse:8.1f}   {unit}")


if __name__ == "__main__":
    main()
