"""Runs a pipeline in this process, without Ray: the same stage functions, training loop, store and keys."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsss.data.dataset import Dataset, load_dataset
from wsss.data.firewall import forbid_mask_reading
from wsss.execution.stage_job import StageJob
from wsss.execution.train_loop import LoopEvents, LoopSettings, run_training
from wsss.method import Method
from wsss.pipeline import ImportStage, MapStage, Pipeline, ReduceStage, TrainStage, stage_keys
from wsss.recipe import load_recipe
from wsss.store import Artifact, Store, open_store
from wsss.weights import file_digest


@dataclass
class InProcessRun:
    """What a run computed. `executed` lists the stages that were not in the store, `seconds` their CPU time."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    histories: dict[str, dict[str, list[float]]] = field(default_factory=dict)


def run_pipeline(
    pipeline: Pipeline,
    dataset: Dataset,
    store: Store,
    stages: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> InProcessRun:
    """Compute what the store lacks of the pipeline (or of the named stages and all before them)."""
    keys = stage_keys(pipeline, dataset, file_digest)
    wanted = pipeline.stages if stages is None else pipeline.upstream(*stages)
    run = InProcessRun()
    for stage in pipeline:
        if stage not in wanted:
            continue
        artifact = store.find(stage.name, keys[stage.name])
        if artifact is None:
            job = StageJob(
                stage=stage,
                key=keys[stage.name],
                view=dataset.view(stage.reads, stage.image_list),
                inputs={role: run.artifacts[upstream] for role, upstream in stage.inputs.items()},
                store=store,
                facts=dataset.image_facts(stage.image_list),
            )
            started = time.process_time()
            artifact = _compute(job, dataset)
            run.executed.append(stage.name)
            run.seconds[stage.name] = time.process_time() - started
            tell(f"{stage.name}: {run.seconds[stage.name]:.1f} CPU s, {artifact.size / 1e6:.2f} MB")
        run.artifacts[stage.name] = artifact
        if isinstance(stage, ReduceStage):
            found = artifact.json("metrics.json")
            run.metrics.update(found)
            tell(f"{stage.name}: " + ", ".join(f"{name}={value:.4f}" for name, value in found.items()))
        if isinstance(stage, TrainStage):
            history = artifact.json("history.json")
            run.histories[stage.name] = history
            for name, values in history.items():
                if name.startswith(("loss", "statistic")):
                    tell(f"  {name}: {_thinned(values)}")
    return run


class DemoRun:
    """A finished run of a method's demo, made smaller by overrides, and what it ran on."""

    def __init__(self, method: Method, home: Path, overrides: Sequence[str] = ()) -> None:
        torch.set_num_threads(1)
        self.recipe: Any = load_recipe(method.recipe_type, method.recipe_path("demo"), overrides)
        self.dataset = load_dataset(self.recipe.dataset, home)
        self.pipeline = method.pipeline(self.recipe, self.dataset)
        self.store = open_store(str(home / "store"))
        self.run = run_pipeline(self.pipeline, self.dataset, self.store)

    def artifact(self, stage: str) -> Artifact:
        return self.run.artifacts[stage]

    def assert_complete(self) -> None:
        """Every stage ran, and a second run has nothing to do and the same numbers."""
        assert self.run.executed == [stage.name for stage in self.pipeline]
        again = run_pipeline(self.pipeline, self.dataset, self.store)
        assert again.executed == [] and again.metrics == self.run.metrics


def _compute(job: StageJob, dataset: Dataset) -> Artifact:
    stage, writer = job.stage, job.writer()
    if isinstance(stage, TrainStage):
        with forbid_mask_reading(() if "masks" in stage.reads else dataset.mask_folders):
            _train(job, stage)
    elif isinstance(stage, MapStage):
        torch.manual_seed(0)
        per_image = stage.build(job.context("cpu"))
        with torch.inference_mode():
            writer.add_shard(0, {name: per_image(name) for name in job.view.names})
    elif isinstance(stage, ImportStage):
        stage.read(stage.files["checkpoint"], dataset, (), writer)
    else:
        assert isinstance(stage, ReduceStage)
        result = stage.compute(job.context("cpu"))
        writer.add_file("metrics.json", json.dumps(result.metrics).encode())
        writer.add_file("tables.json", json.dumps(result.tables).encode())
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **result.arrays)
        writer.add_file("arrays.npz", buffer.getvalue())
    return writer.publish(
        {"inputs": {role: f"{artifact.stage}/{artifact.key}" for role, artifact in job.inputs.items()}}
    )


def _train(job: StageJob, stage: TrainStage) -> None:
    writer = job.writer()
    torch.manual_seed(stage.seed)
    task = stage.build(job.context("cpu"))

    def candidate(epoch: int, weights: dict[str, dict[str, torch.Tensor]]) -> None:
        for stem, values in weights.items():
            writer.add_file(f"epoch_{epoch:04d}/{stem}.pt", _encoded(values))

    events = LoopEvents(
        save=lambda state, step: None, step=lambda done, total, losses, rates: None, candidate=candidate
    )
    history = run_training(task, stage.seed, LoopSettings(), events, None)
    for stem, values in task.trained_weights().items():
        writer.add_file(f"{stem}.pt", _encoded(values))
    writer.add_file("history.json", json.dumps(history).encode())


def _encoded(values: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu().contiguous() for name, value in values.items()}, buffer)
    return buffer.getvalue()


def _thinned(values: Sequence[float]) -> str:
    series = np.array(values, dtype=np.float64)
    parts = np.array_split(series, min(8, len(series)))
    return " ".join(f"{np.nanmean(part):.3f}" if not np.isnan(part).all() else "-" for part in parts)


def main() -> None:
    """`python -m tests.methods.in_process METHOD RECIPE HOME [key=value ...]`, for tuning a recipe by hand."""
    import sys

    from wsss.commands.methods import find_method, recipe_file

    name, recipe_name, home, *words = sys.argv[1:]
    stages = [word.removeprefix("until=") for word in words if word.startswith("until=")] or None
    overrides = [word for word in words if not word.startswith("until=")]
    method = find_method(name)
    recipe = load_recipe(method.recipe_type, recipe_file(method, recipe_name)[1], overrides)
    dataset = load_dataset(recipe.dataset, Path(home))
    store = open_store(str(Path(home) / "store"))
    run_pipeline(method.pipeline(recipe, dataset), dataset, store, stages, tell=lambda text: print(text, flush=True))
    print(f"total {time.process_time():.1f} CPU s")


if __name__ == "__main__":
    main()
