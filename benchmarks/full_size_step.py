"""One optimizer step of every trained stage of published configurations, at full network size.

    python benchmarks/full_size_step.py                # all stages, each in its own process, Markdown table
    python benchmarks/full_size_step.py --stage cam    # one stage, JSON

Weights are random and images are noise: only time and memory are measured.  Peak memory is the resident set
of the stage's process (`ru_maxrss`), on a GPU also what CUDA allocated.  It answers whether a machine can
run the published networks at all before anything is downloaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Runs from a bare checkout as well as from an installation.
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]

import torch  # noqa: E402
from benchmarks.training_stages import STAGES, StageStep, build_stage  # noqa: E402


@dataclass(frozen=True)
class Measurement:
    """What one step took."""

    stage: str
    crop: int
    batch: int
    parameters: int
    seconds: float
    peak_gib: float
    cuda_gib: float
    device: str


def measure(stage: str, size: int | None, device: str) -> Measurement:
    """Build a stage, take one optimizer step, and report."""
    step: StageStep = build_stage(stage, size=size, device=device)
    begin = time.perf_counter()
    step.run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    cuda = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    crop = step.data["image"].shape[-1]
    return Measurement(stage, crop, step.batch, step.parameters, seconds, peak / 2**30, cuda / 2**30, device)


def table(rows: list[Measurement]) -> str:
    """Markdown table of measurements."""
    lines = [
        "| stage | crop | batch | parameters of the trained module (million) | seconds for one step "
        "| peak memory (GiB) | CUDA memory (GiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {STAGES[row.stage].title} | {row.crop} | {row.batch} | {row.parameters / 1e6:.1f} | {row.seconds:.1f} "
        f"| {row.peak_gib:.1f} | {row.cuda_gib:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(STAGES), help="measure one stage in this process, print JSON")
    parser.add_argument("--size", type=int, help="side of the square images in pixels (default: as published)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(vars(measure(arguments.stage, arguments.size, arguments.device))))
        return 0
    rows, failed = [], 0
    for stage in STAGES:
        command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage]
        command += ["--device", arguments.device]
        command += ["--size", str(arguments.size)] if arguments.size else []
        print(f"measuring {STAGES[stage].title} ...", file=sys.stderr, flush=True)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            failed += 1
            reason = "killed, out of memory?" if result.returncode < 0 else result.stderr.strip()[-2000:]
            print(f"{stage} failed ({result.returncode}): {reason}", file=sys.stderr)
            continue
        rows.append(Measurement(**json.loads(result.stdout.strip().splitlines()[-1])))
    threads = f"{torch.get_num_threads()} threads" if arguments.device == "cpu" else ""
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    side = f"{arguments.size} pixels" if arguments.size else "as published"
    print(f"images {side}, float32, {name} {threads}, torch {torch.__version__}\n")
    print(table(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
