"""WS-FCN's stages one after the other in this process, at the smallest size, and the official files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from tests.methods.in_process import DemoRun, run_pipeline
from torch import nn
from torch.nn import functional

from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.nn.checkpoint import CheckpointError
from wsss.store import open_store
from wsss_methods.wsfcn import METHOD
from wsss_methods.wsfcn.inference import best_scores, label_from_masks, soft_masks
from wsss_methods.wsfcn.losses import FocalPenalty
from wsss_methods.wsfcn.networks import WsFcn, official_state_dict
from wsss_methods.wsfcn.official import load_official
from wsss_methods.wsfcn.training import focal_of, structure_of

SMALL = [
    "dataset.shapes.train=6",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=5",
    "dataset.shapes.size=48",
    "dataset.shapes.classes=3",
    "network.head_width=16",
    "train.crop_size=49",
    "train.batch_size=4",
    "train.num_epochs=4",
    "train.pretrain_epochs=1",
    "selection.every=1",
    "inference.infer_scales=[1.0,0.5]",
    "inference.infer_canvas=64",
    "crf.iters=3",
]


class Case(DemoRun):
    """One finished run and what it ran on."""

    def __init__(self, home: Path, overrides: Sequence[str] = ()) -> None:
        super().__init__(METHOD, home, [*SMALL, *overrides])

    def network(self, path: Path) -> WsFcn:
        network = WsFcn(structure_of(self.recipe.network, self.dataset.num_classes))
        load_official(network, path)
        return network.eval()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def case(home: Path) -> Case:
    return Case(home)


def test_every_stage_ran_and_a_second_run_has_nothing_to_do(case: Case) -> None:
    case.assert_complete()


def test_headline_numbers_exist(case: Case) -> None:
    assert case.pipeline.headline == tuple(
        f"segmentation/miou_val{ending}" for ending in ("", "_crf", "_image_labels", "_crf_image_labels")
    )
    for name in case.pipeline.headline:
        assert 0 <= case.run.metrics[name] <= 1, name
        assert case.run.metrics[f"{name}_all_background"] > 0
    (shown,) = case.pipeline.grids[0].columns
    assert shown.array in case.artifact(shown.stage).arrays(case.dataset.lists["val"][0])


def test_the_mask_loss_is_watched_first_and_trained_then(case: Case) -> None:
    history = case.run.histories["segmentation_train"]
    steps = len(history["loss"]) // 4
    assert np.isnan(history["loss/mask"][:steps]).all() and np.isfinite(history["loss/mask"][steps:]).all()
    assert history["loss/mask"][steps:] == history["statistic/mask_loss"][steps:]
    assert history["loss"][:steps] == history["loss/classification"][:steps]
    for name in ("presence_gate", "classes_in_pseudo_label", "labeled_pixels", "foreground_share"):
        series = history[f"statistic/{name}"]
        assert len(series) == 4 * steps and all(0 <= value <= 1 for value in series), name
    assert set(history["learning_rate/network"]) == {case.recipe.train.lr}, "the rate is constant"


def test_candidates_begin_after_the_first_epochs_and_the_last_epoch_does_not_compete(case: Case) -> None:
    files = {file for file in case.artifact("segmentation_train").files if file.startswith("epoch_")}
    assert files == {f"epoch_{epoch:04d}/network.pt" for epoch in (1, 2, 3, 4)}
    rows = case.artifact("segmentation_selection").json("tables.json")["candidates"]
    assert [(row["epoch"], row["competes"]) for row in rows] == [(1, True), (2, True), (3, True), (4, False)]
    best = max((row for row in rows if row["competes"]), key=lambda row: (row["score"], row["epoch"]))
    assert best["selected"] and case.run.metrics["segmentation_selection/epoch"] == best["epoch"]
    assert not case.pipeline.stage("segmentation_selection").chooses_by_masks


def test_the_score_is_one_minus_the_mean_over_batches(case: Case) -> None:
    artifact = case.artifact("segmentation_candidates")
    arrays = [artifact.arrays(name) for name in case.dataset.lists["val"]]
    totals = np.array([each["classification"][0] + each["mask"][0] for each in arrays])
    expected = 1 - np.mean([totals[:4].mean(), totals[4:].mean()])  # batches of 4 and of 1
    row = case.artifact("segmentation_selection").json("tables.json")["candidates"][0]
    assert row["score"] == pytest.approx(expected, abs=1e-6)


def test_what_is_not_stored_changes_no_label(case: Case) -> None:
    """Stored float16 masks of the kept classes against all masks in float32, under both presence filters."""
    epoch = int(case.run.metrics["segmentation_selection/epoch"])
    network = case.network(case.artifact("segmentation_train").path(f"epoch_{epoch:04d}/network.pt"))
    view = case.dataset.view({"images", "image_labels"}, "val")
    inference, prediction = case.recipe.inference, case.recipe.prediction
    for name in view.names:
        soft = soft_masks(
            network, view.image(name), inference.infer_scales, inference.canvas, focal_of(case.recipe.network)
        )
        arrays = case.artifact("segmentation_scores").arrays(name)
        assert arrays["masks"].dtype == np.float16 and arrays["masks"].shape[1:] == view.image_size(name)
        np.testing.assert_allclose(arrays["score"], best_scores(soft.scores), rtol=1e-5)
        assert np.abs(arrays["masks"] - soft.masks[arrays["keys"] - 1]).max() < 1e-3
        for stage, keys in (
            ("segmentation", np.flatnonzero(best_scores(soft.scores) > prediction.fp_cut_score) + 1),
            ("segmentation_image_labels", np.array(view.present_classes(name))),
        ):
            exact = label_from_masks(soft.masks[keys - 1], keys, prediction.bg_score)
            stored = case.artifact(stage).arrays(name)["prediction"]
            assert stored.dtype == np.uint8 and (exact != stored).mean() < 0.005


@pytest.mark.parametrize("ending", ["", "_image_labels"])
def test_the_curve_and_the_predictions_agree(case: Case, ending: str) -> None:
    view = case.dataset.view({"masks"}, "val")
    metrics = {f"segmentation{ending}": f"miou_val{ending}", f"segmentation{ending}_crf": f"miou_val_crf{ending}"}
    for stage, metric in metrics.items():
        total = np.zeros((case.dataset.num_classes,) * 2, dtype=np.int64)
        for name in view.names:
            total += confusion_matrix(view.mask(name), case.artifact(stage).arrays(name)["prediction"], len(total))
        assert float(miou(total, "truth")) == pytest.approx(case.run.metrics[f"segmentation/{metric}"], abs=1e-12)


def test_another_background_runs_neither_the_network_nor_the_crf(case: Case, home: Path) -> None:
    again = Case(home, ["prediction.bg_score=0.3"])
    assert again.run.executed == [
        "segmentation",
        "segmentation_evaluation",
        "segmentation_image_labels",
        "segmentation_image_labels_evaluation",
    ]
    other = Case(home, ["crf.bi_srgb=5"])
    assert all("crf" in name for name in other.run.executed) and len(other.run.executed) == 6


def test_without_a_choice_the_last_epoch_is_used(case: Case, home: Path) -> None:
    last = Case(home, ["selection.rule=last", "crf.enabled=false", "prediction.image_label_filter=false"])
    assert not any(file.startswith("epoch_") for file in last.artifact("segmentation_train").files)
    assert [stage.name for stage in last.pipeline] == [
        "segmentation_train",
        "segmentation_scores",
        "segmentation",
        "segmentation_curve",
        "segmentation_evaluation",
    ]
    before = torch.load(case.artifact("segmentation_train").path("network.pt"), weights_only=True)
    after = torch.load(last.artifact("segmentation_train").path("network.pt"), weights_only=True)
    assert all(torch.equal(before[name], after[name]) for name in before), "storing candidates must not change training"


class _ColorNetwork(nn.Module):
    """Logits are the colours at a quarter of the size, so that masks show where the image lies."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(image, 4)


