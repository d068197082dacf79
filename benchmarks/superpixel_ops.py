"""Soft superpixels and propagation along features: time and peak memory against plain readings, in one run.

    python benchmarks/superpixel_ops.py [--sizes 480x480 512x384] [--classes 21] [--repeat 3]

The plain readings: one pixel after the other, and the whole affinity matrix with every copy that its definition makes.
Each measurement runs in a process of its own, on one thread, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

CELL = 16
FEATURES = 1024
ITERATIONS = 8
THRESHOLD = 0.6


def inputs(what: str, height: int, width: int, classes: int) -> Any:
    """What an operation is given, on a grid of `height` x `width` pixels."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if what.startswith("propagate"):
        grid = (1, classes, height // CELL, width // CELL)
        features = torch.rand(1, FEATURES, *grid[2:], generator=generator)
        # Features in eight groups of positions, so that the threshold keeps an eighth of the pairs.
        group = torch.randint(0, 8, (1, 1, *grid[2:]), generator=generator)
        features = features * (torch.arange(FEATURES)[None, :, None, None] % 8 == group)
        return torch.randn(grid, generator=generator), features
    association = (2 * torch.randn(1, 9, height, width, generator=generator)).softmax(1)
    if what.startswith("pool"):
        return torch.randn(1, classes, height, width, generator=generator), association
    return torch.randn(1, classes, height // CELL, width // CELL, generator=generator), association


def operation(what: str) -> Callable[[Any, Any], Any]:
    """The function of that name; with the ending `_plain` its plain reading."""
    from tests.references import PixelReading, propagated_by_matrix

    from wsss.ops.feature_affinity import propagated
    from wsss.ops.superpixel_affinity import lifted_to_pixels, pooled_to_superpixels, superpixel_affinity

    def read(association: Any) -> PixelReading:
        return PixelReading(association[0].numpy(), CELL)

    return {
        "pool": lambda features, association: pooled_to_superpixels(features, association, CELL),
        "pool_plain": lambda features, association: read(association).pooled(features[0].numpy())[None],
        "lift": lambda values, association: lifted_to_pixels(values, association, CELL),
        "lift_plain": lambda values, association: read(association).lifted(values[0].numpy())[None],
        "affinity": lambda values, association: superpixel_affinity(association, CELL),
        "affinity_plain": lambda values, association: read(association).affinity()[None],
        "propagate": lambda scores, features: propagated(scores, features, ITERATIONS, THRESHOLD),
        "propagate_anew": lambda scores, features: propagated(scores, features, ITERATIONS, THRESHOLD, kept_bytes=0),
        "propagate_plain": lambda scores, features: propagated_by_matrix(scores, features, ITERATIONS, THRESHOLD),
    }[what]


def measure(queue: Any, what: str, height: int, width: int, classes: int, repeat: int) -> None:
    """Best time of `repeat` runs in seconds, growth of the peak memory in MiB, and the result."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    run = operation(what)
    with torch.no_grad():
        run(*inputs(what, 2 * CELL, 2 * CELL, classes))
        first, second = inputs(what, height, width, classes)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times, result = [], None
        for _ in range(repeat):
            start = time.perf_counter()
            result = run(first, second)
            times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put((min(times), peak / 1024, np.asarray(result)))


def measured(what: str, height: int, width: int, classes: int, repeat: int) -> tuple[float, float, Any]:
    """`measure` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(queue, what, height, width, classes, repeat))
    process.start()
    result = queue.get()
    process.join()
    return result


def main() -> int:
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["480x480", "512x384"], help="HEIGHTxWIDTH, multiples of 16")
    parser.add_argument("--classes", type=int, default=21, help="channels of features and scores")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the best counts; plain readings run once")
    arguments = parser.parse_args()
    print(f"{arguments.classes} channels, cells of {CELL} pixels, one thread; {FEATURES} features where propagated\n")
    print("| operation | pixels | seconds | plain reading | times faster | MiB | plain MiB | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for text in arguments.sizes:
        height, width = (int(side) for side in text.split("x"))
        for what, scale in (("pool", 1), ("lift", 1), ("affinity", 1), ("propagate", 1), ("propagate", 2)):
            size = (scale * height, scale * width, arguments.classes)
            plain_seconds, plain_peak, expected = measured(f"{what}_plain", *size, 1)
            for variant in ("propagate", "propagate_anew") if what == "propagate" else (what,):
                seconds, peak, result = measured(variant, *size, arguments.repeat)
                difference = float(np.abs(result - expected).max())
                print(
                    f"| {variant} | {size[0]} x {size[1]} | {seconds:.3f} | {plain_seconds:.2f} "
                    f"| {plain_seconds / seconds:.1f} | {peak:.0f} | {plain_peak:.0f} | {difference:.1e} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
