"""The official checkpoint: a plain state dict `model_enc_eEEEXsS.SSS.pth` (WS-FCN, section 11)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss.nn.checkpoint import CheckpointError, load_weights, read_checkpoint, state_dict_of
from wsss_methods.wsfcn.networks import WsFcn, own_name, pamr_kernels

_LAST_BIAS = "last_conv.8.bias"
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
