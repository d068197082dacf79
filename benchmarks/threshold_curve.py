"""One-pass threshold curve against one argmax and one confusion matrix for each threshold, in the same run.

    python benchmarks/threshold_curve.py [--images 20] [--thresholds 46]

Prints both times for an image and their ratio, and fails when the two differ in a single count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from tests.references import label_at_threshold  # noqa: E402

from wsss.evaluation.confusion import confusion_matrix  # noqa: E402
from wsss.evaluation.curves import threshold_confusions  # noqa: E402

NUM_CLASSES = 21
HEIGHT, WIDTH = 375, 500  # the usual size of a VOC picture
CLASSES_PER_IMAGE = 2  # VOC has 1.56 on average


def separately(cam: np.ndarray, keys: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Every threshold by itself: the definition."""
    return np.stack(
        [confusion_matrix(truth, label_at_threshold(cam, keys, threshold), NUM_CLASSES) for threshold in thresholds]
    )


def in_one_pass(cam: np.ndarray, keys: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """All thresholds from one histogram."""
    return threshold_confusions(cam, keys, truth, thresholds, NUM_CLASSES)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=20)
    options.add_argument("--thresholds", type=int, default=46)
    arguments = options.parse_args()
    rng = np.random.default_rng(0)
    thresholds = np.linspace(0.05, 0.5, arguments.thresholds)
    seconds = {separately: 0.0, in_one_pass: 0.0}
    for _ in range(arguments.images):
        truth = np.repeat(np.repeat(rng.integers(0, NUM_CLASSES, (25, 25)), 15, axis=0), 20, axis=1)
        keys = rng.choice(np.arange(1, NUM_CLASSES), CLASSES_PER_IMAGE, replace=False)
        cam = rng.random((CLASSES_PER_IMAGE, HEIGHT, WIDTH), dtype=np.float32)
        expected, result = (_timed(way, seconds, cam, keys, truth, thresholds) for way in seconds)
        if not np.array_equal(expected, result):
            raise SystemExit("the two ways differ: the one-pass curve is wrong")
    slow, fast = seconds[separately], seconds[in_one_pass]
    print(f"{arguments.images} images of {HEIGHT}x{WIDTH}, {arguments.thresholds} thresholds")
    print(f"each threshold by itself  {1000 * slow / arguments.images:8.1f} ms for an image")
    print(f"one pass                  {1000 * fast / arguments.images:8.1f} ms for an image")
    print(f"ratio                     {slow / fast:8.1f}")


def _timed(way: Callable[..., np.ndarray], seconds: dict[Callable[..., np.ndarray], float], *values: np.ndarray):
    started = time.perf_counter()
    result = way(*values)
    seconds[way] += time.perf_counter() - started
    return result


if __name__ == "__main__":
    main()
