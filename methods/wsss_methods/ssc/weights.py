"""Which external files a recipe needs, where they come from, and whether they are there: asked before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsss.data.file_facts import file_facts, sha256_of_file
from wsss.errors import WsssError
from wsss_methods.ssc.recipe import SscRecipe

ROOT_PLACEHOLDER = "${dataset.root}"

_TORCHVISION = "{file}, that is torchvision's {enum} (its `.url` attribute says from where)"
_SOURCES = {
    "resnet18": _TORCHVISION.format(enum="ResNet18_Weights.IMAGENET1K_V1", file="resnet18-f37072fd.pth"),
    "resnet50": _TORCHVISION.format(enum="ResNet50_Weights.IMAGENET1K_V1", file="resnet50-19c8e357.pth"),
    "resnet101": _TORCHVISION.format(enum="ResNet101_Weights.IMAGENET1K_V1", file="resnet101-cd907fc2.pth"),
    "vgg19": _TORCHVISION.format(enum="VGG19_Weights.IMAGENET1K_V1", file="vgg19-dcbb9e9d.pth"),
    "mobilenet_v2": _TORCHVISION.format(enum="MobileNet_V2_Weights.IMAGENET1K_V1", file="mobilenet_v2-b0353104.pth"),
    "resnetv1d101": "the resnetv1d101 checkpoint of mmcls (OpenMMLab), as in BECO's instructions",
    "mit_b2": "mit_b2.pth of SegFormer (NVlabs), as in BECO's instructions",
}
_SEGMENTATION_WEIGHTS = {
    "deeplabv2_r101": "resnet101",
    "deeplabv2_r18": "resnet18",
    "deeplabv2_mobilenet_v2": "mobilenet_v2",
    "deeplabv3plus_r101": "resnetv1d101",
    "segformer_b2": "mit_b2",
}


class WeightsError(WsssError):
    """External files of a recipe are missing or do not fit."""


@dataclass(frozen=True)
class _Need:
    """One use of a weight file: role in the pipeline, and the width of the network that it must have."""

    role: str
    width_key: str = ""
    width: float = 1.0


def required_files(recipe: SscRecipe, dataset_root: Path) -> dict[str, Path]:
    """Files that the stages use: "cam", "perceptual", "affinity", "segmentation", "superpixels" -> existing path.

    A role without an entry starts from random weights. Paths may begin with ${dataset.root}.

    Raises:
        WeightsError: naming every file that is missing, and for each where to get it and how to give it.
    """
    problems: list[str] = []
    found: dict[str, Path] = {}
    for key, needs in _needs(recipe).items():
        given: Path | None = getattr(recipe.weights, key)
        roles = " and ".join(need.role for need in needs)
        if given is None:
            if not recipe.weights.allow_random:
                problems.append(f"weights.{key} is none (for {roles}): get {_SOURCES[key]}")
            continue
        path = _substituted(given, dataset_root)
        if not path.is_file():
            problems.append(f"weights.{key} = {path} does not exist (for {roles}): get {_SOURCES[key]}")
            continue
        for need in needs:
            if need.width == 1:
                found[need.role] = path
            else:
                problems.append(
                    f"weights.{key} does not fit {need.width_key} = {need.width:g}: set one of them to none or 1"
                )
    if recipe.superpixels.source == "folder" and recipe.cam.loss_weight_alignment:
        folder = recipe.superpixels.folder
        if folder is None or not _substituted(folder, dataset_root).is_dir():
            problems.append(
                f"superpixels.folder = {folder} is no folder: unpack the official voc_superpixels.zip there, "
                "or use superpixels.source=slic"
            )
        else:
            found["superpixels"] = _substituted(folder, dataset_root)
    if problems:
        remedy = "give a file as weights.NAME=FILE"
        if recipe.weights.allow_random:
            remedy += ", or weights.NAME=none to start from random weights"
        raise WeightsError(
            "\n".join(["files that the recipe needs are missing:", *(f"  - {text}" for text in problems)]),
            "recipe sections weights and superpixels",
            remedy,
        )
    return found


def folder_digest(folder: Path, names: Iterable[str], cache: Path | None = None) -> str:
    """Content hash of `<folder>/<name>.png` for all names, independent of where the folder lies.

    `cache` is the folder of remembered file hashes; None reads every file.

    Raises:
        WeightsError: files are missing.
    """
    paths = {name: folder / f"{name}.png" for name in names}
    facts = file_facts(paths.values(), "sha256", sha256_of_file, cache)
    if facts.errors:
        first = min(facts.errors)
        raise WeightsError(
            f"{len(facts.errors)} of {len(paths)} superpixel files cannot be read, the first is {first.name}",
            str(folder),
            "complete the folder, or use superpixels.source=slic",
        )
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        digest.update(f"{name} {facts.facts[path]}\n".encode())
    return digest.hexdigest()[:32]


def weight_sources() -> Mapping[str, str]:
    """Key below `weights` -> where the file comes from."""
    return dict(_SOURCES)


def _needs(recipe: SscRecipe) -> dict[str, list[_Need]]:
    """Key below `weights` -> who needs it."""
    cam, affinity, segmentation = recipe.cam, recipe.affinity, recipe.segmentation
    uses = [(cam.backbone, _Need("cam", "cam.width", cam.width))]
    if cam.loss_weight_perceptual and cam.perceptual_network != "pixel_pyramid":
        uses.append((cam.perceptual_network, _Need("perceptual")))
    uses.append((affinity.backbone, _Need("affinity", "affinity.width", affinity.width)))
    key = _SEGMENTATION_WEIGHTS[segmentation.architecture]
    uses.append((key, _Need("segmentation", "segmentation.width", segmentation.width)))
    needs: dict[str, list[_Need]] = {}
    for name, need in uses:
        needs.setdefault(name, []).append(need)
    return needs


def _substituted(path: Path, dataset_root: Path) -> Path:
    text = str(path)
    if text.startswith(ROOT_PLACEHOLDER):
        return Path(str(dataset_root) + text.removeprefix(ROOT_PLACEHOLDER)).absolute()
    return path.absolute()
