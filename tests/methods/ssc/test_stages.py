"""SSC's stages one after the other in this process, at the smallest size: what they hand on, and the official files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.in_process import DemoRun, run_pipeline

from wsss.data.augment.rescaled_crop import cam_inputs
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.evaluation.counts import Counts
from wsss.nn.checkpoint import CheckpointError
from wsss.ops.cam import merged_cam, merged_high_res
from wsss.pipeline import MapStage, StageContext
from wsss.recipe import load_recipe
from wsss.released import check_checkpoint, pipeline_of
from wsss.stages import random_walk
from wsss.stages.cam import read_high_res
from wsss.stages.random_walk import RandomWalkConfig
from wsss.stages.refine import unpack_steps
from wsss_methods.ssc import METHOD
from wsss_methods.ssc.recipe import SscRecipe
from wsss_methods.ssc.training import build_cam_network

SMALL = [
    "dataset.shapes.train=6",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=4",
    "dataset.shapes.size=64",
    "dataset.shapes.classes=3",
    "superpixels.segments=20",
    "cam.crop_size=64",
    "cam.batch_size=4",
    "cam.num_epochs=2",
    "cam.alignment_warmup_epochs=1",
    "cam_inference.scales=[1.0,0.5,1.5]",
    "affinity.crop_size=64",
    "affinity.batch_size=4",
    "affinity.num_epochs=1",
    "affinity.displacement_mean=true",
    "random_walk.input_size=64",
    "segmentation.crop_size=64",
    "segmentation.batch_size=4",
    "segmentation.num_epochs=2",
    "segmentation.warmup_epochs=1",
    "segmentation.candidate_every=1",
    "segmentation_inference.input_size=64",
    "crf.image=both",
    "references.plain_cam=true",
]


class Case(DemoRun):
    """One finished run and what it ran on."""

    def __init__(self, home: Path) -> None:
        super().__init__(METHOD, home, SMALL)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("home"))


def test_every_stage_ran_and_a_second_run_has_nothing_to_do(case: Case) -> None:
    case.assert_complete()


def test_headline_numbers_exist(case: Case) -> None:
    for name in case.pipeline.headline:
        assert 0 <= case.run.metrics[name] <= 1, name
    for grid in case.pipeline.grids:
        for column in grid.columns:
            name = case.dataset.lists[grid.image_list][0]
            assert column.array in case.artifact(column.stage).arrays(name)


def test_losses_of_a_constraint_begin_after_its_warm_up(case: Case) -> None:
    ours, plain = case.run.histories["cam_train"], case.run.histories["plain_cam_train"]
    assert [np.isnan(value) for value in ours["loss/alignment"]] == [True, True, False, False]
    assert {name for name in plain if name.startswith("loss/")} == {"loss/classification"}
    # The same crops, and the same start: only suppression and constraints differ.
    assert set(ours) > set(plain)


def test_full_resolution_cam_is_rebuilt_from_float16(case: Case) -> None:
    """What storing raw maps in float16 costs, against the network's own float32 maps (measured: about 4e-4)."""
    network = build_cam_network(case.recipe.cam, case.dataset.num_classes)
    network.load_state_dict(torch.load(case.artifact("cam_train").path("cam_network.pt"), weights_only=True))
    network.eval()
    view = case.dataset.view({"images", "image_labels"}, "train_aug")
    for name in view.names:
        image, present = view.image(name), np.array(view.present_classes(name)) - 1
        outputs = [network.infer(torch.from_numpy(x)) for x in cam_inputs(image, case.recipe.cam_inference.scales)]
        size = view.image_size(name)
        exact = merged_high_res(outputs, present, size)
        arrays = case.artifact("cam").arrays(name)
        rebuilt = read_high_res(arrays)
        assert rebuilt.shape == (len(present), *size) and rebuilt.dtype == np.float32
        assert np.abs(rebuilt - exact).max() < 1e-3
        assert np.abs(arrays["cam"].astype(np.float32) - merged_cam(outputs, present, size)).max() < 1e-3
        assert arrays["keys"].tolist() == list(view.present_classes(name))


def test_the_curve_and_the_stored_pseudo_label_agree(case: Case) -> None:
    view = case.dataset.view({"masks"}, "train")
    total = np.zeros((case.dataset.num_classes,) * 2, dtype=np.int64)
    for name in view.names:
        label = case.artifact("pseudo_label").arrays(name)["label"]
        total += confusion_matrix(view.mask(name), label, case.dataset.num_classes)
    assert float(miou(total)) == pytest.approx(case.run.metrics["pseudo_label/miou_train"], abs=1e-12)


