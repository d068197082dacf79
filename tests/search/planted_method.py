"""A method whose best setting is known, on the generated data set: no training, two levels of cost, one curve.

Its class maps are the truth with a share of the pixels exchanged; the share grows with the distance of the settings to
OPTIMUM. Object pixels have the value 0.6 and the others 0.4, so that thresholds between them are best.

Run as a script it runs one sweep, so that tests can kill it. A fault happens when its file exists in FAULTS, which it
removes first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset
from wsss.method import ExecutionSettings, Method
from wsss.pipeline import MapStage, Pipeline, ReduceStage, Reduction, StageContext
from wsss.recipe import load_recipe, setting
from wsss.search.request import SweepRequest, prepare_sweep
from wsss.search.sweep import SweepObserver, run_sweep
from wsss.stages.score import (
    CurveScoreConfig,
    SummaryConfig,
    build_curve_scorer,
    summarize_curve,
    thresholds_with,
)

OPTIMUM = {"base.position": 0.7, "detail.scale": 0.3, "detail.kind": "sharp"}
METRIC = "planted/miou_train"
QUALITY = "base/quality_train"
SMALL = [
    "dataset.name=shapes",
    "dataset.shapes.train=16",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=2",
    "dataset.shapes.size=48",
]
SPACE = """
method: planted
keys:
  base.position: {float: [0, 1]}
  detail.scale: {float: [0, 1]}
  detail.kind: {categorical: [blunt, sharp, round]}
  detail.radius: {int: [1, 4], when: {detail.kind: [round]}}
  evaluation.threshold: {float: [0.2, 0.5], step: 0.01}
"""


@dataclass(frozen=True)
class BaseSettings:
    position: float = setting(0.1, minimum=0, maximum=1)


@dataclass(frozen=True)
class DetailSettings:
    scale: float = setting(0.9, minimum=0, maximum=1)
    kind: str = setting("blunt", choices=("blunt", "sharp", "round"))
    radius: int = setting(2, minimum=1, maximum=8)


@dataclass(frozen=True)
class EvaluationSettings:
    threshold: float = setting(0.2, minimum=0.05, maximum=0.5)


@dataclass(frozen=True)
class PlantedRecipe:
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(0, minimum=0)
    base: BaseSettings = BaseSettings()
    detail: DetailSettings = DetailSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    faults: Path = setting(Path("/nonexistent"), in_key=False)
    pause: float = setting(0.0, minimum=0, in_key=False)


@dataclass(frozen=True)
class BaseConfig:
    """`seed` stands for that of a training: it decides which pixels are exchanged."""

    settings: BaseSettings
    seed: int
    pause: float = setting(0.0, in_key=False)


@dataclass(frozen=True)
class DetailConfig:
    settings: DetailSettings
    faults: Path = setting(Path(), in_key=False)
    pause: float = setting(0.0, in_key=False)


def distance(settings: Mapping[str, Any]) -> float:
    """How far settings lie from the optimum; 0 at it."""
    wrong_kind = 0.0 if settings["detail.kind"] == OPTIMUM["detail.kind"] else 0.3
    return (
        abs(settings["base.position"] - OPTIMUM["base.position"])
        + abs(settings["detail.scale"] - OPTIMUM["detail.scale"])
        + wrong_kind
    )


def happens(folder: Path, fault: str) -> bool:
    """Whether a planned fault happens now; each happens once."""
    try:
        (folder / fault).unlink()
    except OSError:
        return False
    return True


def build_base(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    config: BaseConfig = context.config

    def base(name: str) -> Mapping[str, np.ndarray]:
        time.sleep(config.pause)
        return {"position": np.array([config.settings.position]), "seed": np.array([config.seed])}

    return base


def compute_quality(context: StageContext) -> Reduction:
    position = float(context.inputs["base"].arrays(context.data.names[0])["position"][0])
    return Reduction(metrics={QUALITY: 1 - abs(position - OPTIMUM["base.position"])})


def build_detail(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    config: DetailConfig = context.config
    base = context.inputs["base"]

    def detail(name: str) -> Mapping[str, np.ndarray]:
        time.sleep(config.pause / 4)
        if happens(config.faults, "kill-worker"):
            os.kill(os.getpid(), signal.SIGKILL)
        if config.settings != DetailSettings() and happens(config.faults, "error"):
            raise ValueError("the planned error")
        if (config.faults / "always-kill").exists() and config.settings.kind == "round":
            os.kill(os.getpid(), signal.SIGKILL)
        settings = {
            "base.position": float(base.arrays(name)["position"][0]),
            "detail.scale": config.settings.scale,
            "detail.kind": config.settings.kind,
        }
        mask = context.data.mask(name)
        seed = int(base.arrays(name)["seed"][0])
        rng = np.random.default_rng([seed, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)])
        wrong = min(1.0, distance(settings))
        exchanged = rng.random(mask.shape) < 0.4 * wrong
        keys = np.setdiff1d(mask, [0, 255])
        objects = np.stack([mask == key for key in keys])
        objects = np.where(exchanged[None], np.roll(objects, 1, axis=0) & (mask > 0) | (mask == 0), objects)
        return {"planted": np.where(objects, 0.6 - 0.05 * wrong, 0.4).astype(np.float16), "keys": keys}

    return detail


def kill_trial(folder: Path) -> None:
    """Kill this process when the fault names another one as the driver: then it is a trial's."""
    fault = folder / "kill-trial"
    if fault.exists() and fault.read_text() != str(os.getpid()):
        fault.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def break_trial(folder: Path, kind: str) -> None:
    """Raise an error in a trial of that kind, when the fault names another process as the driver."""
    fault = folder / f"break-trial-{kind}"
    if fault.exists() and fault.read_text() != str(os.getpid()):
        raise RuntimeError("the planned trouble")


