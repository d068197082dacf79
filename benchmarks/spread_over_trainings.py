"""How far the numbers of a method's recipe spread over seeds and over numbers of workers.

    PYTHONPATH=platform:methods:. python benchmarks/spread_over_trainings.py --method ssc --home FOLDER
        [--recipe demo] [--seeds 0,1,2,3,4] [--workers 1,2] [key=value ...]

Each number of workers has a home of its own below FOLDER, because a store serves the results of any of them. The same
command continues. The standard deviation is over all trainings, of every mIoU that a run reports at its recipe's own
settings.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.faults.scene import PYTHON_PATH

from wsss.commands.arguments import parse_seeds
from wsss.run_record import find_runs

ROOT = Path(__file__).resolve().parents[1]
# Endings of numbers that stand beside a headline number.
BESIDE = ("_low", "_high", "_oracle", "_cross_fitted", "_all_background")
Numbers = dict[str, list[float]]


def headline_numbers(method: str, recipe: str, seeds: str, workers: int, home: Path, words: list[str]) -> Numbers:
    """mIoU in percent by its name, one for each seed in their order."""
    command = [sys.executable, "reproduce.py", "--method", method, "--recipe", recipe, "--seeds", seeds]
    command += ["--home", str(home), f"execution.train_workers={workers}", "execution.threads=1", *words]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": PYTHON_PATH}, check=True, stdout=sys.stderr)
    newest = {run.seed: run for run in find_runs(home) if run.method == method and run.recipe_name == recipe}
    found: Numbers = {}
    for seed in parse_seeds(seeds):
        for name, value in newest[seed].metrics.items():
            if "/miou_" in name and not name.endswith(BESIDE):
                found.setdefault(name, []).append(100 * value)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", required=True)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--home", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--workers", default="1,2", help="numbers of training workers")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    arguments = parser.parse_args()
    counts = [int(each) for each in arguments.workers.split(",")]
    by_count = [
        headline_numbers(
            arguments.method,
            arguments.recipe,
            arguments.seeds,
            count,
            arguments.home.resolve() / f"workers_{count}",
            arguments.words,
        )
        for count in counts
    ]
    print(f"`{arguments.method}`, recipe `{arguments.recipe}`, seeds {arguments.seeds}; {os.cpu_count()} cores\n")
    print(f"| mIoU | {' | '.join(f'{count} worker(s)' for count in counts)} | mean | standard deviation |")
    print("|---|" + "---|" * len(counts) + "---:|---:|")
    for name in by_count[0]:
        cells = [" ".join(f"{value:.1f}" for value in numbers[name]) for numbers in by_count]
        values = [value for numbers in by_count for value in numbers[name]]
        deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        print(f"| `{name}` | {' | '.join(cells)} | {statistics.mean(values):.2f} | {deviation} |")


if __name__ == "__main__":
    main()