@pytest.mark.parametrize("canvas", [(96, 128), (128, 96)])
def test_masks_lie_on_the_image_whatever_the_sides_of_the_canvas(canvas: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, 48)
    image = np.stack([np.tile(ramp, (40, 1)), np.tile(ramp[:40, None], (1, 48)), np.full((40, 48), 128)], axis=2)
    network = cast(WsFcn, _ColorNetwork())
    square, other = (
        soft_masks(network, image.astype(np.uint8), (1.0, 2.0), sides, FocalPenalty()).masks
        for sides in ((128, 128), canvas)
    )
    assert square.shape == other.shape == (2, 40, 48) and np.ptp(square) > 0.5
    assert np.abs(square - other).max() < 0.05


def test_a_canvas_of_two_sides_is_a_recipe(case: Case, home: Path) -> None:
    """Training is shared with the square canvas; scores are of the same images, pooled over another canvas."""
    wide = Case(home, ["inference.infer_canvas=[48, 64]"])
    assert wide.run.executed[0] == "segmentation_scores", "training is that of the square canvas"
    for name in wide.dataset.lists["val"]:
        square, other = (each.artifact("segmentation_scores").arrays(name) for each in (case, wide))
        assert other["masks"].shape[1:] == square["masks"].shape[1:]
        assert not np.array_equal(other["score"], square["score"]), "the padding takes part in the scores"
    assert wide.pipeline.protocol["inference"].startswith("canvas 48 x 64,")


def test_an_image_that_is_larger_than_the_canvas_names_the_remedy(home: Path) -> None:
    with pytest.raises(WsssError, match=r"inference.infer_canvas to 96"):
        Case(home, ["inference.infer_scales=[2.0]"])


