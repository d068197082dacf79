"""Starting the segmentation networks from ImageNet classification files.

Each architecture has one published start in BECO: DeepLabV2 torchvision's ResNet,
DeepLabV3+ mmcls' `resnetv1d101`, SegFormer `mit_b2.pth`.  A file must cover the backbone exactly; only the
classifier and batch-norm counters may be left over or missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from wsss.nn.checkpoint import load_weights, read_checkpoint, state_dict_of
from wsss.nn.segformer import mix_transformer_state

StateMapping = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def torchvision_resnet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision ResNet names with the stem under `stem_layer.` and without the classifier `fc`."""
    mapped = {}
    for name, value in state.items():
        if not name.startswith("fc."):
            mapped[re.sub(r"^(conv1|bn1)\.", r"stem_layer.\1.", name)] = value
    return mapped


def torchvision_mobilenet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision MobileNetV2 names without the classifier."""
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}


def mmcls_resnetv1d_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmcls ResNet-D without the prefix `backbone.`, the classifier and the counters, and with our stem.

    `backbone.stem.0.conv.weight` becomes `stem_layer.conv1.weight`, `stem.0.bn.*` `stem_layer.bn1.*`.
    """
    mapped = {}
    for name, value in state.items():
        if name.startswith("head.fc.") or name.endswith("num_batches_tracked"):
            continue
        name = name.removeprefix("backbone.")
        stem = re.fullmatch(r"stem\.(\d+)\.(conv|bn)\.(\w+)", name)
        if stem is not None:
            name = f"stem_layer.{stem[2]}{int(stem[1]) + 1}.{stem[3]}"
        mapped[name] = value
    return mapped


IMAGENET_STATES: Mapping[str, StateMapping] = {
    "torchvision_resnet": torchvision_resnet_state,
    "torchvision_mobilenet": torchvision_mobilenet_state,
    "mmcls_resnetv1d": mmcls_resnetv1d_state,
    "mix_transformer": mix_transformer_state,
}


def load_imagenet_backbone(backbone: nn.Module, path: Path, source: str) -> None:
    """Overwrite a backbone's weights by an ImageNet file.

    backbone: the `backbone` of a segmentation network, in place.  path: the file.  source: one of `IMAGENET_STATES`.

    Raises CheckpointError when the file cannot be read, lacks entries, has entries that the backbone does not know, or
    tensors of other shapes; the backbone is unchanged then.
    """
    where = str(path)
    state = state_dict_of(read_checkpoint(path), where=where)
    load_weights(backbone, IMAGENET_STATES[source](state), where=where)
