"""Files of the official code, written from our artifacts and taken in as artifacts, and the released model.

`checkpoint_69.3.pth` is the state dict of round two's network, with names that begin with `base.`; it is scored without
training. Folders of maps and labels are checked picture by picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsss.data.dataset import Dataset
from wsss.data.palette import encode_palette_png
from wsss.map_rules import read_arrays
from wsss.method import Exporter
from wsss.nn.checkpoint import CheckpointError, read_checkpoint, state_dict_of
from wsss.nn.deeplabv2_msc import DeepLabV2Msc
from wsss.official import (
    LayoutError,
    add_images,
    encode_png,
    label_map_reader,
    png_reader,
    png_writer,
    read_png,
    read_scores,
    training_label_reader,
    write_images,
    write_scores,
)
from wsss.official_weights import encode_state
from wsss.stages import segmentation
from wsss.store import Artifact, ArtifactWriter
from wsss_methods.i2crc import training
from wsss_methods.i2crc.recipe import I2crcRecipe

_CLASSIFIER_BIAS = "extra_convs.6.bias"
# The head of the published network, and of its forms that the platform has besides.
_SEGMENTATION_BIASES = ("base.classifier.conv2d_list.0.bias", "base.aspp.c0.bias")


def exporters() -> Mapping[str, Exporter]:
    """Stage name -> how its artifact is written and read."""
    grey, palette = "<name>.png, grey, at the size of the picture", "<name>.png, VOC palette, class ids"
    logits = "logit/<name>.npy, float32 (classes, h, w) before softmax; read from the folder itself"
    checkpoint = "checkpoint_final.pth, a plain state dict; read from any such file"
    layouts = (
        Exporter("saliency", grey, png_writer("saliency", encode_png), png_reader("saliency", read_grey)),
        Exporter(
            "cam_train",
            "pascal_voc_epoch_last.pth: state_dict with names that begin with module.; read from any epoch's",
            write_classifier,
            read_classifier,
        ),
        Exporter(
            "cam",
            "<name>_<c>.png, grey, for each class of the picture, c from 0 without the background",
            write_class_maps,
            read_class_maps,
        ),
        _labels("pseudo_label", f"{palette}, 255 for no label"),
        Exporter("segmentation_round1_train", checkpoint, write_network, read_network),
        Exporter("segmentation_round1_train_scores", logits, _write_logits, read_scores),
        Exporter(
            "segmentation_round1_labels",
            palette,
            png_writer("prediction", encode_palette_png),
            label_map_reader("prediction"),
        ),
        _labels("refined_label", f"{palette}, 255 for no label"),
        Exporter("segmentation_train", checkpoint, write_network, read_network),
        Exporter("segmentation_scores", logits, _write_logits, read_scores),
        Exporter("segmentation", f"{palette}, with the CRF where it ran", _write_predictions),
    )
    return {layout.stage: layout for layout in layouts}


def check_released_network(path: Path, recipe: I2crcRecipe, dataset: Dataset) -> None:
    """Raises CheckpointError where the file is in another layout or is not of the recipe's network."""
    with torch.random.fork_rng():  # building a network draws weights
        network = DeepLabV2Msc(recipe.segmentation.structure(), dataset.num_classes)
    network.load_published(read_checkpoint(path), where=str(path))


def _labels(stage: str, description: str) -> Exporter:
    return Exporter(stage, description, png_writer("label", encode_palette_png), training_label_reader("label"))


def read_grey(path: Path) -> np.ndarray:
    """An 8-bit grey picture, uint8 (H, W). Raises LayoutError when it is another kind or cannot be decoded."""
    return read_png(path, ("L",))


