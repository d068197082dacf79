"""Pseudo labels and refined labels, case by case, against plain readings, and for any input."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.pipeline import StageContext
from wsss_methods.i2crc.label_refinement import (
    IGNORE,
    build_pseudo_label,
    build_refined_label,
    pseudo_label,
    refined_label,
)
from wsss_methods.i2crc.recipe import PseudoLabelSettings, RefinementSettings

RULE, REFINEMENT = PseudoLabelSettings(), RefinementSettings()


def row(*values: int) -> np.ndarray:
    return np.array([values], dtype=np.uint8)


def label_of(saliency: np.ndarray, maps: dict[int, np.ndarray], rule: PseudoLabelSettings = RULE) -> list[int]:
    """Label of one row of pixels, a map for each class id."""
    stacked = np.array(list(maps.values()), dtype=np.uint8).reshape(len(maps), *saliency.shape)
    return pseudo_label(stacked, np.array(list(maps), dtype=np.int64), saliency, rule)[0].tolist()


def plain_pseudo_label(maps: np.ndarray, keys: np.ndarray, saliency: np.ndarray, rule: PseudoLabelSettings) -> Any:
    """The official steps pixel by pixel over all 21 channels."""
    height, width = saliency.shape
    confidence = np.zeros((21, height, width), dtype=np.float32)
    confidence[0] = 1 - saliency.astype(np.float32) / np.float32(255)
    evidence = saliency.astype(int)
    for values, key in zip(maps.astype(np.float64), keys, strict=True):
        stretched = (values - values.min()) / (values.max() - values.min() + 1e-8)
        confidence[key] = stretched
        evidence[stretched > rule.attention_threshold] = 255
    label = np.zeros((height, width), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            pixel = [float(v) if v >= np.float32(rule.foreground_threshold) else 0.0 for v in confidence[:, y, x]]
            best = pixel.index(max(pixel))
            claims = sum(value > float(np.float32(rule.conflict_threshold)) for value in pixel)
            doubtful = best == 0 and evidence[y, x] >= rule.saliency_threshold
            label[y, x] = IGNORE if claims > 1 or doubtful else best
    objects = sum(0 < value < IGNORE for value in label.ravel().tolist())
    return np.full_like(label, IGNORE) if objects / label.size < rule.min_object_ratio else label


def plain_refined_label(prediction: np.ndarray, initial: np.ndarray, present: list[int]) -> np.ndarray:
    label = prediction.copy()
    for place in np.ndindex(*label.shape):
        if label[place] not in (0, *present):
            label[place] = IGNORE
        if len(present) >= 2 and label[place] == 0:
            label[place] = initial[place]
    if any(key not in label for key in present):
        label[label == 0] = IGNORE
    objects = sum(0 < value < IGNORE for value in label.ravel().tolist())
    return np.full_like(label, IGNORE) if objects / label.size < 0.01 else label


def test_pixels_of_one_class() -> None:
    saliency = row(0, 255, 255, 31, 32, 200, 0)
    heat = row(0, 255, 100, 10, 10, 60, 128)
    # Background; object; weak map but salient, so the object wins; background; salient background; no confidence left
    # and salient; attended background.
    assert label_of(saliency, {7: heat}) == [0, 7, 7, 0, 255, 255, 255]


def test_two_claims_are_a_conflict() -> None:
    assert label_of(row(0, 255, 255), {3: row(255, 255, 0), 9: row(0, 255, 250)}) == [255, 255, 9]
    # The background claims a pixel that the class claims too.
    assert label_of(row(0, 255, 255), {3: row(250, 255, 0)}) == [255, 3, 255]
    maps = {3: row(255, 255, 0), 9: row(250, 0, 255)}
    assert label_of(row(255, 255, 255), maps) == [255, 3, 9]
    assert label_of(row(255, 255, 255), maps, replace(RULE, conflict_threshold=0.99)) == [3, 3, 9]


def test_the_largest_confidence_wins_and_of_equal_ones_the_lowest_class_in_whatever_order_the_maps_come() -> None:
    saliency, first, second = row(0, 255, 255, 255), row(0, 120, 200, 0), row(0, 200, 0, 255)
    for maps in ({9: second, 3: first}, {3: first, 9: second}):
        assert label_of(saliency, maps) == [0, 9, 3, 9]
    equal = row(0, 220, 255, 100)
    assert label_of(saliency, {9: equal, 3: equal}, replace(RULE, conflict_threshold=1.0)) == [0, 3, 3, 3]
    # 180 of 255 against the background's 1 - 75 of 255: in float32, as published, the class is ahead.
    assert label_of(row(0, 75, 255), {7: row(0, 180, 255)}) == [0, 7, 7]


def test_flat_maps_and_images_without_a_map_say_nothing() -> None:
    flat = row(90, 90, 90, 90)
    assert label_of(row(0, 0, 255, 255), {4: flat}) == [IGNORE] * 4  # no object pixel, so none counts
    free = replace(RULE, min_object_ratio=0.0)
    assert label_of(row(0, 0, 255, 255), {4: flat}, free) == [0, 0, IGNORE, IGNORE]
    assert label_of(row(0, 0, 255, 255), {}, free) == [0, 0, IGNORE, IGNORE]


@pytest.mark.parametrize(("objects", "ignored"), [(3, True), (4, False)])
def test_an_image_with_a_tiny_object_is_ignored(objects: int, ignored: bool) -> None:
    saliency = np.zeros((20, 20), dtype=np.uint8)
    saliency.flat[:objects] = 255
    label = pseudo_label(saliency[None].copy(), np.array([2]), saliency, RULE)
    assert (label == IGNORE).all() == ignored
    refined = refined_label(np.where(saliency > 0, 2, 0).astype(np.uint8), saliency, np.array([2]), REFINEMENT)
    assert (refined == IGNORE).all() == ignored


levels = st.integers(0, 255)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps, class ids and saliency of a small image; few levels, so that thresholds and ties are met."""
    size = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    keys = draw(st.lists(st.integers(1, 20), unique=True, max_size=3))
    palette = np.array(draw(st.lists(levels, min_size=2, max_size=6)), dtype=np.uint8)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    maps = rng.choice(palette, (len(keys), *size))
    # Levels of the maps and their opposites: the background's confidence equals a class's.
    return maps, np.array(keys, dtype=np.int64), rng.choice(np.concatenate([palette, 255 - palette]), size)