def test_confidence_mask_keeps_the_share_of_every_class(case: Case) -> None:
    ratio = case.recipe.pseudo_label.mask_keep_ratio
    for name in case.dataset.lists["train_aug"]:
        label = case.artifact("pseudo_label").arrays(name)["label"]
        mask = case.artifact("confidence_mask").arrays(name)["mask"]
        for class_id in np.unique(label):
            here = label == class_id
            assert int(mask[here].sum()) == int(here.sum() * ratio)


def test_the_selected_epoch_is_the_one_that_predicts(case: Case) -> None:
    weights = case.artifact("segmentation_train")
    assert {"epoch_0001/network1.pt", "epoch_0002/network2.pt", "network1.pt"} <= set(weights.files)
    rows = case.artifact("segmentation_selection").json("tables.json")["candidates"]
    assert [row["epoch"] for row in rows] == [1, 2]
    best = max(rows, key=lambda row: row["miou"])
    assert best["selected"] and case.run.metrics["segmentation_selection/epoch"] == best["epoch"]


def test_every_variant_of_the_crf_is_scored(case: Case) -> None:
    metrics = case.run.metrics
    for variant in ("", "_crf", "_crf_raw"):
        assert f"segmentation/miou_val{variant}" in metrics
        assert f"segmentation/miou_val{variant}_low" in metrics
        assert metrics[f"segmentation/miou_val{variant}_all_background"] > 0
    arrays = case.artifact("segmentation_predictions").arrays(case.dataset.lists["val"][0])
    for name in ("confusion", "confusion_crf", "confusion_crf_raw"):
        assert Counts.read(arrays, name).dense().sum() > 0
    assert "segmentation/oracle_iterations_val" not in metrics, "without the CRF there is nothing to choose"


def test_another_number_of_steps_executes_no_crf(case: Case) -> None:
    recipe = load_recipe(SscRecipe, METHOD.recipe_path("demo"), [*SMALL, "crf.iterations=3"])
    run = run_pipeline(METHOD.pipeline(recipe, case.dataset), case.dataset, case.store)
    assert run.executed == ["segmentation", "segmentation_evaluation"]
    table = case.artifact("segmentation_evaluation").json("tables.json")["iterations_crf"]
    assert [row["iterations"] for row in table] == list(range(1, 11))
    assert [row["iterations"] for row in table if row["default"]] == [10]
    assert run.metrics["segmentation/miou_val_crf"] == pytest.approx(table[2]["miou"], abs=1e-12)
    assert case.run.metrics["segmentation/miou_val_crf"] == pytest.approx(table[9]["miou"], abs=1e-12)
    for name in ("miou_val_crf_oracle", "miou_val_crf_cross_fitted", "oracle_iterations_val_crf", "miou_val"):
        assert run.metrics[f"segmentation/{name}"] == case.run.metrics[f"segmentation/{name}"], name
    assert run.metrics["segmentation/miou_val_crf_oracle"] == max(row["miou"] for row in table)
    name = case.dataset.lists["val"][0]
    steps = case.artifact("segmentation_predictions").arrays(name)["steps_crf"]
    chosen = run.artifacts["segmentation"].arrays(name)["prediction_crf"]
    assert np.array_equal(chosen, unpack_steps(steps, chosen.shape)[2])


def test_official_cam_files(case: Case, tmp_path: Path) -> None:
    exporter = METHOD.exporters["cam"]
    artifact = case.artifact("cam")
    assert exporter.write(artifact, case.dataset, tmp_path) == len(case.dataset.lists["train_aug"])
    name = case.dataset.lists["train_aug"][0]
    content = np.load(tmp_path / f"{name}.npy", allow_pickle=True).item()
    arrays = artifact.arrays(name)
    assert content["keys"].dtype == torch.int64 and (content["keys"].numpy() + 1).tolist() == arrays["keys"].tolist()
    assert content["cam"].dtype == torch.float32 and content["high_res"].dtype == np.float32
    assert exporter.read is not None
    writer = case.store.writer("cam", "imported")
    names = case.dataset.lists["train_aug"]
    with pytest.raises(WsssError, match="pickles"):
        exporter.read(tmp_path, case.dataset, names, writer)
    for each in names:
        values = np.load(tmp_path / f"{each}.npy", allow_pickle=True).item()
        np.savez(
            tmp_path / f"{each}.npz",
            keys=np.asarray(values["keys"]),
            cam=np.asarray(values["cam"]),
            high_res=values["high_res"],
        )
    exporter.read(tmp_path, case.dataset, names, writer)
    imported = writer.publish({}).arrays(name)
    assert imported["keys"].tolist() == arrays["keys"].tolist()
    assert np.abs(read_high_res(imported) - read_high_res(arrays)).max() < 1e-3


