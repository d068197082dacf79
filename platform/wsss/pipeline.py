"""Stages, how they connect, and the keys of what they produce."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from wsss.errors import WsssError
from wsss.map_rules import read_arrays
from wsss.recipe import key_values

if TYPE_CHECKING:
    from wsss.data.dataset import Dataset
    from wsss.data.image_facts import ImageFacts
    from wsss.data.view import DataView
    from wsss.store import Artifact, ArtifactWriter
    from wsss.train_task import TrainTask

Reads = Literal["images", "image_labels", "masks"]
GridKind = Literal["cam", "labels", "grey", "segments"]
Arrays = Mapping[str, np.ndarray]
KEY_FORMAT = 1


class PipelineError(WsssError):
    """The stages of a pipeline do not fit together."""


@dataclass(frozen=True)
class StageContext:
    """All that a stage function is given: what it declared, and nothing else.

    Attributes:
        stage: name of the stage.
        config: the stage's own frozen dataclass.
        data: view on the data set, limited to the declared reads.
        inputs: role -> artifact of an upstream stage.
        files: role -> external file (weights).
        seed: seed of a training stage, 0 elsewhere.
        device: "cpu" or "cuda:N".
        rank, world_size: place among the workers of a training stage; 0 and 1 elsewhere.
        facts: what `arrays` holds the maps of inputs against; None: they are taken as they are.
    """

    stage: str
    config: Any
    data: DataView
    inputs: Mapping[str, Artifact]
    files: Mapping[str, Path]
    seed: int = 0
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    facts: ImageFacts | None = None

    def arrays(self, role: str, name: str) -> Arrays:
        """The arrays of an image of the input in a role: where every stage reads maps and labels.

        Raises:
            MapError: they are not those of the picture, see `wsss.map_rules`.
            StoreError: the input has no such image, or it is damaged.
        """
        if self.facts is None:
            return self.inputs[role].arrays(name)
        return read_arrays(self.inputs[role], name, self.facts)


@dataclass(frozen=True)
class Reduction:
    """What a reduce stage returns: numbers, small tables, arrays."""

    metrics: dict[str, float]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: unique in the pipeline; also the folder in the store.
        version: raised whenever the numbers that the code computes change.
        config: frozen dataclass of plain values; enters the key (without `in_key=False` fields).
        inputs: role -> name of the upstream stage.
        reads: which parts of the data set the stage is handed.
        image_list: the data set's list that the stage runs over; None for a stage without images.
        files: role -> external file whose content enters the key.
        uses_gpu: whether a GPU, when the cluster has one, speeds the stage up.
        chooses_by_masks: the stage chooses something by looking at masks; its numbers rest on masks.
    """

    name: str
    version: int
    config: Any
    inputs: Mapping[str, str] = field(default_factory=dict)
    reads: frozenset[Reads] = frozenset()
    image_list: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    uses_gpu: bool = False
    chooses_by_masks: bool = False

    kind: str = field(init=False, default="stage")


@dataclass(frozen=True)
class Preview:
    """A training that stops after `epoch` to show what it has learned so far. The whole training, whose key is
    `whole_key`, goes on from there as if it had not stopped."""

    epoch: int
    whole_key: str


@dataclass(frozen=True, kw_only=True)
class TrainStage(Stage):
    """Trains networks under DDP. `fully_supervised` must be set for one that reads masks.

    Attributes:
        epochs: of the whole training, as its config says, for a search that looks at it on the way; 0: no look.
        preview: set by a search alone.
    """

    build: Callable[[StageContext], TrainTask]
    seed: int
    epochs: int = 0
    preview: Preview | None = None
    fully_supervised: bool = False
    kind: str = field(init=False, default="train")


@dataclass(frozen=True, kw_only=True)
class MapStage(Stage):
    """One image in, named arrays out. `build` loads models once and returns the per-image function.

    Attributes:
        build_many: the same for several configurations of the stage at once, whose inputs may differ as well: image
            name -> what the function of each `build` gives, in the order of the contexts. For stages that share work
            between settings (a network's forward pass, a lattice); None: each is computed on its own.
    """

    build: Callable[[StageContext], Callable[[str], Arrays]]
    build_many: Callable[[Sequence[StageContext]], Callable[[str], Sequence[Arrays]]] | None = None
    kind: str = field(init=False, default="map")


@dataclass(frozen=True, kw_only=True)
class ReduceStage(Stage):
    """Many artifacts in, numbers out.

    Attributes:
        metrics: names of the main numbers that it makes, for the search; a stage whose config is a
            `wsss.stages.score.SummaryConfig` need not say it.
    """

    compute: Callable[[StageContext], Reduction]
    metrics: tuple[str, ...] = ()
    kind: str = field(init=False, default="reduce")


@dataclass(frozen=True, kw_only=True)
class ImportStage(Stage):
    """Takes an official file, `files["checkpoint"]`, in as the artifact of the stage whose name it has.

    Attributes:
        read: (file, dataset, image names, writer) -> None; fills the writer.
        description: the layout of the file, for people.
    """

    read: Callable[[Path, Dataset, tuple[str, ...], ArtifactWriter], None]
    description: str
    kind: str = field(init=False, default="import")


