"""CPU time of a training step and of class maps, with and without the memory settings of the platform's workers.

    python benchmarks/worker_memory.py [--batch 16 --crop 192 --steps 8]

MobileNetV2 with random weights on one core, in another thread than the main one, as in Ray's workers. Prints CPU
seconds, those of them in the kernel, page faults and the peak of memory, and the ratios of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Runs from a bare checkout as well as from an installation.
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]

import torch  # noqa: E402

from wsss.execution.cluster import ALLOCATOR  # noqa: E402
from wsss.nn.mobilenet import MobileNetV2  # noqa: E402


def measure(work: Callable[[], object], steps: int) -> dict[str, float]:
    """CPU seconds, kernel seconds and page faults of a step, in a thread; the first step is not counted."""
    found: dict[str, float] = {}

    def run() -> None:
        work()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
        for _ in range(steps):
            work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        found["cpu_seconds"] = (time.process_time() - began) / steps
        found["kernel_seconds"] = (after.ru_stime - before.ru_stime) / steps
        found["page_faults"] = (after.ru_minflt - before.ru_minflt) / steps
        found["peak_megabytes"] = after.ru_maxrss / 1024

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def worker(batch: int, crop: int, steps: int) -> dict[str, dict[str, float]]:
    """Both works in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = MobileNetV2(1.0, 16, dilated=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    images, picture = torch.randn(batch, 3, crop, crop), torch.randn(2, 3, 375, 500)

    def train() -> None:
        optimizer.zero_grad()
        network(images)[-1].mean().backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode():
            network(picture)

    return {"training step": measure(train, steps), "class maps of a picture": measure(infer, steps)}


def main() -> int:
    """Each setting twice, one after the other, so that a machine that changes shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.batch, arguments.crop, arguments.steps)))
        return 0
    bare = {name: value for name, value in os.environ.items() if name not in ALLOCATOR} | {"OMP_NUM_THREADS": "1"}
    results: list[tuple[str, dict[str, dict[str, float]]]] = []
    for title, settings in (("without", {}), ("with", ALLOCATOR)) * 2:
        words = [
            sys.executable,
            __file__,
            "--worker",
            *(f"--{n}={getattr(arguments, n)}" for n in ("batch", "crop", "steps")),
        ]
        done = subprocess.run(words, env={**bare, **settings}, capture_output=True, text=True, check=True)
        results.append((title, json.loads(done.stdout)))
        for work, numbers in results[-1][1].items():
            print(
                f"{title:8} {work:24}", "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()), flush=True
            )
    for work in results[0][1]:
        means = [
            sum(found[work]["cpu_seconds"] for title, found in results if title == wanted)
            for wanted in ("with", "without")
        ]
        print(f"ratio of CPU time, {work}: {means[0] / means[1]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
