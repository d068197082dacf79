"""Files of the official code: weights in every spelling, `camnpy/<name>.npy`, pseudo labels and their `result.txt`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.data.dataset import Dataset
from wsss.data.palette import encode_palette_png
from wsss.method import Exporter
from wsss.nn.checkpoint import CheckpointError, read_checkpoint, state_dict_of
from wsss.official import (
    LayoutError,
    add_images,
    checked_class_maps,
    png_writer,
    read_npy,
    read_scores,
    require_files,
    training_label_reader,
    write_images,
    write_scores,
)
from wsss.official_weights import encode_state, input_of, read_canonical, require_tensor
from wsss.stages.candidates import METRICS_FILE, read_weights, selected_epoch
from wsss.stages.segmentation import WEIGHTS as SEGMENTATION_WEIGHTS
from wsss.store import Artifact, ArtifactWriter
from wsss_methods.msa.networks import STAGES
from wsss_methods.msa.superpixel_network import WEIGHTS as SUPERPIXEL_WEIGHTS
from wsss_methods.msa.superpixel_network import load_superpixel_network
from wsss_methods.msa.training import WEIGHTS

_CLASSIFIERS = ("classifier.0.weight", "classifier.weight")
# Of a DeepLabV2 in Caffe's form and in torchvision's.
_HEADS = ("base.aspp.c0.weight", "base.classifier.conv2d_list.0.weight")
_RESULT = "result.txt"


def exporters() -> Mapping[str, Exporter]:
    """Stage or layout name -> how it is written and read."""
    superpixel = "a state dict with the bare names that its training writes"
    return {
        "superpixel_train": Exporter(
            "superpixel_train",
            f"scn.pth, {superpixel}; read also with module. before each name, or inside SpixelNet_bsd_ckpt.tar",
            write=_write_superpixel_network,
            read=_read_superpixel_network,
        ),
        "superpixel_train_parallel": Exporter(
            "superpixel_train",
            "Q_model_final.pth, a state dict with module. before each name, as the other programs read it",
            write=_write_parallel_superpixel_network,
        ),
        "cam_train": Exporter(
            "cam_train",
            "cls.pth of the last epoch, a state dict with both names of the backbone; read with either or both",
            write=_write_last_network,
            read=_read_network,
        ),
        "best_checkpoint": Exporter(
            "cam_selection", "cls.pth of the epoch chosen by the masks of train", write=_write_best_network
        ),
        "cam": Exporter(
            "cam",
            "camnpy/<name>.npy, float32 (1, classes, H, W) in [0, 1], 0 for absent classes; the background, which "
            "nothing trains, is written as 0 and not read",
            write=_write_cam,
            read=_read_cam,
        ),
        "cam_evaluation": Exporter(
            "cam_evaluation",
            "result.txt, a line for each constant: mIoU in percent, refinement steps, constant",
            write=_write_result,
            read=_read_result,
        ),
        "pseudo_label": Exporter(
            "pseudo_label",
            "pseudo/<constant>/0/<name>.png, VOC palette, class ids; read from the folder of the files itself",
            write=_write_pseudo_labels,
            read=training_label_reader("label"),
        ),
        "segmentation_train": Exporter(
            "segmentation_train",
            "checkpoint_final.pth of deeplab-pytorch, names begin with base.",
            write=_write_segmentation_network,
            read=_read_segmentation_network,
        ),
        "segmentation_scores": Exporter(
            "segmentation_scores",
            "logit/<name>.npy, float32 (classes, h, w) before softmax",
            write=write_scores,
            read=read_scores,
        ),
        "segmentation": Exporter(
            "segmentation", "<name>.png, VOC palette, without CRF", write=png_writer("prediction", encode_palette_png)
        ),
    }


def _save(state: Mapping[str, Tensor], path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), path)
    return 1


def _add(state: Mapping[str, Tensor], stem: str, writer: ArtifactWriter) -> None:
    writer.add_file(f"{stem}.pt", encode_state(state))
    writer.add_file("history.json", b"{}")


def _write_superpixel_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _save(read_weights(artifact, SUPERPIXEL_WEIGHTS, 0), folder / "scn.pth")


def _write_parallel_superpixel_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    state = read_weights(artifact, SUPERPIXEL_WEIGHTS, 0)
    return _save({f"module.{name}": value for name, value in state.items()}, folder / "Q_model_final.pth")


def _read_superpixel_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    state = state_dict_of(read_checkpoint(path), where=str(path))
    load_superpixel_network(state, where=str(path))
    _add(state, SUPERPIXEL_WEIGHTS, writer)


def _write_last_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _save(read_weights(artifact, WEIGHTS, 0), folder / "cls.pth")


def _write_best_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    weights = input_of(input_of(artifact, "candidates"), "weights")
    return _save(read_weights(weights, WEIGHTS, selected_epoch(artifact)), folder / "cls.pth")


def _read_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    state = read_canonical(path, STAGES)
    classifier = next((name for name in _CLASSIFIERS if name in state), _CLASSIFIERS[0])
    require_tensor(state, classifier, path)
    _check_classes(len(state[classifier]), dataset, path)
    _add(state, WEIGHTS, writer)


def _check_classes(found: int, dataset: Dataset, path: Path) -> None:
    if found != dataset.num_classes:
        raise CheckpointError(
            f"the checkpoint knows {found} classes, data set {dataset.name} has {dataset.num_classes}",
            str(path),
            "choose the data set that it was trained on: 21 classes are voc2012, 81 coco2014 (dataset.name)",
        )


def _write_cam(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        maps = arrays["high_res"].astype(np.float32)
        every = np.zeros((1, dataset.num_classes, *maps.shape[1:]), dtype=np.float32)
        every[0, arrays["keys"]] = maps
        np.save(path, every)

    return write_images(artifact, dataset, folder / "camnpy", ".npy", write)


def _read_cam(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes the maps of each picture's classes in; LayoutError for a map of another class that is not 0."""
    require_files(folder, names, ".npy")
    view = dataset.view({"images", "image_labels"}, None)

    def read(name: str) -> dict[str, np.ndarray]:
        path = folder / f"{name}.npy"
        every = read_npy(path)
        if every.ndim != 4 or every.shape[:2] != (1, dataset.num_classes):
            raise LayoutError(
                f"maps are {every.shape}, expected (1, {dataset.num_classes}, H, W)", str(path), "check the folder"
            )
        # The background's map is a score that nothing trained.
        found = {*view.present_classes(name), *(1 + np.flatnonzero(every[0, 1:].any(axis=(1, 2)))).tolist()}
        keys = np.array(sorted(found), dtype=np.int64)
        maps = {"high_res": (every[0, keys], view.image_size(name))}
        ids, checked = checked_class_maps(name, keys - 1, maps, view, path)
        return {"keys": ids, **checked}

    add_images(names, read, writer, dataset)


