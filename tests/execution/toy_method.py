"""A method of four tiny stages on the generated data set, with faults that can be switched on.

Run as a script it executes one run and prints what became of every stage, so that tests can kill it.

Faults are planned by files in the folder FAULTS: a fault happens when its file exists, which it removes first.
"""

from __future__ import annotations

import argparse
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
import torch
from tests.faults import clock
from torch import Tensor, nn

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset
from wsss.execution.prepare import RunRequest, prepare_run
from wsss.execution.run import execute_run
from wsss.method import ExecutionSettings, Method
from wsss.pipeline import MapStage, Pipeline, ReduceStage, Reduction, StageContext, TrainStage
from wsss.recipe import load_recipe, setting
from wsss.train_task import Batch, OptimizerPlan, TrainTask


@dataclass(frozen=True)
class TrainSettings:
    epochs: int = setting(4, minimum=1)
    batch_size: int = setting(8, minimum=1)
    learning_rate: float = setting(0.2, above=0)


@dataclass(frozen=True)
class ScoreSettings:
    power: float = setting(1.0, above=0)


@dataclass(frozen=True)
class ToyRecipe:
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(0, minimum=0, in_key=False)
    train: TrainSettings = TrainSettings()
    score: ScoreSettings = ScoreSettings()
    faults: Path = setting(Path("/nonexistent"), in_key=False)
    pause: float = setting(0.0, minimum=0, in_key=False)


@dataclass(frozen=True)
class TrainConfig:
    settings: TrainSettings
    faults: Path = setting(Path(), in_key=False)
    pause: float = setting(0.0, in_key=False)


@dataclass(frozen=True)
class ScoreConfig:
    settings: ScoreSettings
    faults: Path = setting(Path(), in_key=False)
    pause: float = setting(0.0, in_key=False)


@dataclass(frozen=True)
class MeanConfig:
    faults: Path = setting(Path(), in_key=False)


def wait_while_held(folder: Path, stage: str) -> None:
    """Stand still while the file `hold-<stage>` exists: what a test kills meanwhile has certainly not finished.

    The file `held-<stage>` then holds the id of the process that stands still.
    """
    deadline = time.monotonic() + 600  # longer than any wait of a test
    while (folder / f"hold-{stage}").exists() and time.monotonic() < deadline:
        (folder / f"held-{stage}").write_text(str(os.getpid()))
        time.sleep(0.05)


def happens(folder: Path, fault: str) -> bool:
    """Whether a planned fault happens now; each happens once."""
    try:
        (folder / fault).unlink()
    except OSError:
        return False
    return True


