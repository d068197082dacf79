"""Keys of MSA's stages: pinned for the shipped recipes, and changed by exactly the settings that own them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.methods.recipe_keys import StageKeys, data_folder, given_weights, owners_of

from wsss.errors import WsssError
from wsss.recipe import load_recipe
from wsss_methods.msa import METHOD
from wsss_methods.msa.recipe import MsaRecipe

PINNED = Path(__file__).with_name("stage_keys.json")
WEIGHTS = ("resnet50", "resnet101", "deeplabv1_resnet101_coco", "mobilenet_v2")


KEYS = StageKeys(METHOD)
build, keys_of = KEYS.build, KEYS.of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"), {name: name for name in WEIGHTS})


def given(root: Path, recipe_name: str) -> list[str]:
    """Weight files of a recipe that asks for them; what was trained with COCO's masks is no start of two."""
    names = () if recipe_name.startswith(("demo", "mini")) else WEIGHTS
    names = [name for name in names if recipe_name not in ("paper_coco", "small") or "coco" not in name]
    return given_weights(root, names)


@pytest.mark.parametrize("recipe_name", sorted(path.stem for path in (METHOD.folder / "recipes").glob("*.yaml")))
def test_keys_of_the_shipped_recipes_are_pinned(root: Path, recipe_name: str) -> None:
    KEYS.assert_pinned(root, PINNED, recipe_name, *given(root, recipe_name))


@pytest.mark.parametrize(("first", "second"), [("paper", "paper_saliency"), ("mini", "mini_saliency")])
def test_both_variants_share_the_superpixel_network(root: Path, first: str, second: str) -> None:
    keys = [keys_of(root, name, *given(root, name)) for name in (first, second)]
    assert keys[0]["superpixel_train"] == keys[1]["superpixel_train"]
    assert keys[0]["cam_train"] != keys[1]["cam_train"]
    assert "saliency" not in keys[0] and "saliency" in keys[1]


SUPERPIXELS, CAM, MAPS = ("superpixel_train",), ("cam_train",), ("cam",)
# Setting or section -> the first stages that it changes; what follows them changes too, and nothing else.
OWNERS: dict[str, tuple[str, ...]] = {
    "seed": ("superpixel_train", "cam_train", "segmentation_train"),
    "superpixels": SUPERPIXELS,
    "network": CAM,
    "train": CAM,
    "contrast": CAM,
    "inference": MAPS,
    "pseudo_label": ("cam_evaluation", "pseudo_label"),  # every constant of the grid is scored in any case
    "segmentation": ("segmentation_train",),
    "segmentation.msc_scales": ("segmentation_train", "segmentation_scores"),
    "crf": ("segmentation_predictions",),
    "crf.iterations": ("segmentation", "segmentation_evaluation"),
    "crf.image": ("segmentation_predictions", "segmentation", "segmentation_evaluation"),
}
CHANGES = {
    "seed": "7",
    "superpixels.base_channels": "4",
    "superpixels.crop_size": "64",
    "superpixels.resize_long_min": "80",
    "superpixels.resize_long_max": "200",
    "superpixels.position_weight": "0.01",
    "superpixels.batch_size": "4",
    "superpixels.num_epochs": "2",
    "superpixels.learning_rate": "0.01",
    "network.backbone": "mobilenet_v2",
    "network.width": "0.5",
    "network.normalization": "batch",
    "network.head_width": "16",
    "network.dcr_inputs": "features",
    "network.norm_stats": "imagenet",
    "train.crop_size": "64",
    "train.resize_long_min": "80",
    "train.resize_long_max": "200",
    "train.batch_size": "4",
    "train.num_epochs": "2",
    "train.learning_rate": "0.3",
    "train.head_lr_mult": "5",
    "train.weight_decay": "0",
    "train.optimizer": "sgd",
    "train.momentum": "0.5",
    "train.lr_power": "2",
    "train.clip_norm": "7",
    "contrast.weight": "1.5",
    "contrast.patches": "16",
    "contrast.ignore_threshold": "0.3",
    "contrast.ap_iterations": "5",
    "contrast.ap_threshold": "0.33",
    "inference.scales": "[1.0]",
    "inference.mirrored": "false",
    "inference.merged_at": "image",
    "inference.ap_iterations": "5",
    "inference.ap_threshold": "0.33",
    "inference.refine_steps": "3",
    "pseudo_label.threshold": "0.63",
    "segmentation.form": "torchvision",
    "crf.iterations": "2",
    "crf.pos_w": "2",
    "crf.image": "both",
}
# They matter under another choice, or are the shared stage's.
OTHERS = (
    "network.superpixels",
    "network.dcr",
    "network.gradient_stop",
    "contrast.target",
    "selection.",
    "saliency.",
    "pseudo_label.rule",
    "pseudo_label.candidates",
    "segmentation",
    "crf.",
)


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_changes_its_stages_and_what_follows_them(root: Path, key: str) -> None:
    KEYS.assert_changes(root, f"{key}={CHANGES[key]}", owners_of(key, OWNERS))


def test_every_setting_has_its_line() -> None:
    asked = KEYS.settings()
    assert {key for key in asked if not key.startswith(OTHERS)} <= set(CHANGES) <= asked