@settings(max_examples=150)
@given(scenes(), st.sampled_from([0.0, 0.01, 0.2]), st.sampled_from([0.0, 0.3, 0.6]))
def test_pseudo_labels_are_those_of_a_plain_reading(scene: Any, ratio: float, attention: float) -> None:
    rule = replace(RULE, min_object_ratio=ratio, attention_threshold=attention)
    maps, keys, saliency = scene
    assert np.array_equal(pseudo_label(maps, keys, saliency, rule), plain_pseudo_label(maps, keys, saliency, rule))


@settings(max_examples=50)
@given(scenes())
def test_a_pseudo_label_holds_what_the_image_does_and_its_background_is_not_salient(scene: Any) -> None:
    maps, keys, saliency = scene
    label = pseudo_label(maps, keys, saliency, replace(RULE, min_object_ratio=0.0))
    assert set(np.unique(label).tolist()) <= {0, IGNORE, *keys.tolist()}
    assert (saliency[label == 0] < RULE.saliency_threshold).all()


def refined(prediction: np.ndarray, initial: np.ndarray, *present: int, **changed: Any) -> list[int]:
    return refined_label(prediction, initial, np.array(present), replace(REFINEMENT, **changed))[0].tolist()


def test_other_classes_are_ignored() -> None:
    assert refined(row(0, 6, 7, 6), row(9, 9, 9, 9), 6) == [0, 6, IGNORE, 6]


def test_a_missing_class_takes_the_background_with_it() -> None:
    assert refined(row(0, 6, 0, 6), row(0, 0, 0, 0), 6, 7) == [IGNORE, 6, IGNORE, 6]
    assert refined(row(0, 6, 0, 6), row(0, 0, 0, 0), 6, 7, missing_class_ignores_background=False) == [0, 6, 0, 6]
    # Nothing of the only class is left: everything is ignored.
    assert refined(row(0, 7, 0, 7), row(6, 6, 6, 6), 6) == [IGNORE] * 4


def test_the_first_label_fills_the_background_of_images_with_several_classes() -> None:
    prediction, initial = row(0, 6, 0, 0, 6), row(7, 7, IGNORE, 0, 0)
    assert refined(prediction, initial, 6, 7) == [7, 6, IGNORE, 0, 6]
    assert refined(prediction, initial, 6) == [0, 6, 0, 0, 6]
    assert refined(prediction, initial, 6, 7, initial_for_multiclass=False) == [IGNORE, 6, IGNORE, IGNORE, 6]


def test_an_ignored_prediction_stays_ignored() -> None:
    assert refined(row(IGNORE, IGNORE), row(6, 7), 6, 7) == [IGNORE, IGNORE]


@settings(max_examples=150)
@given(st.data())
def test_refined_labels_are_those_of_a_plain_reading(data: st.DataObject) -> None:
    size = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    present = data.draw(st.lists(st.integers(1, 4), unique=True, min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    prediction = rng.choice(np.array([0, 0, 1, 2, 3, 4], dtype=np.uint8), size)
    initial = rng.choice(np.array([0, IGNORE, *present], dtype=np.uint8), size)
    label = refined_label(prediction, initial, np.array(present), REFINEMENT)
    assert np.array_equal(label, plain_refined_label(prediction, initial, present))
    assert set(np.unique(label).tolist()) <= {0, IGNORE, *present}
    again = refined_label(label, initial, np.array(present), REFINEMENT)
    assert np.array_equal(again, label), "a refined label is its own refinement"


def test_stages_read_the_arrays_of_their_roles() -> None:
    class Artifact:
        def __init__(self, **arrays: np.ndarray) -> None:
            self.arrays = lambda name: arrays

    data = SimpleNamespace(image_labels=lambda name: np.array([0.0, 1.0, 1.0], dtype=np.float32))

    def context(config: Any, **inputs: Any) -> StageContext:
        return StageContext(stage="label", config=config, data=cast(Any, data), inputs=inputs, files={})

    cam = Artifact(high_res=row(0, 255, 40)[None], keys=np.array([2]))
    first = build_pseudo_label(context(RULE, cam=cam, saliency=Artifact(saliency=row(0, 255, 0))))("a")
    assert first["label"].dtype == np.uint8 and first["label"].tolist() == [[0, 2, 0]]
    given_labels = {"prediction": Artifact(prediction=row(1, 2, 0)), "pseudo_label": Artifact(label=row(0, 0, 3))}
    second = build_refined_label(context(REFINEMENT, **given_labels))("a")
    assert second["label"].dtype == np.uint8 and second["label"].tolist() == [[IGNORE, 2, 3]]
