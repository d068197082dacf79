"""The score of label maps in which a pixel may have no label (255): with such pixels as wrong, and without them.

The first number alone compares with labels that say something everywhere; the second alone is best when hardly anything
is labeled. The coverage, the share of scored pixels that have a label, belongs to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from wsss.evaluation.confusion import confusion_matrix
from wsss.evaluation.counts import Counts
from wsss.metric_name import MetricName
from wsss.pipeline import MapStage, ReduceStage, Reduction, Stage, StageContext
from wsss.stages.score import SummaryConfig, label_scores, scored_images

LABELED = "labeled"  # ending of the numbers without the pixels that have no label


@dataclass(frozen=True)
class PartialLabelConfig:
    """Name of the upstream array, integer (H, W)."""

    labels: str = "label"


def partial_label_stages(stage: str, split: str = "train") -> list[Stage]:
    """`<stage>_score` and `<stage>_evaluation` of a stage's "label" on a list, see `summarize_partial_labels`."""
    name = MetricName(stage, "miou", split)
    return [
        MapStage(
            name=f"{stage}_score",
            version=1,
            config=PartialLabelConfig(),
            inputs={"labels": stage},
            reads=frozenset({"masks"}),
            image_list=split,
            build=build_partial_label_scorer,
        ),
        ReduceStage(
            name=f"{stage}_evaluation",
            version=1,
            config=SummaryConfig(prefix=stage, split=split),
            inputs={"confusions": f"{stage}_score"},
            compute=summarize_partial_labels,
            metrics=(str(name), str(replace(name, variant=LABELED))),
        ),
    ]


def build_partial_label_scorer(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    """Map function (config PartialLabelConfig, role "labels"): counts (C + 1, C + 1) of `wsss.evaluation.counts`.

    The last class is that of pixels without a label: no truth, but predicted.
    """
    config: PartialLabelConfig = context.config
    classes = context.data.num_classes

    def score(name: str) -> Mapping[str, np.ndarray]:
        label = context.arrays("labels", name)[config.labels]
        confusion = confusion_matrix(
            context.data.mask(name), label, classes + 1, context.data.ignore_index, prediction_ignore_to=classes
        )
        return Counts.of(confusion).arrays()

    return score


def summarize_partial_labels(context: StageContext) -> Reduction:
    """Reduce function (config SummaryConfig, role "confusions" of `build_partial_label_scorer`).

    Metrics, tables and arrays as of `summarize_labels`, twice: a pixel without a label counts as wrong; it is left out
    (variant "labeled"). And `<prefix>/coverage_<split>`.
    """
    config: SummaryConfig = context.config
    artifact = context.inputs["confusions"]
    counts = {name: Counts.read(artifact.arrays(name)) for name in scored_images(artifact, context.stage)}
    result = label_scores(config, counts, context)
    total = result.arrays["confusion"]
    result.metrics[str(config.name.of("coverage"))] = float(1 - total[:, -1].sum() / total.sum())
    if total[:, :-1].any():
        labeled = {name: Counts.of(_without_unlabeled(each.dense())) for name, each in counts.items()}
        part = label_scores(replace(config, variant=LABELED), labeled, context)
        result.metrics.update(part.metrics)
        result.tables.update({f"{table}_{LABELED}": rows for table, rows in part.tables.items()})
        result.arrays.update({f"{array}_{LABELED}": values for array, values in part.arrays.items()})
    else:  # nothing has a label, of which no part can be right
        result.metrics[str(replace(config.name, variant=LABELED))] = 0.0
    return result


def _without_unlabeled(confusion: np.ndarray) -> np.ndarray:
    confusion[:, -1] = 0
    return confusion
