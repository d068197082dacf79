"""What racing costs and gives, on counts of each image.

    python benchmarks/racing.py COUNTS.npz [--family crf] [--races 20]
    python benchmarks/racing.py --synthetic [--settings 40] [--images 1464]

COUNTS.npz comes from benchmarks/label_free.py --out. Prints, for races in several orders: how much of the full
evaluation they look at, how often the best setting was dropped, and what the winner loses against it (points of mIoU).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss.evaluation.racing import RaceRules, race
from wsss.evaluation.selection import setting_mious


def synthetic(settings: int, images: int) -> np.ndarray:
    """Counts as of VOC: rare classes, one to three a picture, sizes with a long tail, settings of unequal quality."""
    rng = np.random.default_rng(0)
    classes = 21
    frequency = rng.dirichlet(np.full(classes - 1, 1.0))
    present = np.zeros((images, classes), dtype=bool)
    present[:, 0] = True
    for image in range(images):
        present[image, 1 + rng.choice(classes - 1, size=rng.integers(1, 4), p=frequency)] = True
    truth = np.round((rng.lognormal(8, 1.0, (images, classes)) + 50) * present)
    shape = (settings, images, classes)
    quality = rng.normal(0, 0.15, settings)[:, None, None] + rng.normal(0, 0.2, (settings, 1, classes))
    right = np.round(
        truth / (1 + np.exp(-0.8 - quality - 0.7 * rng.normal(size=(1, images, 1)) - rng.normal(size=shape) / 2))
    )
    wrong = np.round(truth * rng.lognormal(-1.9, 0.9, (1, images, classes)) * np.exp(-quality / 2))
    return np.stack([right, np.broadcast_to(truth, shape), right + wrong], axis=2).astype(np.int64)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path, nargs="?")
    parser.add_argument("--family", default="crf")
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--settings", type=int, default=40)
    parser.add_argument("--images", type=int, default=1464)
    parser.add_argument("--races", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.synthetic == (arguments.counts is not None):
        parser.error("give a file of counts, or --synthetic")
    if arguments.synthetic:
        counts = synthetic(arguments.settings, arguments.images)
    else:
        with np.load(arguments.counts, allow_pickle=False) as arrays:
            counts = arrays[f"{arguments.family}_counts"]
    number, images = counts.shape[:2]
    mious = setting_mious(counts)
    print(f"{number} settings, {images} images; mIoU {100 * mious.min():.2f} to {100 * mious.max():.2f}")

    best = int(mious.argmax())
    spent, dropped, lost = [], 0, []
    started = time.process_time()
    for seed in range(arguments.races):
        seen: list[int] = []

        def look(numbers: Sequence[int], positions: Sequence[int], seen: list[int] = seen) -> Any:
            seen += positions
            return {each: counts[each][seen] for each in numbers}, "defined"

        drops = race(look, range(number), images, RaceRules(seed=seed), number)
        spent.append(1 - sum(images - drop.images for drop in drops.values()) / (number * images))
        dropped += best in drops
        winner = max(set(range(number)) - set(drops), key=lambda each: mious[each])
        lost.append(100 * (mious[best] - mious[winner]))
    seconds = (time.process_time() - started) / arguments.races
    share = f"{100 * np.mean(spent):.0f} % ({100 * min(spent):.0f} to {100 * max(spent):.0f})"
    print(f"{arguments.races} races: {share} of the full evaluation, {seconds:.2f} CPU seconds each")
    print(
        f"  best dropped in {dropped}; the winner lost {np.mean(lost):.3f} points on average, {max(lost):.2f} at most"
    )


if __name__ == "__main__":
    main()
