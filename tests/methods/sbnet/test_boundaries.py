"""Boundary maps of every source: what they mark, where they come from, and what enters their key."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from wsss.data.errors import DataError
from wsss.ops.cam import as_shares
from wsss.pipeline import StageContext
from wsss.recipe import key_values
from wsss.reporting.grid import draw
from wsss_methods.sbnet.boundaries import boundary_stages, contours, edge_strength
from wsss_methods.sbnet.recipe import BoundarySettings

SIZE = (20, 30)
# A dog (class 3) of 8 x 10 pixels, whose upper left quarter is a bird (class 1).
MASK = np.zeros(SIZE, dtype=np.uint8)
MASK[6:14, 10:20] = 3
MASK[6:10, 10:15] = 1
KEYS = (1, 3)


def scores() -> np.ndarray:
    """CRF scores (1 + K, H, W) whose best class is the mask's."""
    return np.stack([np.where(each == MASK, 0.8, 0.1) for each in (0, *KEYS)]).astype(np.float16)


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = np.full((*SIZE, 3), 40, dtype=np.uint8)
    picture[MASK > 0] = (40, 200, 40)
    Image.fromarray(picture).save(folder / "a.png")
    return SimpleNamespace(
        root=tmp_path,
        cache=tmp_path / "cache",
        num_classes=4,
        names=lambda image_list: ("a",),
        image_path=lambda name: folder / f"{name}.png",
    )


