"""A stage with all that a worker needs to compute it, and the publishing of its artifact. Knows no Ray."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset
from wsss.data.image_facts import ImageFacts
from wsss.data.origin import Origin
from wsss.data.view import DataView
from wsss.pipeline import MapStage, Stage, StageContext, TrainStage
from wsss.store import CHECKPOINTS, Artifact, ArtifactWriter, Store, StoreError
from wsss.weights import fetch_missing

log = logging.getLogger(__name__)

# Files of an artifact: of a reduce stage, and the losses of a training stage.
METRICS_FILE = "metrics.json"
TABLES_FILE = "tables.json"
ARRAYS_FILE = "arrays.npz"
HISTORY_FILE = "history.json"


@dataclass(frozen=True)
class StageJob:
    """One stage of one run; travels to workers by pickle.

    Attributes:
        view: the data set limited to what the stage declares.
        inputs: role -> published artifact.
        mode: see `wsss.execution.numeric_mode`; no part of the key.
        facts: what maps of the inputs are held against.
        origin: how the worker's node comes by files of the driver's.
    """

    stage: Stage
    key: str
    view: DataView
    inputs: Mapping[str, Artifact]
    store: Store
    mode: str = "fast"
    facts: ImageFacts | None = None
    origin: Origin | None = None

    def here(self, paths: Iterable[Path]) -> list[Path]:
        """What this node has in place of paths of the driver's node. Raises as `Origin.here`."""
        return [path if self.origin is None else self.origin.here(path) for path in paths]

    def context(self, device: str, rank: int = 0, world_size: int = 1) -> StageContext:
        """Argument of the stage's function."""
        return StageContext(
            stage=self.stage.name,
            config=self.stage.config,
            data=self.view,
            inputs=self.inputs,
            files=self._files(),
            seed=self.stage.seed if isinstance(self.stage, TrainStage) else 0,
            device=device,
            rank=rank,
            world_size=world_size,
            facts=self.facts,
        )

    def _files(self) -> dict[str, Path]:
        files = dict(zip(self.stage.files, self.here(self.stage.files.values()), strict=True))
        fetch_missing(files.values(), log.info)  # on a node that came after the stage began
        return files

    def writer(self) -> ArtifactWriter:
        """Writer of the stage's artifact; the same for every worker."""
        return self.store.writer(self.stage.name, self.key)


def bind_job(
    stage: Stage, key: str, dataset: Dataset, store: Store, artifacts: Mapping[str, Artifact], mode: str
) -> StageJob:
    """The job of a stage. `artifacts` (stage name -> artifact) holds its inputs."""
    return StageJob(
        stage=stage,
        key=key,
        view=dataset.view(stage.reads, stage.image_list),
        inputs={role: artifacts[upstream] for role, upstream in stage.inputs.items()},
        store=store,
        mode=mode,
        facts=dataset.image_facts(stage.image_list),
        origin=dataset.origin,
    )


def publish_stage(
    job: StageJob,
    seconds: float,
    workers: int,
    gpu: bool,
    facts: Mapping[str, Any],
    run_id: str,
    code: Mapping[str, Any],
) -> Artifact:
    """Publish the artifact of a computed stage, with how it was computed."""
    stage = job.stage
    return job.writer().publish(
        {
            "seconds": round(seconds, 3),
            "workers": workers,
            "device": "cuda" if gpu else "cpu",
            "mode": job.mode,
            "facts": dict(facts),
            "run_id": run_id,
            "created": time.time(),
            "seed": stage.seed if isinstance(stage, TrainStage) else None,
            "inputs": {role: f"{artifact.stage}/{artifact.key}" for role, artifact in job.inputs.items()},
            "chooses_by_masks": stage.chooses_by_masks,
            "code": dict(code),
        },
        # Named, because the listing of an object store may not show yet what a worker has just written.
        shards=range(int(facts["shards"])) if isinstance(stage, MapStage) else None,
    )


def shard_size(images: int) -> int:
    """Images in one shard: from the number of images alone, so that any run cuts them alike."""
    return min(max(-(-images // 32), 8), 256)


def training_name(stage: Stage, key: str) -> str:
    """Folder name of a training's checkpoints. A preview uses that of the training that it is the start of."""
    preview = stage.preview if isinstance(stage, TrainStage) else None
    return f"{stage.name}-{key if preview is None else preview.whole_key}"


def remove_checkpoints(checkpoints: str, store: Store, stage: Stage, key: str) -> None:
    """Delete the checkpoints of a training that is over, in a folder or below the store; a failure is no error.

    Args:
        checkpoints: folder, or address below the store, of all trainings' checkpoints.
    """
    name = training_name(stage, key)
    if "://" not in checkpoints:
        shutil.rmtree(Path(checkpoints) / name, ignore_errors=True)
        return
    try:
        store.backend.remove_folder(f"{CHECKPOINTS}/{name}")
    except StoreError as error:  # what was computed counts; `wsss store gc` removes them later
        log.warning("the checkpoints of %s could not be removed: %s", name, error.what)


def load_metrics(artifact: Artifact) -> dict[str, float]:
    """Metrics of a published reduce stage."""
    return artifact.json(METRICS_FILE)