# ---- official files ----


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_official_checkpoint_is_taken_in_and_evaluated(case: Case, tmp_path: Path, prefix: str) -> None:
    exporter = METHOD.exporters["segmentation_train"]
    assert exporter.write(case.artifact("segmentation_train"), case.dataset, tmp_path) == 1
    state = torch.load(tmp_path / "model_enc_last.pth", weights_only=True)
    assert list(state) == list(official_state_dict(case.network(tmp_path / "model_enc_last.pth")))
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "model_enc_e018Xs0.905.pth")
    store = open_store(str(tmp_path / "store"))
    from wsss.pipeline import stage_keys
    from wsss.weights import file_digest

    keys = stage_keys(case.pipeline, case.dataset, file_digest)
    writer = store.writer("segmentation_train", keys["segmentation_train"])
    assert exporter.read is not None
    exporter.read(tmp_path / "model_enc_e018Xs0.905.pth", case.dataset, (), writer)
    imported = writer.publish({"imported": True})
    taken = torch.load(imported.path("network.pt"), weights_only=True)
    assert set(taken) == set(state) and all(torch.equal(taken[name], state[name]) for name in state)
    run = run_pipeline(case.pipeline, case.dataset, store)
    assert run.metrics["segmentation_selection/epoch"] == 0, "an imported file is its own only candidate"
    assert "segmentation_train" not in run.executed and 0 <= run.metrics["segmentation/miou_val"] <= 1


def test_the_chosen_epoch_is_written_under_its_official_name(case: Case, tmp_path: Path) -> None:
    METHOD.exporters["best_checkpoint"].write(case.artifact("segmentation_selection"), case.dataset, tmp_path)
    epoch, score = (
        int(case.run.metrics["segmentation_selection/epoch"]),
        case.run.metrics["segmentation_selection/score_val"],
    )
    written = torch.load(tmp_path / f"model_enc_e{epoch:03d}Xs{score:4.3f}.pth", weights_only=True)
    path = case.artifact("segmentation_train").path(f"epoch_{epoch:04d}/network.pt")
    expected = torch.load(path, weights_only=True)
    assert all(torch.equal(written[name], value) for name, value in expected.items())


def test_predictions_are_grey_pictures_and_come_back(case: Case, tmp_path: Path) -> None:
    names = case.dataset.lists["val"]
    assert METHOD.exporters["segmentation"].write(case.artifact("segmentation"), case.dataset, tmp_path) == len(names)
    assert METHOD.exporters["segmentation_crf"].write(case.artifact("segmentation_crf"), case.dataset, tmp_path)
    with Image.open(tmp_path / "crf" / f"{names[0]}.png") as picture:
        assert picture.mode == "L"
    reader: Any = METHOD.exporters["segmentation_crf"].read
    writer = case.store.writer("segmentation_crf", "imported")
    reader(tmp_path / "crf", case.dataset, names, writer)
    imported = writer.publish({})
    for name in names:
        expected = case.artifact("segmentation_crf").arrays(name)["prediction"]
        assert np.array_equal(imported.arrays(name)["prediction"], expected)
    Image.fromarray(np.full((3, 3), 1, np.uint8)).save(tmp_path / "crf" / f"{names[1]}.png")
    with pytest.raises(WsssError, match="labels are"):
        reader(tmp_path / "crf", case.dataset, names, case.store.writer("segmentation_crf", "wrong"))
    (tmp_path / "crf" / f"{names[1]}.png").unlink()
    with pytest.raises(WsssError, match=names[1]):
        reader(tmp_path / "crf", case.dataset, names, case.store.writer("segmentation_crf", "short"))


def test_files_that_do_not_fit_say_what_they_are(case: Case, tmp_path: Path) -> None:
    METHOD.exporters["segmentation_train"].write(case.artifact("segmentation_train"), case.dataset, tmp_path)
    state = torch.load(tmp_path / "model_enc_last.pth", weights_only=True)
    network = case.network(tmp_path / "model_enc_last.pth")

    def refused(content: Any, match: str) -> None:
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=match):
            load_official(network, tmp_path / "wrong.pth")

    refused({**state, "fc7.weight": torch.ones(1)}, "is of backbone vgg16, the recipe's is resnet18")
    refused({**state, "aspp.conv1.weight": torch.ones(1)}, "1-stage-wseg")
    refused({**state, "_aff.aff_m.kernel": torch.zeros(8, 1, 3, 3)}, "not the constant")
    refused({**state, "last_conv.8.bias": torch.zeros(20)}, "knows 21 classes, the data set has 4")
    refused({name: value for name, value in state.items() if name != "sf2.conv1h.weight"}, "missing: sf2.conv1h.weight")
    refused({"fc.weight": torch.ones(1)}, "no checkpoint of WS-FCN")
    (tmp_path / "wrong.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_official(network, tmp_path / "wrong.pth")
    reader: Any = METHOD.exporters["segmentation_train"].read
    torch.save({**state, "last_conv.8.bias": torch.zeros(80)}, tmp_path / "coco.pth")
    with pytest.raises(CheckpointError, match="81 coco2014"):
        reader(tmp_path / "coco.pth", case.dataset, (), case.store.writer("segmentation_train", "wrong"))
