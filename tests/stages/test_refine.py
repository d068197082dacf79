"""One run of the CRF for every number of steps, the choice among them, and the numbers, under any prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.evaluation.counts import Counts
from wsss.evaluation.selection import half_of
from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_probabilities
from wsss.pipeline import ReduceStage, Reduction, StageContext
from wsss.recipe import key_values
from wsss.stages.refine import (
    ChoiceConfig,
    EvaluationConfig,
    PredictionConfig,
    ScoresConfig,
    build_chosen_prediction,
    build_predictions,
    build_scores,
    class_probabilities,
    evaluate_predictions,
    pack_steps,
    predicted_label,
    refinement_stages,
    unpack_steps,
)

NUM_CLASSES = 4
VARIANTS = ("crf", "crf_lifted")
CRF = DenseCrfSettings(
    iterations=6, gaussian_sxy=1.0, gaussian_compat=3.0, bilateral_sxy=20.0, bilateral_srgb=9.0, bilateral_compat=4.0
)
NAMES = tuple(f"2007_{index:06d}" for index in range(6))


def lifted(image: np.ndarray) -> np.ndarray:
    """An image for the CRF that a method makes of the picture."""
    return np.maximum(image, 60)


CRF_IMAGES = {"crf_lifted": lifted}


@dataclass(frozen=True)
class Records:
    """A per-image artifact in memory."""

    records: Mapping[str, Mapping[str, np.ndarray]]

    def images(self) -> list[str]:
        return list(self.records)

    def arrays(self, name: str) -> Mapping[str, np.ndarray]:
        return self.records[name]


class Pictures:
    """The part of a data view that the stages need: blocks of colour, and masks that follow them."""

    num_classes = NUM_CLASSES
    classes = ("background", "a", "b", "c")
    ignore_index = 255

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._blocks = {name: rng.integers(0, NUM_CLASSES, (3, 4)) for name in NAMES}

    def mask(self, name: str) -> np.ndarray:
        return self._blocks[name].repeat(10, axis=0).repeat(10, axis=1).astype(np.uint8)

    def image(self, name: str) -> np.ndarray:
        rng = np.random.default_rng(int(name[-6:]))
        colors = rng.integers(0, 256, (NUM_CLASSES, 3))
        noise = rng.integers(-20, 21, (30, 40, 3))
        return np.clip(colors[self.mask(name)] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data() -> Pictures:
    return Pictures()


@pytest.fixture(scope="module")
def scores(data: Pictures) -> Records:
    """Noisy scores of the right class at a quarter of the size."""
    rng = np.random.default_rng(1)
    records = {}
    for name in NAMES:
        small = data.mask(name)[::4, ::4]
        right = (np.arange(NUM_CLASSES)[:, None, None] == small).astype(np.float32)
        records[name] = {"scores": 1.2 * right + rng.normal(size=right.shape).astype(np.float32)}
    return Records(records)


def context(config: Any, data: Pictures, **inputs: Any) -> StageContext:
    return StageContext(stage="segmentation", config=config, data=cast(Any, data), inputs=inputs, files={})


@pytest.fixture(scope="module")
def predictions(data: Pictures, scores: Records) -> Records:
    predict = build_predictions(context(PredictionConfig(CRF, VARIANTS), data, scores=scores), CRF_IMAGES)
    return Records({name: predict(name) for name in NAMES})


def evaluated(data: Pictures, predictions: Records, iterations: int) -> Reduction:
    return evaluate_predictions(context(EvaluationConfig(VARIANTS, iterations, 50), data, confusions=predictions))


def test_one_run_gives_what_runs_of_every_length_give(data: Pictures, scores: Records, predictions: Records) -> None:
    differing = 0
    for name in NAMES:
        stored = predictions.arrays(name)
        probabilities = class_probabilities(scores.arrays(name)["scores"], (30, 40))
        assert np.array_equal(stored["prediction"], probabilities.argmax(axis=0))
        for variant in VARIANTS:
            labels = unpack_steps(stored[f"steps_{variant}"], (30, 40))
            assert labels.shape == (6, 30, 40) and labels.dtype == np.uint8
            for count in range(1, 7):
                image = CRF_IMAGES.get(variant, np.asarray)(data.image(name))
                alone = DenseCrf(image, NUM_CLASSES, replace(CRF, iterations=count))
                expected = alone.marginals(unary_from_probabilities(probabilities)).argmax(axis=0)
                assert np.array_equal(labels[count - 1], expected)
                counts = confusion_matrix(data.mask(name), expected.astype(np.uint8), NUM_CLASSES)
                assert np.array_equal(Counts.read(stored, f"confusion_{variant}").at(count - 1).dense(), counts)
            differing += int((labels[0] != labels[5]).sum())
    assert differing > 100, "the steps must differ for the test to say anything"


@pytest.mark.parametrize("iterations", [1, 4, 6])
def test_the_recipes_number_of_steps_is_read_off(data: Pictures, predictions: Records, iterations: int) -> None:
    choice = build_chosen_prediction(context(ChoiceConfig(VARIANTS, iterations), data, predictions=predictions))
    result = evaluated(data, predictions, iterations)
    for variant in VARIANTS:
        total = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
        for name in NAMES:
            total += confusion_matrix(data.mask(name), choice(name)[f"prediction_{variant}"], NUM_CLASSES)
        assert result.metrics[f"segmentation/miou_val_{variant}"] == pytest.approx(miou(total, "truth"), abs=1e-12)
        assert np.array_equal(result.arrays[f"confusion_{variant}"], total)


def test_best_and_cross_fitted_numbers_of_steps(data: Pictures, predictions: Records) -> None:
    """The curve is the same whatever the recipe says; only the default on it moves."""
    results = [evaluated(data, predictions, iterations) for iterations in (2, 6)]
    for variant in VARIANTS:
        tables = [result.tables[f"iterations_{variant}"] for result in results]
        for table, iterations in zip(tables, (2, 6), strict=True):
            assert [row["iterations"] for row in table if row["default"]] == [iterations]
        mious = [row["miou"] for row in tables[0]]
        assert mious == [row["miou"] for row in tables[1]] and len(set(mious)) > 1
        metrics = results[0].metrics
        assert metrics[f"segmentation/miou_val_{variant}"] == pytest.approx(mious[1], abs=1e-12)
        assert metrics[f"segmentation/miou_val_{variant}_oracle"] == max(mious)
        assert metrics[f"segmentation/oracle_iterations_val_{variant}"] == 1 + int(np.argmax(mious))

        halves = [[name for name in NAMES if half_of(name) == half] for half in (0, 1)]
        confusions = [
            np.sum([Counts.read(predictions.arrays(name), f"confusion_{variant}").dense() for name in half], axis=0)
            for half in halves
        ]
        best = [int(np.argmax(miou(confusion, "truth"))) for confusion in confusions]
        cross_fitted = miou(confusions[0][best[1]] + confusions[1][best[0]], "truth")
        assert metrics[f"segmentation/miou_val_{variant}_cross_fitted"] == pytest.approx(cross_fitted, abs=1e-12)
    assert not any("oracle" in name or "cross_fitted" in name for name in results[0].metrics if "crf" not in name)


def test_without_a_crf_there_is_one_label_map(data: Pictures, scores: Records) -> None:
    predict = build_predictions(context(PredictionConfig(None, ()), data, scores=scores))
    arrays = predict(NAMES[0])
    assert {name for name in arrays if not name.startswith("confusion_")} == {"prediction"}
    assert Counts.read(arrays).dense().shape == (NUM_CLASSES, NUM_CLASSES)


def test_scores_of_another_form_are_read_by_the_methods_own_function(
    data: Pictures, scores: Records, predictions: Records
) -> None:
    halved = Records({name: {"half": scores.arrays(name)["scores"] / 2} for name in NAMES})
    config = context(PredictionConfig(CRF, VARIANTS), data, scores=halved)
    predict = build_predictions(
        config, CRF_IMAGES, read=lambda arrays, size: class_probabilities(2 * arrays["half"], size)
    )
    for array, values in predict(NAMES[0]).items():
        assert np.array_equal(values, predictions.arrays(NAMES[0])[array]), array


def test_packed_steps_come_back_and_are_small() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 21, (12, 16)).repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)
    labels = [first]
    for _ in range(9):
        following = labels[-1].copy()
        following[rng.integers(0, 192), rng.integers(0, 256, 20)] = rng.integers(0, 21, 20)
        labels.append(following)
    kept = [label.copy() for label in labels]
    packed = pack_steps(labels)
    assert np.array_equal(unpack_steps(packed, first.shape), np.stack(kept))
    assert all(np.array_equal(label, copy) for label, copy in zip(labels, kept, strict=True)), "the input is left alone"
    assert packed.nbytes < 3 * pack_steps(labels[:1]).nbytes


def test_probabilities_sum_to_one_and_give_labels() -> None:
    scores = np.zeros((3, 2, 2), dtype=np.float32)
    scores[1, :, 1] = 9
    scores[2, :, 0] = 9
    probabilities = class_probabilities(scores, (8, 10))
    assert probabilities.shape == (3, 8, 10)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    label = predicted_label(probabilities)
    assert label.dtype == np.uint8
    assert set(label[:, :4].ravel()) == {2}
    assert set(label[:, 6:].ravel()) == {1}


@dataclass(frozen=True)
class Chosen:
    """The artifact of a choice of the epoch."""

    stage: str
    epoch: int

    def json(self, file: str) -> Mapping[str, float]:
        assert file == "metrics.json"
        return {f"{self.stage}/epoch": float(self.epoch)}


def test_scores_are_those_of_the_chosen_epoch_and_the_maximum_over_scales(data: Pictures) -> None:
    """The network's scores name the epoch and the height of its input."""

    def load(context: StageContext, epoch: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: torch.full((len(images), 2, 4, 4), 1000.0 * epoch + images.shape[2])

    def prepare(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.zeros((3, *size), np.float32)

    config = ScoresConfig(network=None, input_size=16, scales=(0.5, 1.0, 1.5))
    chosen = build_scores(context(config, data, selection=Chosen("second_selection", 7)), load, prepare)
    assert np.array_equal(chosen(NAMES[0])["scores"], np.full((2, 4, 4), 7024, np.float32))
    last = build_scores(context(replace(config, scales=(1.0,)), data), load, prepare)
    assert np.array_equal(last(NAMES[0])["scores"], np.full((2, 4, 4), 16, np.float32))


def test_stages_and_numbers_are_named_after_the_prefix(data: Pictures, predictions: Records) -> None:
    """Two rounds in one pipeline do not meet in a name, and their keys do not depend on the names of the numbers."""
    config = PredictionConfig(CRF, VARIANTS)
    first, second = (
        refinement_stages(prefix, predictions=config, iterations=3, build=build_predictions, image_list=image_list)
        for prefix, image_list in (("segmentation", "val"), ("second", "train"))
    )
    assert [stage.name for stage in second] == ["second_predictions", "second", "second_evaluation"]
    assert {role: name for stage in second for role, name in stage.inputs.items()} == {
        "scores": "second_scores",
        "predictions": "second_predictions",
        "confusions": "second_predictions",
    }
    assert [key_values(stage.config) for stage in first] == [key_values(stage.config) for stage in second]
    evaluation = second[-1]
    assert isinstance(evaluation, ReduceStage)
    result = evaluate_predictions(context(evaluation.config, data, confusions=predictions))
    assert set(evaluation.metrics) <= set(result.metrics)
    assert all(name.startswith("second/") and "_train" in name for name in result.metrics)
