"""Files of the official code: its checkpoint `model_enc_eEEEXsS.SSS.pth`, a plain state dict, and its label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss.data.dataset import Dataset
from wsss.method import Exporter
from wsss.nn.checkpoint import CheckpointError, load_weights, read_checkpoint, state_dict_of
from wsss.official import encode_png, label_map_reader, png_writer
from wsss.official_weights import encode_state, input_of
from wsss.stages.candidates import METRICS_FILE, selected_epoch, weights_file
from wsss.store import Artifact, ArtifactWriter
from wsss_methods.wsfcn.networks import WsFcn, own_name, pamr_kernels
from wsss_methods.wsfcn.recipe import WsFcnRecipe
from wsss_methods.wsfcn.training import WEIGHTS, structure_of

_LAST_BIAS = "last_conv.8.bias"
_write_labels = png_writer("prediction", encode_png)
_read_labels = label_map_reader("prediction")
# A name that only this body has.
_SIGNS = {
    "resnet38": "b7.conv_branch2a.weight",
    "resnet101": "layer3.22.conv3.weight",
    "resnet50": "layer3.5.conv3.weight",
    "vgg16": "fc7.weight",
    "resnet18": "layer4.1.conv2.weight",
    "mobilenet_v2": "features.18.0.weight",
}


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict of an official file, plain or with the prefix `module.`, checked as far as it goes by itself.

    Raises:
        CheckpointError: not readable, of another network, or with PAMR kernels that are not the constants.
    """
    state = state_dict_of(read_checkpoint(path), where=str(path))
    if any(name.startswith(("aspp.", "fc8_skip.", "fc8_x.", "shallow_mask.")) for name in state):
        raise CheckpointError(
            "this is a checkpoint of 1-stage-wseg, which WS-FCN descends from; its heads are others",
            str(path),
            "give model_enc_*.pth of WS-FCN",
        )
    if _LAST_BIAS not in state or backbone_of(state) is None:
        raise CheckpointError(
            "this is no checkpoint of WS-FCN: " + (f"it has no {_LAST_BIAS}" if _LAST_BIAS not in state else "no body"),
            str(path),
            "give model_enc_*.pth as its training writes it",
        )
    for name, constant in pamr_kernels().items():
        if name in state and not torch.equal(state[name].float(), constant):
            raise CheckpointError(
                f"{name} is not the constant that mask refinement needs", str(path), "the file was edited; get it again"
            )
    return state


def backbone_of(state: Mapping[str, Any]) -> str | None:
    """The body that a state dict of official names belongs to."""
    return next((name for name, sign in _SIGNS.items() if sign in state), None)


def classes_of(state: Mapping[str, Tensor]) -> int:
    """Number of classes with the background."""
    return len(state[_LAST_BIAS]) + 1


def load_official(network: WsFcn, path: Path) -> None:
    """Load a file of official names strictly. Raises CheckpointError saying what does not fit; nothing changes then."""
    state = read_official(path)
    found, wanted = backbone_of(state), network.structure.backbone
    if found != wanted:
        raise CheckpointError(
            f"the checkpoint is of backbone {found}, the recipe's is {wanted}",
            str(path),
            f"set network.backbone={found}",
        )
    if classes_of(state) != network.structure.num_classes:
        raise CheckpointError(
            f"the checkpoint knows {classes_of(state)} classes, the data set has {network.structure.num_classes}",
            str(path),
            "use the data set that it was trained on (21 classes: voc2012, 81: coco2014)",
        )
    load_weights(network, state, ignore=(r"_aff\..*",), rename=own_name, where=str(path))


def check_released_network(path: Path, recipe: WsFcnRecipe, dataset: Dataset) -> None:
    """Raises CheckpointError where the file is in another layout or is not of the recipe's network."""
    with torch.random.fork_rng():  # building a network draws weights
        load_official(WsFcn(structure_of(recipe.network, dataset.num_classes)), path)


def exporters() -> Mapping[str, Exporter]:
    """Stage or layout name -> how it is written and read."""
    labels = "<name>.png, grey, class ids, at the size of the picture"
    return {
        "segmentation_train": Exporter(
            "segmentation_train",
            "model_enc_last.pth, a plain state dict; read from any model_enc_<suffix>.pth",
            write=_write_last,
            read=_read_checkpoint,
        ),
        "best_checkpoint": Exporter(
            "segmentation_selection",
            "model_enc_e<epochs trained>Xs<score>.pth, a plain state dict, of the epoch chosen on val",
            write=_write_best,
        ),
        "segmentation": Exporter("segmentation", labels, write=_write_labels),
        "segmentation_crf": Exporter(
            "segmentation_crf",
            f"crf/{labels}; read from the folder itself",
            write=_write_crf_labels,
            read=_read_labels,
        ),
    }


def _write_last(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _write_checkpoint(artifact, 0, folder / "model_enc_last.pth")


def _write_best(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    epoch, score = selected_epoch(artifact), artifact.json(METRICS_FILE)[f"{artifact.stage}/score_val"]
    weights = input_of(input_of(artifact, "candidates"), "weights")
    return _write_checkpoint(weights, epoch, folder / f"model_enc_e{epoch:03d}Xs{score:4.3f}.pth")


def _write_checkpoint(artifact: Artifact, epoch: int, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(read_official(artifact.path(weights_file(WEIGHTS, epoch))), path)
    return 1


def _read_checkpoint(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    state = read_official(path)
    if classes_of(state) != dataset.num_classes:
        raise CheckpointError(
            f"the checkpoint knows {classes_of(state)} classes, data set {dataset.name} has {dataset.num_classes}",
            str(path),
            "choose the data set that it was trained on: 21 classes are voc2012, 81 coco2014 (dataset.name)",
        )
    writer.add_file(f"{WEIGHTS}.pt", encode_state(state))
    writer.add_file("history.json", b"{}")


def _write_crf_labels(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _write_labels(artifact, dataset, folder / "crf")