@pytest.mark.parametrize(
    ("layout", "array"),
    [
        ("superpixels", "ids"),
        ("ir_label", "label"),
        ("pseudo_label", "label"),
        ("confidence_mask", "mask"),
        ("segmentation_scores", "scores"),
    ],
)
def test_official_maps_come_back_as_they_were(case: Case, tmp_path: Path, layout: str, array: str) -> None:
    exporter = METHOD.exporters[layout]
    artifact = case.artifact(exporter.stage)
    names = tuple(artifact.images())
    assert exporter.write(artifact, case.dataset, tmp_path) == len(names)
    assert exporter.read is not None
    writer = case.store.writer(exporter.stage, "imported")
    exporter.read(tmp_path, case.dataset, names, writer)
    imported = writer.publish({})
    for name in names:
        assert np.array_equal(imported.arrays(name)[array], artifact.arrays(name)[array])
        assert imported.arrays(name)[array].dtype == artifact.arrays(name)[array].dtype
    next(tmp_path.glob(f"{names[0]}.*")).unlink()
    with pytest.raises(WsssError, match=names[0]):
        exporter.read(tmp_path, case.dataset, names, case.store.writer(exporter.stage, "incomplete"))


@pytest.mark.parametrize(
    ("layout", "file", "stored"),
    [
        ("cam_train", "res50_cam.pth.pth", ("cam_network.pt", "decoder.pt")),
        ("affinity_train", "res50_irn.pth", ("affinity_network.pt",)),
        ("segmentation_train", "best_ckpt.pth", ("network1.pt", "network2.pt")),
    ],
)
def test_official_checkpoints_come_back_as_they_were(
    case: Case, tmp_path: Path, layout: str, file: str, stored: tuple[str, ...]
) -> None:
    exporter = METHOD.exporters[layout]
    artifact = case.artifact(exporter.stage)
    exporter.write(artifact, case.dataset, tmp_path)
    assert exporter.read is not None
    writer = case.store.writer(exporter.stage, "imported")
    exporter.read(tmp_path / file, case.dataset, (), writer)
    imported = writer.publish({})
    for name in stored:
        before = torch.load(artifact.path(name), weights_only=True)
        after = torch.load(imported.path(name), weights_only=True)
        assert set(before) == set(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
    (tmp_path / file).write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError):
        exporter.read(tmp_path / file, case.dataset, (), case.store.writer(exporter.stage, "damaged"))


def test_official_affinity_checkpoint_has_the_mean_displacement(case: Case, tmp_path: Path) -> None:
    artifact = case.artifact("affinity_displacement")
    METHOD.exporters["affinity_displacement"].write(artifact, case.dataset, tmp_path)
    state = torch.load(tmp_path / "res50_irn.pth", weights_only=True)
    mean = np.mean([artifact.arrays(name)["displacement"] for name in case.dataset.lists["train"]], axis=0)
    assert np.allclose(state["mean_shift.running_mean"].numpy(), mean, atol=1e-6)
    assert torch.equal(state["fc_dp7.4.running_mean"], state["mean_shift.running_mean"])
    assert torch.equal(state["edge_layers.5.weight"], state["fc_edge6.weight"])


def test_official_best_checkpoint_is_the_selected_epoch(case: Case, tmp_path: Path) -> None:
    exporter = METHOD.exporters["best_checkpoint"]
    exporter.write(case.artifact(exporter.stage), case.dataset, tmp_path)
    state = torch.load(tmp_path / "best_ckpt.pth", weights_only=True)["net_state_dict"]
    epoch = int(case.run.metrics["segmentation_selection/epoch"])
    path = case.artifact("segmentation_train").path(f"epoch_{epoch:04d}/network2.pt")
    expected = torch.load(path, weights_only=True)
    assert all(torch.equal(state["network2"][name], value) for name, value in expected.items())