def made(dataset: Any, settings: BoundarySettings, **inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of the stage "boundary" of picture a."""
    stage = boundary_stages(settings, dataset, "train_aug")[-1]
    assert stage.name == "boundary" and set(stage.inputs) == set(inputs)
    parts = {
        "images": {
            "image": lambda name: np.array(Image.open(dataset.image_path(name))),
            "image_size": lambda name: SIZE,
        },
        "image_labels": {"present_classes": lambda name: KEYS},
        "masks": {"mask": lambda name: MASK},
    }
    data = SimpleNamespace(**{key: value for read in stage.reads for key, value in parts[read].items()})
    artifacts = {role: SimpleNamespace(arrays=lambda name, each=each: each) for role, each in inputs.items()}
    context = StageContext("boundary", stage.config, cast(Any, data), cast(Any, artifacts), {})
    return dict(stage.build(context)("a"))


CRF = {"crf": scores(), "keys": np.array(KEYS, dtype=np.int64)}


@pytest.mark.parametrize("thickness", [1, 2])
def test_a_contour_lies_on_both_sides_of_the_rim_of_each_region(dataset: Any, thickness: int) -> None:
    arrays = made(dataset, BoundarySettings(thickness=thickness), crf=CRF)
    boundary = arrays["boundary"]
    assert boundary.dtype == np.uint8 and boundary.shape == (3, *SIZE) and arrays["keys"].tolist() == [1, 3]
    for channel, each in zip(boundary, (0, *KEYS), strict=True):
        inside = np.equal(MASK, each)
        for y, x in np.ndindex(*SIZE):
            near = inside[max(0, y - thickness) : y + thickness + 1, max(0, x - thickness) : x + thickness + 1]
            assert channel[y, x] == 255 * (near.any() and not near.all()), (each, y, x)
    assert not boundary[:, 0].any() and not boundary[:, :, -1].any(), "the frame is no rim"


def test_the_masks_give_the_same_contours_and_say_that_they_are_masks(dataset: Any) -> None:
    settings = BoundarySettings(source="ground_truth")
    assert np.array_equal(made(dataset, settings)["boundary"], made(dataset, BoundarySettings(), crf=CRF)["boundary"])
    (stage,) = boundary_stages(settings, dataset, "train_aug")
    assert stage.chooses_by_masks and "not weakly supervised" in settings.in_words()
    assert not any(
        "masks" in stage.reads or stage.chooses_by_masks
        for source in ("cam_crf", "edge_prior", "zeros")
        for stage in boundary_stages(BoundarySettings(source=source), dataset, "train_aug")
    )


def test_an_edge_of_the_picture_counts_near_the_classes_that_it_belongs_to(dataset: Any) -> None:
    arrays = made(dataset, BoundarySettings(source="edge_prior", dilation=2), crf=CRF)
    background, bird, dog = arrays["boundary"]
    assert arrays["boundary"].dtype == np.float16
    assert bird[6, 12] > 0.5 and dog[6, 12] == 0, "the upper rim of the bird is far from the dog"
    assert bird[9, 14] < 0.1 and dog[9, 14] < 0.1, "where bird meets dog the picture has no edge"
    assert dog[13, 17] > 0.5 and background[13, 17] > 0.5 and dog[0, 0] == 0


def test_edges_of_a_folder_take_the_place_of_the_picture_s_own(dataset: Any, tmp_path: Path) -> None:
    (tmp_path / "edges").mkdir()
    levels = np.full(SIZE, 51, dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "edges" / "a.png")
    settings = BoundarySettings(source="edge_prior", dilation=0, edge_folder=tmp_path / "edges")
    first, second = boundary_stages(settings, dataset, "train_aug")
    assert (first.name, second.inputs) == ("edge", {"crf": "boundary_crf", "edge": "edge"})
    boundary = made(dataset, settings, crf=CRF, edge={"saliency": levels})["boundary"]
    np.testing.assert_allclose(boundary, np.stack([each == MASK for each in (0, *KEYS)]) * 0.2, atol=1e-4)


def test_zeros_have_the_shape_of_the_others(dataset: Any) -> None:
    arrays = made(dataset, BoundarySettings(source="zeros"))
    assert arrays["boundary"].shape == (3, *SIZE) and not arrays["boundary"].any() and arrays["keys"].tolist() == [1, 3]


def test_a_folder_is_read_without_the_channels_of_absent_classes(dataset: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sb_map"
    folder.mkdir()
    values = np.random.default_rng(0).random((4, *SIZE), dtype=np.float32)
    np.save(folder / "a.npy", values)
    settings = BoundarySettings(source="folder", folder=folder)
    arrays = made(dataset, settings)
    assert np.array_equal(arrays["boundary"], values[[0, 1, 3]]) and arrays["boundary"].dtype == np.float32
    (stage,) = boundary_stages(settings, dataset, "train_aug")
    before = key_values(stage.config)
    np.save(folder / "a.npy", np.ones((4, *SIZE), dtype=np.uint8))
    assert made(dataset, settings)["boundary"].max() == pytest.approx(1 / 255), "bytes are divided by 255"
    assert key_values(boundary_stages(settings, dataset, "train_aug")[0].config) != before
    np.save(folder / "a.npy", values[:3])
    with pytest.raises(DataError, match="3 channels"):
        boundary_stages(settings, dataset, "train_aug")


def test_edge_strength_follows_color_as_well_as_brightness() -> None:
    """Red beside a green of the same brightness is an edge; a picture of one color has none."""
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[:, :8], picture[:, 8:] = (230, 0, 0), (0, 130, 0)
    found = edge_strength(picture)
    assert found.dtype == np.float32 and found[:, 7:9].min() > 0.9 and found[:, :4].max() < 0.05
    assert not edge_strength(np.full((8, 8, 3), 77, dtype=np.uint8)).any()


def test_a_class_without_pixels_has_no_contour() -> None:
    assert not contours(MASK, np.array([2]), 1).any()


def test_a_report_shows_the_contours(dataset: Any) -> None:
    """Training, export and report read 8-bit maps as shares of 255; bytes of 1 would be an empty picture."""
    arrays = made(dataset, BoundarySettings(), crf=CRF)
    shares = as_shares(arrays["boundary"])
    assert set(np.unique(shares)) == {0, 1}
    picture = np.full((*SIZE, 3), 100, dtype=np.uint8)
    drawn, plain = draw(picture, arrays["boundary"], "cam"), draw(picture, np.zeros((1, *SIZE), np.uint8), "cam")
    assert ((drawn != plain).any(axis=2) == shares.max(axis=0).astype(bool)).all()
