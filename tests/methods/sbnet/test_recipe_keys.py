"""Keys of SBNet's stages: pinned for the shipped recipes, and changed by exactly the settings that own them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.methods.recipe_keys import StageKeys, data_folder, given_weights, owners_of

from wsss.errors import WsssError
from wsss.recipe import load_recipe, settings_of
from wsss_methods.sbnet import METHOD
from wsss_methods.sbnet.recipe import SbnetRecipe

PINNED = Path(__file__).with_name("stage_keys.json")
WEIGHTS = ("resnet38", "deeplabv1_resnet101_coco", "resnet101")
PAPER = ("paper", "paper_8_epochs", "paper_readme")
RECIPES = ("demo", "mini", "small", *PAPER)


KEYS = StageKeys(METHOD)
build, keys_of = KEYS.build, KEYS.of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"), {name: name for name in WEIGHTS})


def weights(root: Path, recipe_name: str) -> list[str]:
    if recipe_name in ("demo", "mini"):
        return []
    return given_weights(root, WEIGHTS[-1:] if recipe_name == "small" else WEIGHTS)


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_keys_of_the_shipped_recipes_are_pinned(root: Path, recipe_name: str) -> None:
    KEYS.assert_pinned(root, PINNED, recipe_name, *weights(root, recipe_name))


def test_recipes_of_the_paper_differ_in_what_their_names_say(root: Path) -> None:
    """`paper` spells its defaults out; the other two leave them to the recipe's type."""
    keys = {name: keys_of(root, name, *weights(root, name)) for name in PAPER}
    longer, shorter = build(root, "paper", *weights(root, "paper")), keys["paper_8_epochs"]
    changed = {name for name, key in keys["paper"].items() if shorter[name] != key}
    assert changed == longer.downstream("cam_train")
    readme = {name for name, key in keys["paper"].items() if keys["paper_readme"][name] != key}
    owners = ("crf", "crf_val", "random_walk", "random_walk_val")
    assert readme == set().union(*(longer.downstream(owner) for owner in owners))


