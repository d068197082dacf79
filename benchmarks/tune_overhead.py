"""What a trial costs beside its stages: one Tune trial a setting against batches on warm workers.

Stages that take no time are evaluated at many settings, both ways in the same run: (a) a Ray Tune trial a setting,
each on a fresh worker that loads data set and artifacts itself; (b) the sweep of `wsss tune`. Both evaluate the same
kind of settings with the same code behind; only how they are handed out differs.

    python benchmarks/tune_overhead.py [--settings 24]
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in ("platform", "methods", ""):
    sys.path.insert(0, str(ROOT / folder))
os.environ["PYTHONPATH"] = os.pathsep.join(str(ROOT / folder) for folder in ("platform", "methods", ""))


def one_trial_each(home: Path, settings: int) -> float:
    """Seconds for so many Tune trials, each on its own worker."""
    import numpy as np
    from ray import tune
    from tests.search import planted_method

    from wsss.search.evaluate.batch import BatchEvaluator
    from wsss.search.request import prepare_sweep
    from wsss.search.sweep import sweep_context

    prepared = prepare_sweep(planted_method.request(home))
    evaluation = sweep_context(prepared, "benchmark", {})
    rng = np.random.default_rng(0)
    scales = [float(scale) for scale in rng.random(settings)]

    def trial(config: dict[str, Any]) -> None:
        evaluator = BatchEvaluator(evaluation)
        setting = evaluator.open(0, {"detail.scale": config["scale"]})
        evaluator.advance([setting], planted_method.METRIC)
        (outcome,) = evaluator.outcomes([setting])
        assert outcome.score is not None, outcome.error
        tune.report({"value": outcome.score.value})

    started = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(trial, {"memory": 1 << 20}),
        param_space={"scale": tune.grid_search(scales)},
        tune_config=tune.TuneConfig(metric="value", mode="max", max_concurrent_trials=1),
        run_config=tune.RunConfig(name="flat", storage_path=str(home / "tune"), verbose=0),
    ).fit()
    seconds = time.perf_counter() - started
    assert len(results) == settings and not results.errors
    return seconds


def batches(home: Path, settings: int) -> float:
    """Seconds for the same number of settings in a sweep, records, study and tracking included."""
    from tests.search import planted_method

    from wsss.search.request import prepare_sweep
    from wsss.search.sweep import SweepObserver, run_sweep

    space = home / "scale.yaml"
    home.mkdir()
    space.write_text("method: planted\nkeys: {detail.scale: {float: [0, 1]}}\n")
    started = time.perf_counter()
    record = run_sweep(prepare_sweep(planted_method.request(home, trials=settings, space_path=space)), SweepObserver())
    assert record.status == "finished" and record.executed >= 3 * settings
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=24)
    count = parser.parse_args().settings
    from wsss.execution.cluster import connect, disconnect

    connect(cpus=2)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as folder:
            batches(Path(folder) / "warm", 4)  # workers and imports, for both alike
            ours = batches(Path(folder) / "ours", count)
            flat = one_trial_each(Path(folder) / "flat", count)
    finally:
        disconnect()
    print(f"{count} settings of stages that take no time, on {os.cpu_count()} cores")
    print(f"  one Tune trial a setting   {flat / count:6.2f} s a setting")
    print(f"  wsss tune                  {ours / count:6.2f} s a setting")
    print(f"  ratio                      {flat / ours:6.1f}")


if __name__ == "__main__":
    main()
