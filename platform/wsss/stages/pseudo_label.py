"""Pseudo labels of a random walk: background constant, confidence mask, score and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from wsss.ops.cam import class_ids, with_background
from wsss.ops.confidence import confidence_mask
from wsss.pipeline import Arrays, MapStage, ReduceStage, Stage, StageContext
from wsss.recipe import setting
from wsss.stages.score import (
    HIGHEST_THRESHOLD,
    CurveScoreConfig,
    SummaryConfig,
    build_curve_scorer,
    summarize_curve,
    thresholds_with,
)

STRIDE = 4


@dataclass(frozen=True)
class ThresholdConfig:
    """Background constant of the pseudo label."""

    sem_seg_bg_thres: float


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Background constant and share of trusted pixels: a section of a recipe, and the config of the mask's stage."""

    sem_seg_bg_thres: float = setting(
        0.25, minimum=0.05, maximum=HIGHEST_THRESHOLD, help="background constant of the pseudo label, in steps of 0.01"
    )
    mask_keep_ratio: float = setting(
        0.5, minimum=0, maximum=1, help="share of each class's pixels, by margin, that training trusts at first"
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        return off_curve("sem_seg_bg_thres", self.sem_seg_bg_thres)


def off_curve(key: str, threshold: float) -> list[str]:
    """What is wrong with a threshold that is not scored: one pass scores a grid, and the headline is a point of it."""
    if abs(threshold * 100 - round(threshold * 100)) > 1e-9:
        return [f"{key} = {threshold} is not a multiple of 0.01, the grid of the scored curve"]
    return []


@dataclass(frozen=True)
class PseudoLabel:
    """score: float32 (K + 1, H, W), background first. label: uint8 (H, W), class ids. keys: int64 (K + 1,), 0 first."""

    score: np.ndarray
    label: np.ndarray
    keys: np.ndarray


def pseudo_label_of_walk(
    walk: np.ndarray, keys: np.ndarray, size: tuple[int, int], background: float = 0.25
) -> PseudoLabel:
    """Pseudo label from a walk (K, h, w): cheap, so a threshold can be changed without walking again.

    keys (K,) class ids; `background` the constant score of the background. IRN's `step/make_sem_seg_labels.py`.
    """
    score = with_background(upsampled_walk(walk, size), background)
    ids = class_ids(keys)
    return PseudoLabel(score, ids[score.argmax(axis=0)], ids.astype(np.int64))


def upsampled_walk(walk: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Walk at image size, divided by its maximum over all classes: (K, h, w) -> float32 (K, H, W) in [0, 1].

    Bilinear upsampling by 4, cut to `size` (H, W).
    """
    if len(walk) == 0:
        return np.zeros((0, *size), dtype=np.float32)
    maps = torch.from_numpy(np.ascontiguousarray(walk, dtype=np.float32))[None]
    maps = functional.interpolate(maps, scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    maps = maps[:, : size[0], : size[1]]
    largest = float(maps.max())
    return (maps / largest if largest > 0 else maps).contiguous().numpy()


def build_pseudo_label(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config ThresholdConfig, walk in role "random_walk"): "label" uint8 (H, W), class ids."""
    return lambda name: {"label": _thresholded(context, name).label}


def build_confidence_mask(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config PseudoLabelConfig): "mask" uint8 (H, W), 1 on the most certain share of every class."""
    config: PseudoLabelConfig = context.config

    def mask(name: str) -> Arrays:
        found = _thresholded(context, name)
        return {"mask": confidence_mask(found.score, found.label, config.mask_keep_ratio)}

    return mask


def _thresholded(context: StageContext, name: str) -> PseudoLabel:
    arrays = context.arrays("random_walk", name)
    size = context.data.image_size(name)
    walk = arrays["walk"].astype(np.float32)
    return pseudo_label_of_walk(walk, arrays["keys"], size, context.config.sem_seg_bg_thres)


def pseudo_label_stages(config: PseudoLabelConfig, image_list: str, maps: str = "random_walk") -> list[Stage]:
    """Pseudo labels and confidence masks of a stage's maps, and the score of the labels on train.

    maps: a stage that makes "walk" (K, ceil(H/4), ceil(W/4)) and "keys" (K,), class ids from 1.
    """
    threshold = config.sem_seg_bg_thres
    walk = {"random_walk": maps}
    return [
        MapStage(
            name="pseudo_label",
            version=1,
            config=ThresholdConfig(threshold),
            inputs=walk,
            reads=frozenset({"images"}),
            image_list=image_list,
            build=build_pseudo_label,
        ),
        MapStage(
            name="confidence_mask",
            version=1,
            config=config,
            inputs=walk,
            reads=frozenset({"images"}),
            image_list=image_list,
            build=build_confidence_mask,
        ),
        MapStage(
            name="pseudo_label_score",
            version=1,
            config=CurveScoreConfig(
                thresholds=thresholds_with(threshold), maps="walk", upsample=STRIDE, normalize="image_maximum"
            ),
            inputs={"scores": maps},
            reads=frozenset({"masks"}),
            image_list="train",
            build=build_curve_scorer,
        ),
        ReduceStage(
            name="pseudo_label_evaluation",
            version=2,
            config=SummaryConfig(prefix="pseudo_label", split="train", default_threshold=threshold),
            inputs={"confusions": "pseudo_label_score"},
            compute=summarize_curve,
        ),
    ]