def _write_result(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    rows = artifact.json("tables.json")["curve"]
    lines = [f"{100 * row['miou']:>10.2f} {0:>10.2f} {row['threshold']:>10.2f}\n" for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RESULT).write_text("".join(lines), encoding="utf-8")
    return 1


def _read_result(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes in what the lines without refinement say: a curve, its best constant, and no counts."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            score, steps, threshold = map(float, line.split())
        except ValueError:
            raise LayoutError(
                f"line {number} is {line!r}, expected mIoU, refinement steps and constant",
                str(path),
                "give the result.txt of the official evaluator",
            ) from None
        if steps == 0:
            rows.append({"threshold": threshold, "miou": score / 100, "default": False, "oracle": False})
    if not rows:
        raise LayoutError("no line is without refinement", str(path), "give a result.txt with refinement steps 0")
    best = max(rows, key=lambda row: row["miou"])
    best["oracle"] = True
    metrics = {"cam/miou_train_oracle": best["miou"], "cam/oracle_threshold_train": best["threshold"]}
    writer.add_file(METRICS_FILE, json.dumps(metrics).encode())
    writer.add_file("tables.json", json.dumps({"curve": rows}).encode())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, thresholds=np.array([row["threshold"] for row in rows]))
    writer.add_file("arrays.npz", buffer.getvalue())


def _write_pseudo_labels(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        path.write_bytes(encode_palette_png(arrays["label"]))

    # Labels that were taken in do not say their constant.
    threshold = artifact.arrays(artifact.images()[0]).get("threshold")
    place = folder / "pseudo" / (str(float(threshold)) if threshold is not None else "imported") / "0"
    return write_images(artifact, dataset, place, ".png", write)


def _write_segmentation_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _save(read_weights(artifact, SEGMENTATION_WEIGHTS, 0), folder / "checkpoint_final.pth")


def _read_segmentation_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    state = state_dict_of(read_checkpoint(path), where=str(path))
    head = next((name for name in _HEADS if name in state), _HEADS[0])
    require_tensor(state, head, path)
    _check_classes(len(state[head]), dataset, path)
    _add(state, SEGMENTATION_WEIGHTS, writer)
