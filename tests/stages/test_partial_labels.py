"""Scores of labels with pixels that have none, by hand on two images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from wsss.pipeline import Reduction, StageContext
from wsss.stages.partial_labels import (
    PartialLabelConfig,
    build_partial_label_scorer,
    partial_label_stages,
    summarize_partial_labels,
)
from wsss.stages.score import LabelScoreConfig, SummaryConfig, build_label_scorer, summarize_labels

CLASSES = ("background", "cat", "dog")
TRUTH = {"one": np.array([[0, 0, 0, 1], [0, 1, 1, 255]]), "two": np.array([[0, 0, 2, 2], [0, 0, 0, 255]])}
LABEL = {"one": np.array([[0, 0, 255, 1], [255, 1, 0, 1]]), "two": np.array([[0, 0, 2, 255], [0, 0, 2, 255]])}


@dataclass(frozen=True)
class Records:
    """A per-image artifact in memory."""

    records: Mapping[str, Mapping[str, np.ndarray]]

    def images(self) -> list[str]:
        return list(self.records)

    def arrays(self, name: str) -> Mapping[str, np.ndarray]:
        return self.records[name]


def scored(label: Mapping[str, np.ndarray], config: Any, build: Any, summarize: Any) -> Reduction:
    data = SimpleNamespace(classes=CLASSES, num_classes=3, ignore_index=255, mask=lambda name: TRUTH[name])
    inputs = {"labels": Records({name: {"label": values} for name, values in label.items()})}
    score = build(StageContext("score", config, cast(Any, data), cast(Any, inputs), {}))
    counts = Records({name: score(name) for name in label})
    summary = SummaryConfig(prefix="pseudo_label", split="train", bootstrap_samples=20)
    return summarize(StageContext("evaluation", summary, cast(Any, data), cast(Any, {"confusions": counts}), {}))


def partial(label: Mapping[str, np.ndarray]) -> Reduction:
    return scored(label, PartialLabelConfig(), build_partial_label_scorer, summarize_partial_labels)


def test_pixels_without_a_label_are_wrong_or_left_out() -> None:
    """Background: 9 pixels, 6 of them right, 2 without a label, 1 called dog; one cat called background."""
    metrics = partial(LABEL).metrics
    wrong = [6 / 10, 2 / 3, 1 / 3]  # dog: 1 right of 2, and one pixel too many
    labeled = [6 / 8, 2 / 3, 1 / 2]
    assert metrics["pseudo_label/miou_train"] == pytest.approx(np.mean(wrong))
    assert metrics["pseudo_label/miou_train_labeled"] == pytest.approx(np.mean(labeled))
    assert metrics["pseudo_label/coverage_train"] == pytest.approx(11 / 14)
    assert metrics["pseudo_label/pixel_accuracy_train"] == pytest.approx(9 / 14)
    assert metrics["pseudo_label/pixel_accuracy_train_labeled"] == pytest.approx(9 / 11)
    assert metrics["pseudo_label/miou_train_all_background"] == pytest.approx(9 / 14 / 3)
    assert metrics["pseudo_label/miou_train_labeled_all_background"] == pytest.approx(7 / 11 / 3)


def test_tables_and_arrays_are_those_of_whole_labels() -> None:
    result = partial(LABEL)
    assert [row["class"] for row in result.tables["per_class"]] == list(CLASSES)
    assert result.tables["per_class"][0]["iou"] == pytest.approx(0.6)
    assert result.tables["per_class_labeled"][2]["iou"] == pytest.approx(0.5)
    for ending in ("", "_labeled"):
        assert result.arrays[f"image_counts{ending}"].shape == (2, 3, 3)
        assert result.arrays[f"images{ending}"].tolist() == ["one", "two"]


def test_whole_labels_score_as_by_the_scorer_of_whole_labels() -> None:
    whole = {name: np.where(values == 255, 0, values) for name, values in LABEL.items()}
    expected = scored(whole, LabelScoreConfig(), build_label_scorer, summarize_labels).metrics
    found = partial(whole).metrics
    assert {name: found[name] for name in expected} == expected
    assert found["pseudo_label/miou_train_labeled"] == found["pseudo_label/miou_train"]
    assert found["pseudo_label/coverage_train"] == 1


def test_labels_that_say_nothing_are_worth_nothing() -> None:
    metrics = partial({name: np.full_like(values, 255) for name, values in LABEL.items()}).metrics
    assert metrics["pseudo_label/miou_train"] == metrics["pseudo_label/miou_train_labeled"] == 0
    assert metrics["pseudo_label/coverage_train"] == 0


def test_the_stages_name_their_numbers() -> None:
    score, evaluation = partial_label_stages("refined_label")
    assert (score.name, evaluation.name) == ("refined_label_score", "refined_label_evaluation")
    assert score.reads == {"masks"} and score.inputs == {"labels": "refined_label"}
    metrics = ("refined_label/miou_train", "refined_label/miou_train_labeled")
    assert evaluation.metrics == metrics  # pyright: ignore[reportAttributeAccessIssue]
