"""Label maps without a network: of class maps and saliency, and of what the first network says of its images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wsss.ops.cam import class_ids
from wsss.pipeline import Arrays, StageContext
from wsss_methods.i2crc.recipe import PseudoLabelSettings, RefinementSettings

IGNORE = 255
_LEVELS = np.arange(256)


def pseudo_label(maps: np.ndarray, keys: np.ndarray, saliency: np.ndarray, settings: PseudoLabelSettings) -> np.ndarray:
    """Label of the largest confidence, 255 where it is in doubt (official `gen_gt.py`): uint8 (H, W).

    The background's confidence is 1 - saliency, a class's is its map stretched over the image to [0, 1]. Background
    that is salient or attended is in doubt, and so is every pixel that two confidences claim.

    Args:
        maps: uint8 (K, H, W).
        keys: class ids from 1, (K,). On equal confidences the lowest id wins, the background first.
        saliency: uint8 (H, W), 255 the most salient.
    """
    order = np.argsort(keys)
    confidence = np.empty((len(keys) + 1, *saliency.shape), dtype=np.float32)
    doubtful = saliency >= settings.saliency_threshold
    # Maps have 256 levels, so what is done to a pixel is done to a level. The background is subtracted in float32, as
    # published: where it and a class are at one level, rounding decides which of them wins.
    confidence[0] = _kept(1 - (_LEVELS / 255).astype(np.float32), settings)[saliency]
    for channel, index in enumerate(order, 1):
        least, largest = int(maps[index].min()), int(maps[index].max())
        stretched = (_LEVELS - least) / (largest - least + 1e-8)
        confidence[channel] = _kept(stretched, settings)[maps[index]]
        doubtful |= (stretched > settings.attention_threshold)[maps[index]]
    label = class_ids(np.asarray(keys)[order])[confidence.argmax(axis=0)]
    conflict = (confidence > np.float32(settings.conflict_threshold)).sum(axis=0) > 1
    label[conflict | ((label == 0) & doubtful)] = IGNORE
    return _ignored_if_small(label, settings.min_object_ratio)


def _kept(confidence: np.ndarray, settings: PseudoLabelSettings) -> np.ndarray:
    """Confidences float32, 0 below the threshold."""
    confidence = confidence.astype(np.float32)
    return np.where(confidence < np.float32(settings.foreground_threshold), np.float32(0), confidence)


def refined_label(
    prediction: np.ndarray, initial: np.ndarray, present: np.ndarray, settings: RefinementSettings
) -> np.ndarray:
    """Object-guided label refinement (official `label_refinement.py`): uint8 (H, W), 255 ignored.

    Args:
        prediction: what the first network says of the image, uint8 (H, W), class ids.
        initial: the label that it was trained on, uint8 (H, W); read for images of several classes only.
        present: class ids from 1 of the image's classes, (K,).
    """
    of_image = np.full(256, IGNORE, dtype=np.uint8)
    of_image[0] = 0
    of_image[present] = present
    label = of_image[prediction]
    if settings.initial_for_multiclass and len(present) > 1:
        label = np.where(label == 0, initial, label)
    if settings.missing_class_ignores_background and (np.bincount(label.ravel(), minlength=256)[present] == 0).any():
        label[label == 0] = IGNORE
    return _ignored_if_small(label, settings.min_object_ratio)


def _ignored_if_small(label: np.ndarray, min_object_ratio: float) -> np.ndarray:
    """All 255 when the share of object pixels is below the ratio."""
    objects = np.count_nonzero((label != 0) & (label != IGNORE))
    return np.full_like(label, IGNORE) if objects / label.size < min_object_ratio else label


def build_pseudo_label(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config PseudoLabelSettings, roles "cam" and "saliency"): "label" uint8 (H, W)."""

    def label(name: str) -> Arrays:
        arrays, saliency = context.arrays("cam", name), context.arrays("saliency", name)["saliency"]
        return {"label": pseudo_label(arrays["high_res"], arrays["keys"], saliency, context.config)}

    return label


def build_refined_label(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config RefinementSettings, roles "prediction" and "pseudo_label"): "label" uint8 (H, W).

    Without refinement it is the pseudo label, and there is no prediction.
    """
    if not context.config.enabled:
        return lambda name: {"label": context.arrays("pseudo_label", name)["label"]}

    def label(name: str) -> Arrays:
        prediction = context.arrays("prediction", name)["prediction"]
        first = context.arrays("pseudo_label", name)["label"]
        present = np.flatnonzero(context.data.image_labels(name)) + 1
        return {"label": refined_label(prediction, first, present, context.config)}

    return label