class Samples:
    def __init__(self, context: StageContext) -> None:
        self.context = context

    def __len__(self) -> int:
        return len(self.context.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        name = self.context.data.names[index]
        image = self.context.data.image(name).astype(np.float32) / 255
        shift = rng.normal(scale=0.02)
        return {
            "features": torch.from_numpy(np.concatenate([image.mean((0, 1)), image.std((0, 1))]) + shift).float(),
            "labels": torch.from_numpy(self.context.data.image_labels(name)),
        }


class Classifier(nn.Module):
    def __init__(self, classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(6, classes)
        self.config = config

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        time.sleep(self.config.pause)
        if epoch == 3:
            wait_while_held(self.config.faults, "toy_train")
        if epoch == 2:
            if happens(self.config.faults, "kill-train-worker"):
                os.kill(os.getpid(), signal.SIGKILL)
            if happens(self.config.faults, "train-error"):
                from wsss.errors import WsssError

                raise WsssError("the planned error", "epoch 2", "nothing to do")
            if happens(self.config.faults, "train-bug"):
                raise ZeroDivisionError("the planned bug")
        logits = self.linear(batch["features"])
        return {
            "classification": nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="sum")
        }


def build_training(context: StageContext) -> TrainTask:
    config: TrainConfig = context.config
    clock.follow(config.faults)
    module = Classifier(len(context.data.classes) - 1, config)
    if happens(config.faults, "read-a-mask"):
        mask = next(Path(config.faults / "mask-folder").resolve().glob("*.png"))
        mask.read_bytes()
    return TrainTask(
        module=module,
        denominators=lambda batch: {"classification": torch.tensor(float(batch["labels"].numel()))},
        loss_weights={"classification": 1.0},
        optimizers=(
            OptimizerPlan(
                "sgd",
                torch.optim.SGD(module.parameters(), lr=config.settings.learning_rate, momentum=0.9),
                lambda step, total: 1 - step / total,
            ),
        ),
        samples=Samples(context),
        epochs=config.settings.epochs,
        global_batch=config.settings.batch_size,
        trained_weights=lambda: {"weights": module.state_dict()},
    )


def build_score(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    config: ScoreConfig = context.config
    clock.follow(config.faults)
    weights = torch.load(context.inputs["network"].path("weights.pt"), weights_only=True)

    def score(name: str) -> Mapping[str, np.ndarray]:
        time.sleep(config.pause)
        image = context.data.image(name).astype(np.float32) / 255
        if name == context.data.names[-1]:
            wait_while_held(config.faults, "toy_score")
            if happens(config.faults, "kill-map-worker"):
                os.kill(os.getpid(), signal.SIGKILL)
            if happens(config.faults, "map-error"):
                from wsss.errors import WsssError

                raise WsssError("the planned map error", name, "nothing to do")
            if happens(config.faults, "map-bug"):
                raise ZeroDivisionError("the planned bug")
        features = torch.from_numpy(np.concatenate([image.mean((0, 1)), image.std((0, 1))])).float()
        logits = features @ weights["linear.weight"].T + weights["linear.bias"]
        return {"probability": (torch.sigmoid(logits) ** config.settings.power).numpy()}

    return score


def compute_mean(context: StageContext) -> Reduction:
    config: MeanConfig = context.config
    clock.follow(config.faults)
    wait_while_held(config.faults, "toy_mean")
    values = np.stack([context.inputs["score"].arrays(name)["probability"] for name in context.data.names])
    return Reduction(metrics={"toy/miou_train": float(values.mean())}, arrays={"mean": values.mean(0)})


def pipeline(recipe: ToyRecipe, dataset: Dataset) -> Pipeline:
    return Pipeline(
        (
            TrainStage(
                name="toy_train",
                version=1,
                config=TrainConfig(recipe.train, recipe.faults, recipe.pause),
                reads=frozenset({"images", "image_labels"}),
                image_list="train",
                build=build_training,
                seed=recipe.seed,
                epochs=recipe.train.epochs,
            ),
            MapStage(
                name="toy_score",
                version=1,
                config=ScoreConfig(recipe.score, recipe.faults, recipe.pause / 4),
                inputs={"network": "toy_train"},
                reads=frozenset({"images"}),
                image_list="train",
                build=build_score,
            ),
            ReduceStage(
                name="toy_mean",
                version=1,
                config=MeanConfig(recipe.faults),
                inputs={"score": "toy_score"},
                reads=frozenset({"images"}),
                image_list="train",
                compute=compute_mean,
                metrics=("toy/miou_train",),
            ),
        ),
        headline=("toy/miou_train",),
    )


METHOD = Method(
    name="toy",
    title="Toy",
    citation="none",
    recipe_type=ToyRecipe,
    pipeline=pipeline,
    folder=Path(__file__).parent,
    exporters={},
)


class Silent:
    def start(self, stage: str, total: int, unit: str) -> None: ...
    def update(self, stage: str, done: int, note: str = "") -> None:
        if os.environ.get("TOY_VERBOSE"):
            print(f"UPDATE {stage} {done}", flush=True)

    def finish(self, stage: str, seconds: float, summary: str) -> None: ...
    def message(self, text: str) -> None:
        if os.environ.get("TOY_VERBOSE"):
            print(f"SAID {text}", flush=True)


def run(home: Path, overrides: list[str], store: str | None = None, tracking: str | None = None) -> Any:
    """One run in this process."""
    recipe = load_recipe(ToyRecipe, None, ["dataset.name=shapes", *overrides])
    request = RunRequest(METHOD, recipe, "toy", home, store or str(home / "store"), tracking)
    return execute_run(prepare_run(request), Silent())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    result = run(arguments.home, arguments.overrides)
    print("RESULT " + json.dumps({s.name: [s.status, s.key] for s in result.record.stages}))
    print("METRICS " + json.dumps(result.record.metrics))
    return 0


if __name__ == "__main__":
    from tests.execution import toy_method  # the stages must be importable in workers, which __main__ is not

    sys.exit(toy_method.main())
