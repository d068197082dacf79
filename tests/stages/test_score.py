from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.test_confusion import fixture
from tests.references import label_at_threshold

from wsss.evaluation.confusion import EvaluationError, confusion_matrix, miou
from wsss.evaluation.counts import Counts
from wsss.evaluation.curves import threshold_confusions
from wsss.evaluation.selection import half_of
from wsss.pipeline import StageContext
from wsss.stages.score import (
    DEFAULT_THRESHOLDS,
    HIGHEST_THRESHOLD,
    CurveScoreConfig,
    LabelScoreConfig,
    SummaryConfig,
    build_curve_scorer,
    build_label_scorer,
    maps_at_size,
    summarize_curve,
    summarize_labels,
    thresholds_with,
)
from wsss.store import open_store

CLASSES = ("background", "square", "circle", "bar")
THRESHOLDS = (0.1, 0.2, 0.3, 0.5)


class Masks:
    """The part of a data view that scoring needs."""

    def __init__(self, masks: Mapping[str, np.ndarray], classes: tuple[str, ...] = CLASSES) -> None:
        self.masks = masks
        self.classes = classes

    def mask(self, name: str) -> np.ndarray:
        return self.masks[name]


class Records:
    """The part of an artifact that summaries need."""

    def __init__(self, records: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        self.records = records

    def images(self) -> list[str]:
        return list(self.records)

    def arrays(self, name: str) -> Mapping[str, np.ndarray]:
        return self.records[name]


def publish(folder: Path, stage: str, records: Mapping[str, Mapping[str, np.ndarray]]):
    writer = open_store(str(folder / "store"), folder / "cache").writer(stage, "0" * 32)
    writer.add_shard(0, records)
    return writer.publish({})


def context(config: Any, data: Masks, **inputs: Any) -> StageContext:
    return StageContext(stage="scoring", config=config, data=cast(Any, data), inputs=inputs, files={})


def images(number: int = 8) -> tuple[Masks, dict[str, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    masks, maps = {}, {}
    for index in range(number):
        name = f"2007_{index:06d}"
        truth = rng.integers(0, 4, (6, 7)).astype(np.uint8)
        truth[0, 0] = 255
        masks[name] = truth
        keys = np.array(sorted(set(truth[truth < 4].tolist()) - {0}), np.int64)
        noise = rng.random((len(keys), 6, 7)).astype(np.float32)
        maps[name] = {"keys": keys, "cam": 0.6 * (truth == keys[:, None, None]) + 0.4 * noise}
        maps[name]["cam"] = maps[name]["cam"].astype(np.float32)
    return Masks(masks), maps


def test_curve_from_maps_to_numbers(tmp_path):
    data, maps = images()
    scored = publish(tmp_path, "cam", maps)
    config = CurveScoreConfig(thresholds=THRESHOLDS)
    score = build_curve_scorer(context(config, data, scores=scored))
    records = {name: dict(score(name)) for name in maps}
    assert Counts.read(records["2007_000000"]).shape == (4, 4, 4)
    confusions = publish(tmp_path, "cam_counts", records)
    summary = SummaryConfig(prefix="cam", split="train", default_threshold=0.2)
    result = summarize_curve(context(summary, data, confusions=confusions))

    curve = [
        sum(
            confusion_matrix(data.mask(name), label_at_threshold(maps[name]["cam"], maps[name]["keys"], t), 4)
            for name in maps
        )
        for t in THRESHOLDS
    ]
    scores = [miou(np.asarray(matrix)) for matrix in curve]
    metrics = result.metrics
    assert metrics["cam/miou_train"] == pytest.approx(scores[1])
    assert metrics["cam/miou_train_oracle"] == pytest.approx(max(scores))
    assert metrics["cam/oracle_threshold_train"] == THRESHOLDS[int(np.argmax(scores))]
    assert metrics["cam/miou_train_low"] <= metrics["cam/miou_train"] <= metrics["cam/miou_train_high"]
    assert metrics["cam/miou_train_cross_fitted"] <= metrics["cam/miou_train_oracle"] + 1e-12
    background = np.zeros((4, 4), int)
    background[:, 0] = np.asarray(curve[0]).sum(axis=1)
    assert metrics["cam/miou_train_all_background"] == pytest.approx(miou(background))
    rows = result.tables["curve"]
    assert [row["threshold"] for row in rows] == list(THRESHOLDS)
    assert [row["default"] for row in rows] == [False, True, False, False]
    assert sum(row["oracle"] for row in rows) == 1
    assert [row["class"] for row in result.tables["per_class"]] == list(CLASSES)
    assert result.arrays["image_counts"].shape == (8, 3, 4)
    assert result.tables["miou"] == [{"metric": "cam/miou_train", "mean_over": "defined"}]
    np.testing.assert_array_equal(result.arrays["confusion"], curve[1])
    assert result.arrays["images"].tolist() == sorted(maps)


@pytest.mark.parametrize("mean_over", ["defined", "truth"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_the_oracle_is_at_least_every_threshold_and_the_cross_fitted_choice(mean_over, seed):
    """A class that is predicted and in no truth lowers one mean and not the other: the best thresholds differ."""
    rng = np.random.default_rng(seed)
    thresholds = np.sort(rng.choice(np.arange(1, 10), 4, replace=False)) / 10
    records = {}
    for index in range(4):
        truth, keys = rng.integers(0, 3, (2, 4)), np.array([1, 2, 3])
        found = threshold_confusions(np.round(rng.random((3, 2, 4)), 1), keys, truth, thresholds, 4)
        records[f"image_{index}"] = {**Counts.of(found).arrays(), "thresholds": thresholds}
    config = SummaryConfig("cam", "train", default_threshold=float(rng.choice(thresholds)), mean_over=mean_over)
    result = summarize_curve(context(config, Masks({}), confusions=Records(records)))
    oracle = result.metrics["cam/miou_train_oracle"]
    assert oracle >= result.metrics["cam/miou_train"]
    assert oracle >= result.metrics.get("cam/miou_train_cross_fitted", 0)
    assert all(oracle >= row["miou"] for row in result.tables["curve"])
    (best,) = [row for row in result.tables["curve"] if row["oracle"]]
    assert (best["miou"], best["threshold"]) == (oracle, result.metrics["cam/oracle_threshold_train"])


def test_cross_fitted_uses_the_threshold_of_the_other_half(tmp_path):
    names = [f"image_{index}" for index in range(40)]
    first = next(name for name in names if half_of(name) == 0)
    second = next(name for name in names if half_of(name) == 1)
    # The first image is right below 0.4 only, the second above 0.4 only: each prefers the other one's worst.
    masks = {first: np.array([[1, 0]], np.uint8), second: np.array([[1, 0]], np.uint8)}
    maps = {
        first: {"keys": np.array([1]), "cam": np.array([[[0.4, 0.0]]], np.float32)},
        second: {"keys": np.array([1]), "cam": np.array([[[0.9, 0.4]]], np.float32)},
    }
    data = Masks(masks, ("background", "square"))
    score = build_curve_scorer(
        context(CurveScoreConfig(thresholds=(0.2, 0.6)), data, scores=publish(tmp_path, "cam", maps))
    )
    confusions = publish(tmp_path, "counts", {name: dict(score(name)) for name in maps})
    summary = SummaryConfig(prefix="cam", split="train", default_threshold=0.2)
    metrics = summarize_curve(context(summary, data, confusions=confusions)).metrics
    # Held out: the first at 0.6 (all background), the second at 0.2 (all foreground): 1/3 for each class.
    assert metrics["cam/miou_train_cross_fitted"] == pytest.approx(1 / 3)
    assert metrics["cam/miou_train_oracle"] > metrics["cam/miou_train_cross_fitted"]


def test_halves_are_about_equal_and_fixed():
    halves = [half_of(f"2007_{index:06d}") for index in range(1000)]
    assert 430 < sum(halves) < 570
    assert half_of("2007_000032") == half_of("2007_000032")


def test_labels_from_maps_to_numbers(tmp_path):
    values = fixture("eval_sem_seg")
    classes = tuple(f"class{index}" for index in range(21))
    data = Masks({f"image{i}": values[f"in_gt{i}"] for i in range(3)}, classes)
    labels = publish(tmp_path, "pseudo_label", {f"image{i}": {"label": values[f"in_pred{i}"]} for i in range(3)})
    config = LabelScoreConfig(prediction_ignore_to=0)
    score = build_label_scorer(context(config, data, labels=labels))
    confusions = publish(tmp_path, "counts", {name: dict(score(name)) for name in data.masks})
    summary = SummaryConfig(prefix="pseudo_label", split="train", variant="crf", bootstrap_samples=50)
    result = summarize_labels(context(summary, data, confusions=confusions))
    assert result.metrics["pseudo_label/miou_train_crf"] == pytest.approx(float(values["miou"]), rel=1e-6)
    assert result.metrics["pseudo_label/miou_train_crf_low"] < result.metrics["pseudo_label/miou_train_crf_high"]
    assert "curve" not in result.tables
    strict = build_label_scorer(context(LabelScoreConfig(), data, labels=labels))
    with pytest.raises(EvaluationError, match="255"):
        strict("image0")


def test_low_resolution_maps_are_brought_to_the_mask(tmp_path):
    ramp = np.linspace(0, 1, 12, dtype=np.float16).reshape(1, 3, 4)
    resized = maps_at_size(ramp, 10, 13, upsample=4)
    assert resized.shape == (1, 10, 13)
    assert resized.dtype == np.float32
    # A stride-4 map keeps its scale when it is cropped, and is stretched when it is resized to the mask.
    np.testing.assert_array_equal(resized, maps_at_size(ramp, 12, 16)[:, :10, :13])
    assert not np.array_equal(resized, maps_at_size(ramp, 10, 13))
    assert maps_at_size(np.zeros((0, 2, 2), np.float32), 4, 5).shape == (0, 4, 5)
    with pytest.raises(EvaluationError, match="do not cover"):
        maps_at_size(ramp, 13, 13, upsample=4)

    data = Masks({"a": np.array([[1, 0]], np.uint8)}, ("background", "square"))
    walk = publish(tmp_path, "walk", {"a": {"rw": np.array([[[8.0, 1.0]]], np.float32), "ids": np.array([1])}})
    config = CurveScoreConfig(thresholds=(0.25,), maps="rw", keys="ids", normalize="image_maximum")
    confusion = Counts.read(build_curve_scorer(context(config, data, scores=walk))("a")).dense()
    np.testing.assert_array_equal(confusion[0], [[1, 0], [0, 1]])


def test_errors_name_the_remedy(tmp_path):
    data, maps = images(3)
    scored = publish(tmp_path, "cam", maps)
    with pytest.raises(EvaluationError, match="it holds: cam, keys"):
        build_curve_scorer(context(CurveScoreConfig(maps="high_res"), data, scores=scored))("2007_000000")
    score = build_curve_scorer(context(CurveScoreConfig(thresholds=THRESHOLDS), data, scores=scored))
    confusions = publish(tmp_path, "counts", {name: dict(score(name)) for name in maps})
    summary = SummaryConfig(prefix="cam", split="train", default_threshold=0.15)
    with pytest.raises(EvaluationError, match="add it to the scorer's thresholds"):
        summarize_curve(context(summary, data, confusions=confusions))
    empty = publish(tmp_path, "empty", {"a": {"confusion": np.zeros((4, 4), np.int32)}})
    with pytest.raises(EvaluationError, match="no pixel was scored"):
        summarize_labels(context(SummaryConfig(prefix="x", split="train"), data, confusions=empty))


def test_results_of_dense_and_of_sparse_counts_are_the_same(tmp_path):
    """Scores stored before counts were sparse stay readable, and give the same numbers."""
    data, maps = images(12)
    config = CurveScoreConfig(thresholds=THRESHOLDS)
    score = build_curve_scorer(context(config, data, scores=publish(tmp_path, "cam", maps)))
    sparse = {name: dict(score(name)) for name in maps}
    dense = {
        name: {"confusion": Counts.read(arrays).dense().astype(np.int32), "thresholds": arrays["thresholds"]}
        for name, arrays in sparse.items()
    }
    at_one = {name: {"confusion": arrays["confusion"][1]} for name, arrays in dense.items()}
    for summarize, before, after in (
        (summarize_curve, dense, sparse),
        (summarize_labels, at_one, {name: Counts.read(arrays).arrays() for name, arrays in at_one.items()}),
    ):
        summary = SummaryConfig(prefix="cam", split="train", default_threshold=0.2, bootstrap_samples=50)
        results = [
            summarize(context(summary, data, confusions=publish(tmp_path, f"{summarize.__name__}_{kind}", records)))
            for kind, records in (("dense", before), ("sparse", after))
        ]
        assert results[0].metrics == results[1].metrics and results[0].tables == results[1].tables
        assert set(results[0].arrays) == set(results[1].arrays)
        for name, values in results[0].arrays.items():
            np.testing.assert_array_equal(values, results[1].arrays[name])


@pytest.mark.parametrize("thresholds", [DEFAULT_THRESHOLDS, tuple(round(0.01 * step, 2) for step in range(60))])
def test_a_threshold_above_the_curve_continues_it_so_that_it_is_not_the_end(thresholds):
    assert thresholds_with(0.3, thresholds) == thresholds
    assert thresholds_with(max(thresholds), thresholds) == thresholds
    assert thresholds_with(0.255, thresholds) == tuple(sorted((*thresholds, 0.255)))
    longer = thresholds_with(0.77, thresholds)
    assert longer[: len(thresholds)] == thresholds and longer[-1] == HIGHEST_THRESHOLD and 0.77 in longer
    np.testing.assert_allclose(np.diff(longer), 0.01)