def test_predictions_are_written_as_palette_pictures(case: Case, tmp_path: Path) -> None:
    from wsss.data.reading import read_label_map

    METHOD.exporters["segmentation"].write(case.artifact("segmentation"), case.dataset, tmp_path)
    name = case.dataset.lists["val"][0]
    arrays = case.artifact("segmentation").arrays(name)
    assert np.array_equal(read_label_map(tmp_path / f"{name}.png").values, arrays["prediction_crf"])


def test_the_released_layout_scores_as_the_networks_that_it_holds(case: Case, tmp_path: Path) -> None:
    METHOD.exporters["best_checkpoint"].write(case.artifact("segmentation_selection"), case.dataset, tmp_path)
    checkpoint = tmp_path / "best_ckpt.pth"
    # Weights that only training needs are asked for in vain by the whole pipeline, and not at all by this one.
    recipe = load_recipe(
        SscRecipe, METHOD.recipe_path("demo"), [*SMALL, "weights.allow_random=false", "weights.resnet18=none"]
    )
    with pytest.raises(WsssError, match="missing"):
        pipeline_of(METHOD, recipe, case.dataset)
    check_checkpoint(METHOD, recipe, case.dataset, checkpoint)
    run = run_pipeline(pipeline_of(METHOD, recipe, case.dataset, checkpoint), case.dataset, case.store)
    assert run.executed[0] == "segmentation_train" and not {"cam_train", "affinity_train"} & set(run.executed)
    trained = {name: value for name, value in case.run.metrics.items() if name.startswith("segmentation/")}
    assert trained and trained == {name: run.metrics[name] for name in trained}


def test_a_checkpoint_that_does_not_fit_is_refused_with_every_difference(case: Case, tmp_path: Path) -> None:
    METHOD.exporters["best_checkpoint"].write(case.artifact("segmentation_selection"), case.dataset, tmp_path)
    checkpoint = tmp_path / "best_ckpt.pth"
    for override, expected in (
        ("segmentation.architecture=deeplabv2_mobilenet_v2", "missing: "),
        ("segmentation.width=0.5", "wrong shape: "),
    ):
        recipe = load_recipe(SscRecipe, METHOD.recipe_path("demo"), [*SMALL, override])
        with pytest.raises(CheckpointError, match=rf"do not fit[\s\S]*{expected}[\s\S]*best_ckpt.pth, network1"):
            check_checkpoint(METHOD, recipe, case.dataset, checkpoint)
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_checkpoint(METHOD, case.recipe, case.dataset, checkpoint)


def test_random_walks_of_several_settings_at_once_are_those_of_each_alone(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    affinities = random_walk.direction_affinity

    def counted(edge: Any, radius: int) -> Any:
        computed.append(radius)
        return affinities(edge, radius)

    monkeypatch.setattr(random_walk, "direction_affinity", counted)
    stage = case.pipeline.stage("random_walk")
    assert isinstance(stage, MapStage) and stage.build_many is not None
    config: RandomWalkConfig = stage.config
    inputs = {role: case.artifact(upstream) for role, upstream in stage.inputs.items()}
    other = SimpleNamespace(
        key="of other weights", arrays=lambda name: {"edge": 1 - inputs["edge"].arrays(name)["edge"]}
    )
    settings: list[tuple[RandomWalkConfig, Any]] = [
        (config, inputs),
        (replace(config, beta=4), inputs),
        (replace(config, exp_times=2, radius=3), inputs),
        (config, {**inputs, "edge": other}),
    ]
    contexts = [
        StageContext(
            stage=stage.name,
            config=changed,
            data=case.dataset.view(stage.reads, stage.image_list),
            inputs=given,
            files={},
        )
        for changed, given in settings
    ]
    together, alone = stage.build_many(contexts), [stage.build(context) for context in contexts]
    names = case.artifact("random_walk").images()[:3]
    for name in names:
        computed.clear()
        found = together(name)
        assert computed == [config.radius] * 2, "once an edge map, within the largest radius"
        for walks, walk in zip(found, alone, strict=True):
            assert {key: value.tobytes() for key, value in walks.items()} == {
                key: value.tobytes() for key, value in walk(name).items()
            }
    first = together(names[0])
    assert len({arrays["walk"].tobytes() for arrays in first}) == len(settings), "every setting changes the walk"