# Setting -> the first stages that it changes; what follows them in the graph changes too, and nothing else.
# A section alone stands for all its settings that have no line of their own.
CAMS = ("cam_train", "seam_cam_train", "plain_cam_train")
SEAM_TOO = ("cam_train", "seam_cam_train")
OWNERS: dict[str, tuple[str, ...]] = {
    "seed": (*CAMS, "affinity_train", "segmentation_train"),
    "boundary": ("boundary",),
    "boundary.crf_alpha": ("boundary_crf",),
    "cam": CAMS,
    "cam.num_epochs": ("cam_train",),
    "cam_inference.scales": ("cam", "seam_cam", "plain_cam", "cam_val", "seam_cam_val", "plain_cam_val"),
    "cam_inference.background_score": tuple(
        f"{name}{split}_evaluation" for name in ("cam", "seam_cam", "plain_cam") for split in ("", "_val")
    ),
    "affinity": ("affinity_train",),
    "random_walk": ("random_walk", "random_walk_val"),
    "random_walk.crf": ("pseudo_label", "pseudo_label_val"),
    "segmentation": ("segmentation_train",),
    "crf": ("segmentation_predictions",),
    "baseline.num_epochs": ("seam_cam_train", "plain_cam_train"),
    **{f"affinity.crf_alpha_{level}": ("crf", "crf_val") for level in ("low", "high")},
    **{
        f"affinity.crf_{name}": ("crf", "crf_val", "boundary_crf")
        for name in (
            "iterations",
            "gaussian_sxy",
            "gaussian_compat",
            "bilateral_sxy",
            "bilateral_srgb",
            "bilateral_compat",
        )
    },
    "affinity.radius": ("affinity_train", "affinity", "affinity_val"),
    **{
        f"cam.{name}": SEAM_TOO
        for name in ("siamese_scale", "er_loss_weight", "ecr_loss_weight", "ecr_topk_ratio", "rvmin_loss_weight")
    },
    "cam.rvmin_ratio": SEAM_TOO,
    **{
        f"cam.{name}": ("cam_train",)
        for name in (
            "edge_width",
            "edge_lr_mult",
            "boundary_loss_weight",
            "smoothness_loss_weight",
            "smoothness_first_order_weight",
            "smoothness_second_order_weight",
            "smoothness_alpha",
            "canny_input",
            "canny_low",
            "canny_high",
        )
    },
}
BASE = ["references.plain_cam=true", "evaluation.on_val=true"]
CHANGES = {
    "seed": "7",
    "boundary.thickness": "3",
    "boundary.crf_alpha": "7",
    "cam.color_jitter": "0.7",
    "cam.num_epochs": "3",
    "cam.optimizer": "adamw",
    "cam.weight_decay": "0",
    "cam.er_loss_weight": "0.7",
    "cam.ecr_topk_ratio": "0.4",
    "cam.rvmin_ratio": "0.4",
    "cam.siamese_scale": "0.6",
    "cam.boundary_loss_weight": "0.5",
    "cam.smoothness_alpha": "4",
    "cam.edge_lr_mult": "5",
    "cam.canny_low": "20",
    "cam.canny_input": "rgb",
    "cam_inference.scales": "[1.0]",
    "cam_inference.background_score": "0.71",
    "affinity.crf_alpha_low": "3",
    "affinity.crf_alpha_high": "30",
    "affinity.crf_iterations": "7",
    "affinity.crf_bilateral_srgb": "9",
    "affinity.weight_decay": "0",
    "affinity.radius": "4",
    "random_walk.alpha": "9",
    "random_walk.beta": "5",
    "random_walk.exp_times": "4",
    "random_walk.crf": "false",
    "segmentation.weight_decay": "0",
    "crf.bi_rgb_std": "9",
    "crf.image": "wrapped",
    "baseline.num_epochs": "2",
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_changes_its_stages_and_what_follows_them(root: Path, key: str) -> None:
    KEYS.assert_changes(root, f"{key}={CHANGES[key]}", owners_of(key, OWNERS), BASE)


def test_every_line_is_of_a_setting() -> None:
    known = settings_of(SbnetRecipe)
    assert {*CHANGES, *(key for key in OWNERS if "." in key)} <= set(known)


def test_baselines_and_val_add_stages_and_change_none(root: Path) -> None:
    before = keys_of(root, "demo")
    for override, added in (("references.plain_cam=true", "plain_cam"), ("evaluation.on_val=true", "_val")):
        after = keys_of(root, "demo", override)
        assert {name: after[name] for name in before} == before
        assert all(added in name for name in set(after) - set(before)) and len(after) > len(before)


def test_what_is_missing_is_named_before_anything_runs(root: Path) -> None:
    with pytest.raises(WsssError) as error:
        build(root, "paper", *(f"weights.{name}=none" for name in WEIGHTS))
    text = str(error.value)
    for name in ("ilsvrc-cls_rna-a1_cls1000_ep-0001.pth", "deeplabv1_resnet101-coco.pth", "weights.NAME=FILE"):
        assert name in text
    with pytest.raises(WsssError, match=r"weights\.resnet101 is none"):
        build(root, "paper", *weights(root, "paper")[:2], "weights.resnet101=none", "segmentation.form=torchvision")
    with pytest.raises(WsssError, match=r"boundary\.folder = None is no folder"):
        build(root, "demo", "boundary.source=folder")
    with pytest.raises(WsssError, match=r"boundary\.edge_folder = nowhere is no folder"):
        build(root, "demo", "boundary.source=edge_prior", "boundary.edge_folder=nowhere")


def test_the_protocol_says_where_boundaries_and_the_start_come_from(root: Path) -> None:
    paper = build(root, "paper", *weights(root, "paper")).protocol
    assert (
        paper["boundary maps"].startswith("not the authors'") and "no weak supervision" in paper["segmentation network"]
    )
    stricter = build(root, "paper", *weights(root, "paper"), "weights.deeplabv1_resnet101_coco=none").protocol
    assert stricter["segmentation network"].endswith("from ImageNet")
    assert build(root, "demo").protocol["segmentation network"].endswith("from generated pictures")
    off = ["cam.boundary_loss_weight=0", "cam.smoothness_loss_weight=0"]
    assert build(root, "demo", *off).protocol["boundary maps"].startswith("none")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cam_inference.background_score=0.123", "multiple of 0.01"),
        ("cam_inference.scales=[]", "scales is empty"),
        ("cam.resize_long_min=400", "above resize_long_max"),
    ],
)
def test_relations_between_settings(override: str, message: str) -> None:
    with pytest.raises(WsssError, match=message):
        load_recipe(SbnetRecipe, METHOD.recipe_path("demo"), [override])
