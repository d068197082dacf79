"""Stages behind training: choice of the epoch, soft masks, labels, CRF (WS-FCN, sections 2, 6 and 7)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.pipeline import Arrays, Reduction, StageContext
from wsss.stages.candidates import candidate_epochs, choose_by_loss, epoch_to_use, weights_file
from wsss.stages.score import curve_scorer
from wsss.store import Artifact
from wsss_methods.wsfcn.inference import best_scores, label_after_crf, label_from_masks, soft_masks
from wsss_methods.wsfcn.losses import class_scores
from wsss_methods.wsfcn.networks import WsFcn
from wsss_methods.wsfcn.official_checkpoint import load_official
from wsss_methods.wsfcn.stage_configs import (
    CandidateConfig,
    ChoiceConfig,
    CrfConfig,
    PredictionConfig,
    PresenceConfig,
    ScoresConfig,
)
from wsss_methods.wsfcn.training import (
    WEIGHTS,
    ImageSamples,
    WsFcnTraining,
    focal_of,
    rule_of,
    structure_of,
)


def load_network(context: StageContext, network: Any, artifact: Artifact, epoch: int) -> WsFcn:
    """The network of one candidate, in evaluation mode on the stage's device."""
    loaded = WsFcn(structure_of(network, context.data.num_classes))
    path = artifact.path(weights_file(WEIGHTS, epoch))
    load_official(loaded, path)
    return loaded.to(context.device).eval()


def build_candidate_losses(context: StageContext) -> Callable[[str], Arrays]:
    """Losses of every candidate on an augmented crop of an image of val (WS-FCN, section 6, checkpoint selection).

    The crop is drawn from the image's name and the seed, so all candidates see the same one. All candidates are
    held in memory. Returns "classification", "mask", "presence_gate" float32 (E,), "probabilities" float32
    (E, classes without background), "labels" float32 (the same,), "epochs" int64 (E,).
    """
    config: CandidateConfig = context.config
    artifact = context.inputs["weights"]
    epochs = candidate_epochs(artifact)
    focal, rule = focal_of(config.network), rule_of(config.pseudo_label)
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

        def stacked(key: str) -> np.ndarray:
            return torch.cat([row[key] for row in rows]).cpu().numpy().astype(np.float32)

        return {
            **{key: stacked(key) for key in ("classification", "mask", "presence_gate", "probabilities")},
            "labels": sample["label"].numpy(),
            "epochs": np.array(epochs),
        }

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
    """S2a: class scores and merged soft masks (WS-FCN, section 7, steps 1 to 3).

    Returns "score" float32 (K,), the highest probability of every foreground class over the inputs; "keys" int64
    (M,), the classes kept, ids from 1; "masks" float16 (M, H, W) in [0, 1], their mean masks at the image's size.

    A class is dropped when it scores at most `keep_score` and its mask stays below `keep_mask` everywhere: it can pass
    no score threshold that the recipe allows, and beat no background constant (at least 0.05), so the labels of S2b
    are those of all masks under either presence filter. Masks are stored at full size: the inputs' content boxes lie at
    fractions of the network's grid that mirroring does not map to each other, so merging on that grid is not exact,
    and the grids of all inputs together hold as many values as one merged mask.
    """
    config: ScoresConfig = context.config
    network = load_network(context, config.network, context.inputs["weights"], epoch_to_use(context))
    inference, focal = config.inference, focal_of(config.network)

    def scores(name: str) -> Arrays:
        soft = soft_masks(
            network,
            context.data.image(name),
            inference.infer_scales,
            inference.infer_canvas,
            focal,
            context.device,
        )
        score = best_scores(soft.scores)
        kept = np.flatnonzero((score > inference.keep_score) | (soft.masks.max(axis=(1, 2)) >= inference.keep_mask))
        return {"score": score, "keys": (kept + 1).astype(np.int64), "masks": soft.masks[kept].astype(np.float16)}

    return scores


def present_masks(
    arrays: Mapping[str, np.ndarray], presence: PresenceConfig, context: StageContext, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Masks float32 (K, H, W) and ids (K,) of the classes that pass the presence filter, from stored arrays."""
    keys = arrays["keys"]
    if presence.source == "image_labels":
        passes = np.isin(keys, context.data.present_classes(name))
    else:
        passes = arrays["score"][keys - 1] > presence.fp_cut_score
    return arrays["masks"][passes].astype(np.float32), keys[passes]


def build_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """S2b: "prediction" uint8 (H, W), the best class where it beats the background constant."""
    config: PredictionConfig = context.config
    artifact = context.inputs["scores"]

    def predict(name: str) -> Arrays:
        masks, keys = present_masks(artifact.arrays(name), config.presence, context, name)
        return {"prediction": label_from_masks(masks, keys, config.bg_score)}

    return predict


def build_curve(context: StageContext) -> Callable[[str], Arrays]:
    """S2b and S3 for every background constant at once: "confusion" (T, C, C), "thresholds" (T,)."""
    artifact = context.inputs["scores"]

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        return present_masks(artifact.arrays(name), context.config.presence, context, name)

    return curve_scorer(context, read)


def build_crf_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """S2c: "prediction" uint8 (H, W) after the dense CRF over all classes of the data set."""
    config: CrfConfig = context.config
    artifact = context.inputs["scores"]

    def predict(name: str) -> Arrays:
        masks, keys = present_masks(artifact.arrays(name), config.presence, context, name)
        image = context.data.image(name)
        return {"prediction": label_after_crf(image, masks, keys, context.data.num_classes, config.alpha, config.crf)}

    return predict