class DataDigests(Protocol):
    """The part of a data set that keys need."""

    def digest(self, image_list: str | None, reads: frozenset[Reads]) -> str:
        """Digest of the content of what is read of that list; independent of where it lies."""
        ...


@dataclass(frozen=True)
class GridColumn:
    """One column of an image grid.

    Attributes:
        title: above the column.
        stage, array: a map stage and the name of the array that it makes for each image.
        kind: what the array is. "cam": class maps (K, h, w); the strongest is drawn as a heat map over the picture.
            "labels": class ids (h, w), 255 ignored; VOC colours. "grey": one map (h, w) such as saliency. Both are in
            [0, 1], or in [0, 255] if their type is uint8. "segments": ids (h, w) of superpixels; their outlines are
            drawn over the picture.
    """

    title: str
    stage: str
    array: str
    kind: GridKind


@dataclass(frozen=True)
class SampleGrid:
    """An image grid of the report: the picture, one column after the other, the ground truth.

    Attributes:
        image_list: the data set's list that the pictures are taken from.
        columns: from left to right. A column whose stage did not run is left out.
    """

    image_list: str
    columns: tuple[GridColumn, ...]

    def __post_init__(self) -> None:
        titles = ["input", "truth", *(column.title for column in self.columns)]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise PipelineError(
                f"two columns of an image grid are titled {twice[0]!r}", f"the grid on {self.image_list}", "rename one"
            )


@dataclass(frozen=True)
class Pipeline:
    """A method's stages in an order in which they can run.

    Attributes:
        stages: topologically ordered.
        headline: metric names to show first, in this order.
        grids: image grids for the report.
        protocol: short text -> text facts that belong to the numbers (backbone, scales, CRF, selection).
    """

    stages: tuple[Stage, ...]
    headline: tuple[str, ...] = ()
    grids: tuple[SampleGrid, ...] = ()
    protocol: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[str, Stage] = {}
        for stage in self.stages:
            if stage.name in seen:
                raise PipelineError(f"two stages are named {stage.name!r}", "pipeline", "give each its own name")
            for role, upstream in stage.inputs.items():
                if upstream not in seen:
                    raise PipelineError(
                        f"input {role!r} is stage {upstream!r}, which does not come before it",
                        f"stage {stage.name}",
                        f"stages before it: {', '.join(seen) or 'none'}",
                    )
            if isinstance(stage, TrainStage) and "masks" in stage.reads and not stage.fully_supervised:
                raise PipelineError(
                    "a weakly supervised training stage must not read masks",
                    f"stage {stage.name}",
                    "drop 'masks' from its reads, or set fully_supervised=True for an upper bound",
                )
            seen[stage.name] = stage

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def stage(self, name: str) -> Stage:
        """The stage of that name; PipelineError if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise PipelineError(f"there is no stage {name!r}", "pipeline", f"stages: {names}")

    def starting_with(self, first: Stage) -> Pipeline:
        """The stage `first`, which has no inputs, in place of the one of its name; what is behind it, and what else
        that needs. PipelineError if no stage has its name.
        """
        self.stage(first.name)
        later = self.downstream(first.name) - {first.name}
        return replace(self, stages=(first, *self.upstream(*later, stop=lambda name: name == first.name)))

    def upstream(self, *names: str, stop: Callable[[str], bool] = lambda name: False) -> tuple[Stage, ...]:
        """The named stages and everything that they depend on, in order.

        A stage at which `stop` is true is left out, and so is what is needed by such stages alone; `stop` is asked
        from the last stage to the first, once each.
        """
        wanted = set(names)
        for stage in reversed(self.stages):
            if stage.name in wanted:
                if stop(stage.name):
                    wanted.remove(stage.name)
                else:
                    wanted.update(stage.inputs.values())
        return tuple(stage for stage in self.stages if stage.name in wanted)

    def downstream(self, name: str) -> set[str]:
        """The stage and everything that depends on it."""
        found = {name}
        for stage in self.stages:
            if found.intersection(stage.inputs.values()):
                found.add(stage.name)
        return found


def stage_keys(pipeline: Pipeline, data: DataDigests, file_digest: Callable[[Path], str]) -> dict[str, str]:
    """Key of every stage: what determines its output, hashed (32 hex digits).

    Name, version, config, keys of the inputs, content of the data that it reads, content of external
    files and, for training, the seed. Resources, workers and paths do not take part.
    """
    keys: dict[str, str] = {}
    for stage in pipeline:
        content: dict[str, Any] = {
            "format": KEY_FORMAT,
            "stage": stage.name,
            "version": stage.version,
            "config": key_values(stage.config),
            "inputs": {role: keys[upstream] for role, upstream in sorted(stage.inputs.items())},
            "data": data.digest(stage.image_list, stage.reads) if stage.image_list or stage.reads else None,
            "files": {role: file_digest(path) for role, path in sorted(stage.files.items())},
        }
        if isinstance(stage, TrainStage):
            content["seed"] = stage.seed
            if stage.preview is not None:
                content["preview_epoch"] = stage.preview.epoch
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        keys[stage.name] = hashlib.sha256(text.encode()).hexdigest()[:32]
    return keys
