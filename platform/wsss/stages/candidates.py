"""Candidate epochs of a training, their scores on a list of images, and the choice among them.

A training stage keeps the weights of some epochs in its artifact, beside the last ones. Two stages choose one: a map
stage scores every candidate on every image, and a reduce stage compares the candidates over all images. Either it
looks at masks (`choose_by_masks`: highest mIoU), or at losses alone (`choose_by_loss`). Without these two stages the
last weights are used.

Roles of inputs: the map stage reads the training's artifact in role "weights", the choice the map stage's artifact in
role "candidates". A stage that uses the chosen weights reads "weights" and, where there is a choice, "selection".
Both choices write the number `<stage>/epoch`, where `<stage>` is the name of their own stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wsss.evaluation.confusion import confusion_matrix, smoothed_miou
from wsss.evaluation.counts import Counts
from wsss.pipeline import Arrays, MapStage, Reads, ReduceStage, Reduction, Stage, StageContext
from wsss.store import Artifact

METRICS_FILE = "metrics.json"
_FOLDER = "epoch_"


@dataclass(frozen=True)
class CandidateConfig:
    """The networks' settings, a frozen dataclass; candidates are scored at their training size."""

    network: Any


@dataclass(frozen=True)
class SelectionConfig:
    """`epsilon` is added to the denominators of the mIoU that `choose_by_masks` compares."""

    epsilon: float = 1e-5


def weights_file(name: str, epoch: int) -> str:
    """File of the weights `name` in a training's artifact; epoch 0 stands for the last ones."""
    return f"{_FOLDER}{epoch:04d}/{name}.pt" if epoch else f"{name}.pt"


def candidate_epochs(artifact: Artifact) -> list[int]:
    """Epochs (1-based, ascending) whose weights a training's artifact holds; (0) for an imported checkpoint."""
    folders = {file.partition("/")[0] for file in artifact.files if file.startswith(_FOLDER)}
    return sorted(int(folder.removeprefix(_FOLDER)) for folder in folders) or [0]


def read_weights(artifact: Artifact, name: str, epoch: int) -> dict[str, Tensor]:
    """The state dict `name` of an epoch, on the CPU; epoch 0 stands for the last one."""
    return torch.load(artifact.path(weights_file(name, epoch)), map_location="cpu", weights_only=True)


def selected_epoch(selection: Artifact) -> int:
    """The epoch that a choice's artifact names."""
    return int(selection.json(METRICS_FILE)[f"{selection.stage}/epoch"])


def epoch_to_use(context: StageContext) -> int:
    """The chosen epoch where the stage has an input "selection", else 0 for the last weights."""
    return selected_epoch(context.inputs["selection"]) if "selection" in context.inputs else 0


def weight_inputs(prefix: str, chosen: bool) -> dict[str, str]:
    """Inputs of a stage that uses the weights of `<prefix>_train`."""
    selection = {"selection": f"{prefix}_selection"} if chosen else {}
    return {"weights": f"{prefix}_train", **selection}


def selection_stages(
    prefix: str,
    rule: Literal["best_val", "lowest_val_loss"],
    *,
    candidates: Any,
    build: Callable[[StageContext], Callable[[str], Arrays]],
    selection: Any,
    compute: Callable[[StageContext], Reduction],
    image_list: str = "val",
) -> list[Stage]:
    """`<prefix>_candidates` and `<prefix>_selection` downstream of `<prefix>_train`.

    Args:
        rule: "best_val" looks at masks, "lowest_val_loss" at image labels.
        candidates, build: config and function of the map stage.
        selection, compute: config and function of the choice.
        image_list: what the candidates are scored on.
    """
    by_masks = rule == "best_val"
    reads: frozenset[Reads] = frozenset({"images", "masks"} if by_masks else {"images", "image_labels"})
    return [
        MapStage(
            name=f"{prefix}_candidates",
            version=1,
            config=candidates,
            inputs={"weights": f"{prefix}_train"},
            reads=reads,
            image_list=image_list,
            uses_gpu=True,
            build=build,
        ),
        ReduceStage(
            name=f"{prefix}_selection",
            version=1,
            config=selection,
            inputs={"candidates": f"{prefix}_candidates"},
            # Losses are means over batches, so the order of the list matters; counts of pixels are added up.
            image_list=None if by_masks else image_list,
            chooses_by_masks=by_masks,
            compute=compute,
        ),
    ]


