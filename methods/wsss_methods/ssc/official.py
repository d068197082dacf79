"""Files of the official code, written from our artifacts and taken in as artifacts, and the released model.

The released `best_ckpt.pth` holds `{"net_state_dict": {"network1": {...}, "network2": {...}}}` with the names of
`DeepLabV2`; it is scored without training.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from wsss.data.dataset import Dataset
from wsss.data.palette import encode_palette_png, read_palette_mask
from wsss.data.superpixels import ids_to_rgb, rgb_to_ids
from wsss.errors import WsssError
from wsss.method import Exporter
from wsss.nn.checkpoint import (
    Aliases,
    CheckpointError,
    canonical_state_dict,
    load_weights,
    read_checkpoint,
    state_dict_of,
)
from wsss.nn.irn import HEAD_ALIASES, RESNET50_ALIASES, TRAINING_BUFFERS
from wsss.pipeline import GridColumn, Pipeline, SampleGrid
from wsss.stages.cam import read_high_res
from wsss.stages.candidates import read_weights, selected_epoch
from wsss.store import Artifact, ArtifactWriter
from wsss_methods.ssc.networks import CAM_ALIASES, NETWORKS, build_segmentation_network
from wsss_methods.ssc.pipeline import best_prediction, inference_protocol, segmentation_stages
from wsss_methods.ssc.recipe import SscRecipe
from wsss_methods.ssc.segmentation import crf_variants

AFFINITY_ALIASES: Aliases = (*RESNET50_ALIASES, *HEAD_ALIASES)
_SHARD = 128
_CAM_CONVERSION = (
    "convert the folder once where you trust it: for each file "
    "d = np.load(f, allow_pickle=True).item(); np.savez(f[:-4] + '.npz', "
    "keys=np.asarray(d['keys']), cam=np.asarray(d['cam']), high_res=d['high_res'])"
)


class LayoutError(WsssError):
    """Files are not in the layout of the official code."""


def exporters() -> Mapping[str, Exporter]:
    """Stage or layout name -> how it is written and read."""
    return {
        "superpixels": Exporter(
            "superpixels",
            "voc_superpixels/<name>.png, RGB, id = R + 256 G + 65536 B",
            write=_png_writer("ids", lambda ids: _png(ids_to_rgb(ids))),
            read=_png_reader("ids", lambda path: rgb_to_ids(_read_rgb(path))),
        ),
        "cam_train": Exporter(
            "cam_train", "res50_cam.pth.pth and res50_cam.pth_dec.pth", write=_write_cam_network, read=_read_cam_network
        ),
        "cam": Exporter(
            "cam",
            "cam/<name>.npy, a pickled dictionary of keys, cam and high_res; read from <name>.npz",
            write=_write_cam,
            read=_read_cam,
        ),
        "ir_label": Exporter(
            "ir_label",
            "ir_label/<name>.png, grey, 0 background, 255 unsure",
            write=_png_writer("label", _png),
            read=_png_reader("label", read_palette_mask),
        ),
        "affinity_train": Exporter(
            "affinity_train",
            "res50_irn.pth (mean_shift is zero; the layout of stage affinity_displacement has it)",
            write=_write_affinity_network,
            read=_read_affinity_network,
        ),
        "affinity_displacement": Exporter(
            "affinity_displacement", "res50_irn.pth with the mean displacement", write=_write_shifted_affinity_network
        ),
        "pseudo_label": Exporter(
            "pseudo_label",
            "sem_seg/<name>.png, grey, class ids",
            write=_png_writer("label", _png),
            read=_png_reader("label", read_palette_mask),
        ),
        "confidence_mask": Exporter(
            "confidence_mask",
            "mask_irn/<name>.png, three equal channels, 0 or 255",
            write=_png_writer("mask", lambda mask: _png(np.repeat((mask > 0)[..., None], 3, axis=2) * np.uint8(255))),
            read=_png_reader("mask", lambda path: (_read_rgb(path)[..., 0] > 127).astype(np.uint8)),
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
            write=_write_scores,
            read=_read_scores,
        ),
        "segmentation": Exporter(
            "segmentation",
            "val_pred/<name>.png, VOC palette, with the CRF where it ran",
            write=_write_predictions,
        ),
    }


def _write_cam(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """The official dictionaries: 0-based int64 `keys` and float32 `cam` as tensors, float32 `high_res`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in artifact.images():
        arrays = artifact.arrays(name)
        content = {
            "keys": torch.from_numpy(arrays["keys"].astype(np.int64) - 1),
            "cam": torch.from_numpy(arrays["cam"].astype(np.float32)),
            "high_res": read_high_res(arrays),
        }
        np.save(folder / f"{name}.npy", np.array(content, dtype=object), allow_pickle=True)
    return len(artifact.images())


