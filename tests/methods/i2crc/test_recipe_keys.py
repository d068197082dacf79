"""Keys of I2CRC's stages: pinned for the shipped recipes, and changed by exactly the settings that own them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.methods.recipe_keys import StageKeys, data_folder, given_weights, owners_of

from wsss.errors import WsssError
from wsss.recipe import load_recipe
from wsss_methods.i2crc import METHOD
from wsss_methods.i2crc.recipe import I2crcRecipe

PINNED = Path(__file__).with_name("stage_keys.json")
WEIGHTS = ("vgg16", "resnet101")


KEYS = StageKeys(METHOD)
build, keys_of = KEYS.build, KEYS.of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"), {name: name for name in WEIGHTS})


@pytest.mark.parametrize("recipe_name", ["demo", "mini", "small", "paper", "paper_coco"])
def test_keys_of_the_shipped_recipes_are_pinned(root: Path, recipe_name: str) -> None:
    weights = given_weights(root, WEIGHTS)
    KEYS.assert_pinned(root, PINNED, recipe_name, *([] if recipe_name in ("demo", "mini") else weights))


# Setting -> the first stages that it changes; what follows them in the graph changes too, and nothing else.
# A section alone stands for all its settings that have no line of their own.
ROUNDS = ("segmentation_round1", "segmentation")
OWNERS: dict[str, tuple[str, ...]] = {
    "seed": ("cam_train", *(f"{prefix}_train" for prefix in ROUNDS)),
    "saliency": ("saliency",),
    "cam": ("cam_train",),
    "cam_score": ("cam_evaluation",),
    "pseudo_label": ("pseudo_label",),
    "segmentation": tuple(f"{prefix}_train" for prefix in ROUNDS),
    "segmentation.input_scale": (*(f"{prefix}_scores" for prefix in ROUNDS), "segmentation_round1_train_scores"),
    "segmentation_round1": ("segmentation_round1_train",),
    "crf_train": ("segmentation_round1_labels",),
    "refinement": ("refined_label",),
    "crf": ("segmentation_round1_predictions", "segmentation_predictions"),
    "crf.iterations": tuple(f"{prefix}{what}" for prefix in ROUNDS for what in ("", "_evaluation")),
}
CHANGES = {
    "seed": "7",
    "saliency.detector": "robust_background",
    "saliency.max_side": "80",
    "saliency.segments": "100",
    "saliency.compactness": "5",
    "saliency.sigma_color": "5",
    "saliency.sigma_space": "0.5",
    "saliency.sigma_border": "2",
    "cam.backbone": "mobilenet_v2",
    "cam.width": "0.5",
    "cam.head_width": "32",
    "cam.normalization": "batch",
    "cam.input_size": "96",
    "cam.color_jitter": "0.5",
    "cam.batch_size": "4",
    "cam.num_epochs": "3",
    "cam.learning_rate": "0.001",
    "cam.head_lr_mult": "3",
    "cam.optimizer": "adamw",
    "cam.momentum": "0.8",
    "cam.weight_decay": "0",
    "cam.lr_decay_epochs": "[2]",
    "cam.lr_decay_factor": "0.5",
    "cam.loss_weight_intra_object": "0.1",
    "cam.loss_weight_intra_background": "0.1",
    "cam.loss_weight_inter": "0.5",
    "cam.saliency_size": "32",
    "cam.precision": "amp",
    "cam_score.threshold": "0.2",
    "pseudo_label.foreground_threshold": "0.2",
    "pseudo_label.conflict_threshold": "0.8",
    "pseudo_label.saliency_threshold": "40",
    "pseudo_label.attention_threshold": "0.4",
    "pseudo_label.min_object_ratio": "0.02",
    "segmentation.form": "torchvision",
    "segmentation.depth": "34",
    "segmentation.output_stride": "8",
    "segmentation.width": "0.5",
    "segmentation.msc_scales": "[0.5]",
    "segmentation.freeze_norm": "false",
    "segmentation.crop_size": "65",
    "segmentation.crop_scales": "[1.0]",
    "segmentation.input_scale": "0.5",
    "segmentation.steps": "9",
    "segmentation.batch_size": "15",
    "segmentation.loss_group": "2",
    "segmentation.learning_rate": "0.0007",
    "segmentation.head_lr_mult": "5",
    "segmentation.optimizer": "sgd",
    "segmentation.momentum": "0.5",
    "segmentation.weight_decay": "0",
    "segmentation.lr_power": "1",
    "segmentation.lr_update_steps": "2",
    "segmentation.precision": "amp",
    "segmentation_round1.steps": "9",
    "segmentation_round1.learning_rate": "0.0007",
    "segmentation_round1.head_lr_mult": "5",
    "segmentation_round1.lr_power": "1",
    "crf_train.enabled": "false",
    "crf_train.iterations": "3",
    "crf_train.pos_xy_std": "2",
    "crf_train.pos_w": "2",
    "crf_train.bi_xy_std": "60",
    "crf_train.bi_rgb_std": "4",
    "crf_train.bi_w": "5",
    "crf_train.image": "raw",
    "refinement.initial_for_multiclass": "false",
    "refinement.missing_class_ignores_background": "false",
    "refinement.min_object_ratio": "0.02",
    "crf.enabled": "false",
    "crf.iterations": "4",
    "crf.scored_iterations": "12",
    "crf.pos_xy_std": "2",
    "crf.pos_w": "2",
    "crf.bi_xy_std": "60",
    "crf.bi_rgb_std": "4",
    "crf.bi_w": "5",
    "crf.image": "raw",
}
# Settings that add or remove stages, that take files, or that matter only beside another one.
OF_STAGES = {
    "saliency.source",
    "saliency.constant",
    "cam.relation_losses",
    "segmentation.selection",
    "segmentation.candidate_every",
    "refinement.enabled",
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_changes_its_stages_and_what_follows_them(root: Path, key: str) -> None:
    base = ["segmentation.form=torchvision"] * (key == "segmentation.depth")  # MobileNetV2 has none
    KEYS.assert_changes(root, f"{key}={CHANGES[key]}", owners_of(key, OWNERS), base)


def test_every_setting_has_its_line() -> None:
    asked = KEYS.settings()
    assert asked - OF_STAGES == set(CHANGES)


def test_settings_that_add_or_remove_stages(root: Path) -> None:
    before = keys_of(root, "demo")
    off = keys_of(root, "demo", "refinement.enabled=false")
    assert set(before) - set(off) == {"segmentation_round1_train_scores", "segmentation_round1_labels"}
    assert off == keys_of(root, "demo", "refinement.enabled=false", "refinement.min_object_ratio=0.1")
    chosen = keys_of(root, "demo", "segmentation.selection=best_val")
    assert set(chosen) - set(before) == {"segmentation_candidates", "segmentation_selection"}
    assert all(chosen[name] == before[name] for name in before if name.startswith("segmentation_round1"))
    rarely = keys_of(root, "demo", "segmentation.selection=best_val", "segmentation.candidate_every=3")
    assert rarely["segmentation_train"] != chosen["segmentation_train"]
    plain = ["cam.relation_losses=false"]
    assert keys_of(root, "demo", *plain) == keys_of(root, "demo", *plain, "cam.saliency_size=32") != before


def test_saliency_is_in_keys_and_protocol_by_its_content(root: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        for name in "abc":
            Image.new("L", (6, 4), ord(name)).save(folder / f"{name}.png")
    given = ["saliency.source=folder"]
    keys = [keys_of(root, "demo", *given, f"saliency.folder={folder}") for folder in folders]
    assert keys[0] == keys[1] != keys_of(root, "demo")
    words = [build(root, "demo", *given, f"saliency.folder={folder}").protocol["saliency"] for folder in folders]
    assert words[0].startswith("folder one with digest ") and words[1] == words[0].replace("one", "two")
    Image.new("L", (6, 4), 1).save(folders[1] / "c.png")
    assert keys_of(root, "demo", *given, f"saliency.folder={folders[1]}")["saliency"] != keys[0]["saliency"]
    (folders[1] / "c.png").unlink()
    with pytest.raises(WsssError, match=r"1 of 3 saliency files cannot be used \(1 missing\)[\s\S]*c\.png"):
        keys_of(root, "demo", *given, f"saliency.folder={folders[1]}")
    constants = [keys_of(root, "demo", "saliency.source=constant", f"saliency.constant={value}") for value in (31, 9)]
    assert constants[0]["saliency"] != constants[1]["saliency"]


def test_missing_weights_are_all_named_before_anything_runs(root: Path) -> None:
    with pytest.raises(WsssError) as error:
        build(root, "paper", "weights.vgg16=none", "weights.resnet101=none")
    for name in ("vgg16-397923af.pth", "resnet101-63fe2227.pth", "weights.NAME=FILE"):
        assert name in str(error.value)
    with pytest.raises(WsssError, match="no weight file of resnet34 is known"):
        build(root, "paper", "segmentation.depth=34")
    build(root, "mini", "weights.mobilenet_v2=none")
    with pytest.raises(WsssError, match=r"weights\.mobilenet_v2 does not fit cam\.width = 0\.5"):
        build(root, "mini", "cam.width=0.5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cam_score.threshold=0.123", "multiple of 0.01"),
        ("segmentation.batch_size=7", "no multiple of loss_group"),
        ("cam.normalization=batch cam.backbone=vgg16", "vgg16 has none"),
        ("saliency.source=photograph", "one of"),
    ],
)
def test_relations_between_settings_are_checked(override: str, message: str) -> None:
    with pytest.raises(WsssError, match=message):
        load_recipe(I2crcRecipe, METHOD.recipe_path("demo"), override.split())
