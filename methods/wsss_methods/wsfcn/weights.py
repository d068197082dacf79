"""The ImageNet file that a recipe starts from: asked for before anything runs, loaded by name."""

from __future__ import annotations

from pathlib import Path

from wsss.errors import WsssError
from wsss.nn.checkpoint import load_weights, read_checkpoint
from wsss_methods.wsfcn.backbones import Taps
from wsss_methods.wsfcn.recipe import WsFcnRecipe

ROOT_PLACEHOLDER = "${dataset.root}"

_SOURCES = {
    "resnet38": "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth, Wide-ResNet-38 converted from MXNet, named in the README of "
    "1-stage-wseg (Araslanov and Roth, 2020)",
    "resnet50": "resnet50-19c8e357.pth, torchvision's ResNet50_Weights.IMAGENET1K_V1",
    "resnet101": "resnet101-5d3b4d8f.pth, torchvision's former ResNet-101, or resnet101-cd907fc2.pth",
    "vgg16": "vgg16_20M.pth, VGG-16 with fc6 and fc7 as convolutions, named in the README of 1-stage-wseg",
    "resnet18": "resnet18-f37072fd.pth, torchvision's ResNet18_Weights.IMAGENET1K_V1",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth, torchvision's MobileNet_V2_Weights.IMAGENET1K_V1",
}
# What a classification file holds beyond the body.
_CLASSIFIERS = (r"fc\..*", r"fc8\..*", r"linear1000\..*", r"classifier\..*")


class WeightsError(WsssError):
    """The weight file of a recipe is missing or does not fit."""


def required_file(recipe: WsFcnRecipe, dataset_root: Path) -> Path | None:
    """The existing weight file of the recipe's backbone; None to start from random weights.

    Raises:
        WeightsError: it is missing, not given although random weights are refused, or of another width.
    """
    backbone = recipe.network.backbone
    given: Path | None = getattr(recipe.weights, backbone)
    if given is None:
        if recipe.weights.allow_random:
            return None
        raise WeightsError(
            f"weights.{backbone} is none: get {_SOURCES[backbone]}",
            "recipe section weights",
            f"give the file as weights.{backbone}=FILE",
        )
    text = str(given)
    if text.startswith(ROOT_PLACEHOLDER):
        text = str(dataset_root) + text.removeprefix(ROOT_PLACEHOLDER)
    path = Path(text).absolute()
    if not path.is_file():
        raise WeightsError(
            f"weights.{backbone} = {path} does not exist: get {_SOURCES[backbone]}",
            "recipe section weights",
            f"give the file as weights.{backbone}=FILE, or weights.{backbone}=none to start from random weights",
        )
    if recipe.network.backbone_width != 1:
        raise WeightsError(
            f"weights.{backbone} does not fit network.backbone_width = {recipe.network.backbone_width:g}",
            "recipe sections weights and network",
            f"set weights.{backbone}=none or network.backbone_width=1",
        )
    return path


def load_imagenet_body(taps: Taps, path: Path) -> None:
    """Start a body from an ImageNet file.

    The official program tolerates missing names in silence; here all of the body must be there.
    Raises CheckpointError naming what is missing, surplus or of another shape; the body is unchanged then.
    """
    load_weights(taps.body, read_checkpoint(path), ignore=_CLASSIFIERS, where=str(path))
