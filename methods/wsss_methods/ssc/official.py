"""Files of the official code, written from our artifacts and taken in as artifacts, and the released model.

The released `best_ckpt.pth` holds `{"net_state_dict": {"network1": {...}, "network2": {...}}}` with the names of
`DeepLabV2`; it is scored without training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsss.data.dataset import Dataset
from wsss.data.palette import encode_palette_png
from wsss.data.superpixels import ids_to_rgb, rgb_to_ids
from wsss.method import Exporter
from wsss.nn.checkpoint import CheckpointError, load_weights, read_checkpoint, state_dict_of
from wsss.official import (
    LayoutError,
    encode_png,
    png_reader,
    png_writer,
    read_cam_dictionaries,
    read_png,
    read_scores,
    training_label_reader,
    write_cam_dictionaries,
    write_images,
    write_scores,
)
from wsss.official_weights import (
    encode_state,
    input_of,
    official_names,
    read_affinity_network,
    read_canonical,
    require_tensor,
    write_affinity_network,
    write_shifted_affinity_network,
)
from wsss.pipeline import Pipeline
from wsss.stages.candidates import read_weights, selected_epoch
from wsss.store import Artifact, ArtifactWriter
from wsss_methods.ssc.networks import CAM_ALIASES, NETWORKS, build_segmentation_network
from wsss_methods.ssc.pipeline import inference_protocol, prediction_grid, segmentation_headline, segmentation_stages
from wsss_methods.ssc.recipe import SscRecipe


def exporters() -> Mapping[str, Exporter]:
    """Stage or layout name -> how it is written and read."""
    return {
        "superpixels": Exporter(
            "superpixels",
            "voc_superpixels/<name>.png, RGB, id = R + 256 G + 65536 B",
            write=png_writer("ids", lambda ids: encode_png(ids_to_rgb(ids))),
            read=png_reader("ids", lambda path: rgb_to_ids(read_png(path, ("RGB", "RGBA")))),
        ),
        "cam_train": Exporter(
            "cam_train", "res50_cam.pth.pth and res50_cam.pth_dec.pth", write=_write_cam_network, read=_read_cam_network
        ),
        "cam": Exporter(
            "cam",
            "cam/<name>.npy, a pickled dictionary of keys, cam and high_res; read from <name>.npz",
            write=write_cam_dictionaries,
            read=read_cam_dictionaries,
        ),
        "ir_label": Exporter(
            "ir_label",
            "ir_label/<name>.png, grey, 0 background, 255 unsure",
            write=png_writer("label", encode_png),
            read=training_label_reader("label"),
        ),
        "affinity_train": Exporter(
            "affinity_train",
            "res50_irn.pth (mean_shift is zero; the layout of stage affinity_displacement has it)",
            write=write_affinity_network,
            read=read_affinity_network,
        ),
        "affinity_displacement": Exporter(
            "affinity_displacement", "res50_irn.pth with the mean displacement", write=write_shifted_affinity_network
        ),
        "pseudo_label": Exporter(
            "pseudo_label",
            "sem_seg/<name>.png, grey, class ids",
            write=png_writer("label", encode_png),
            read=training_label_reader("label"),
        ),
        "confidence_mask": Exporter(
            "confidence_mask",
            "mask_irn/<name>.png, three equal channels, 0 or 255",
            write=png_writer(
                "mask", lambda mask: encode_png(np.repeat((mask > 0)[..., None], 3, axis=2) * np.uint8(255))
            ),
            read=png_reader("mask", _read_confidence_mask),
        ),
        "segmentation_train": Exporter(
            "segmentation_train",
            "best_ckpt.pth, here of the last epoch",
            write=_write_last_networks,
            read=_read_networks,
        ),
        "best_checkpoint": Exporter(
            "segmentation_selection", "best_ckpt.pth of the epoch chosen on val", write=_write_best_networks
        ),
        "segmentation_scores": Exporter(
            "segmentation_scores",
            "logits_msc/<name>.npy, float32 (classes, h, w) before softmax",
            write=write_scores,
            read=read_scores,
        ),
        "segmentation": Exporter(
            "segmentation", "val_pred/<name>.png, VOC palette, with the CRF where it ran", write=_write_predictions
        ),
    }


def _read_confidence_mask(path: Path) -> np.ndarray:
    """uint8 (H, W), 1 where the file has 255."""
    values = read_png(path, ("RGB", "L"))
    found = np.unique(values)
    if values.ndim == 3 and (values != values[..., :1]).any():
        raise LayoutError("the three channels differ", str(path), "give the masks that the official program wrote")
    if not np.isin(found, (0, 255)).all():
        raise LayoutError(
            f"the mask has values {found[:8].tolist()}, expected 0 and 255", str(path), "write 255 for a trusted pixel"
        )
    return (values if values.ndim == 2 else values[..., 0]) // 255


def _write_predictions(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        best = next(key for key in ("prediction_crf", "prediction_crf_raw", "prediction") if key in arrays)
        path.write_bytes(encode_palette_png(arrays[best]))

    return write_images(artifact, dataset, folder, ".png", write)


def _write_cam_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    # The doubled suffix is that of the official program.
    torch.save(
        official_names(read_checkpoint(artifact.path("cam_network.pt")), CAM_ALIASES), folder / "res50_cam.pth.pth"
    )
    if "decoder.pt" not in artifact.files:
        return 1
    torch.save(read_checkpoint(artifact.path("decoder.pt")), folder / "res50_cam.pth_dec.pth")
    return 2


def _read_cam_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    state = read_canonical(path, CAM_ALIASES)
    require_tensor(state, "classifier.weight", path)
    writer.add_file("cam_network.pt", encode_state(state))
    writer.add_file("history.json", b"{}")
    decoder = path.with_name(path.name.removesuffix(".pth") + "_dec.pth")
    if decoder.is_file():
        writer.add_file("decoder.pt", encode_state(read_canonical(decoder, ())))


def _write_last_networks(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _write_networks(artifact, 0, folder)


def _write_best_networks(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    weights = input_of(input_of(artifact, "candidates"), "weights")
    return _write_networks(weights, selected_epoch(artifact), folder)


def _write_networks(artifact: Artifact, epoch: int, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    states = [read_weights(artifact, name, epoch) for name in NETWORKS]
    write_cotraining_checkpoint(folder / "best_ckpt.pth", *states)
    return 1


def _read_networks(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    for name, state in read_cotraining_checkpoint(path).items():
        writer.add_file(f"{name}.pt", encode_state(state))
    writer.add_file("history.json", b"{}")


def read_cotraining_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """State dicts of both networks of an official `best_ckpt.pth` by name, ready for `load_state_dict`.

    Accepts the official layout, the same without the `net_state_dict` level, a `module.` prefix, the further entries
    of a resume file, and missing batch-norm counters (they start at 0).  Raises CheckpointError for anything else.
    """
    content, where = read_checkpoint(path), str(path)
    level = content.get("net_state_dict", content)
    missing = [name for name in NETWORKS if not isinstance(level.get(name), Mapping)]
    if missing:
        found = ", ".join(map(str, list(level)[:5]))
        raise CheckpointError(
            f"the file has no weights of {' and '.join(missing)}; it holds {found}",
            where,
            "give best_ckpt.pth of a co-training run, with both networks",
        )
    return {name: _with_counters(state_dict_of(level[name], where=f"{where}, {name}")) for name in NETWORKS}


def write_cotraining_checkpoint(path: Path, network1: Mapping[str, Tensor], network2: Mapping[str, Tensor]) -> None:
    """Write two state dicts (names without prefix) as the official `best_ckpt.pth`."""
    states = {
        name: {key: value.detach().cpu() for key, value in state.items()}
        for name, state in zip(NETWORKS, (network1, network2), strict=True)
    }
    torch.save({"net_state_dict": states}, path)


def _with_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Batch-norm layers get a counter where the file has none."""
    complete = dict(state)
    for name in state:
        if name.endswith(".running_var"):
            counter = name.removesuffix("running_var") + "num_batches_tracked"
            complete.setdefault(counter, torch.zeros((), dtype=torch.long))
    return complete


def build_released_pipeline(recipe: SscRecipe, dataset: Dataset) -> Pipeline:
    """The co-training and what follows it: the training only names the stage that the file stands for.

    No ImageNet weights are asked for.
    """
    training, *behind = segmentation_stages(recipe, {}, "train_aug")
    return Pipeline(
        stages=(replace(training, inputs={}), *behind),
        headline=segmentation_headline(recipe),
        grids=(prediction_grid(recipe),),
        protocol={
            "segmentation networks": f"two {recipe.segmentation.architecture}, released weights",
            "checkpoint": "the authors' choice, by the masks of val",
            **inference_protocol(recipe),
        },
    )


def check_released_networks(path: Path, recipe: SscRecipe, dataset: Dataset) -> None:
    """Raises CheckpointError where the file is in another layout or a network of it is not the recipe's."""
    network = build_segmentation_network(recipe.segmentation, dataset.num_classes)
    for name, state in read_cotraining_checkpoint(path).items():
        load_weights(network, state, where=f"{path}, {name}")
