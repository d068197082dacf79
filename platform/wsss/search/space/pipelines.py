"""A method's pipeline under one recipe after the other, with the keys of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset
from wsss.errors import WsssError, nearest
from wsss.method import Method
from wsss.pipeline import Pipeline, Preview, Reads, ReduceStage, TrainStage, stage_keys
from wsss.stages.score import SummaryConfig
from wsss.weights import file_digest


class MetricError(WsssError):
    """No stage makes the metric that a sweep is to improve."""


@dataclass(frozen=True)
class KeyedPipeline:
    """A pipeline with the key of every stage."""

    recipe: Any
    pipeline: Pipeline
    keys: dict[str, str]


@dataclass
class KeyedPipelines:
    """Builds pipelines; what does not change between recipes (digests of data and files) is computed once."""

    method: Method
    dataset: Dataset
    _digests: dict[Any, str] = field(default_factory=dict)

    def of(self, recipe: Any) -> KeyedPipeline:
        """The pipeline of a recipe. Raises whatever the method's pipeline raises (WsssError)."""
        pipeline = self.method.pipeline(recipe, self.dataset)
        return KeyedPipeline(recipe, pipeline, stage_keys(pipeline, self, self._file_digest))

    def preview(self, keyed: KeyedPipeline, name: str, fraction: float) -> KeyedPipeline | None:
        """The pipeline with a training that stops after a fraction of its epochs; None when that is all of them."""
        stage = keyed.pipeline.stage(name)
        assert isinstance(stage, TrainStage)
        epoch = max(1, round(fraction * stage.epochs))
        if epoch >= stage.epochs:
            return None
        early = replace(stage, preview=Preview(epoch, keyed.keys[name]))
        stages = tuple(early if each.name == name else each for each in keyed.pipeline)
        pipeline = replace(keyed.pipeline, stages=stages)
        return KeyedPipeline(keyed.recipe, pipeline, stage_keys(pipeline, self, self._file_digest))

    def digest(self, image_list: str | None, reads: frozenset[Reads]) -> str:
        """As `Dataset.digest`."""
        return self._remembered((image_list, reads), lambda: self.dataset.digest(image_list, reads))

    def _file_digest(self, path: Path) -> str:
        return self._remembered(path, lambda: file_digest(path, self.dataset.cache))

    def _remembered(self, name: Any, compute: Callable[[], str]) -> str:
        if name not in self._digests:
            self._digests[name] = compute()
        return self._digests[name]


def metrics_of(pipeline: Pipeline) -> dict[str, str]:
    """Metric name -> reduce stage that makes it, for the main number of every evaluation."""
    found: dict[str, str] = {}
    for stage in pipeline:
        if isinstance(stage, ReduceStage):
            found.update(dict.fromkeys(_made_by(stage), stage.name))
    return found


def metric_stage(pipeline: Pipeline, metric: str) -> str:
    """The reduce stage that makes a metric.

    Raises:
        MetricError: naming the metrics that the pipeline makes.
    """
    found = metrics_of(pipeline)
    if metric not in found:
        raise MetricError(
            f"no stage makes the metric {metric!r}{nearest(metric, found)}",
            "--metric",
            f"metrics of this pipeline: {', '.join(found) or 'none'}",
        )
    return found[metric]


def _made_by(stage: ReduceStage) -> tuple[str, ...]:
    if stage.metrics:
        return stage.metrics
    return (str(stage.config.name),) if isinstance(stage.config, SummaryConfig) else ()
