"""Random walk over affinities of features (PSA): by sparse products against squaring the dense matrix.

    python benchmarks/random_walk_psa.py [--sizes 448x448 500x500] [--classes 3] [--exp-times 6] [--repeat 2]

Sizes are those of pictures; the grid is an eighth. The affinities are those of smooth random features; finding them is
part of neither time. Each measurement runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

BETA, RADIUS, CHANNELS = 8.0, 5, 32


def measure(queue, method: str, height: int, width: int, classes: int, exp_times: int, repeat: int) -> None:
    """Best time of `repeat` walks in seconds, growth of the peak memory in MiB, and the walked maps."""
    import torch
    from scipy.ndimage import gaussian_filter
    from tests.references import walk_in_form

    from wsss.ops.affinity_psa import feature_affinity

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    features = gaussian_filter(rng.normal(size=(CHANNELS, height // 8, width // 8)), (0, 2, 2)).astype(np.float32) * 8
    maps = gaussian_filter(rng.random((classes + 1, height // 8, width // 8)), (0, 4, 4)).astype(np.float32)
    affinity = feature_affinity(torch.from_numpy(features), RADIUS)
    walk_in_form("chebyshev", maps, affinity, BETA, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, walked = [], maps
    for _ in range(repeat):
        started = time.perf_counter()
        walked = walk_in_form(method, maps, affinity, BETA, exp_times)  # pyright: ignore[reportArgumentType]
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put((min(times), peak / 1024, walked))


def run(*arguments) -> tuple[float, float, np.ndarray]:
    """`measure` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(queue, *arguments))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["448x448", "500x375", "500x500"], metavar="HxW")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--exp-times", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=2)
    given = parser.parse_args()
    print(f"{'picture':>9} {'method':>10} {'seconds':>9} {'MiB':>8} {'times faster':>13} {'difference':>11}")
    for size in given.sizes:
        height, width = (int(side) for side in size.split("x"))
        rest = (height, width, given.classes, given.exp_times, given.repeat)
        dense = run("dense", *rest)
        for method in ("dense", "sparse", "chebyshev"):
            seconds, memory, walked = dense if method == "dense" else run(method, *rest)
            difference = np.linalg.norm(walked - dense[2]) / np.linalg.norm(dense[2])
            ratio = dense[0] / seconds
            print(f"{size:>9} {method:>10} {seconds:9.3f} {memory:8.0f} {ratio:13.1f} {difference:11.1e}")


if __name__ == "__main__":
    main()
