"""A sweep against as many independent evaluations of the same settings, on real stages, in one go.

    python benchmarks/sweep_against_runs.py --home HOME --method ssc --recipe mini --space ssc_postprocessing \
        --metric pseudo_label/miou_train --trials 60 --sample 4 dataset.root=FOLDER [--tune "--batch 15"]

HOME holds a finished run of the recipe: both sides start from its artifacts. First the sweep runs as a command of its
own. Then some of its settings, drawn at random, are evaluated as a person would without it: one `reproduce.py --until`
each, in a fresh home that holds nothing but the artifacts that were there before the sweep. Their mean time stands for
all; each of their numbers must equal the one that the sweep recorded. Prints the times and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--space", required=True)
    parser.add_argument("--metric", required=True)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--sample", type=int, default=4, help="settings to evaluate independently")
    parser.add_argument("--tune", default="", help="further options of the sweep, in one string")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()

    from wsss.search.record import find_sweeps, load_trials, sweep_folder

    home: Path = arguments.home.resolve()
    store = home / "store"
    before = {path.parent.relative_to(store) for path in store.glob("*/*/manifest.json")}
    common = ["--method", arguments.method, "--recipe", arguments.recipe, *arguments.overrides]
    command = ["tune.py", *common, "--space", arguments.space, "--metric", arguments.metric, "--trials"]
    swept = timed([*command, str(arguments.trials), "--home", str(home), *shlex.split(arguments.tune)])
    record = max(find_sweeps(home), key=lambda each: each.started)
    trials = load_trials(sweep_folder(home, record.sweep_id))
    sampled = random.Random(0).sample([trial for trial in trials if trial.number], arguments.sample)
    seconds = []
    for trial in sampled:
        with tempfile.TemporaryDirectory(dir=home) as folder:
            fresh = Path(folder)
            shutil.copytree(home / "cache", fresh / "cache")
            for place in before:
                shutil.copytree(store / place, fresh / "store" / place, copy_function=os.link)
            changed = [f"{key}={json.dumps(value)}" for key, value in trial.settings.items()]
            run = ["reproduce.py", *common, *changed, "--until", record.metric_stage, "--home", str(fresh)]
            seconds.append(timed(run))
            (found,) = (json.loads(path.read_text()) for path in fresh.glob("runs/*/run.json"))
            value = found["metrics"][arguments.metric]
        if trial.status == "finished":
            assert abs(value - trial.metrics[arguments.metric]) < 1e-9, (trial.number, value, trial.metrics)
        print(
            f"  trial {trial.number} ({trial.status}) on its own: {seconds[-1]:.0f} s, {100 * value:.2f} %", flush=True
        )
    alone = statistics.fmean(seconds)
    states = {state: sum(trial.status == state for trial in trials) for state in ("finished", "pruned", "failed")}
    print(f"{len(trials)} settings: {states}")
    print(f"  sweep                      {swept:8.0f} s, {swept / len(trials):6.1f} s a setting")
    spread = f"{min(seconds):.0f} to {max(seconds):.0f}, {len(seconds)} of them"
    print(f"  one evaluation on its own  {alone:8.0f} s ({spread})")
    print(f"  ratio for {len(trials)} settings     {alone * len(trials) / swept:8.1f}")


def timed(command: list[str]) -> float:
    """Seconds that a command of the project takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=True, cwd=ROOT)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
