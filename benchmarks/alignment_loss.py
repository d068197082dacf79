"""Alignment loss: scatter mean against one-hot superpixels, time and peak memory in one run.

    python benchmarks/alignment_loss.py [--batch 2] [--crops 128 256 ...] [--superpixels 300] [--repeat 3]

One-hot memory is images x classes x superpixels x positions, as the published program needs it; here only the
present classes are counted, which flatters it. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]


def measure(queue, one_hot: bool, batch: int, crop: int, superpixels: int, repeat: int) -> None:
    """Best time of forward and backward in seconds, growth of the peak memory in MiB, loss."""
    import torch
    from tests.references import superpixel_mean_one_hot

    from wsss_methods.ssc import losses

    torch.set_num_threads(1)
    if one_hot:
        losses.superpixel_mean = superpixel_mean_one_hot
    generator = torch.Generator().manual_seed(0)
    side = max(1, round(superpixels**0.5))
    ids = torch.arange(side * side).reshape(1, side, side).repeat(batch, 1, 1).float()
    ids = torch.nn.functional.interpolate(ids[None], (crop, crop), mode="nearest")[0].int()
    labels = torch.zeros(batch, 20)
    labels[:, 3] = 1
    labels[::2, 14] = 1
    maps = torch.randn(batch, 20, crop // 16, crop // 16, generator=generator).requires_grad_()
    losses.alignment_loss(maps[:1, :, :2, :2], labels[:1], ids[:1, :32, :32])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, value = [], 0.0
    for _ in range(repeat):
        start = time.perf_counter()
        loss = losses.ratio(losses.alignment_loss(maps, labels, ids))
        loss.backward()
        times.append(time.perf_counter() - start)
        value = float(loss.detach())
    queue.put((min(times), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, value))


def run(*arguments: object) -> tuple[float, float, float]:
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
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crops", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--superpixels", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print("| crop | mean over superpixels | seconds | peak MiB | times faster | loss |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for crop in arguments.crops:
        base = 0.0
        for name, one_hot in (("one-hot", True), ("scatter", False)):
            seconds, peak, loss = run(one_hot, arguments.batch, crop, arguments.superpixels, arguments.repeat)
            base = base or seconds
            print(f"| {crop} | {name} | {seconds:.4f} | {peak:.0f} | {base / seconds:.1f} | {loss:.6f} |", flush=True)


if __name__ == "__main__":
    main()
