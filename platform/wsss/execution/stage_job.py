"""A stage with everything bound that a worker needs to run it; travels to workers by pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wsss.data.view import DataView
from wsss.pipeline import Stage, StageContext, TrainStage
from wsss.store import Artifact, ArtifactWriter, Store


@dataclass(frozen=True)
class StageJob:
    """One stage of one run.

    Attributes:
        view: the data set limited to what the stage declares.
        inputs: role -> published artifact.
    """

    stage: Stage
    key: str
    view: DataView
    inputs: Mapping[str, Artifact]
    store: Store

    def context(self, device: str, rank: int = 0, world_size: int = 1) -> StageContext:
        """What the stage's function is called with."""
        return StageContext(
            stage=self.stage.name,
            config=self.stage.config,
            data=self.view,
            inputs=self.inputs,
            files=self.stage.files,
            seed=self.stage.seed if isinstance(self.stage, TrainStage) else 0,
            device=device,
            rank=rank,
            world_size=world_size,
        )

    def writer(self) -> ArtifactWriter:
        """Writer of the stage's artifact; the same for every worker."""
        return self.store.writer(self.stage.name, self.key)
