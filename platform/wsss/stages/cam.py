"""Class activation maps (CAM) at several scales of an image, from any network, and their score.

A method passes what differs: how its network is built, what one scale's input is, and what is kept of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wsss.data.augment.rescaled_crop import cam_inputs
from wsss.evaluation.confusion import EvaluationError
from wsss.nn.checkpoint import Aliases, load_weights, read_checkpoint
from wsss.ops.cam import Merge, as_shares, merged_cam, merged_high_res
from wsss.pipeline import Arrays, MapStage, ReduceStage, Stage, StageContext, TrainStage
from wsss.stages.score import (
    DEFAULT_THRESHOLDS,
    CurveScoreConfig,
    SummaryConfig,
    curve_scorer,
    summarize_curve,
    thresholds_with,
)

_SCALE = "scale_"


class CamNetwork(Protocol):
    """What the stage asks of a network; it is a `torch.nn.Module` as well."""

    def aliases(self) -> Aliases:
        """Further names of its tensors in the published file."""
        ...

    def infer(self, x: Tensor, /) -> Tensor:
        """Class maps (classes without the background, h, w) of one input, a mirrored copy undone and added."""
        ...


Inputs = Callable[[np.ndarray, Sequence[float]], Sequence[np.ndarray]]
Kept = Callable[[Sequence[Tensor], np.ndarray, tuple[int, int]], Arrays]


@dataclass(frozen=True)
class CamConfig:
    """The config of the stage that trained the network, and the input scales."""

    network: Any
    scales: tuple[float, ...]


def raw_scales(outputs: Sequence[Tensor], present: np.ndarray, size: tuple[int, int]) -> Arrays:
    """Small: "cam" float16 (K, ceil(H/4), ceil(W/4)) in [0, 1), and the raw maps of scale i, "scale_<i>" float16
    (K, h_i, w_i), from which `read_high_res` rebuilds the full-resolution maps. "size" int64 (H, W)."""
    return {
        **{f"{_SCALE}{i}": maps[present].numpy().astype(np.float16) for i, maps in enumerate(outputs)},
        "cam": merged_cam(outputs, present, size).astype(np.float16),
        "size": np.array(size, dtype=np.int64),
    }


def full_resolution(merge: Merge) -> Kept:
    """ "high_res" float16 (K, H, W) alone, merged as `merge` says: for networks whose maps are large already."""
    return partial(_full_resolution, merge)


def _full_resolution(merge: Merge, outputs: Sequence[Tensor], present: np.ndarray, size: tuple[int, int]) -> Arrays:
    maps = merged_high_res(outputs, present, size, merge)
    # "range" makes a flat map far below zero, which half precision would turn into minus infinity.
    return {"high_res": maps.clip(min=-float(np.finfo(np.float16).max)).astype(np.float16)}


def build_cam(
    context: StageContext,
    *,
    build_network: Callable[[Any, int], CamNetwork],
    inputs: Inputs = cam_inputs,
    keep: Kept = raw_scales,
    weights: str = "cam_network.pt",
) -> Callable[[str], Arrays]:
    """Map function (config CamConfig, trained weights in role "weights"): the maps of the present classes.

    Args:
        build_network: (config of the training, number of classes with the background) -> the network.
        inputs: (image uint8 (H, W, 3), scales) -> what `infer` is given for each scale.
        keep: (maps of each scale, indices of the present classes, (H, W)) -> the arrays that are stored.
        weights: file of the training artifact.

    Returns:
        "keys" int64 (K,), class ids from 1, and what `keep` makes.
    """
    config: CamConfig = context.config
    network: Any = build_network(config.network, context.data.num_classes)
    path = context.inputs["weights"].path(weights)
    load_weights(network, read_checkpoint(path), aliases=network.aliases(), where=str(path))
    network.to(context.device).eval()

    def cam(name: str) -> Arrays:
        image = context.data.image(name)
        outputs = [
            network.infer(torch.from_numpy(x).to(context.device)).float().cpu() for x in inputs(image, config.scales)
        ]
        present = np.flatnonzero(context.data.image_labels(name))
        return {
            "keys": (present + 1).astype(np.int64),
            **keep(outputs, present, (image.shape[0], image.shape[1])),
        }

    return cam


def read_high_res(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Full-resolution maps float32 (K, H, W) of one image of a CAM artifact.

    As they are where the artifact holds them (levels of 8 bits in 255ths), else rebuilt from the raw maps of every
    scale, in [0, 1). Raises EvaluationError for values that are not finite.
    """
    maps = _high_res(arrays)
    if not np.isfinite(maps).all():
        raise EvaluationError(
            "the class maps hold values that are not finite", "read_high_res", "find the stage that wrote them"
        )
    return maps


def _high_res(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if "high_res" in arrays:
        return as_shares(arrays["high_res"])
    scales = [
        torch.from_numpy(arrays[name].astype(np.float32))
        for name in sorted(arrays, key=lambda name: (len(name), name))
        if name.startswith(_SCALE)
    ]
    height, width = (int(length) for length in arrays["size"])
    return merged_high_res(scales, np.arange(len(arrays["keys"])), (height, width))


def build_cam_score(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config CurveScoreConfig, maps in role "cam"): counts of the full-resolution CAM by threshold."""

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = context.arrays("cam", name)
        return read_high_res(arrays), arrays["keys"]

    return curve_scorer(context, read)


def cam_stages(
    train: TrainStage,
    scales: tuple[float, ...],
    threshold: float,
    build: Callable[[StageContext], Any],
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    lists: Sequence[str] = ("train",),
) -> list[Stage]:
    """A training with the maps of its network, their score at every threshold and its summary.

    `<prefix>cam_train` is followed by `<prefix>cam`, `<prefix>cam_score` and `<prefix>cam_evaluation`: a plain baseline
    beside a method's own maps is another call. `build` is `build_cam` with what the method passes. Of the lists that
    are scored, "train" is part of the training's own list; the maps of another, and the stages of its score, are called
    `<prefix>cam_<list>`.
    """
    cam = train.name.removesuffix("_train")

    def maps(name: str, image_list: str | None) -> MapStage:
        return MapStage(
            name=name,
            version=1,
            config=CamConfig(network=train.config, scales=scales),
            inputs={"weights": train.name},
            reads=frozenset({"images", "image_labels"}),
            image_list=image_list,
            uses_gpu=True,
            build=build,
        )

    stages: list[Stage] = [train, maps(cam, train.image_list)]
    for split in lists:
        scored = cam if split == "train" else f"{cam}_{split}"
        if split != "train":
            stages.append(maps(scored, split))
        stages += [
            MapStage(
                name=f"{scored}_score",
                version=1,
                config=CurveScoreConfig(thresholds=thresholds_with(threshold, thresholds)),
                inputs={"cam": scored},
                reads=frozenset({"masks"}),
                image_list=split,
                build=build_cam_score,
            ),
            ReduceStage(
                name=f"{scored}_evaluation",
                version=2,
                config=SummaryConfig(prefix=cam, split=split, default_threshold=threshold),
                inputs={"confusions": f"{scored}_score"},
                compute=summarize_curve,
            ),
        ]
    return stages
