"""Random walk: sparse against dense, time and peak memory in one run.

    python benchmarks/random_walk.py [--sizes 24x32 47x63 ...] [--classes 2] [--repeat 3] [--no-dense-above 4000]

Then the affinities of the largest grid: as training computes them, and as the walk does, for every radius of a search.
Each measurement runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]


def case(height: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth class maps and an edge map with a few strong ridges, as a trained network gives."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.random((classes, height, width)), (0, 6, 6))
    edge = gaussian_filter(rng.random((height, width)), 2)
    x = (x - x.min()) / np.ptp(x)
    edge = ((edge - edge.min()) / np.ptp(edge)) ** 2
    return x.astype(np.float32), edge.astype(np.float32)


def measure(queue, method: str, height: int, width: int, classes: int, repeat: int) -> None:
    """Best time of `repeat` runs in seconds, growth of the peak memory in MiB, and the result."""
    import torch
    from tests.references import edge_walk_in_form

    torch.set_num_threads(1)
    x, edge = case(height, width, classes)
    edge_walk_in_form("chebyshev", x[:, :12, :12], edge[:12, :12], exp_times=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    result = x
    for _ in range(repeat):
        start = time.perf_counter()
        result = edge_walk_in_form(method, x, edge)  # pyright: ignore[reportArgumentType]
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put((min(times), peak / 1024, result))


def run(method: str, height: int, width: int, classes: int, repeat: int) -> tuple[float, float, np.ndarray]:
    """`measure` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(queue, method, height, width, classes, repeat))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["24x32", "47x63", "94x125"], metavar="HxW")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-dense-above", type=int, default=4000, metavar="POSITIONS")
    arguments = parser.parse_args()
    print("| grid | positions | method | seconds | peak MiB | times faster | distance |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for size in arguments.sizes:
        height, width = (int(part) for part in size.split("x"))
        methods = ["dense"] if height * width <= arguments.no_dense_above else []
        methods += ["sparse", "chebyshev"]
        base: tuple[float, np.ndarray] | None = None
        for method in methods:
            repeat = 1 if method == "dense" else arguments.repeat
            seconds, peak, result = run(method, height, width, arguments.classes, repeat)
            if base is None:
                base = (seconds, result)
            distance = np.linalg.norm(result - base[1]) / np.linalg.norm(base[1])
            print(
                f"| {size} | {height * width} | {method} | {seconds:.3f} | {peak:.0f}"
                f" | {base[0] / seconds:.1f} | {distance:.1e} |",
                flush=True,
            )
    height, width = (int(part) for part in arguments.sizes[-1].split("x"))
    compare_affinities(case(height, width, 1)[1], arguments.repeat)


def compare_affinities(edge: np.ndarray, repeat: int) -> None:
    """Print the best times of `pair_affinity` and `direction_affinity` at some radii; tests hold their values equal."""
    import torch
    from tests.references import padded_pair_affinity

    from wsss.ops.random_walk import direction_affinity

    torch.set_num_threads(1)
    print("\n| radius | as in training, ms | for the walk, ms | times faster |")
    print("| ---: | ---: | ---: | ---: |")
    for radius in (3, 5, 8):
        training = best_milliseconds(lambda r=radius: padded_pair_affinity(edge, r), repeat)
        walk = best_milliseconds(lambda r=radius: direction_affinity(edge, r), repeat)
        print(f"| {radius} | {training:.1f} | {walk:.1f} | {training / walk:.1f} |")


def best_milliseconds(call: Callable[[], object], repeat: int) -> float:
    """Of `repeat` calls after a first one."""
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
