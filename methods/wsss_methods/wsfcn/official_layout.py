"""Files of the official code, written from our artifacts and taken in as artifacts (WS-FCN, sections 2 and 11)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.palette import read_palette_mask
from wsss.errors import WsssError
from wsss.method import Exporter
from wsss.nn.checkpoint import CheckpointError
from wsss.stages.candidates import METRICS_FILE, selected_epoch, weights_file
from wsss.store import Artifact, ArtifactWriter
from wsss_methods.wsfcn.official_checkpoint import classes_of, read_official
from wsss_methods.wsfcn.training import WEIGHTS

_SHARD = 128


class LayoutError(WsssError):
    """Files are not in the layout of the official code."""


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
            "segmentation_crf", f"crf/{labels}; read from the folder itself", write=_write_crf_labels, read=_read_labels
        ),
    }


def _write_last(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _write_checkpoint(artifact, 0, folder / "model_enc_last.pth")


def _write_best(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    epoch, score = selected_epoch(artifact), artifact.json(METRICS_FILE)[f"{artifact.stage}/score_val"]
    weights = _input_of(_input_of(artifact, "candidates"), "weights")
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
    buffer = io.BytesIO()
    torch.save(state, buffer)
    writer.add_file(f"{WEIGHTS}.pt", buffer.getvalue())
    writer.add_file("history.json", b"{}")


def _write_labels(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in artifact.images():
        Image.fromarray(artifact.arrays(name)["prediction"]).save(folder / f"{name}.png")
    return len(artifact.images())


def _write_crf_labels(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _write_labels(artifact, dataset, folder / "crf")


def _read_labels(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    missing = [name for name in names if not (folder / f"{name}.png").is_file()]
    if missing:
        raise LayoutError(
            f"{len(missing)} of {len(names)} images have no file, the first is {missing[0]}.png",
            str(folder),
            "give the folder that holds one PNG for each image of val (OUT/crf of the official program)",
        )
    view = dataset.view({"images"}, None)

    def arrays(name: str) -> dict[str, np.ndarray]:
        prediction = read_palette_mask(folder / f"{name}.png")
        if prediction.shape != view.image_size(name) or prediction.max() >= dataset.num_classes:
            raise LayoutError(
                f"labels are {prediction.shape} up to {prediction.max()}, the picture {view.image_size(name)} with "
                f"{dataset.num_classes} classes",
                str(folder / f"{name}.png"),
                "give predictions of this data set at the size of its pictures",
            )
        return {"prediction": prediction}

    for index, start in enumerate(range(0, len(names), _SHARD)):
        writer.add_shard(index, {name: arrays(name) for name in names[start : start + _SHARD]})


def _input_of(artifact: Artifact, role: str) -> Artifact:
    """The artifact that another one was computed from, in the same store."""
    place = artifact.provenance.get("inputs", {}).get(role)
    if not place:
        raise LayoutError(
            f"artifact of stage {artifact.stage!r} does not say what it was computed from",
            artifact.location,
            "export segmentation_train instead",
        )
    stage, _, key = place.partition("/")
    return Artifact(artifact.backend, stage, key)