def write_class_maps(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """`<name>_<c>.png` of every present class, c from 0 without the background; the number of files."""
    folder.mkdir(parents=True, exist_ok=True)
    files, facts = 0, dataset.image_facts(None)
    for name in artifact.images():
        arrays = read_arrays(artifact, name, facts)
        for key, values in zip(arrays["keys"].tolist(), arrays["high_res"], strict=True):
            (folder / f"{name}_{key - 1}.png").write_bytes(encode_png(values))
            files += 1
    return files


def read_class_maps(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes in the files of `write_class_maps`.

    LayoutError names the first picture whose maps are not those of its labels, of another size, or not 8-bit grey.
    """
    view = dataset.view({"images", "image_labels"}, None)
    stored: dict[str, set[int]] = {name: set() for name in names}
    for path in folder.glob("*.png"):
        name, _, number = path.stem.rpartition("_")
        if name in stored and number.isdigit():
            stored[name].add(int(number))

    def read(name: str) -> dict[str, np.ndarray]:
        present = view.present_classes(name)
        expected, found = [key - 1 for key in present], sorted(stored[name])
        where = f"{folder / name}_<c>.png, picture {name}"
        if found != expected:
            labels = ", ".join(dataset.classes[key] for key in present)
            shifted = "; c counts from 0 without the background" if found == list(present) else ""
            raise LayoutError(
                f"there are maps of the classes {found}, the picture's labels are {expected} ({labels}){shifted}",
                where,
                "write one map for each class of the image-level label, as the official test.py does",
            )
        maps = np.zeros((len(present), *view.image_size(name)), dtype=np.uint8)
        for index, number in enumerate(expected):
            values = read_grey(folder / f"{name}_{number}.png")
            if values.shape != maps.shape[1:]:
                raise LayoutError(
                    f"the map of class {number} is {values.shape}, the picture {maps.shape[1:]}",
                    where,
                    "use maps at the size of the pictures",
                )
            maps[index] = values
        return {"keys": np.array(present, dtype=np.int64), "high_res": maps}

    add_images(names, read, writer, dataset)


def write_classifier(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """`{"state_dict": {"module.<name>": tensor}}`."""
    state = read_checkpoint(artifact.path(f"{training.WEIGHTS}.pt"))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(content, folder / "pascal_voc_epoch_last.pth")
    return 1


def read_classifier(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes in the classifier, plain or as the official training wrote it."""
    state = _state_with(path, (_CLASSIFIER_BIAS,), dataset.num_classes - 1, dataset)
    writer.add_file(f"{training.WEIGHTS}.pt", encode_state(state))
    writer.add_file("history.json", b"{}")


def write_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """The state dict of a round's last step, with the official names."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(read_checkpoint(artifact.path(f"{segmentation.WEIGHTS}.pt")), folder / "checkpoint_final.pth")
    return 1


def read_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes in the network of a round: `checkpoint_final.pth`, or the released `checkpoint_69.3.pth`."""
    state = _state_with(path, _SEGMENTATION_BIASES, dataset.num_classes, dataset)
    writer.add_file(f"{segmentation.WEIGHTS}.pt", encode_state(state))
    writer.add_file("history.json", b"{}")


def _state_with(path: Path, biases: tuple[str, ...], classes: int, dataset: Dataset) -> dict[str, Tensor]:
    """The state dict of a file that holds one of the biases, for that many classes; CheckpointError otherwise."""
    state = state_dict_of(read_checkpoint(path), where=str(path))
    bias = next((name for name in biases if name in state), None)
    if bias is None:
        raise CheckpointError(
            f"the checkpoint has no tensor {biases[0]!r}",
            str(path),
            "give the file that the official program wrote for this stage",
        )
    if len(state[bias]) != classes:
        raise CheckpointError(
            f"{bias} has {len(state[bias])} values, data set {dataset.name} needs {classes}",
            str(path),
            "use the data set that it was trained on: voc2012 has 20 classes and the background",
        )
    return state


def _write_logits(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return write_scores(artifact, dataset, folder / "logit")


def _write_predictions(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        best = next(key for key in ("prediction_crf", "prediction_crf_raw", "prediction") if key in arrays)
        path.write_bytes(encode_palette_png(arrays[best]))

    return write_images(artifact, dataset, folder, ".png", write)
