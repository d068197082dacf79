"""CAM at full resolution: several scales, each lifted to pixels by superpixels, added and normalized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.transforms import channels_first, normalize
from wsss.evaluation.confusion import miou
from wsss.evaluation.counts import Counts
from wsss.evaluation.curves import threshold_confusions
from wsss.nn.checkpoint import load_weights
from wsss.ops.cam import strided_up_size, thresholded_argmax
from wsss.ops.feature_affinity import propagated
from wsss.ops.superpixel_affinity import lifted_to_pixels, refined_by_affinity, superpixel_affinity
from wsss.pipeline import Arrays, Reduction, StageContext
from wsss.stages.candidates import METRICS_FILE, candidate_epochs, epoch_to_use, read_weights
from wsss_methods.msa.losses import normalized_cam
from wsss_methods.msa.networks import CamNetwork, aliases, build_network
from wsss_methods.msa.recipe import CELL, STATISTICS, InferenceSettings, NetworkSettings
from wsss_methods.msa.superpixel_network import SuperpixelNetwork
from wsss_methods.msa.training import WEIGHTS, association_of, structure_of, superpixels_of

Size = tuple[int, int]


def resized(maps: Tensor, size: Size) -> Tensor:
    """Bilinear, half-pixel centers, no antialiasing."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def scaled_size(size: Size, scale: float) -> Size:
    """Sides times a scale, whose sign says whether the image is mirrored, rounded half to even."""
    return round(size[0] * abs(scale)), round(size[1] * abs(scale))


def padded_size(size: Size, scale: float) -> Size:
    """`scaled_size` rounded up to multiples of 16: what the networks see."""
    return strided_up_size(scaled_size(size, scale), CELL)


def common_size(size: Size, settings: InferenceSettings, superpixels: bool) -> Size:
    """Where scales are added: the last scale's size as the networks see it, or that of scale 1.

    Without superpixels the latter is the image's own.
    """
    if settings.merged_at == "last_scale":
        return padded_size(size, settings.signed_scales[-1])
    return padded_size(size, 1.0) if superpixels else size


