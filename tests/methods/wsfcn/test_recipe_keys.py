"""Keys of WS-FCN's stages: pinned for the shipped recipes, and changed by exactly the settings that own them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.methods.recipe_keys import StageKeys, data_folder, given_weights, owners_of

from wsss.errors import WsssError
from wsss.recipe import load_recipe
from wsss_methods.wsfcn import METHOD
from wsss_methods.wsfcn.recipe import WsFcnRecipe

PINNED = Path(__file__).with_name("stage_keys.json")
BACKBONES = ("resnet38", "resnet50", "resnet101", "vgg16", "mobilenet_v2")


KEYS = StageKeys(METHOD)
build, keys_of = KEYS.build, KEYS.of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"), {name: name for name in BACKBONES})


@pytest.mark.parametrize("recipe_name", sorted(path.stem for path in (METHOD.folder / "recipes").glob("*.yaml")))
def test_keys_of_the_shipped_recipes_are_pinned(root: Path, recipe_name: str) -> None:
    given = [] if recipe_name in ("demo", "mini") else given_weights(root, ["resnet38", "resnet50"])
    KEYS.assert_pinned(root, PINNED, recipe_name, *given)


S1 = ("segmentation_train",)
S2B = ("segmentation", "segmentation_image_labels")
S2C = ("segmentation_crf", "segmentation_image_labels_crf")
# Setting or section -> the first stages that it changes; what follows them changes too, and nothing else.
OWNERS: dict[str, tuple[str, ...]] = {
    "seed": S1,
    "network": S1,
    "train": S1,
    "pseudo_label": S1,
    "inference": ("segmentation_scores",),
    "prediction.fp_cut_score": ("segmentation", "segmentation_curve", "segmentation_crf"),
    "prediction.bg_score": (*S2B, "segmentation_evaluation", "segmentation_image_labels_evaluation"),
    "crf": S2C,
}
CHANGES = {
    "seed": "7",
    "network.backbone": "mobilenet_v2",
    "network.backbone_width": "0.5",
    "network.head_width": "16",
    "network.normalization": "batch",
    "network.gate_psi": "0.2",
    "network.focal_p": "2",
    "network.focal_lambda": "0.1",
    "train.crop_size": "65",
    "train.crop_scale_min": "0.5",
    "train.color_jitter": "1",
    "train.batch_size": "8",
    "train.norm_group": "8",
    "train.num_epochs": "12",
    "train.pretrain_epochs": "3",
    "train.lr": "0.01",
    "train.lr_mult_old_bias": "2",
    "train.lr_mult_new_weight": "2",
    "train.lr_mult_new_bias": "2",
    "train.lr_schedule": "poly",
    "train.optimizer": "adamw",
    "train.momentum": "0.8",
    "train.weight_decay": "0",
    "train.mask_loss_weight": "0.5",
    "train.fca_dropout": "0",
    "train.dec_dropout1": "0",
    "train.dec_dropout2": "0",
    "train.precision": "amp",
    "pseudo_label.pamr_iters": "5",
    "pseudo_label.pamr_dilations": "[1, 2]",
    "pseudo_label.pseudo_fg_ratio": "0.5",
    "pseudo_label.pseudo_bg_ratio": "0.5",
    "pseudo_label.pseudo_min_score": "0.1",
    "inference.infer_scales": "[1.0]",
    "inference.infer_canvas": "192",
    "inference.keep_score": "0.02",
    "inference.keep_mask": "0.01",
    "prediction.fp_cut_score": "0.2",
    "prediction.bg_score": "0.3",
    "crf.alpha": "3",
    "crf.iters": "5",
    "crf.gauss_sxy": "2",
    "crf.gauss_compat": "2",
    "crf.bi_sxy": "40",
    "crf.bi_srgb": "5",
    "crf.bi_compat": "5",
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_changes_its_stages_and_what_follows_them(root: Path, key: str) -> None:
    KEYS.assert_changes(root, f"{key}={CHANGES[key]}", owners_of(key, OWNERS))


def test_every_setting_has_its_line() -> None:
    asked = KEYS.settings()
    others = {"train.lr_power", "selection.rule", "selection.every", "prediction.image_label_filter", "crf.enabled"}
    assert asked - others == set(CHANGES)


def test_the_power_of_a_schedule_that_is_off_enters_no_key(root: Path) -> None:
    assert keys_of(root, "demo", "train.lr_power=2") == keys_of(root, "demo")
    poly = "train.lr_schedule=poly"
    assert keys_of(root, "demo", poly, "train.lr_power=2") != keys_of(root, "demo", poly)


def test_settings_that_add_or_remove_stages(root: Path) -> None:
    before = keys_of(root, "demo")
    no_crf = keys_of(root, "demo", "crf.enabled=false")
    no_labels = keys_of(root, "demo", "prediction.image_label_filter=false")
    assert {name for name in before if "crf" in name} == set(before) - set(no_crf)
    assert {name for name in before if "image_labels" in name} == set(before) - set(no_labels)
    assert all(before[name] == key for keys in (no_crf, no_labels) for name, key in keys.items())
    last = build(root, "demo", "selection.rule=last")
    assert set(before) - {stage.name for stage in last} == {"segmentation_candidates", "segmentation_selection"}
    assert not any(stage.chooses_by_masks for stage in build(root, "demo"))


def test_only_the_image_label_protocol_reads_labels_of_val(root: Path) -> None:
    pipeline = build(root, "demo")
    readers = {s.name for s in pipeline if s.image_list == "val" and "image_labels" in s.reads}
    assert readers == {
        "segmentation_candidates",  # the published choice of the epoch
        "segmentation_image_labels",
        "segmentation_image_labels_curve",
        "segmentation_image_labels_crf",
    }
    assert pipeline.stage("segmentation_scores").reads == frozenset({"images"})


def test_published_multipliers_follow_the_backbone() -> None:
    recipe = load_recipe(WsFcnRecipe)
    assert recipe.train.multipliers("resnet38") == recipe.train.multipliers("vgg16") == (1.0, 2.0, 20.0, 40.0)
    assert recipe.train.multipliers("resnet50") == recipe.train.multipliers("resnet101") == (1.0, 1.0, 20.0, 10.0)
    own = load_recipe(WsFcnRecipe, None, ["train.lr_mult_old_bias=3", "train.lr_mult_new_bias=5"])
    assert own.train.multipliers("resnet38") == (1.0, 3.0, 20.0, 5.0)


def test_content_of_weights_enters_keys_and_their_place_does_not(root: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "one.pth", tmp_path / "two.pth"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    full = ["network.backbone=vgg16", "network.backbone_width=1"]
    before = keys_of(root, "demo", *full, f"weights.vgg16_20m={first}")
    assert keys_of(root, "demo", *full, f"weights.vgg16_20m={second}") == before != keys_of(root, "demo", *full)
    second.write_bytes(b"other weights")
    assert (
        keys_of(root, "demo", *full, f"weights.vgg16_20m={second}")["segmentation_train"]
        != before["segmentation_train"]
    )


def test_a_missing_weight_file_is_named_before_anything_runs(root: Path) -> None:
    with pytest.raises(WsssError, match=r"ilsvrc-cls_rna-a1_cls1000_ep-0001\.pth"):
        build(root, "paper")
    with pytest.raises(WsssError, match=r"weights\.mobilenet_v2 = .*nowhere.pth does not exist"):
        build(root, "mini", "weights.mobilenet_v2=nowhere.pth")
    build(root, "mini", "weights.mobilenet_v2=none")
    with pytest.raises(WsssError, match=r"does not fit network.backbone_width = 0.5"):
        build(root, "mini", "network.backbone_width=0.5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prediction.bg_score=0.255", "multiple of 0.01"),
        ("prediction.fp_cut_score=0.005", "below inference.keep_score"),
        ("train.norm_group=5", "multiple of norm_group"),
        ("train.pretrain_epochs=24", "below num_epochs"),
        ("pseudo_label.pamr_dilations=[]", "must not be empty"),
        ("inference.infer_scales=[]", "must not be empty"),
        ("inference.infer_canvas=[192]", "two sides that differ"),
        ("inference.infer_canvas=[192, 192]", "write a square as one number"),
        ("inference.infer_canvas=[192, 176, 160]", "two sides that differ"),
        ("inference.infer_canvas=[192, 16]", "infer_canvas"),
    ],
)
def test_relations_between_settings(override: str, message: str) -> None:
    with pytest.raises(WsssError, match=message):
        load_recipe(WsFcnRecipe, METHOD.recipe_path("demo"), [override])


@pytest.mark.parametrize(("text", "canvas"), [("192", (192, 192)), ("[160, 192]", (160, 192))])
def test_a_canvas_has_one_side_or_two(text: str, canvas: tuple[int, int]) -> None:
    recipe = load_recipe(WsFcnRecipe, METHOD.recipe_path("demo"), [f"inference.infer_canvas={text}"])
    assert recipe.inference.canvas == canvas
