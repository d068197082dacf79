"""A training and a per-image stage of SSC's demo over 1, 2 and 4 Ray nodes of one CPU on this machine.

    PYTHONPATH=platform:methods:. python benchmarks/cluster_scaling.py [--nodes 1,2,4]

Each count of nodes is a cluster of its own and an empty store. Throughput is what the run's record says: of the
training without the start of its workers, of the per-image stage with it. Ratios are to the first count. All nodes
share this machine's cores, so that no ratio can exceed their number.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.places import Nodes
from tests.faults.scene import PYTHON_PATH, clean_environment

from wsss.run_record import StageResult, find_runs

ROOT = Path(__file__).resolve().parents[1]
TRAINING, PER_IMAGE = "cam_train", "cam"


def stages_over(nodes: int) -> dict[str, StageResult]:
    """Run both stages, and what they need, on so many nodes."""
    with tempfile.TemporaryDirectory() as home:
        cluster = Nodes((1,) * nodes)
        try:
            command = [sys.executable, "reproduce.py", "--method", "ssc", "--until", PER_IMAGE, "--home", home]
            command += [f"execution.train_workers={nodes}", f"execution.map_workers={nodes}", "execution.threads=1"]
            environment = {**clean_environment(), "RAY_ADDRESS": cluster.address}
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        finally:
            cluster.shutdown()
        (record,) = find_runs(Path(home))
        return {stage.name: stage for stage in record.stages}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="1,2,4", help="counts of nodes (default: 1,2,4)")
    counts = [int(each) for each in parser.parse_args().nodes.split(",")]
    os.environ["PYTHONPATH"] = PYTHON_PATH  # raylets and their workers inherit it
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        f"| nodes | {TRAINING}, images/s | ratio | {PER_IMAGE}, images/s | ratio |\n|---|---|---|---|---|", flush=True
    )
    first: tuple[float, float] | None = None
    for nodes in counts:
        stages = stages_over(nodes)
        assert stages[TRAINING].workers == stages[PER_IMAGE].workers == nodes
        speeds = tuple(float(stages[name].facts["images_per_second"]) for name in (TRAINING, PER_IMAGE))
        first = first or (speeds[0], speeds[1])
        ratios = [speed / base for speed, base in zip(speeds, first, strict=True)]
        print(f"| {nodes} | {speeds[0]:.1f} | {ratios[0]:.2f} | {speeds[1]:.1f} | {ratios[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
