"""What follows the training: losses of the candidate epochs, multi-scale soft masks, labels, CRF."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.augment.canvas import Placement, canvas_inputs
from wsss.ops.affinity_psa import power_background_scores
from wsss.ops.crf import DenseCrfSettings, refine_probabilities
from wsss.pipeline import Arrays, Reduction, StageContext
from wsss.stages.candidates import candidate_epochs, choose_by_loss, epoch_to_use, weights_file
from wsss.stages.score import curve_scorer
from wsss.store import Artifact
from wsss_methods.wsfcn.losses import FocalPenalty, class_scores, resized
from wsss_methods.wsfcn.networks import WsFcn
from wsss_methods.wsfcn.official import load_official
from wsss_methods.wsfcn.recipe import InferenceSettings, NetworkSettings, PseudoLabelSettings, TrainSettings
from wsss_methods.wsfcn.training import WEIGHTS, ImageSamples, WsFcnTraining, focal_of, structure_of

Array = np.ndarray


@dataclass(frozen=True)
class CandidateConfig:
    """Losses of the candidates on val, with the training transform and this seed."""

    network: NetworkSettings
    train: TrainSettings
    pseudo_label: PseudoLabelSettings
    seed: int


@dataclass(frozen=True)
class ChoiceConfig:
    """The choice among candidates: weight of the mask loss, images in a batch, and which epochs compete."""

    mask_loss_weight: float
    batch_size: int
    first_epoch: int
    every: int
    last_epoch: int


@dataclass(frozen=True)
class ScoresConfig:
    """What the stored masks depend on."""

    network: NetworkSettings
    inference: InferenceSettings


@dataclass(frozen=True)
class PresenceConfig:
    """Which classes an image may hold: "scores": those above `fp_cut_score`; "image_labels": those of its label."""

    source: str
    fp_cut_score: float


@dataclass(frozen=True)
class PredictionConfig:
    """Label maps at one background constant."""

    presence: PresenceConfig
    bg_score: float


@dataclass(frozen=True)
class CurveConfig:
    """Label maps at every background constant; `ignore_index` and `normalize` are what the curve scorer asks for."""

    presence: PresenceConfig
    thresholds: tuple[float, ...]
    upsample: int = 0
    normalize: str = "none"
    ignore_index: int = 255


@dataclass(frozen=True)
class CrfConfig:
    """Label maps after the dense CRF over a background of (1 - largest class) ** alpha."""

    presence: PresenceConfig
    alpha: float
    crf: DenseCrfSettings


def load_network(context: StageContext, network: Any, artifact: Artifact, epoch: int) -> WsFcn:
    """The network of one candidate, in evaluation mode on the stage's device."""
    loaded = WsFcn(structure_of(network, context.data.num_classes))
    load_official(loaded, artifact.path(weights_file(WEIGHTS, epoch)))
    return loaded.to(context.device).eval()


def build_candidate_losses(context: StageContext) -> Callable[[str], Arrays]:
    """Losses of every candidate on an augmented crop of an image of val, as `train.py` of the official code does it.

    The crop is drawn from the image's name and the seed, so all candidates see the same one. All candidates are
    held in memory. Returns "classification", "mask", "presence_gate" float32 (E,), "probabilities" float32
    (E, classes without background), "labels" float32 (the same,), "epochs" int64 (E,).
    """
    config: CandidateConfig = context.config
    artifact = context.inputs["weights"]
    epochs = candidate_epochs(artifact)
    focal, rule = focal_of(config.network), config.pseudo_label
    candidates = [
        WsFcnTraining(load_network(context, config.network, artifact, epoch), focal, rule, 0).eval() for epoch in epochs
    ]
    samples = ImageSamples(context, config.train)
    index_of = {name: index for index, name in enumerate(context.data.names)}

    def losses(name: str) -> Arrays:
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        sample = samples.sample(index_of[name], np.random.default_rng([config.seed, digest]))
        batch = {key: value[None].to(context.device) for key, value in sample.items()}
        rows: list[dict[str, Tensor]] = []
        for candidate in candidates:
            logits = candidate.network(batch["image"]).float()
            row = candidate.losses(logits, batch, train_masks=True)
            row["probabilities"] = class_scores(logits, logits.softmax(dim=1), focal).sigmoid()
            rows.append(row)

        kept = ("classification", "mask", "presence_gate", "probabilities")
        stacked = {key: torch.cat([row[key] for row in rows]).cpu().numpy().astype(np.float32) for key in kept}
        return {**stacked, "labels": sample["label"].numpy(), "epochs": np.array(epochs)}

    return losses


