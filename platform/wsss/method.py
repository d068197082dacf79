"""What a method's folder exposes, and the part of a recipe that every method shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss.pipeline import Pipeline
from wsss.recipe import setting

if TYPE_CHECKING:
    from wsss.data.dataset import Dataset
    from wsss.store import Artifact, ArtifactWriter


@dataclass(frozen=True)
class ExecutionSettings:
    """How a run uses the machine. Nothing here changes a key: the numbers do not depend on it."""

    train_workers: int = setting(
        0, minimum=0, maximum=1024, in_key=False, help="DDP workers of a training stage; 0: one per GPU, else 1"
    )
    map_workers: int = setting(
        0, minimum=0, maximum=4096, in_key=False, help="parallel workers of a per-image stage; 0: as many as fit"
    )
    check_data: str = setting(
        "all",
        choices=("all", "headers"),
        in_key=False,
        help="before a run. all: decode every picture and mask that it reads, once for each content; headers: do not",
    )
    device: str = setting(
        "auto", choices=("auto", "cpu", "cuda"), in_key=False, help="auto: cuda when the cluster has it"
    )
    mode: str = setting(
        "fast",
        choices=("fast", "parity"),
        in_key=False,
        help="in every stage: fast: channels_last, TF32 on a GPU; parity: float32 and deterministic algorithms",
    )
    threads: int = setting(
        0, minimum=0, maximum=256, in_key=False, help="CPU threads (and CPUs) per training worker; 0: CPUs / workers"
    )
    micro_batch: int = setting(
        0, minimum=0, maximum=4096, in_key=False, help="largest batch in one forward of a worker; 0: its whole share"
    )
    loader_workers: int = setting(
        0, minimum=0, maximum=64, in_key=False, help="data-loading processes per training worker; 0: load in the worker"
    )
    checkpoint_steps: int = setting(
        500, minimum=1, maximum=1_000_000, in_key=False, help="optimizer steps between checkpoints inside an epoch"
    )
    max_failures: int = setting(3, minimum=0, maximum=100, in_key=False, help="lost workers that a stage survives")


@dataclass(frozen=True)
class Exporter:
    """Writes one artifact in the layout of the official code, or takes such a layout in.

    Attributes:
        stage: stage whose artifact is meant.
        description: what the layout is, for people.
        write: (artifact, dataset, target folder) -> number of files written.
        read: (source path, dataset, image names, writer) -> None; fills the writer, does not publish. None
            where a layout can only be written.
    """

    stage: str
    description: str
    write: Callable[[Artifact, Dataset, Path], int]
    read: Callable[[Path, Dataset, tuple[str, ...], ArtifactWriter], None] | None = None


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """How a run starts from the file of a released model.

    Attributes:
        layout: name of the exporter that reads the file; the file stands for that exporter's stage.
        check: (file, recipe, dataset) -> None; raises WsssError naming what does not fit the recipe's networks.
        pipeline: the pipeline whose part downstream of that stage is run, where the method's own asks for what only
            training needs (ImageNet weights); None: the method's own.
    """

    layout: str
    check: Callable[[Path, Any, Dataset], None]
    pipeline: Callable[[Any, Dataset], Pipeline] | None = None


@dataclass(frozen=True)
class Method:
    """One published method: all that the command line needs to know about it."""

    name: str
    title: str
    citation: str
    recipe_type: type[Any]
    pipeline: Callable[[Any, Dataset], Pipeline]
    folder: Path
    exporters: Mapping[str, Exporter]
    released: ReleasedCheckpoint | None = None

    def recipe_path(self, name: str) -> Path:
        """File of a shipped recipe ("demo", "mini", "paper")."""
        return self.folder / "recipes" / f"{name}.yaml"

    @property
    def claims_path(self) -> Path:
        """The method's published numbers."""
        return self.folder / "claims.yaml"
