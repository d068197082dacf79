"""Keys of SSC's stages: pinned for the shipped recipes, and changed by exactly the settings that own them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.methods.recipe_keys import StageKeys, data_folder, given_weights, owners_of

from wsss.errors import WsssError
from wsss.recipe import load_recipe
from wsss_methods.ssc import METHOD
from wsss_methods.ssc.recipe import SscRecipe

PINNED = Path(__file__).with_name("stage_keys.json")
WEIGHTS = ("resnet50", "resnet101_v2", "vgg19", "mobilenet_v2")


KEYS = StageKeys(METHOD)
build, keys_of = KEYS.build, KEYS.of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"), {name: name.removesuffix("_v2") for name in WEIGHTS})


def shipped_overrides(root: Path, recipe_name: str) -> list[str]:
    if recipe_name in ("demo", "mini"):
        return []
    return given_weights(root, WEIGHTS[:3])


@pytest.mark.parametrize("recipe_name", ["demo", "mini", "small", "paper", "paper_coco"])
def test_keys_of_the_shipped_recipes_are_pinned(root: Path, recipe_name: str) -> None:
    KEYS.assert_pinned(root, PINNED, recipe_name, *shipped_overrides(root, recipe_name))


def test_the_protocol_says_among_how_many_epochs_masks_chose(root: Path) -> None:
    weights = shipped_overrides(root, "paper")
    told = [
        build(root, "paper", *weights, *override).protocol["checkpoint"]
        for override in ([], ["segmentation.candidate_every=1"], ["segmentation.selection=last"])
    ]
    assert "of 20 of 100, where the official program takes the best of all" in told[0]
    assert told[1].endswith("of 100 of 100") and told[2] == "last epoch"


# Setting -> the first stages that it changes; what follows them in the graph changes too, and nothing else.
# A section alone stands for all its settings that have no line of their own.
OWNERS: dict[str, tuple[str, ...]] = {
    "seed": ("cam_train", "plain_cam_train", "affinity_train", "segmentation_train"),
    "superpixels": ("superpixels",),
    "cam": ("cam_train", "plain_cam_train"),
    "cam.drs_delta": ("cam_train",),
    "cam.drs_after_stage2": ("cam_train",),
    "cam.loss_weight_perceptual": ("cam_train",),
    "cam.loss_weight_alignment": ("cam_train",),
    "cam.alignment_warmup_epochs": ("cam_train",),
    "cam.alignment_threshold": ("cam_train",),
    "cam.alignment_erosion_kernel": ("cam_train",),
    "cam.alignment_downscale": ("cam_train",),
    "cam.perceptual_network": ("cam_train",),
    "cam.perceptual_layer_weights": ("cam_train",),
    "cam.rescale_reconstruction": ("cam_train",),
    "cam.decoder_width": ("cam_train",),
    "cam.rec_learning_rate": ("cam_train",),
    "cam.rec_adam_beta1": ("cam_train",),
    "cam_inference": ("cam", "plain_cam"),
    "cam_inference.cam_eval_thres": ("cam_evaluation", "plain_cam_evaluation"),
    "ir_label": ("ir_label",),
    "affinity": ("affinity_train",),
    "random_walk": ("random_walk",),
    "random_walk.input_size": ("edge",),
    "pseudo_label.sem_seg_bg_thres": ("pseudo_label", "confidence_mask", "pseudo_label_evaluation"),
    "pseudo_label.mask_keep_ratio": ("confidence_mask",),
    "segmentation": ("segmentation_train",),
    "segmentation_inference": ("segmentation_scores",),
    "crf": ("segmentation_predictions",),
    "crf.iterations": ("segmentation", "segmentation_evaluation"),
}
BASE = ["references.plain_cam=true", "affinity.displacement_mean=true", "segmentation_inference.scales=[1.0,1.25]"]
CHANGES = {
    "seed": "7",
    "superpixels.segments": "70",
    "superpixels.compactness": "5",
    "superpixels.max_side": "80",
    "cam.backbone": "mobilenet_v2",
    "cam.width": "0.5",
    "cam.normalization": "batch",
    "cam.gradient_stop": "false",
    "cam.drs_delta": "0.6",
    "cam.drs_after_stage2": "true",
    "cam.crop_size": "128",
    "cam.resize_long_min": "90",
    "cam.resize_long_max": "150",
    "cam.batch_size": "8",
    "cam.num_epochs": "3",
    "cam.learning_rate": "0.02",
    "cam.classifier_lr_mult": "2",
    "cam.weight_decay": "0",
    "cam.momentum": "0.5",
    "cam.lr_power": "1",
    "cam.loss_weight_perceptual": "0.25",
    "cam.loss_weight_alignment": "0.25",
    "cam.alignment_warmup_epochs": "1",
    "cam.alignment_threshold": "0.4",
    "cam.alignment_erosion_kernel": "2",
    "cam.alignment_downscale": "0.25",
    "cam.perceptual_network": "mobilenet_v2",
    "cam.perceptual_layer_weights": "[1, 1, 1, 1, 1]",
    "cam.rescale_reconstruction": "true",
    "cam.decoder_width": "0.25",
    "cam.rec_learning_rate": "1e-3",
    "cam.rec_adam_beta1": "0.9",
    "cam.precision": "amp",
    "cam_inference.scales": "[1.0]",
    "cam_inference.cam_eval_thres": "0.3",
    "ir_label.conf_fg_thres": "0.5",
    "ir_label.conf_bg_thres": "0.2",
    "ir_label.crf_iterations": "3",
    "ir_label.crf_gt_prob": "0.8",
    "ir_label.crf_gaussian_sxy": "2",
    "ir_label.crf_gaussian_compat": "2",
    "ir_label.crf_bilateral_sxy": "40",
    "ir_label.crf_bilateral_srgb": "6",
    "ir_label.crf_bilateral_compat": "8",
    "affinity.backbone": "mobilenet_v2",
    "affinity.width": "0.5",
    "affinity.head_width": "1",
    "affinity.train_backbone": "true",
    "affinity.crop_size": "128",
    "affinity.batch_size": "8",
    "affinity.num_epochs": "1",
    "affinity.learning_rate": "0.01",
    "affinity.dp_lr_mult": "5",
    "affinity.weight_decay": "0",
    "affinity.momentum": "0.5",
    "affinity.lr_power": "1",
    "affinity.rescale_min": "0.9",
    "affinity.rescale_max": "1.1",
    "affinity.path_radius": "4",
    "affinity.precision": "amp",
    "random_walk.input_size": "128",
    "random_walk.radius": "4",
    "random_walk.beta": "8",
    "random_walk.exp_times": "3",
    "pseudo_label.sem_seg_bg_thres": "0.3",
    "pseudo_label.mask_keep_ratio": "0.6",
    "segmentation.architecture": "segformer_b2",
    "segmentation.width": "0.5",
    "segmentation.crop_size": "64",
    "segmentation.crop_area_min": "0.4",
    "segmentation.crop_area_max": "0.9",
    "segmentation.batch_size": "4",
    "segmentation.num_epochs": "2",
    "segmentation.learning_rate": "0.02",
    "segmentation.head_lr_mult": "1",
    "segmentation.optimizer": "adamw",
    "segmentation.momentum": "0.8",
    "segmentation.weight_decay": "0",
    "segmentation.lr_power": "1",
    "segmentation.min_lr": "0",
    "segmentation.warmup_epochs": "1",
    "segmentation.mix_prob": "0.2",
    "segmentation.mix_ignore_bg": "false",
    "segmentation.online_conf_thres": "0.9",
    "segmentation.bdry_size": "2",
    "segmentation.bdry_weight_sup": "[0.1, 0.1]",
    "segmentation.bdry_weight_cotrain": "[0.1, 0.1]",
    "segmentation.photometric_prob": "0.1",
    "segmentation.grey_prob": "0.1",
    "segmentation.blur_prob": "0.1",
    "segmentation.candidate_every": "1",
    "segmentation.precision": "amp",
    "segmentation_inference.input_size": "128",
    "segmentation_inference.multi_scale": "false",
    "segmentation_inference.scales": "[0.75]",
    "crf.enabled": "false",
    "crf.iterations": "5",
    "crf.scored_iterations": "12",
    "crf.pos_xy_std": "2",
    "crf.pos_w": "2",
    "crf.bi_xy_std": "60",
    "crf.bi_rgb_std": "4",
    "crf.bi_w": "5",
    "crf.image": "raw",
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_changes_its_stages_and_what_follows_them(root: Path, key: str) -> None:
    KEYS.assert_changes(root, f"{key}={CHANGES[key]}", owners_of(key, OWNERS), BASE)


def test_every_setting_has_its_line(root: Path) -> None:
    asked = KEYS.settings()
    of_stages = {"segmentation.selection", "affinity.displacement_mean", "superpixels.source"}
    assert asked - of_stages == set(CHANGES)


def test_settings_that_add_or_remove_stages(root: Path) -> None:
    before = keys_of(root, "demo")
    baseline = keys_of(root, "demo", "references.plain_cam=true")
    assert set(baseline) - set(before) == {
        "plain_cam_train",
        "plain_cam",
        "plain_cam_score",
        "plain_cam_evaluation",
    }
    assert {name: baseline[name] for name in before} == before
    measured = keys_of(root, "demo", "affinity.displacement_mean=true")
    assert set(measured) - set(before) == {"affinity_displacement"}
    assert {name: measured[name] for name in before} == before
    last = build(root, "demo", "segmentation.selection=last")
    assert set(before) - {stage.name for stage in last} == {"segmentation_candidates", "segmentation_selection"}
    assert not any(stage.chooses_by_masks for stage in last)
    chosen = {stage.name for stage in build(root, "demo") if stage.chooses_by_masks}
    assert chosen == {"segmentation_selection"}


def test_constraints_that_are_off_leave_no_trace(root: Path) -> None:
    off = ["cam.loss_weight_alignment=0", "cam.loss_weight_perceptual=0"]
    pipeline = build(root, "demo", *off)
    assert "superpixels" not in {stage.name for stage in pipeline}
    assert pipeline.stage("cam_train").inputs == {}
    before = keys_of(root, "demo", *off)
    after = keys_of(root, "demo", *off, "cam.alignment_threshold=0.5", "cam.decoder_width=0.5")
    assert before == after


def test_the_baseline_differs_in_suppression_and_constraints_alone(root: Path) -> None:
    pipeline = build(root, "demo", *BASE)
    ours, plain = pipeline.stage("cam_train").config, pipeline.stage("plain_cam_train").config
    for name in ("backbone", "width", "num_epochs", "batch_size", "learning_rate", "momentum", "crop_size"):
        assert getattr(ours, name) == getattr(plain, name), name
    assert (plain.drs_delta, plain.loss_weight_perceptual, plain.loss_weight_alignment) == (1.0, 0.0, 0.0)
    assert not plain.drs_after_stage2


def test_content_of_weights_enters_keys_and_their_place_does_not(root: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "one.pth", tmp_path / "two.pth"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    full = ["cam.backbone=mobilenet_v2", "cam.width=1"]
    before = keys_of(root, "demo", *full, f"weights.mobilenet_v2={first}")
    assert keys_of(root, "demo", *full, f"weights.mobilenet_v2={second}") == before
    second.write_bytes(b"other weights")
    after = keys_of(root, "demo", *full, f"weights.mobilenet_v2={second}")
    assert before["cam_train"] != after["cam_train"] and before["superpixels"] == after["superpixels"]


def test_missing_weights_are_all_named_before_anything_runs(root: Path) -> None:
    with pytest.raises(WsssError) as error:
        build(root, "paper", *(f"weights.{name}=none" for name in WEIGHTS[:3]))
    text = str(error.value)
    for name in ("resnet50-0676ba61.pth", "resnet101-cd907fc2.pth", "vgg19-dcbb9e9d.pth", "weights.NAME=FILE"):
        assert name in text
    with pytest.raises(WsssError, match=r"weights\.mobilenet_v2 = .*nowhere.pth does not exist"):
        build(root, "mini", "weights.mobilenet_v2=nowhere.pth")
    build(root, "mini", "weights.mobilenet_v2=none")
    with pytest.raises(WsssError, match=r"does not fit cam.width = 0.5"):
        build(root, "mini", "cam.width=0.5")


def test_superpixels_of_a_folder_enter_by_content(root: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        for name in "abc":
            Image.new("RGB", (6, 4), (ord(name), 0, 0)).save(folder / f"{name}.png")
    given = ["superpixels.source=folder"]
    keys = [keys_of(root, "demo", *given, f"superpixels.folder={folder}") for folder in folders]
    assert keys[0] == keys[1] != keys_of(root, "demo")
    Image.new("RGB", (6, 4), (1, 1, 0)).save(folders[1] / "c.png")
    assert keys_of(root, "demo", *given, f"superpixels.folder={folders[1]}")["superpixels"] != keys[0]["superpixels"]
    (folders[1] / "c.png").unlink()
    with pytest.raises(WsssError, match=r"1 of 3 superpixels files[\s\S]*c\.png: the file is missing"):
        keys_of(root, "demo", *given, f"superpixels.folder={folders[1]}")
    with pytest.raises(WsssError, match=r"voc_superpixels\.zip"):
        keys_of(root, "demo", *given)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cam_inference.cam_eval_thres=0.123", "multiple of 0.01"),
        ("pseudo_label.sem_seg_bg_thres=0.255", "multiple of 0.01"),
        ("ir_label.conf_bg_thres=0.5", "must lie below"),
        ("cam.resize_long_min=200", "above resize_long_max"),
        ("segmentation.crop_area_min=0.9", "above crop_area_max"),
        ("segmentation.batch_size=7", "multiple of 2"),
        ("affinity.path_radius=15", "does not fit a crop"),
    ],
)
def test_relations_between_settings(override: str, message: str) -> None:
    with pytest.raises(WsssError, match=message):
        load_recipe(SscRecipe, METHOD.recipe_path("demo"), ["ir_label.conf_fg_thres=0.45", override])
