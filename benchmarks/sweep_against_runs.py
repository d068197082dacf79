"""A sweep against as many independent evaluations of the same settings, on real stages, in one go.

    python benchmarks/sweep_against_runs.py --home HOME --method ssc --recipe mini --space ssc_postprocessing \
        --metric pseudo_label/miou_train --trials 60 --given affinity_train --sample 4 dataset.root=FOLDER \
        [--tune "--label-free boundary_contrast"]

HOME holds a finished run of the recipe. Both sides start in fresh homes that hold the artifacts of the stages --given
and of what these were made from, and nothing else: for SSC, `cam` leaves all that follows the CAM to an evaluation,
`affinity_train` what the official script of the random walk does. First the sweep runs as a command of its own. Then
some of its settings, drawn at random, are evaluated as a person would without it: one `reproduce.py --until` each.
Their mean time stands for all; each of their numbers must equal the one that the sweep recorded. Prints the times and
their ratio; the sweep's home is kept at --keep.
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
    parser.add_argument("--given", nargs="+", required=True, help="stages whose artifacts both sides start from")
    parser.add_argument("--keep", type=Path, help="home of the sweep; a temporary one without it")
    parser.add_argument("--sample", type=int, default=4, help="settings to evaluate independently")
    parser.add_argument("--tune", default="", help="further options of the sweep, in one string")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    arguments.home = arguments.home.resolve()  # the commands run elsewhere
    if arguments.keep is not None:
        arguments.keep = arguments.keep.resolve()
        if arguments.keep.exists():
            parser.error(f"{arguments.keep} exists: a sweep in it would only be continued")

    from wsss.search.records import find_sweeps, load_trials, sweep_folder

    common = ["--method", arguments.method, "--recipe", arguments.recipe, *arguments.overrides]
    command = ["tune.py", *common, "--space", arguments.space, "--metric", arguments.metric, "--trials"]
    with tempfile.TemporaryDirectory(dir=arguments.home) as folder:
        sweep_home = arguments.keep or Path(folder)
        given = artifacts_of(arguments)
        link(arguments.home, given, sweep_home)
        swept = timed([*command, str(arguments.trials), "--home", str(sweep_home), *shlex.split(arguments.tune)])
        (record,) = find_sweeps(sweep_home)
        trials = load_trials(sweep_folder(sweep_home, record.sweep_id))
    sampled = random.Random(0).sample([trial for trial in trials if trial.number], arguments.sample)
    seconds = []
    for trial in sampled:
        with tempfile.TemporaryDirectory(dir=arguments.home) as folder:
            fresh = Path(folder)
            link(arguments.home, given, fresh)
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


def artifacts_of(arguments: argparse.Namespace) -> list[str]:
    """Folders in the store, STAGE/KEY, of the given stages and of all that they were made from."""
    from wsss.commands.methods import find_method
    from wsss.data.dataset import load_dataset
    from wsss.recipe import load_recipe
    from wsss.search.space.pipelines import KeyedPipelines

    method = find_method(arguments.method)
    recipe = load_recipe(method.recipe_type, method.recipe_path(arguments.recipe), arguments.overrides)
    dataset = load_dataset(recipe.dataset, arguments.home)
    keyed = KeyedPipelines(method, dataset).of(recipe)
    return [f"{stage.name}/{keyed.keys[stage.name]}" for stage in keyed.pipeline.upstream(*arguments.given)]


def link(home: Path, artifacts: list[str], fresh: Path) -> None:
    """Begin a home with some artifacts of another one."""
    shutil.copytree(home / "cache", fresh / "cache", dirs_exist_ok=True)
    for place in artifacts:
        shutil.copytree(home / "store" / place, fresh / "store" / place, copy_function=os.link, dirs_exist_ok=True)


def timed(command: list[str]) -> float:
    """Seconds that a command of the project takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=True, cwd=ROOT)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
