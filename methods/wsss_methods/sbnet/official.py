"""Files of the official programs, written from our artifacts and taken in as artifacts, and the released model.

Checkpoints are flat state dicts with the names of the networks. Class maps and CRF scores are pickled dictionaries,
which are never loaded: a converted folder is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from wsss.data.dataset import Dataset
from wsss.data.palette import encode_palette_png
from wsss.method import Exporter
from wsss.nn.checkpoint import CheckpointError, load_weights, read_checkpoint, state_dict_of
from wsss.nn.deeplabv2_msc import DeepLabV2Msc
from wsss.official import (
    LayoutError,
    Read,
    Write,
    add_images,
    encode_png,
    map_dictionary_reader,
    png_writer,
    training_label_reader,
    write_images,
    write_map_dictionaries,
)
from wsss.official_weights import encode_state, require_tensor
from wsss.ops.cam import as_shares
from wsss.pipeline import Pipeline
from wsss.stages.affinity_psa import WEIGHTS as AFFINITY_WEIGHTS
from wsss.stages.segmentation import WEIGHTS as SEGMENTATION_WEIGHTS
from wsss.store import Artifact, ArtifactWriter
from wsss_methods.sbnet.deeplabv1 import DeepLabV1
from wsss_methods.sbnet.pipeline import build_pipeline, inference_protocol, prediction_grid, segmentation_headline
from wsss_methods.sbnet.recipe import BoundarySettings, SbnetRecipe, WeightSettings
from wsss_methods.sbnet.training import WEIGHTS as CAM_WEIGHTS

# Folders below the given one, after the options that AffinityNet's training takes them by, and their arrays.
_CRF_FOLDERS = {"la_crf": "crf_low", "ha_crf": "crf_high"}
# Official endings of these folders: powers of the background, such as `_4.0` and `_24.0`.
_POWER = re.compile(r"_(\d+(\.\d+)?)$")
_BRANCH = "edge_layer.classifier.weight"


@dataclass(frozen=True)
class _Checkpoint:
    """File of a training stage.

    Attributes:
        file: its name when written.
        stem: of the stage's file of weights.
        signs: tensors by which it is known; one of them is there.
        by_class: whether these have a row for each class.
    """

    file: str
    stem: str
    signs: tuple[str, ...]
    by_class: bool = True


_CHECKPOINTS = {
    "cam_train": _Checkpoint("sbnet_cam.pth", CAM_WEIGHTS, (_BRANCH,)),
    "seam_cam_train": _Checkpoint("seam_cam.pth", CAM_WEIGHTS, ("fc8.weight",)),
    "affinity_train": _Checkpoint("affinitynet.pth", AFFINITY_WEIGHTS, ("f8_5.weight",), by_class=False),
    "segmentation_train": _Checkpoint(
        "segmentation.pth",
        SEGMENTATION_WEIGHTS,
        ("base.aspp.c0.weight", "base.classifier.conv2d_list.0.weight", "cls_conv.weight"),
    ),
}


def exporters() -> Mapping[str, Exporter]:
    """Stage or layout name -> how it is written and read."""
    maps = "<name>.npy, a pickled {class from 0: float32 (H, W)}; read from <name>.npz"
    crf = f"la_crf and ha_crf with {maps.replace('{class from 0', '{0 for the background, class from 1')}"
    labels = "<name>.png, grey, class ids, at the size of the picture"
    return {
        **{
            stage: Exporter(
                stage, f"{each.file}, a plain state dict", _checkpoint_writer(each), _checkpoint_reader(stage)
            )
            for stage, each in _CHECKPOINTS.items()
        },
        "boundary": Exporter(
            "boundary",
            "<name>.npy, float32 (classes, H, W); read with boundary.source=folder boundary.folder=FOLDER",
            write=_write_boundaries,
        ),
        **{
            stage: Exporter(stage, maps, write_map_dictionaries("high_res"), _read_cam)
            for stage in ("cam", "cam_val", "seam_cam")
        },
        **{stage: Exporter(stage, crf, _write_crf, _read_crf) for stage in ("crf", "crf_val")},
        **{
            stage: Exporter(stage, labels, png_writer("label", encode_png), training_label_reader("label"))
            for stage in ("pseudo_label", "pseudo_label_val")
        },
        "segmentation": Exporter(
            "segmentation", "<name>.png, VOC palette, with the CRF where it ran", write=_write_predictions
        ),
    }


def _checkpoint_writer(checkpoint: _Checkpoint) -> Write:
    def write(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(read_checkpoint(artifact.path(f"{checkpoint.stem}.pt")), folder / checkpoint.file)
        return 1

    return write


def _checkpoint_reader(stage: str) -> Read:
    def read(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
        checkpoint, state = _CHECKPOINTS[stage], state_dict_of(read_checkpoint(path), where=str(path))
        sign = next((sign for sign in checkpoint.signs if sign in state), checkpoint.signs[0])
        require_tensor(state, sign, path)
        if stage == "seam_cam_train" and _BRANCH in state:
            raise CheckpointError(
                "this network has a boundary branch", str(path), "it is SBNet's: import it as cam_train"
            )
        if checkpoint.by_class and len(state[sign]) != dataset.num_classes:
            raise CheckpointError(
                f"{sign} is of {len(state[sign])} classes, data set {dataset.name} has {dataset.num_classes}",
                str(path),
                "choose the data set that it was trained on (dataset.name)",
            )
        writer.add_file(f"{checkpoint.stem}.pt", encode_state(state))
        writer.add_file("history.json", b"{}")

    return read


def _write_boundaries(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        maps = np.zeros((dataset.num_classes, *arrays["boundary"].shape[1:]), dtype=np.float32)
        maps[[0, *arrays["keys"]]] = as_shares(arrays["boundary"])
        np.save(path, maps)

    return write_images(artifact, dataset, folder, ".npy", write)


def _read_cam(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    read = map_dictionary_reader(folder, dataset, names)
    add_images(names, lambda name: dict(zip(("keys", "high_res"), read(name), strict=True)), writer, dataset)


def _write_crf(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return sum(
        write_map_dictionaries(array, background=True)(artifact, dataset, folder / name)
        for name, array in _CRF_FOLDERS.items()
    )


def _read_crf(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    readers = [map_dictionary_reader(each, dataset, names, background=True) for each in _crf_folders(folder)]

    def read(name: str) -> dict[str, np.ndarray]:
        (keys, low), (other, high) = (read(name) for read in readers)
        if keys.tolist() != other.tolist():
            raise LayoutError(
                f"the two CRFs of {name} have the classes {keys.tolist()} and {other.tolist()}",
                str(folder),
                "write both folders from the same class maps",
            )
        return {"keys": keys, "crf_low": low, "crf_high": high}

    add_images(names, read, writer, dataset)


def _crf_folders(folder: Path) -> list[Path]:
    """The folders of the smaller and of the larger power: `la_crf` and `ha_crf`, or two that end in their powers."""
    named = [folder / name for name in _CRF_FOLDERS]
    if all(each.is_dir() for each in named):
        return named
    found = {
        float(match[1]): each for each in folder.iterdir() if (match := _POWER.search(each.name)) and each.is_dir()
    }
    if len(found) != 2:
        held = ", ".join(sorted(each.name for each in folder.iterdir())[:5]) or "nothing"
        raise LayoutError(
            f"it does not hold one folder for each of two powers of the background; it holds {held}",
            str(folder),
            f"put the two folders of the CRF there, as {' and '.join(_CRF_FOLDERS)}, or such as crf_4.0 and crf_24.0",
        )
    return [found[power] for power in sorted(found)]


def _write_predictions(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        best = next(key for key in ("prediction_crf_raw", "prediction_crf", "prediction") if key in arrays)
        path.write_bytes(encode_palette_png(arrays[best]))

    return write_images(artifact, dataset, folder, ".png", write)


def build_released_pipeline(recipe: SbnetRecipe, dataset: Dataset) -> Pipeline:
    """What follows the training of the segmentation network; no ImageNet weights and no boundary maps are asked for."""
    bare = replace(recipe, weights=WeightSettings(), boundary=BoundarySettings(source="zeros"))
    pipeline = build_pipeline(bare, dataset)
    return replace(
        pipeline,
        headline=segmentation_headline(recipe),
        grids=(prediction_grid(recipe),),
        protocol={
            "segmentation network": "released weights",
            "checkpoint": "the authors' choice, unknown",
            **inference_protocol(recipe),
        },
    )


def check_released_network(path: Path, recipe: SbnetRecipe, dataset: Dataset) -> None:
    """Raises CheckpointError where the file is in another layout or is not of the recipe's network."""
    state = read_checkpoint(path)
    with torch.random.fork_rng():  # building a network draws weights
        if recipe.retraining.network == "deeplabv1_resnet38":
            load_weights(DeepLabV1(dataset.num_classes, recipe.deeplabv1.width), state, where=str(path))
        else:
            DeepLabV2Msc(recipe.segmentation.structure(), dataset.num_classes).load_published(state, where=str(path))