def test_what_is_switched_off_enters_no_key(root: Path) -> None:
    no_superpixels = "network.superpixels=false network.dcr=false"
    for switches, silent in (
        ("contrast.weight=0", ("contrast.patches=16", "contrast.target=saliency", "saliency.segments=20")),
        ("contrast.ap_iterations=0", ("contrast.ap_threshold=0.33",)),
        ("inference.ap_iterations=0", ("inference.ap_threshold=0.33",)),
        ("network.dcr=false", ("network.dcr_inputs=features", "network.head_width=16")),
        ("network.dcr=true", ("network.gradient_stop=false",)),
        ("selection.rule=last", ("selection.images=5", "selection.thresholds=[0.2]")),
        ("pseudo_label.rule=fixed", ("pseudo_label.candidates=[0.2]",)),
        (no_superpixels, ("inference.refine_steps=3", "superpixels.num_epochs=2")),
    ):
        before = keys_of(root, "demo", *switches.split())
        for override in silent:
            assert keys_of(root, "demo", *switches.split(), override) == before, (switches, override)


@pytest.mark.parametrize(
    ("choice", "largest"),
    [
        ("pseudo_label.rule=best_train_masks pseudo_label.candidates=[0.7]", 0.95),
        ("pseudo_label.rule=fixed pseudo_label.candidates=[0.7]", 0.5),
        ("pseudo_label.rule=fixed pseudo_label.threshold=0.6", 0.95),
    ],
)
def test_every_constant_that_may_be_chosen_is_scored(root: Path, choice: str, largest: float) -> None:
    pipeline = build(root, "demo", "pseudo_label.threshold=0.3", *choice.split())
    assert pipeline.stage("cam_score").config.thresholds[-1] == largest


def test_the_plain_baseline_has_no_part_of_the_method(root: Path) -> None:
    plain = ["network.superpixels=false", "network.dcr=false", "contrast.weight=0", "inference.ap_iterations=0"]
    pipeline = build(root, "demo", *plain)
    assert not any(stage.name.startswith(("superpixel", "saliency")) for stage in pipeline)
    assert pipeline.stage("cam").inputs == {"weights": "cam_train"}
    assert pipeline.protocol["CAM network"].endswith("plain CAM")
    assert pipeline.protocol["superpixel network"] == "none"
    for part, overrides in (
        ("DCR", ["network.superpixels=true", "network.dcr=true"]),
        ("AP", ["inference.ap_iterations=8"]),
        ("IPC", ["contrast.weight=0.3"]),
    ):
        words = build(root, "demo", *plain, *overrides).protocol["CAM network"]
        assert [each in words for each in ("DCR", "AP", "IPC")] == [each == part for each in ("DCR", "AP", "IPC")]


def test_choices_by_masks_are_stages_that_say_so(root: Path) -> None:
    assert {stage.name for stage in build(root, "paper", *given(root, "paper")) if stage.chooses_by_masks} == {
        "cam_selection",
        "cam_threshold",
    }
    for recipe_name in ("mini", "mini_saliency", "demo"):
        assert not any(stage.chooses_by_masks for stage in build(root, recipe_name))
    for stage in build(root, "paper", *given(root, "paper")):
        assert "masks" not in stage.reads or stage.kind != "train"


def test_weights_that_saw_masks_are_named(root: Path) -> None:
    files = given(root, "paper")
    words = build(root, "paper", *files).protocol["segmentation network"]
    assert "with masks: not weakly supervised" in words
    imagenet = build(root, "paper", *files, "weights.deeplabv1_resnet101_coco=none")
    assert imagenet.protocol["segmentation network"].endswith("ImageNet")
    assert imagenet.stage("segmentation_train").files["backbone"].name == "resnet101.pth"
    assert "with masks" not in build(root, "paper_coco", *given(root, "paper_coco")).protocol["segmentation network"]


def test_a_missing_weight_file_is_named_before_anything_runs(root: Path) -> None:
    with pytest.raises(WsssError, match=r"deeplabv1_resnet101-coco\.pth"):
        build(root, "paper")
    with pytest.raises(WsssError, match=r"weights\.mobilenet_v2 = .*nowhere.pth does not exist"):
        build(root, "mini", "weights.mobilenet_v2=nowhere.pth")
    build(root, "mini", "weights.mobilenet_v2=none")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.superpixels=false", "dcr needs superpixels"),
        ("segmentation.form=torchvision segmentation.depth=34", "has files for"),
        ("train.resize_long_min=500", "is above resize_long_max"),
        ("train.crop_size=100", "multiple of 16"),
        ("inference.scales=[]", "scales is empty"),
        ("selection.thresholds=[]", "thresholds is empty"),
        ("pseudo_label.candidates=[0.125]", "multiple of 0.01"),
        ("pseudo_label.candidates=[]", "candidates is empty"),
        ("pseudo_label.threshold=0.255", "multiple of 0.01"),
        ("train.momentum=0", "momentum"),
    ],
)
def test_relations_between_settings(override: str, message: str) -> None:
    with pytest.raises(WsssError, match=message):
        load_recipe(MsaRecipe, METHOD.recipe_path("demo"), override.split())