def pipeline(recipe: PlantedRecipe, dataset: Dataset) -> Pipeline:
    kill_trial(recipe.faults)
    break_trial(recipe.faults, recipe.detail.kind)
    threshold = recipe.evaluation.threshold
    return Pipeline(
        (
            MapStage(
                name="base",
                version=1,
                config=BaseConfig(recipe.base, recipe.seed, recipe.pause),
                reads=frozenset({"images"}),
                image_list="train_aug",
                build=build_base,
            ),
            ReduceStage(
                name="base_evaluation",
                version=1,
                config=EvaluationSettings(),
                inputs={"base": "base"},
                reads=frozenset({"images"}),
                image_list="train",
                compute=compute_quality,
                metrics=(QUALITY,),
            ),
            MapStage(
                name="detail",
                version=1,
                config=DetailConfig(recipe.detail, recipe.faults, recipe.pause),
                inputs={"base": "base"},
                reads=frozenset({"masks"}),
                image_list="train_aug",
                build=build_detail,
            ),
            MapStage(
                name="detail_score",
                version=1,
                config=CurveScoreConfig(thresholds=thresholds_with(threshold), maps="planted"),
                inputs={"scores": "detail"},
                reads=frozenset({"masks"}),
                image_list="train",
                build=build_curve_scorer,
            ),
            ReduceStage(
                name="detail_evaluation",
                version=1,
                config=SummaryConfig(prefix="planted", split="train", default_threshold=threshold),
                inputs={"confusions": "detail_score"},
                compute=summarize_curve,
            ),
        ),
        headline=(METRIC,),
    )


METHOD = Method(
    name="planted",
    title="Planted optimum",
    citation="none",
    recipe_type=PlantedRecipe,
    pipeline=pipeline,
    folder=Path(__file__).parent,
    exporters={},
)


def request(home: Path, overrides: list[str] | tuple[str, ...] = (), **options: Any) -> SweepRequest:
    """A sweep of 12 settings in an own home. `base` counts as costly when it was timed and a limit is given."""
    home.mkdir(parents=True, exist_ok=True)
    space = home / "planted.yaml"
    if not space.exists():
        space.write_text(SPACE)
    recipe = load_recipe(PlantedRecipe, None, [*SMALL, *overrides])
    values: dict[str, Any] = {
        "method": METHOD,
        "recipe": recipe,
        "recipe_name": "small",
        "home": home,
        "store_url": str(home / "store"),
        "space_path": space,
        "metric": METRIC,
        "trials": 12,
        **options,
    }
    return SweepRequest(**values)


class Printing(SweepObserver):
    """Prints a line a trial."""

    def trial(self, trial: Any, record: Any) -> None:
        print(f"TRIAL {trial.number} {trial.status}", flush=True)

    def message(self, text: str) -> None:
        print(f"NEWS {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    record = run_sweep(prepare_sweep(request(arguments.home, arguments.overrides, **arguments.options)), Printing())
    print("RESULT " + json.dumps({"best": record.best and record.best.settings, "executed": record.executed}))
    return 0


if __name__ == "__main__":
    from tests.search import planted_method  # the stages must be importable in workers, which __main__ is not

    sys.exit(planted_method.main())
