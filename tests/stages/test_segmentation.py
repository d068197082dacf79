"""One network on one label artifact: in this process on generated shapes, in two rounds, and with all masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.in_process import InProcessRun, run_pipeline
from tests.methods.two_workers import in_two_workers, trained

from wsss.data.augment.scale_crop import ScaleCrop, caffe_input, draw_scale_crop, network_input, scale_crop
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.data.transforms import channels_first, normalize, resize
from wsss.execution.stage_job import StageJob
from wsss.ops.crf import DenseCrfSettings
from wsss.pipeline import MapStage, Pipeline, StageContext, stage_keys
from wsss.stages.refine import PredictionConfig
from wsss.stages.segmentation import (
    SegmentationSettings,
    build_segmentation_training,
    build_wrapped_predictions,
    scores_stage,
    segmentation_stages,
    shrunk_label,
    stepped_decay,
)
from wsss.store import open_store

SMALL = SegmentationSettings(
    form="torchvision",
    depth=18,
    width=0.125,
    freeze_norm=False,
    crop_size=65,
    steps=60,
    batch_size=8,
    loss_group=4,
    learning_rate=0.05,
    head_lr_mult=1,
)


MOBILENET = replace(SMALL, form="mobilenet_v2", output_stride=16, steps=20, selection="best_val", candidate_every=5)


@dataclass(frozen=True)
class SimpleConfig:
    """Nothing to set."""


def build_coarse_label(context: StageContext) -> Any:
    """Stands for pseudo labels: masks in which every third row is unsure."""

    def label(name: str) -> dict[str, np.ndarray]:
        found = context.data.mask(name).copy()
        found[::3] = 255
        return {"label": found}

    return label


def label_stage(inputs: dict[str, str] | None = None, name: str = "pseudo_label") -> MapStage:
    return MapStage(
        name=name,
        version=1,
        config=SimpleConfig(),
        inputs=inputs or {},
        reads=frozenset({"images", "masks"}),
        image_list="train",
        build=build_coarse_label,
    )


class Case:
    def __init__(self, home: Path) -> None:
        shapes = ShapesConfig(train=24, train_aug_extra=0, val=8, size=64, classes=2)
        self.dataset: Dataset = load_dataset(DatasetConfig(name="shapes", shapes=shapes), home)
        first = segmentation_stages(
            SMALL, prefix="segmentation_round1", label_stage="pseudo_label", seed=0, training_list="train"
        )
        second = segmentation_stages(
            replace(SMALL, steps=7, selection="best_val"),
            prefix="segmentation_round2",
            label_stage="second",
            seed=0,
            training_list="train",
            predictions=PredictionConfig(DenseCrfSettings(2, 1, 3, 67, 3, 4), ("crf",)),
            iterations=2,
            build=build_wrapped_predictions,
        )
        upper = segmentation_stages(
            replace(SMALL, steps=4), prefix="upper_bound", label_stage=None, seed=0, training_list="train"
        )
        mobilenet = segmentation_stages(
            MOBILENET, prefix="mobilenet", label_stage="pseudo_label", seed=0, training_list="train"
        )
        self.pipeline = Pipeline(
            (
                label_stage(),
                *first,
                scores_stage(SMALL, "segmentation_round1", "train", name="round1_scores_train"),
                label_stage({"scores": "round1_scores_train"}, "second"),
                *second,
                *upper,
                *mobilenet,
            )
        )
        self.run: InProcessRun = run_pipeline(self.pipeline, self.dataset, open_store(str(home / "store")))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    return Case(tmp_path_factory.mktemp("home"))


def test_the_loss_falls_and_the_score_beats_all_background(case: Case) -> None:
    losses = case.run.histories["segmentation_round1_train"]["loss"]
    assert len(losses) == SMALL.steps and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    metrics = case.run.metrics
    above = metrics["segmentation_round1/miou_val"] - metrics["segmentation_round1/miou_val_all_background"]
    assert above > 0.1, metrics


def test_the_loss_is_the_sum_over_the_scales(case: Case) -> None:
    history = case.run.histories["segmentation_round1_train"]
    parts = [history[f"loss/{name}"] for name in ("scale_1", "scale_0.5", "scale_0.75", "maximum")]
    np.testing.assert_allclose(np.sum(parts, axis=0), history["loss"], rtol=1e-6)


def test_rounds_do_not_collide_and_each_has_its_numbers(case: Case) -> None:
    for prefix in ("segmentation_round1", "segmentation_round2", "upper_bound"):
        assert f"{prefix}/miou_val" in case.run.metrics
    assert len({artifact.key for artifact in case.run.artifacts.values()}) == len(case.pipeline.stages)
    assert case.pipeline.stage("segmentation_round2_train").inputs == {"label": "second"}
    shown = case.run.artifacts["round1_scores_train"].arrays(case.dataset.lists["train"][0])["scores"]
    assert shown.shape[0] == case.dataset.num_classes and shown.dtype == np.float32


def test_a_round_may_be_chosen_by_masks_and_refined_by_a_crf(case: Case) -> None:
    """24 images fill 3 batches of 8: seven steps end in the third epoch."""
    chosen = case.run.artifacts["segmentation_round2_selection"].json("metrics.json")
    table = case.run.artifacts["segmentation_round2_selection"].json("tables.json")["candidates"]
    assert [row["epoch"] for row in table] == [1, 2, 3]
    best = max(table, key=lambda row: row["miou"])
    assert chosen["segmentation_round2_selection/epoch"] == best["epoch"]
    assert "segmentation_round2/miou_val_crf" in case.run.metrics and "upper_bound/miou_val_crf" not in case.run.metrics
    assert case.pipeline.stage("segmentation_round2_selection").chooses_by_masks
    assert "segmentation_round1_selection" not in case.run.artifacts


def test_mobilenet_learns_and_its_depth_is_no_setting(case: Case) -> None:
    losses = case.run.histories["mobilenet_train"]["loss"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    name = case.dataset.lists["val"][0]
    assert case.run.artifacts["mobilenet_scores"].arrays(name)["scores"].shape == (3, 4, 4)

    def keys(settings: SegmentationSettings) -> dict[str, str]:
        stages = segmentation_stages(settings, prefix="mobilenet", label_stage=None, seed=0, training_list="train")
        return stage_keys(Pipeline(tuple(stages)), case.dataset, str)

    first, deeper, finer = (keys(replace(MOBILENET, **change)) for change in ({}, {"depth": 34}, {"output_stride": 8}))
    assert first == deeper and not set(first.values()) & set(finer.values())
    assert set(keys(SMALL).values()).isdisjoint(keys(replace(SMALL, depth=34)).values())


def test_an_upper_bound_declares_that_it_reads_masks(case: Case) -> None:
    stages = {stage.name: stage for stage in case.pipeline}
    assert stages["upper_bound_train"].fully_supervised and "masks" in stages["upper_bound_train"].reads  # type: ignore
    assert not stages["segmentation_round1_train"].fully_supervised  # type: ignore
    assert stages["segmentation_round1_train"].reads == {"images"}


def test_one_and_two_workers_agree(case: Case, tmp_path: Path) -> None:
    stage = replace(case.pipeline.stage("segmentation_round1_train"), config=replace(SMALL, steps=4))
    job = StageJob(
        stage=stage,
        key="unused",
        view=case.dataset.view(stage.reads, stage.image_list),
        inputs={"label": case.run.artifacts["pseudo_label"]},
        store=open_store(str(tmp_path / "store")),
    )
    together = in_two_workers({0: job})[0]
    alone = trained(job)
    assert together["history"].keys() == alone["history"].keys()
    for name, values in alone["history"].items():
        np.testing.assert_allclose(together["history"][name], values, rtol=1e-9, err_msg=name)
    for name, values in alone["weights"].items():
        torch.testing.assert_close(together["weights"][name], values, rtol=1e-7, atol=1e-10, msg=name)


def test_groups_of_a_batch_are_accumulated_one_after_the_other() -> None:
    """The gradient of a batch of two groups is the mean of theirs, each over its own labeled pixels."""
    torch.manual_seed(0)
    context: Any = SimpleNamespace(
        config=replace(SMALL, loss_group=2, batch_size=4),
        data=SimpleNamespace(num_classes=3, names=("a", "b")),
        inputs={},
        files={},
    )
    task = build_segmentation_training(context)
    module: Any = task.module.double()
    images = torch.rand(4, 3, 33, 33, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 33, 33)).to(torch.uint8)
    labels[:2, 4:] = 255

    def gradient(parts: list[slice]) -> torch.Tensor:
        module.zero_grad()
        for part in parts:
            batch = {"image": images[part], "label": labels[part]}
            losses = module(batch, 0, 0)
            total = sum(losses[name] / 2 for name in module.names)
            total.backward()  # type: ignore[union-attr]
        return module.network.base.aspp.c0.weight.grad.clone()

    assert torch.allclose(gradient([slice(0, 4)]), gradient([slice(0, 2), slice(2, 4)]), rtol=1e-9, atol=1e-12)
    assert task.denominators({"label": labels})["maximum"] == 2
    ignored = module({"image": images, "label": torch.full_like(labels, 255)}, 0, 0)
    assert all(float(loss.detach()) == 0 for loss in ignored.values())


def test_the_rate_changes_every_few_steps() -> None:
    rates = [stepped_decay(step, 100, 0.9, 10) for step in range(30)]
    assert rates[:10] == [1.0] * 10 and len(set(rates)) == 3 and rates[10] == pytest.approx(0.9**0.9)


def test_labels_shrink_as_pillow_does() -> None:
    label = np.arange(97 * 64, dtype=np.int32).reshape(97, 64)
    for size in ((13, 8), (41, 64), (7, 20)):
        small = shrunk_label(torch.from_numpy(label)[None], size)[0].numpy()
        assert np.array_equal(small, resize(label, size, "nearest"))


def test_crops_keep_picture_and_label_together() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (40, 50), dtype=np.uint8)
    image = np.repeat(label[..., None], 3, axis=2) * np.uint8(40)
    plain = caffe_input(image)
    pixels, labels = scale_crop(image, label, ScaleCrop(1.0, 3, 5, mirrored=True), 32)
    assert np.array_equal(pixels, plain[:, 3:35, 5:37][..., ::-1])
    assert np.array_equal(labels, label[3:35, 5:37][:, ::-1])
    pixels, labels = scale_crop(image, label, ScaleCrop(0.5, 0, 0, mirrored=False), 32)
    assert (labels[20:] == 255).all() and (labels[:, 25:] == 255).all() and (labels[:20, :25] != 255).all()
    assert (pixels[:, 20:] == 0).all()
    drawn = [draw_scale_crop(rng, 40, 50, (0.5, 1.5), 32) for _ in range(2000)]
    assert {draw.scale for draw in drawn} == {0.5, 1.5} and {draw.mirrored for draw in drawn} == {True, False}
    assert max(draw.top for draw in drawn) == 28 and max(draw.left for draw in drawn if draw.scale == 0.5) == 0


def test_inputs_normalized_as_imagenets_are_padded_with_the_mean_color() -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), rng.integers(0, 5, (20, 30), dtype=np.uint8)
    plain = channels_first(normalize(image))
    np.testing.assert_allclose(network_input(image, "imagenet"), plain, atol=1e-6)
    pixels, labels = scale_crop(image, label, ScaleCrop(1.0, 0, 0, mirrored=False), 32, "imagenet")
    np.testing.assert_allclose(pixels[:, :20, :30], plain, atol=1e-6)
    assert (pixels[:, 20:] == 0).all() and (pixels[:, :, 30:] == 0).all() and (labels[20:] == 255).all()


def test_a_scored_picture_has_the_size_of_a_training_crop_of_its_scale(case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (45, 61, 3), dtype=np.uint8), np.zeros((45, 61), np.uint8)
    pixels, _ = scale_crop(image, label, ScaleCrop(0.4, 0, 0, mirrored=False), 64)
    scored = network_input(image, "caffe", 0.4)
    assert scored.shape == (3, 18, 24)
    assert np.array_equal(scored, pixels[:, :18, :24])

    def scores(settings: SegmentationSettings) -> tuple[str, np.ndarray]:
        stages = segmentation_stages(
            settings, prefix="mobilenet", label_stage="pseudo_label", seed=0, training_list="train"
        )
        pipeline = Pipeline((label_stage(), *stages))
        keys = stage_keys(pipeline, case.dataset, lambda path: "")
        stage = pipeline.stage("mobilenet_scores")
        assert isinstance(stage, MapStage)
        view = case.dataset.view(stage.reads, stage.image_list)
        inputs = {role: case.run.artifacts[upstream] for role, upstream in stage.inputs.items()}
        job = StageJob(stage=stage, key="", view=view, inputs=inputs, store=open_store(str(tmp_path)))
        with torch.inference_mode():
            return keys["mobilenet_train"], stage.build(job.context("cpu"))(view.names[0])["scores"]

    full, half = scores(MOBILENET), scores(replace(MOBILENET, input_scale=0.5))
    assert full[0] == half[0], "the training does not depend on it"
    assert full[1].shape[1:] == (4, 4)
    assert half[1].shape[1:] == (2, 2)