def select_epoch(context: StageContext) -> Reduction:
    """The epoch with the lowest loss on val, the latest among equals; no mask is looked at, image labels are.

    Score: 1 - mean over batches of the total loss. Beside it stand its parts and the mean average precision of the
    class scores. An imported checkpoint is its own only candidate.
    """
    config: ChoiceConfig = context.config

    def precision(arrays: Sequence[Arrays]) -> Mapping[str, list[float]]:
        labels = np.stack([each["labels"] for each in arrays])
        probabilities = np.stack([each["probabilities"] for each in arrays], axis=1)
        return {"mean_average_precision": [mean_average_precision(each, labels) for each in probabilities]}

    choice = choose_by_loss(
        context,
        {"classification": 1.0, "mask": config.mask_loss_weight, "presence_gate": 0.0},
        config.batch_size,
        competes=lambda epoch: config.first_epoch <= epoch <= config.last_epoch and epoch % config.every == 0,
        columns=precision,
    )
    chosen = next(row for row in choice.tables["candidates"] if row["selected"])
    further = {f"{context.stage}/{name}_val": chosen[name] for name in ("mean_average_precision", "presence_gate")}
    return replace(choice, metrics={**choice.metrics, **further})


def mean_average_precision(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of the average precision: both (N, K) -> fraction, NaN without any class."""
    order = np.argsort(-probabilities, axis=0, kind="stable")
    hits = np.take_along_axis(labels > 0, order, axis=0)
    precision = hits.cumsum(axis=0) / np.arange(1, len(hits) + 1)[:, None]
    count = hits.sum(axis=0)
    average = (precision * hits).sum(axis=0)[count > 0] / count[count > 0]
    return float(average.mean()) if average.size else float("nan")


def build_scores(context: StageContext) -> Callable[[str], Arrays]:
    """Class scores and merged soft masks (`infer_val.py` of the official code).

    Returns "score" float32 (K,), the highest probability of every foreground class over the inputs; "keys" int64
    (M,), the classes kept, ids from 1; "masks" float16 (M, H, W) in [0, 1], their mean masks at the image's size.

    A class is dropped when it scores at most `keep_score` and its mask stays below `keep_mask` everywhere: it can pass
    no score threshold that the recipe allows, and beat no background constant (at least 0.05), so the labels
    are those of all masks under either presence filter. Masks are stored at full size: the inputs' content boxes lie at
    fractions of the network's grid that mirroring does not map to each other, so merging on that grid is not exact,
    and the grids of all inputs together hold as many values as one merged mask.
    """
    config: ScoresConfig = context.config
    network = load_network(context, config.network, context.inputs["weights"], epoch_to_use(context))
    inference, focal = config.inference, focal_of(config.network)

    def scores(name: str) -> Arrays:
        image = context.data.image(name)
        soft = soft_masks(network, image, inference.infer_scales, inference.canvas, focal, context.device)
        score = best_scores(soft.scores)
        kept = np.flatnonzero((score > inference.keep_score) | (soft.masks.max(axis=(1, 2)) >= inference.keep_mask))
        return {"score": score, "keys": (kept + 1).astype(np.int64), "masks": soft.masks[kept].astype(np.float16)}

    return scores


def masks_reader(context: StageContext) -> Callable[[str], tuple[Array, Array]]:
    """Image name -> masks float32 (K, H, W) and ids (K,) of the classes that pass the presence filter of the config."""
    presence = context.config.presence

    def read(name: str) -> tuple[Array, Array]:
        arrays = context.arrays("scores", name)
        keys = arrays["keys"]
        if presence.source == "image_labels":
            passes = np.isin(keys, context.data.present_classes(name))
        else:
            passes = arrays["score"][keys - 1] > presence.fp_cut_score
        return arrays["masks"][passes].astype(np.float32), keys[passes]

    return read


def build_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """Map function: "prediction" uint8 (H, W), the best class where it beats the background constant."""
    config: PredictionConfig = context.config
    read = masks_reader(context)
    return lambda name: {"prediction": label_from_masks(*read(name), config.bg_score)}


def build_curve(context: StageContext) -> Callable[[str], Arrays]:
    """Counts of the label maps of every background constant at once: "confusion" (T, C, C), "thresholds" (T,)."""
    return curve_scorer(context, masks_reader(context))


def build_crf_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """Map function: "prediction" uint8 (H, W) after the dense CRF over all classes of the data set."""
    config: CrfConfig = context.config
    read, data = masks_reader(context), context.data
    return lambda name: {
        "prediction": label_after_crf(data.image(name), *read(name), data.num_classes, config.alpha, config.crf)
    }


@dataclass(frozen=True)
class SoftMasks:
    """Class scores of every input before the sigmoid, float32 (2 S, K), and masks (K, H, W) in [0, 1].

    K foreground classes, whether the scores find them in the image or not; masks are the mean over the inputs.
    """

    scores: Array
    masks: Array


@torch.no_grad()
def soft_masks(
    network: WsFcn,
    image: Array,
    scales: Sequence[float],
    canvas: tuple[int, int],
    focal: FocalPenalty,
    device: str = "cpu",
) -> SoftMasks:
    """Run the network on every scale and its mirror image and merge. image: uint8 (H, W, 3) RGB.

    The network must be in evaluation mode, where the inputs of a batch do not see one another: two at a time go
    through it, so that memory does not grow with the number of scales. Scores are pooled over the whole canvas, and
    the padding takes part in them as published.
    """
    size = (image.shape[0], image.shape[1])
    inputs = canvas_inputs(image, scales, canvas)
    scores: list[Tensor] = []
    total = torch.zeros((), device=device)
    for start in range(0, len(inputs), 2):
        pair = inputs[start : start + 2]
        batch = torch.from_numpy(np.stack([each.image for each in pair])).to(device)
        logits = network(batch).float()
        masks = logits.softmax(dim=1)
        scores.append(class_scores(logits, masks, focal))
        masks = resized(masks, canvas)
        for index, each in enumerate(pair):
            total = total + content(masks[index], each.placement, size)[1:]
    return SoftMasks(torch.cat(scores).cpu().numpy(), (total / len(inputs)).cpu().numpy())


def content(masks: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """The part of the canvas that holds the image, at the image's size and not mirrored: (C, *canvas) -> (C, *size).

    Half-pixel centers, unlike the network's own resizing.
    """
    rows = slice(placement.top, placement.top + placement.height)
    columns = slice(placement.left, placement.left + placement.width)
    cut = F.interpolate(masks[None, :, rows, columns], size=size, mode="bilinear", align_corners=False)[0]
    return cut.flip(-1) if placement.mirrored else cut


def best_scores(scores: Array) -> Array:
    """Highest probability of each class over the inputs: scores (2 S, K) before the sigmoid -> float32 (K,)."""
    return (1.0 / (1.0 + np.exp(-scores.astype(np.float64)))).max(axis=0).astype(np.float32)


def label_from_masks(masks: Array, keys: Array, background: float) -> Array:
    """The class of the largest mask where it exceeds `background`: (K, H, W), (K,) class ids -> uint8 (H, W)."""
    if not len(keys):
        return np.zeros(masks.shape[1:], dtype=np.uint8)
    return np.where(masks.max(axis=0) > background, keys[masks.argmax(axis=0)], 0).astype(np.uint8)


def with_power_background(masks: Array, keys: Array, alpha: float, num_classes: int) -> Array:
    """Probabilities of all classes for the CRF: absent classes 0, background (1 - largest class) ** alpha.

    masks: (K, H, W), keys: (K,) class ids. Returns float32 (num_classes, H, W), not normalized.
    """
    probabilities = np.zeros((num_classes, *masks.shape[1:]), dtype=np.float32)
    probabilities[[0, *keys]] = power_background_scores(masks, alpha)
    return probabilities


def label_after_crf(
    image: Array, masks: Array, keys: Array, num_classes: int, alpha: float, crf: DenseCrfSettings
) -> Array:
    """Labels after the CRF, uint8 (H, W); all `num_classes` take part, as published."""
    probabilities = with_power_background(masks, keys, alpha, num_classes)
    return refine_probabilities(image, probabilities, crf).argmax(axis=0).astype(np.uint8)
