"""Training throughput on one GPU: float32 against mixed precision with channels_last.

    python benchmarks/gpu_throughput.py [--stages cam segmentation] [--size 512]

For stages of published configurations at their batch, by default SSC's CAM (6) and co-training (16): images
per second, the ratio to float32 in the same run, and the peak memory that CUDA allocated.  Batches are made
once and stay on the GPU, so loading and augmenting on the CPU are not part of the number.  Without a GPU it
says so and does nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Runs from a bare checkout as well as from an installation.
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]

import torch  # noqa: E402
from benchmarks.training_stages import STAGES, build_stage  # noqa: E402

BATCHES = {"cam": 6, "affinity": 16, "segmentation": 16, "i2crc_cam": 5}
MODES = {"float32": (False, False), "AMP + channels_last": (True, True)}


@dataclass(frozen=True)
class Throughput:
    """Speed of one stage in one mode."""

    stage: str
    mode: str
    batch: int
    images_per_second: float
    peak_gib: float


def measure(stage: str, mode: str, size: int | None, batch: int, steps: int, device: str = "cuda:0") -> Throughput:
    """Median over `steps` optimizer steps after three to warm up."""
    amp, channels_last = MODES[mode]
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = build_stage(stage, size, device, batch, amp=amp, channels_last=channels_last)
    times = []
    for index in range(steps + 3):
        if on_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        step.run()
        if on_gpu:
            torch.cuda.synchronize()
        if index >= 3:
            times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return Throughput(stage, mode, batch, batch / statistics.median(times), peak)


def table(rows: list[Throughput]) -> str:
    """Markdown table; the ratio is to the same stage in float32."""
    base = {row.stage: row.images_per_second for row in rows if row.mode == "float32"}
    lines = [
        "| stage | mode | batch | images per second | ratio to float32 | CUDA memory (GiB) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row.images_per_second / base[row.stage]:.2f}" if row.stage in base else "-"
        lines.append(
            f"| {STAGES[row.stage].title} | {row.mode} | {row.batch} | {row.images_per_second:.1f} | {ratio} "
            f"| {row.peak_gib:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=sorted(BATCHES), default=["cam", "segmentation"])
    parser.add_argument("--size", type=int, help="side of the square images in pixels (default: as published)")
    parser.add_argument("--batch", type=int, help="images in a step (default: as published)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU here (torch.cuda.is_available() is False): nothing measured")
        return 0
    # Without TF32, so that "float32" means what it says.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    rows = []
    for stage in arguments.stages:
        for mode in MODES:
            batch = arguments.batch or BATCHES[stage]
            try:
                rows.append(measure(stage, mode, arguments.size, batch, arguments.steps))
            except torch.cuda.OutOfMemoryError:
                print(f"{stage} in {mode} at batch {batch} does not fit into GPU memory", file=sys.stderr)
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    side = f"{arguments.size} pixels" if arguments.size else "as published"
    print(f"images {side}, TF32 off, {device}\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
