"""Files of the official programs of SBNet: what is written comes back, and what does not belong is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.methods.in_process import run_pipeline

from wsss.data.dataset import Dataset, load_dataset
from wsss.errors import WsssError
from wsss.nn.affinity_net import build_affinity_net
from wsss.official import LayoutError, add_images
from wsss.official_weights import encode_state
from wsss.recipe import load_recipe
from wsss.released import check_checkpoint, pipeline_of
from wsss.stages.segmentation import DeepLabV2Msc
from wsss.store import Artifact, Store, open_store
from wsss_methods.sbnet import METHOD
from wsss_methods.sbnet.deeplabv1 import DeepLabV1
from wsss_methods.sbnet.networks import build_cam_network
from wsss_methods.sbnet.recipe import SbnetRecipe, seam_settings

SMALL = [
    "dataset.shapes.train=3",
    "dataset.shapes.train_aug_extra=0",
    "dataset.shapes.val=3",
    "dataset.shapes.size=48",
    "dataset.shapes.classes=3",
    "weights.mobilenet_v2=none",
    "cam.width=0.0625",
    "affinity.backbone=resnet38",
    "affinity.width=0.0625",
    "deeplabv1.width=0.0625",
    "deeplabv1.scales=[1.0]",
]


class Case:
    """A small recipe, its data set and a store for what is made here by hand."""

    def __init__(self, home: Path) -> None:
        self.recipe: SbnetRecipe = load_recipe(SbnetRecipe, METHOD.recipe_path("demo"), SMALL)
        self.dataset: Dataset = load_dataset(self.recipe.dataset, home)
        self.store: Store = open_store(str(home / "store"))
        self.names = self.dataset.lists["train_aug"]

    def published(self, stage: str, key: str, fill: Any) -> Artifact:
        writer = self.store.writer(stage, key)
        fill(writer)
        return writer.publish({})

    def images(self, stage: str, arrays: Any) -> Artifact:
        """An artifact of arrays for each image; arrays: (class ids from 1, (H, W)) -> the arrays."""
        view = self.dataset.view({"images", "image_labels"}, "train_aug")

        def of(name: str) -> dict[str, np.ndarray]:
            keys = np.array(view.present_classes(name), dtype=np.int64)
            return {"keys": keys, **arrays(keys, view.image_size(name))}

        return self.published(stage, "made", lambda writer: add_images(self.names, of, writer, self.dataset))

    def imported(self, layout: str, source: Path, key: str = "imported") -> Artifact:
        exporter = METHOD.exporters[layout]
        assert exporter.read is not None
        read = exporter.read
        return self.published(exporter.stage, key, lambda writer: read(source, self.dataset, tuple(self.names), writer))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    return Case(tmp_path_factory.mktemp("home"))


def convert(folder: Path) -> None:
    """What the refusal of pickles says."""
    for path in folder.glob("*.npy"):
        d = np.load(path, allow_pickle=True).item()
        np.savez(path.with_suffix(".npz"), keys=list(d), maps=np.array(list(d.values())))


def states(case: Case) -> dict[str, tuple[str, dict[str, torch.Tensor]]]:
    """Stage -> stem and published state dict of its network."""
    recipe, classes = case.recipe, case.dataset.num_classes
    torch.manual_seed(0)
    affinity = recipe.affinity
    return {
        "cam_train": ("cam_network", build_cam_network(recipe.cam, classes).published_state_dict()),
        "seam_cam_train": (
            "cam_network",
            build_cam_network(seam_settings(recipe.cam, 1), classes).published_state_dict(),
        ),
        "affinity_train": ("affinity_network", build_affinity_net(affinity.backbone, affinity.width).state_dict()),
        "segmentation_train": (
            "network",
            DeepLabV2Msc(recipe.segmentation.structure(), classes).published_state_dict(),
        ),
    }


@pytest.mark.parametrize("stage", ["cam_train", "seam_cam_train", "affinity_train", "segmentation_train"])
def test_a_checkpoint_is_written_as_a_plain_state_dict_and_comes_back(case: Case, stage: str, tmp_path: Path) -> None:
    stem, state = states(case)[stage]
    artifact = case.published(stage, "made", lambda writer: writer.add_file(f"{stem}.pt", encode_state(state)))
    assert METHOD.exporters[stage].write(artifact, case.dataset, tmp_path) == 1
    (path,) = tmp_path.iterdir()
    written = torch.load(path, weights_only=True)
    assert list(written) == list(state)
    torch.save({"state_dict": {f"module.{name}": value for name, value in written.items()}}, path)
    taken = torch.load(case.imported(stage, path).path(f"{stem}.pt"), weights_only=True)
    assert all(torch.equal(taken[name], value) for name, value in state.items()) and len(taken) == len(state)


def test_checkpoints_of_other_networks_are_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"

    def refused(stage: str, state: dict[str, torch.Tensor], match: str) -> None:
        torch.save(state, path)
        with pytest.raises(WsssError, match=match):
            case.imported(stage, path, "refused")

    found = {stage: state for stage, (_, state) in states(case).items()}
    refused("cam_train", found["seam_cam_train"], "edge_layer")
    refused("seam_cam_train", found["cam_train"], r"boundary branch[\s\S]*cam_train")
    refused("affinity_train", found["seam_cam_train"], r"f8_5\.weight")
    refused("segmentation_train", found["affinity_train"], r"base\.aspp")
    more = {**found["cam_train"], "edge_layer.classifier.weight": torch.zeros(21, 128, 3, 3)}
    refused("cam_train", more, "of 21 classes, data set shapes has 4")


def test_class_maps_go_out_with_keys_from_0_and_come_back(case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    artifact = case.images("cam", lambda keys, size: {"high_res": rng.random((len(keys), *size)).astype(np.float16)})
    assert METHOD.exporters["cam"].write(artifact, case.dataset, tmp_path) == len(case.names)
    content = np.load(tmp_path / f"{case.names[0]}.npy", allow_pickle=True).item()
    assert list(content) == [label - 1 for label in case.dataset.image_labels[case.names[0]]]
    with pytest.raises(LayoutError, match="pickles"):
        case.imported("cam", tmp_path, "pickled")
    convert(tmp_path)
    imported = case.imported("cam", tmp_path)
    for name in case.names:
        for array in ("keys", "high_res"):
            assert np.array_equal(imported.arrays(name)[array], artifact.arrays(name)[array])


def crf_scores(keys: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(keys))
    scores = rng.random((2, len(keys) + 1, *size))
    low, high = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float16)
    return {"crf_low": low, "crf_high": high}


@pytest.mark.parametrize("folders", [("la_crf", "ha_crf"), ("crf_4.0", "crf_24.0")])
def test_scores_of_both_crfs_are_two_folders(case: Case, folders: tuple[str, str], tmp_path: Path) -> None:
    artifact = case.images("crf", crf_scores) if folders[0] == "la_crf" else case.store.find("crf", "made")
    assert artifact is not None
    assert METHOD.exporters["crf"].write(artifact, case.dataset, tmp_path) == 2 * len(case.names)
    for written, wanted in zip(("la_crf", "ha_crf"), folders, strict=True):
        (tmp_path / written).rename(tmp_path / wanted)
        convert(tmp_path / wanted)
    imported = case.imported("crf", tmp_path, folders[0])
    for name in case.names:
        for array in ("keys", "crf_low", "crf_high"):
            assert np.array_equal(imported.arrays(name)[array], artifact.arrays(name)[array])
    (tmp_path / folders[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(LayoutError, match=rf"it holds {folders[0]}, elsewhere|it holds elsewhere, {folders[0]}"):
        case.imported("crf", tmp_path, "one")


def test_boundaries_go_out_as_the_official_loader_reads_them(case: Case, tmp_path: Path) -> None:
    artifact = case.images("boundary", lambda keys, size: {"boundary": np.full((len(keys) + 1, *size), 255, np.uint8)})
    METHOD.exporters["boundary"].write(artifact, case.dataset, tmp_path / "sb_map")
    for name in case.names:
        values = np.load(tmp_path / "sb_map" / f"{name}.npy")
        assert values.dtype == np.float32 and len(values) == case.dataset.num_classes
        assert set(np.unique(values)) == {0, 1}
        assert np.flatnonzero(values.all(axis=(1, 2))).tolist() == [0, *case.dataset.image_labels[name]]
    given = [*SMALL, "baseline.seam=false", "boundary.source=folder", f"boundary.folder={tmp_path / 'sb_map'}"]
    pipeline = METHOD.pipeline(load_recipe(SbnetRecipe, METHOD.recipe_path("demo"), given), case.dataset)
    assert [stage.name for stage in pipeline][:2] == ["boundary", "cam_train"]


def test_labels_of_the_walk_come_back(case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    artifact = case.images("pseudo_label", lambda keys, size: {"label": rng.choice([0, *keys], size).astype(np.uint8)})
    METHOD.exporters["pseudo_label"].write(artifact, case.dataset, tmp_path)
    with Image.open(tmp_path / f"{case.names[0]}.png") as picture:
        assert picture.mode == "L"
    imported = case.imported("pseudo_label", tmp_path)
    assert all(np.array_equal(imported.arrays(n)["label"], artifact.arrays(n)["label"]) for n in case.names)


@pytest.mark.parametrize("network", ["deeplabv2", "deeplabv1_resnet38"])
def test_a_released_segmentation_network_is_scored_without_training(case: Case, network: str, tmp_path: Path) -> None:
    choice = [*SMALL, f"retraining.network={network}", "weights.allow_random=false", "boundary.source=folder"]
    recipe: SbnetRecipe = load_recipe(SbnetRecipe, METHOD.recipe_path("demo"), choice)
    state = states(case)["segmentation_train"][1]
    if network != "deeplabv2":
        state = DeepLabV1(case.dataset.num_classes, recipe.deeplabv1.width).state_dict()
    path = tmp_path / "released.pth"
    torch.save(state, path)
    check_checkpoint(METHOD, recipe, case.dataset, path)
    pipeline = pipeline_of(METHOD, recipe, case.dataset, path)
    assert [stage.name for stage in pipeline] == [
        "segmentation_train",
        "segmentation_scores",
        "segmentation_predictions",
        "segmentation",
        "segmentation_evaluation",
    ]
    run = run_pipeline(pipeline, case.dataset, open_store(str(tmp_path / "store")))
    assert set(pipeline.headline) <= set(run.metrics)
    assert METHOD.exporters["segmentation"].write(run.artifacts["segmentation"], case.dataset, tmp_path / "out") == 3
    other = load_recipe(
        SbnetRecipe, METHOD.recipe_path("demo"), [*choice, "segmentation.width=0.5", "deeplabv1.width=0.5"]
    )
    with pytest.raises(WsssError, match="shape"):
        check_checkpoint(METHOD, other, case.dataset, path)