def _read_cam(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    if (folder / f"{names[0]}.npy").is_file() and not (folder / f"{names[0]}.npz").is_file():
        raise LayoutError(
            "the .npy files of the official code are pickles, which can run code when read, and are never loaded",
            str(folder),
            _CAM_CONVERSION,
        )

    def read(name: str) -> dict[str, np.ndarray]:
        path = folder / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as content:
                keys = np.asarray(content["keys"], dtype=np.int64) + 1
                cam, high_res = content["cam"], content["high_res"]
        except (OSError, KeyError, ValueError) as error:
            raise LayoutError(f"the file cannot be read: {error}", str(path), _CAM_CONVERSION) from error
        if not len(keys) == len(cam) == len(high_res):
            raise LayoutError("keys, cam and high_res differ in length", str(path), _CAM_CONVERSION)
        return {
            "keys": keys,
            "cam": cam.astype(np.float16),
            "high_res": high_res.astype(np.float16),
            "size": np.array(high_res.shape[1:], dtype=np.int64),
        }

    _add_images(names, read, writer)


def _write_scores(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in artifact.images():
        np.save(folder / f"{name}.npy", artifact.arrays(name)["scores"].astype(np.float32), allow_pickle=False)
    return len(artifact.images())


def _read_scores(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    def read(name: str) -> dict[str, np.ndarray]:
        path = folder / f"{name}.npy"
        try:
            scores = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise LayoutError(f"the file cannot be read: {error}", str(path), "complete the folder") from error
        if scores.ndim != 3 or len(scores) != dataset.num_classes:
            raise LayoutError(
                f"scores are {scores.shape}, expected ({dataset.num_classes}, h, w)", str(path), "check the folder"
            )
        return {"scores": scores.astype(np.float32)}

    _add_images(names, read, writer)


def _write_predictions(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in artifact.images():
        arrays = artifact.arrays(name)
        best = next(key for key in ("prediction_crf", "prediction_crf_raw", "prediction") if key in arrays)
        (folder / f"{name}.png").write_bytes(encode_palette_png(arrays[best]))
    return len(artifact.images())


def _write_cam_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    # The doubled suffix is that of the official program.
    torch.save(
        _official_names(read_checkpoint(artifact.path("cam_network.pt")), CAM_ALIASES), folder / "res50_cam.pth.pth"
    )
    if "decoder.pt" not in artifact.files:
        return 1
    torch.save(read_checkpoint(artifact.path("decoder.pt")), folder / "res50_cam.pth_dec.pth")
    return 2


def _read_cam_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    state = _canonical(path, CAM_ALIASES)
    _require(state, "classifier.weight", path)
    writer.add_file("cam_network.pt", _encoded(state))
    writer.add_file("history.json", b"{}")
    decoder = path.with_name(path.name.removesuffix(".pth") + "_dec.pth")
    if decoder.is_file():
        writer.add_file("decoder.pt", _encoded(_canonical(decoder, ())))


def _write_affinity_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        _official_names(read_checkpoint(artifact.path("affinity_network.pt")), AFFINITY_ALIASES),
        folder / "res50_irn.pth",
    )
    return 1


def _write_shifted_affinity_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    weights = _input_of(artifact, "weights")
    state = read_checkpoint(weights.path("affinity_network.pt"))
    names = [name for name in dataset.lists["train"] if name in set(artifact.images())]
    # The official program goes through whole batches of 16 and leaves the rest out.
    whole = len(names) // 16 * 16 or len(names)
    mean = np.mean([artifact.arrays(name)["displacement"] for name in names[:whole]], axis=0)
    state["mean_shift.running_mean"] = torch.from_numpy(mean.astype(np.float32))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_official_names(state, AFFINITY_ALIASES), folder / "res50_irn.pth")
    return 1


def _read_affinity_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    state = _canonical(path, AFFINITY_ALIASES)
    _require(state, "fc_edge6.weight", path)
    writer.add_file("affinity_network.pt", _encoded(state))
    writer.add_file("history.json", b"{}")


def _write_last_networks(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    return _write_networks(artifact, 0, folder)


def _write_best_networks(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    weights = _input_of(_input_of(artifact, "candidates"), "weights")
    return _write_networks(weights, selected_epoch(artifact), folder)


def _write_networks(artifact: Artifact, epoch: int, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    states = [read_weights(artifact, name, epoch) for name in NETWORKS]
    write_cotraining_checkpoint(folder / "best_ckpt.pth", *states)
    return 1


def _read_networks(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    for name, state in read_cotraining_checkpoint(path).items():
        writer.add_file(f"{name}.pt", _encoded(state))
    writer.add_file("history.json", b"{}")


def _png_writer(array: str, encode: Callable[[np.ndarray], bytes]) -> Callable[[Artifact, Dataset, Path], int]:
    def write(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        for name in artifact.images():
            (folder / f"{name}.png").write_bytes(encode(artifact.arrays(name)[array]))
        return len(artifact.images())

    return write


def _png_reader(
    array: str, decode: Callable[[Path], np.ndarray]
) -> Callable[[Path, Dataset, tuple[str, ...], ArtifactWriter], None]:
    def read(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
        missing = [name for name in names if not (folder / f"{name}.png").is_file()]
        if missing:
            raise LayoutError(
                f"{len(missing)} of {len(names)} images have no file, the first is {missing[0]}.png",
                str(folder),
                "give the folder that holds one PNG for each image of the stage's list",
            )
        view = dataset.view({"images"}, None)

        def arrays(name: str) -> dict[str, np.ndarray]:
            values = decode(folder / f"{name}.png")
            if values.shape != view.image_size(name):
                raise LayoutError(
                    f"the map is {values.shape}, its picture {view.image_size(name)}",
                    str(folder / f"{name}.png"),
                    "use maps at the size of the pictures",
                )
            return {array: values}

        _add_images(names, arrays, writer)

    return read


def _add_images(names: Iterable[str], read: Callable[[str], dict[str, np.ndarray]], writer: ArtifactWriter) -> None:
    ordered = list(names)
    for index, start in enumerate(range(0, len(ordered), _SHARD)):
        writer.add_shard(index, {name: read(name) for name in ordered[start : start + _SHARD]})


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def _read_rgb(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise LayoutError(f"the file cannot be decoded: {error}", str(path), "copy it again") from error


def _official_names(state: Mapping[str, Tensor], aliases: Aliases) -> dict[str, Tensor]:
    """The state dict with every tensor also under its further published names."""
    published = dict(state)
    for alias, canonical in aliases:
        for name, value in state.items():
            if name.startswith(f"{canonical}."):
                published[alias + name.removeprefix(canonical)] = value
    return published


def _canonical(path: Path, aliases: Aliases) -> dict[str, Tensor]:
    state = state_dict_of(read_checkpoint(path), where=str(path))
    buffers = [re.compile(pattern) for pattern in TRAINING_BUFFERS]
    state = {name: value for name, value in state.items() if not any(b.fullmatch(name) for b in buffers)}
    return canonical_state_dict(state, aliases, str(path))


def _encoded(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _require(state: Mapping[str, Any], name: str, path: Path) -> None:
    if name not in state:
        raise CheckpointError(
            f"the checkpoint has no tensor {name!r}",
            str(path),
            "give the file that the official program wrote for this stage",
        )


def _input_of(artifact: Artifact, role: str) -> Artifact:
    """The artifact that another one was computed from, in the same store."""
    place = artifact.provenance.get("inputs", {}).get(role)
    if not place:
        raise LayoutError(
            f"artifact of stage {artifact.stage!r} does not say what it was computed from",
            artifact.location,
            "export the training stage's own layout instead",
        )
    stage, _, key = place.partition("/")
    return Artifact(artifact.backend, stage, key)


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
    variants = crf_variants(recipe.crf)
    return Pipeline(
        stages=(replace(training, inputs={}), *behind),
        headline=("segmentation/miou_val", *(f"segmentation/miou_val_{variant}" for variant in variants)),
        grids=(SampleGrid("val", (GridColumn("prediction", "segmentation", best_prediction(recipe), "labels"),)),),
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