def count_candidates(
    context: StageContext, epochs: Sequence[int], predict: Callable[[str], tuple[np.ndarray, Sequence[np.ndarray]]]
) -> Callable[[str], Arrays]:
    """Map function: confusion matrix of every candidate on an image.

    predict: image name -> truth integer (h, w) and one label map uint8 (h, w) for each of `epochs`.
    Returns counts (E, C, C) of `wsss.evaluation.counts` and "epochs" int64 (E,).
    """

    def score(name: str) -> Arrays:
        truth, labels = predict(name)
        confusions = [
            confusion_matrix(truth, label, context.data.num_classes, context.data.ignore_index) for label in labels
        ]
        return {**Counts.of(np.stack(confusions)).arrays(), "epochs": np.array(epochs)}

    return score


def choose_by_masks(context: StageContext) -> Reduction:
    """The epoch with the highest mIoU on the masks (config SelectionConfig); the earliest among equals."""
    config: SelectionConfig = context.config
    artifact = context.inputs["candidates"]
    names = sorted(artifact.images())
    epochs = artifact.arrays(names[0])["epochs"]
    total = np.sum([Counts.read(artifact.arrays(name)).dense() for name in names], axis=0)
    scores = [smoothed_miou(confusion, config.epsilon) for confusion in total]
    best = int(np.argmax(scores))
    rows = [
        {"epoch": int(epoch), "miou": score, "selected": index == best}
        for index, (epoch, score) in enumerate(zip(epochs, scores, strict=True))
    ]
    return Reduction(
        metrics={
            f"{context.stage}/epoch": float(epochs[best]),
            f"{context.stage}/miou_val_training_size": scores[best],
            f"{context.stage}/miou_val_training_size_last": scores[-1],
        },
        tables={"candidates": rows},
        arrays={"confusion": total, "epochs": epochs},
    )


def choose_by_loss(
    context: StageContext,
    weights: Mapping[str, float],
    batch_size: int,
    competes: Callable[[int], bool],
    columns: Callable[[Sequence[Arrays]], Mapping[str, Sequence[float]]],
) -> Reduction:
    """The epoch with the lowest loss, the latest among equals; no mask is looked at.

    The score is 1 - the weighted sum of the parts of the loss, each a mean over batches in the order of the list.

    Args:
        weights: name of a part, an array (E,) of every image -> its weight in the loss; 0 for one that is only shown.
        batch_size: images in a batch.
        competes: which epochs may be chosen; the last candidate where none may.
        columns: arrays of all images -> further columns of the table "candidates", one value for each epoch.
    """
    artifact = context.inputs["candidates"]
    arrays = [artifact.arrays(name) for name in context.data.names]
    epochs = [int(epoch) for epoch in arrays[0]["epochs"]]

    def over_batches(part: str) -> np.ndarray:
        values = np.stack([each[part] for each in arrays]).astype(np.float64)
        starts = range(0, len(values), batch_size)
        return np.mean([values[start : start + batch_size].mean(axis=0) for start in starts], axis=0)

    parts = {part: over_batches(part) for part in weights}
    scores = 1 - np.sum([weight * parts[part] for part, weight in weights.items() if weight], axis=0)
    competing = [index for index, epoch in enumerate(epochs) if competes(epoch)] or [len(epochs) - 1]
    best = max(competing, key=lambda index: (scores[index], index))
    further = columns(arrays)
    rows = [
        {
            "epoch": epoch,
            "score": float(scores[index]),
            **{part: float(values[index]) for part, values in parts.items()},
            **{name: values[index] for name, values in further.items()},
            "competes": index in competing,
            "selected": index == best,
        }
        for index, epoch in enumerate(epochs)
    ]
    metrics = {f"{context.stage}/epoch": float(epochs[best]), f"{context.stage}/score_val": float(scores[best])}
    return Reduction(metrics=metrics, tables={"candidates": rows})
