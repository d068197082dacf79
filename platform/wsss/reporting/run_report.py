"""What a report is made of: plain values that a run (or a test) fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsss.claims import Verdict
from wsss.pipeline import GridKind

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage of the run of one seed.

    Attributes:
        status: "executed", "cached" or "not_needed".
        seconds: wall time; for a cached stage what its execution took.
        metrics: full metric name -> value (scores are fractions).
        tables: of a reduce stage; "curve" (threshold, miou, default, oracle) and "per_class" (class, iou)
            are drawn.
        history: of a training stage; series name -> one value for each step (NaN where it has none).
        notes: short facts such as "imported" or "chosen by masks".
    """

    name: str
    kind: str
    status: str
    seconds: float
    key: str
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SampleImage:
    """One row of an image grid.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        arrays: column title -> array, as `wsss.pipeline.GridColumn` describes it; stretched over the image.
    """

    name: str
    image: Array
    arrays: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SampleRows:
    """One image grid. `columns`: title -> what the arrays of the column are, from left to right."""

    title: str
    columns: Mapping[str, GridKind]
    samples: tuple[SampleImage, ...]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that `write_report` shows.

    Attributes:
        classes: names of the classes, background first.
        stages: of all seeds, in running order.
        headline: metric names to show first.
        protocol: facts that belong to the numbers (backbone, scales, CRF, selection).
        settings: dotted recipe key -> value.
        changed_settings: those that differ from the named recipe.
        provenance: fact -> text: commit, machine, data manifest, store, run ids.
    """

    method: str
    title: str
    citation: str
    dataset: str
    recipe: str
    classes: tuple[str, ...]
    stages: tuple[StageReport, ...]
    verdicts: tuple[Verdict, ...] = ()
    headline: tuple[str, ...] = ()
    grids: tuple[SampleRows, ...] = ()
    protocol: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    changed_settings: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds in rising order."""
        return tuple(sorted({stage.seed for stage in self.stages}))

    @property
    def metrics_by_seed(self) -> dict[int, dict[str, float]]:
        """Seed -> all metrics of its run."""
        found: dict[int, dict[str, float]] = {seed: {} for seed in self.seeds}
        for stage in self.stages:
            found[stage.seed].update(stage.metrics)
        return found
