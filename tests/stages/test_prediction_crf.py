"""The recipe's dense CRF: how many steps run, on which image, and the labels that a next training gets from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest

from wsss.pipeline import StageContext
from wsss.stages.prediction_crf import CrfLabelConfig, CrfSettings, build_crf_labels, crf_label_stage
from wsss.stages.refine import PredictionConfig, mean_subtracted, unpack_steps
from wsss.stages.segmentation import build_wrapped_predictions

SIZE = (24, 32)


def test_as_many_steps_run_as_the_recipe_needs() -> None:
    longer = CrfSettings(iterations=15, scored_iterations=10).predictions().crf
    assert longer is not None and longer.iterations == 15
    shorter = CrfSettings(iterations=4, scored_iterations=10).predictions()
    assert shorter == PredictionConfig(replace(longer, iterations=10), ("crf",))
    assert CrfSettings(enabled=False).predictions() == PredictionConfig(None, ())
    assert CrfSettings(image="both").variants == ("crf", "crf_raw") and CrfSettings(enabled=False).in_words() == "none"


def test_published_crf_image_wraps_around() -> None:
    image = np.array([[[0, 116, 200], [123, 255, 104]]], dtype=np.uint8)
    # -122.675 becomes -122 and wraps to 134; -0.669 becomes 0; 95.992 becomes 95.
    assert mean_subtracted(image).tolist() == [[[134, 0, 95], [0, 138, 0]]]


@dataclass(frozen=True)
class Scores:
    """An artifact of one image in memory."""

    values: np.ndarray

    def arrays(self, name: str) -> Mapping[str, np.ndarray]:
        return {"scores": self.values}


class View:
    """One picture, whose mask nobody asks for unless `mask` is given."""

    num_classes, ignore_index, classes = 3, 255, ("background", "a", "b")

    def __init__(self, mask: bool) -> None:
        rng = np.random.default_rng(0)
        self.picture = rng.integers(90, 120, (*SIZE, 3)).astype(np.uint8)
        self.picture[8:18, 8:20] += 90
        self.given = mask

    def image(self, name: str) -> np.ndarray:
        return self.picture

    def mask(self, name: str) -> np.ndarray:
        assert self.given, "labels for a training read no mask"
        return np.zeros(SIZE, dtype=np.uint8)


@pytest.mark.parametrize("wrapped", [True, False])
def test_labels_of_a_next_training_are_the_predictions_of_that_many_steps(wrapped: bool) -> None:
    """The same as the last of the steps that predictions store, without reading a mask."""
    scores = Scores(np.random.default_rng(1).normal(0, 2, (3, 3, 4)).astype(np.float32))
    settings = CrfSettings(iterations=4, scored_iterations=4, bi_rgb_std=20, image="wrapped" if wrapped else "raw")
    config = CrfLabelConfig(settings.dense(4), wrapped)
    assert crf_label_stage("labels", config, "scores", "train").reads == {"images"}

    def context(config: Any, mask: bool) -> StageContext:
        return StageContext("labels", config, cast(Any, View(mask)), cast(Any, {"scores": scores}), {})

    found = build_crf_labels(context(config, False))("x")["prediction"]
    predicted = build_wrapped_predictions(context(settings.predictions(), True))("x")
    steps = unpack_steps(predicted[f"steps_{settings.variants[0]}"], SIZE)
    assert found.dtype == np.uint8 and np.array_equal(found, steps[-1])
    plain = build_crf_labels(context(CrfLabelConfig(None, wrapped), False))("x")["prediction"]
    assert np.array_equal(plain, predicted["prediction"]) and not np.array_equal(plain, found)
