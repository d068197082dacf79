"""MSA's stages one after the other in this process, at the smallest size, and the official files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.methods.in_process import DemoRun, run_pipeline

from wsss.data.dataset import load_dataset
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.nn.checkpoint import CheckpointError
from wsss.ops.cam import thresholded_argmax
from wsss.recipe import load_recipe
from wsss.store import Artifact, open_store
from wsss_methods.msa import METHOD
from wsss_methods.msa.recipe import MsaRecipe
from wsss_methods.msa.superpixel_network import SuperpixelNetwork

SMALL = [
    "dataset.shapes.train=6",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=2",
    "dataset.shapes.size=48",
    "dataset.shapes.classes=3",
    "weights.resnet18=none",
    "network.normalization=batch",
    "superpixels.base_channels=2",
    "superpixels.crop_size=48",
    "superpixels.batch_size=4",
    "superpixels.num_epochs=1",
    "network.head_width=8",
    "train.crop_size=48",
    "train.batch_size=4",
    "train.num_epochs=3",
    "inference.scales=[1.0,1.5]",
    "segmentation.form=torchvision",
    "segmentation.depth=18",
    "segmentation.output_stride=8",
    "segmentation.width=0.125",
    "segmentation.crop_size=49",
    "segmentation.steps=2",
    "segmentation.batch_size=2",
    "segmentation.loss_group=2",
    "crf.iterations=2",
    "crf.scored_iterations=2",
]
BY_MASKS = ["selection.rule=best_train_masks", "selection.images=4", "pseudo_label.rule=best_train_masks"]


class Case(DemoRun):
    """One finished run and what it ran on."""

    def __init__(self, home: Path, overrides: Sequence[str] = ()) -> None:
        super().__init__(METHOD, home, [*SMALL, *overrides])

    def exported(self, layout: str, folder: Path) -> Path:
        """The folder that an exporter wrote."""
        exporter = METHOD.exporters[layout]
        assert exporter.write(self.artifact(exporter.stage), self.dataset, folder) > 0
        return folder

    def imported(self, layout: str, path: Path, folder: Path) -> Artifact:
        """The artifact that an exporter reads."""
        exporter = METHOD.exporters[layout]
        stage = self.pipeline.stage(exporter.stage)
        names = self.dataset.lists[stage.image_list] if stage.image_list else ()
        writer = open_store(str(folder)).writer(exporter.stage, "1" * 32)
        assert exporter.read is not None
        exporter.read(path, self.dataset, tuple(names), writer)
        return writer.publish({})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def case(home: Path) -> Case:
    return Case(home, BY_MASKS)


def test_every_stage_ran_and_another_variant_shares_the_superpixel_network(case: Case, home: Path) -> None:
    assert set(case.run.executed) == {stage.name for stage in case.pipeline}
    for metric in case.pipeline.headline:
        assert 0 <= case.run.metrics[metric] <= 1
    other = Case(home, ["contrast.target=saliency", "contrast.patches=1", "inference.merged_at=image"])
    assert "superpixel_train" not in other.run.executed and {"saliency", "cam_train", "cam"} <= set(other.run.executed)


def test_maps_are_those_of_the_present_classes_at_full_size(case: Case) -> None:
    view = case.dataset.view({"image_labels", "images"}, "train_aug")
    for name in view.names:
        arrays = case.artifact("cam").arrays(name)
        assert arrays["keys"].tolist() == list(view.present_classes(name))
        assert arrays["high_res"].shape == (len(arrays["keys"]), *view.image_size(name))
        assert arrays["high_res"].min() >= 0 and arrays["high_res"].max() <= 1


def test_masks_choose_the_epoch_whose_best_constant_is_best(case: Case) -> None:
    selection, candidates = case.artifact("cam_selection"), case.artifact("cam_candidates")
    rows = selection.json("tables.json")["candidates"]
    assert [row["epoch"] for row in rows] == [1, 2, 3] and sum(row["selected"] for row in rows) == 1
    best = max(row["miou"] for row in rows)
    assert case.run.metrics["cam_selection/miou_train"] == pytest.approx(best)
    scored = sorted(case.dataset.lists["train"])[:4]
    for name in case.dataset.lists["train"]:
        assert bool(candidates.arrays(name)["confusion_counts"].any()) == (name in scored)


def test_labels_have_the_constant_that_masks_chose(case: Case) -> None:
    threshold = case.run.metrics["cam_threshold/threshold"]
    curve = {row["threshold"]: row["miou"] for row in case.artifact("cam_evaluation").json("tables.json")["curve"]}
    assert curve[threshold] == max(curve[each] for each in case.recipe.pseudo_label.candidates)
    view = case.dataset.view({"masks"}, "train")
    total = np.zeros((4, 4), dtype=np.int64)
    for name in view.names:
        arrays, label = case.artifact("cam").arrays(name), case.artifact("pseudo_label").arrays(name)["label"]
        maps = arrays["high_res"].astype(np.float32)
        np.testing.assert_array_equal(label, thresholded_argmax(maps, arrays["keys"], threshold))
        total += confusion_matrix(view.mask(name), label, 4)
    assert case.run.metrics["pseudo_label/miou_train"] == pytest.approx(float(miou(total, "all")))
    assert case.run.metrics["pseudo_label/miou_train"] == pytest.approx(curve[threshold])


def test_the_choices_by_masks_are_declared_and_named(case: Case) -> None:
    assert {stage.name for stage in case.pipeline if stage.chooses_by_masks} == {"cam_selection", "cam_threshold"}
    assert "masks" in case.pipeline.protocol["checkpoint"] and "masks" in case.pipeline.protocol["pseudo label"]


@pytest.mark.parametrize("layout", ["superpixel_train", "superpixel_train_parallel"])
def test_superpixel_weights_come_back_in_every_spelling(case: Case, tmp_path: Path, layout: str) -> None:
    (path,) = case.exported(layout, tmp_path / "out").iterdir()
    state = torch.load(path, weights_only=True)
    assert all(name.startswith("module.") for name in state) == (layout == "superpixel_train_parallel")
    wrapped = tmp_path / "SpixelNet_bsd_ckpt.tar"
    torch.save({"epoch": 3, "arch": "SpixelNet1l_bn", "state_dict": state, "best_EPE": 0.1}, wrapped)
    expected = torch.load(case.artifact("superpixel_train").path("superpixel_network.pt"), weights_only=True)
    for number, source in enumerate((path, wrapped)):
        read = case.imported("superpixel_train", source, tmp_path / f"store{number}")
        found = torch.load(read.path("superpixel_network.pt"), weights_only=True)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="missing"):
        case.imported("superpixel_train", path, tmp_path / "refused")


def test_classifier_weights_are_read_with_either_name_of_the_backbone(case: Case, tmp_path: Path) -> None:
    best = torch.load(case.exported("best_checkpoint", tmp_path / "best") / "cls.pth", weights_only=True)
    epoch = int(case.run.metrics["cam_selection/epoch"])
    chosen = torch.load(case.artifact("cam_train").path(f"epoch_{epoch:04d}/cam_network.pt"), weights_only=True)
    assert all(torch.equal(best[name], chosen[name]) for name in chosen) and best.keys() == chosen.keys()
    path = case.exported("cam_train", tmp_path / "last") / "cls.pth"
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["stage2.0.0.conv1.weight"], state["model.layer1.0.conv1.weight"])
    for number, dropped in enumerate(("model.", "stage", "nothing")):
        torch.save({f"module.{k}": v for k, v in state.items() if not k.startswith(dropped)}, path)
        read = case.imported("cam_train", path, tmp_path / f"store{number}")
        found = torch.load(read.path("cam_network.pt"), weights_only=True)
        assert torch.equal(found["model.layer1.0.conv1.weight"], state["stage2.0.0.conv1.weight"])
    torch.save({**state, "classifier.0.weight": torch.zeros(7, 5, 1, 1)}, path)
    with pytest.raises(CheckpointError, match="7 classes"):
        case.imported("cam_train", path, tmp_path / "refused")
    torch.save({**state, "stage2.0.0.conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="different values"):
        case.imported("cam_train", path, tmp_path / "refused")


def test_class_maps_are_written_and_read_in_the_official_layout(case: Case, tmp_path: Path) -> None:
    folder = case.exported("cam", tmp_path / "out") / "camnpy"
    name = case.dataset.lists["train_aug"][0]
    arrays = case.artifact("cam").arrays(name)
    written = np.load(folder / f"{name}.npy")
    assert written.dtype == np.float32 and written.shape == (1, 4, *arrays["high_res"].shape[1:])
    absent = sorted(set(range(4)) - set(arrays["keys"].tolist()))
    assert not written[0, absent].any()
    written[0, 0] = 0.7  # the official program has a score here that nothing trained
    np.save(folder / f"{name}.npy", written)
    read = case.imported("cam", folder, tmp_path / "store").arrays(name)
    np.testing.assert_array_equal(read["high_res"], arrays["high_res"])
    np.testing.assert_array_equal(read["keys"], arrays["keys"])

    def refused(value: np.ndarray, message: str) -> None:
        np.save(folder / f"{name}.npy", value)
        with pytest.raises(WsssError, match=message):
            case.imported("cam", folder, tmp_path / "refused")

    wrong = written.copy()
    wrong[0, absent[1]] = 0.1
    refused(wrong, "not among the picture's labels")
    refused(written[0], r"expected \(1, 4, H, W\)")
    refused(written[..., :-1], "expected")


def test_pseudo_labels_and_their_result_file(case: Case, tmp_path: Path) -> None:
    threshold = case.run.metrics["cam_threshold/threshold"]
    folder = case.exported("pseudo_label", tmp_path / "out") / "pseudo" / str(threshold) / "0"
    name = case.dataset.lists["train_aug"][0]
    label = case.artifact("pseudo_label").arrays(name)["label"]
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.mode == "P" and picture.getpalette()[3:6] == [128, 0, 0]  # pyright: ignore[reportOptionalSubscript]
        np.testing.assert_array_equal(np.array(picture), label)
    read = case.imported("pseudo_label", folder, tmp_path / "store")
    np.testing.assert_array_equal(read.arrays(name)["label"], label)

    path = case.exported("cam_evaluation", tmp_path / "out") / "result.txt"
    line = next(text for text in path.read_text().splitlines() if text.split()[2] == f"{threshold:.2f}")
    assert len(line) == 32 and line.split()[:2] == [f"{100 * case.run.metrics['cam_threshold/miou_train']:.2f}", "0.00"]
    path.write_text(f"{'12.50':>10} {'0.00':>10} {'0.20':>10}\n{'99.00':>10} {'10.00':>10} {'0.30':>10}\n")
    metrics = case.imported("cam_evaluation", path, tmp_path / "results").json("metrics.json")
    assert metrics == {"cam/miou_train_oracle": 0.125, "cam/oracle_threshold_train": 0.2}
    path.write_text("mIoU: 12.5\n")
    with pytest.raises(WsssError, match="line 1"):
        case.imported("cam_evaluation", path, tmp_path / "refused")


def test_a_segmentation_checkpoint_of_the_named_code_is_read(case: Case, tmp_path: Path) -> None:
    exported = case.exported("segmentation_train", tmp_path / "out") / "checkpoint_final.pth"
    state: dict[str, Any] = torch.load(exported, weights_only=True)
    read = case.imported("segmentation_train", exported, tmp_path / "store")
    found = torch.load(read.path("network.pt"), weights_only=True)
    assert found.keys() == state.keys() and "base.features.layer1.0.conv1.weight" in found
    torch.save({"base.aspp.c0.weight": torch.zeros(9, 1, 3, 3)}, exported)
    with pytest.raises(CheckpointError, match="9 classes"):
        case.imported("segmentation_train", exported, tmp_path / "refused")


def test_a_start_from_a_trained_superpixel_network_is_another_training(tmp_path: Path) -> None:
    path = tmp_path / "SpixelNet_bsd_ckpt.tar"
    torch.save({"state_dict": SuperpixelNetwork(2).state_dict(), "arch": "SpixelNet1l_bn"}, path)
    recipe = load_recipe(
        MsaRecipe,
        METHOD.recipe_path("demo"),
        [*SMALL, f"weights.spixelnet_bsd={path}", "superpixels.learning_rate=1e-9"],
    )
    dataset = load_dataset(recipe.dataset, tmp_path)
    pipeline = METHOD.pipeline(recipe, dataset)
    assert pipeline.stage("superpixel_train").files == {"superpixels": path}
    assert "BSDS500" in pipeline.protocol["superpixel network"]
    run = run_pipeline(pipeline, dataset, open_store(str(tmp_path / "store")), ["superpixel_train"])
    found = torch.load(run.artifacts["superpixel_train"].path("superpixel_network.pt"), weights_only=True)
    given = torch.load(path, weights_only=True)["state_dict"]
    torch.testing.assert_close(found["pred_mask0.weight"], given["pred_mask0.weight"], rtol=0, atol=1e-6)