def network_inputs(image: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What the classification and the superpixel network see of (1, 3, H, W) at a scale, both (1, 3, H', W').

    The former's image is resized twice, to the scale and from there to the multiple of 16, as published.
    """
    size = (image.shape[2], image.shape[3])
    padded = padded_size(size, scale)
    pair = resized(resized(image, scaled_size(size, scale)), padded), resized(image, padded)
    return (pair[0].flip(3), pair[1].flip(3)) if scale < 0 else pair


def lifted(scores: Tensor, association: Tensor | None, steps: int, common: Size, mirrored: bool) -> Tensor:
    """Scores of one scale (1, K, h, w) at the common size, not mirrored: (1, K, *common).

    `steps` of refinement by the affinity of superpixels come first. Without an association they are resized.
    """
    if association is not None:
        if steps:
            scores = refined_by_affinity(scores, superpixel_affinity(association, CELL), steps)
        scores = lifted_to_pixels(scores, association, CELL)
    scores = resized(scores, common)
    return scores.flip(3) if mirrored else scores


def merged(maps: Iterable[Tensor], size: Size) -> Tensor:
    """The sum of the scales' maps, each class normalized, at the image's size: (1, K, h, w) each -> (1, K, H, W).

    Resized last, so a peak may lie below 1.
    """
    total = sum(maps)
    assert isinstance(total, Tensor)
    return resized(normalized_cam(total), size)


def scale_maps(
    network: CamNetwork,
    superpixels: SuperpixelNetwork | None,
    image: Tensor,
    channels: Tensor,
    settings: InferenceSettings,
) -> Iterator[Tensor]:
    """Raw maps of the chosen channels at every scale, (1, K, *common) each.

    image: normalized, (1, 3, H, W). Propagation, refinement and lifting treat every channel by itself, so those of
    absent classes are left out before.
    """
    common = common_size((image.shape[2], image.shape[3]), settings, superpixels is not None)
    for scale in settings.signed_scales:
        seen, for_superpixels = network_inputs(image, scale)
        association = association_of(superpixels, for_superpixels)
        found = network(seen, association)
        scores = propagated(found.scores[:, channels], found.features, settings.ap_iterations, settings.ap_threshold)
        yield lifted(scores, association, settings.refine_steps, common, scale < 0)


@torch.no_grad()
def class_maps(
    network: CamNetwork,
    superpixels: SuperpixelNetwork | None,
    image: Tensor,
    present: np.ndarray,
    settings: InferenceSettings,
) -> Tensor:
    """CAM of the present classes in [0, 1]: image normalized (1, 3, H, W), class ids from 1 -> (K, H, W)."""
    size = (image.shape[2], image.shape[3])
    if not len(present):
        return image.new_zeros((0, *size))
    channels = torch.from_numpy(np.asarray(present, dtype=np.int64)).to(image.device)
    return merged(scale_maps(network, superpixels, image, channels, settings), size)[0]


@dataclass(frozen=True)
class CamConfig:
    """The sections that class maps depend on."""

    network: NetworkSettings
    inference: InferenceSettings


@dataclass(frozen=True)
class CandidateConfig:
    """What the epochs are scored by: maps at one scale of the first images, at some constants."""

    network: NetworkSettings
    inference: InferenceSettings
    thresholds: tuple[float, ...]
    images: int


@dataclass(frozen=True)
class ChoiceConfig:
    """Constants that a choice is made from."""

    thresholds: tuple[float, ...]


def normalized_image(context: StageContext, name: str) -> Tensor:
    """The picture as the networks see it, (1, 3, H, W)."""
    statistics = STATISTICS[context.config.network.norm_stats]
    return torch.from_numpy(channels_first(normalize(context.data.image(name), *statistics)))[None].to(context.device)


def load_network(context: StageContext, epoch: int) -> CamNetwork:
    """The network of role "weights" after an epoch, 0 for the last, in evaluation mode."""
    network = build_network(structure_of(context.config.network, context.data.num_classes))
    artifact = context.inputs["weights"]
    load_weights(network, read_weights(artifact, WEIGHTS, epoch), aliases=aliases(network), where=artifact.location)
    return network.to(context.device).eval()


def build_cam(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config CamConfig): "high_res" float16 (K, H, W) in [0, 1], "keys" int64 (K,), class ids from 1."""
    network, superpixels = load_network(context, epoch_to_use(context)), superpixels_of(context)

    def cam(name: str) -> Arrays:
        present = np.array(context.data.present_classes(name), dtype=np.int64)
        maps = class_maps(network, superpixels, normalized_image(context, name), present, context.config.inference)
        return {"high_res": maps.cpu().numpy().astype(np.float16), "keys": present}

    return cam


def build_candidates(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config CandidateConfig): counts (epochs x thresholds, C, C) and "epochs" (E,).

    Images behind the first ones count nothing. Scored by the evaluator of the variant without saliency in both, as
    published; at one scale the two are alike.
    """
    config: CandidateConfig = context.config
    artifact, superpixels = context.inputs["weights"], superpixels_of(context)
    epochs = candidate_epochs(artifact)
    networks = [load_network(context, epoch) for epoch in epochs]
    scored = set(sorted(context.data.names)[: config.images])
    settings = replace(config.inference, scales=(1.0,), mirrored=False)
    num_classes = context.data.num_classes

    def count(name: str) -> Arrays:
        counts = np.zeros((len(epochs) * len(config.thresholds), num_classes, num_classes), dtype=np.int64)
        if name in scored:
            image, truth = normalized_image(context, name), context.data.mask(name)
            present = np.array(context.data.present_classes(name), dtype=np.int64)
            every = [class_maps(network, superpixels, image, present, settings).cpu().numpy() for network in networks]
            counts = np.concatenate(
                [threshold_confusions(maps, present, truth, config.thresholds, num_classes) for maps in every]
            )
        return {**Counts.of(counts).arrays(), "epochs": np.array(epochs)}

    return count


def choose_epoch(context: StageContext) -> Reduction:
    """The epoch whose best threshold has the highest mIoU over all classes (config ChoiceConfig); the first of equals.

    The official program keeps no weights of an epoch at or below 22 %; here the best is taken in any case.
    """
    artifact, thresholds = context.inputs["candidates"], context.config.thresholds
    names = sorted(artifact.images())
    epochs = artifact.arrays(names[0])["epochs"]
    total = Counts.read(artifact.arrays(names[0])).dense()
    for name in names[1:]:
        Counts.read(artifact.arrays(name)).add_to(total)
    scores = np.asarray(miou(total, "all")).reshape(len(epochs), len(thresholds))
    best = int(scores.max(axis=1).argmax())
    rows = [
        {"epoch": int(epoch), "miou": row.max(), "threshold": thresholds[row.argmax()], "selected": index == best}
        for index, (epoch, row) in enumerate(zip(epochs, scores, strict=True))
    ]
    metrics = {f"{context.stage}/epoch": float(epochs[best]), f"{context.stage}/miou_train": float(scores[best].max())}
    return Reduction(metrics=metrics, tables={"candidates": rows})


def choose_threshold(context: StageContext) -> Reduction:
    """The constant with the highest mIoU of those of ChoiceConfig, from the curve of role "evaluation"."""
    curve = context.inputs["evaluation"].json("tables.json")["curve"]
    allowed = [row for row in curve if np.isclose(row["threshold"], context.config.thresholds, atol=1e-9).any()]
    best = max(allowed, key=lambda row: row["miou"])
    names = {"threshold": best["threshold"], "miou_train": best["miou"]}
    return Reduction(metrics={f"{context.stage}/{name}": float(value) for name, value in names.items()})


def build_pseudo_labels(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config ThresholdConfig, maps of role "cam"): "label" uint8 (H, W), class ids; "threshold" float ().

    The constant is that of role "threshold", where masks chose one, else the config's.
    """
    threshold: float = context.config.sem_seg_bg_thres
    if "threshold" in context.inputs:
        choice = context.inputs["threshold"]
        threshold = choice.json(METRICS_FILE)[f"{choice.stage}/threshold"]

    def label(name: str) -> Arrays:
        arrays = context.arrays("cam", name)
        labels = thresholded_argmax(arrays["high_res"].astype(np.float32), arrays["keys"], threshold)
        return {"label": labels, "threshold": np.array(threshold)}

    return label
