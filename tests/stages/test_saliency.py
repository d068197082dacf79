"""Saliency from pictures alone, from a folder, and constant."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.methods.in_process import run_pipeline

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import DataError
from wsss.data.shapes import ShapesConfig
from wsss.pipeline import Pipeline
from wsss.recipe import key_values
from wsss.stages.saliency import SaliencySettings, build_saliency, saliency_in_words, saliency_map, saliency_stage
from wsss.store import open_store


def picture(row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a grey gradient with noise, and where it is."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:96, 0:128]
    image = np.repeat((90 + x / 4 + rng.normal(0, 4, x.shape))[..., None], 3, axis=2)
    disc = (y - row) ** 2 + (x - column) ** 2 < 20**2
    image[disc] = (200, 60, 50)
    return image.clip(0, 255).astype(np.uint8), disc


@pytest.mark.parametrize("detector", ["combined", "robust_background"])
def test_an_object_stands_out_wherever_it_is(detector: str):
    """Off the middle too, where `combined` dims it."""
    for row, column in ((48, 64), (30, 96)):
        image, disc = picture(row, column)
        found = saliency_map(image, SaliencySettings(segments=120, detector=detector))
        assert found.dtype == np.uint8 and found.shape == disc.shape and found.max() == 255 and found.min() == 0
        assert found[disc].mean() > (180 if detector == "combined" else 200) and found[~disc].mean() < 40


def test_what_fills_the_border_is_background():
    """The same two colors the other way round: the ring touches the border, so its hole is what stands out."""
    image, disc = picture(48, 64)
    image[~disc], image[disc] = (200, 60, 50), (100, 100, 100)
    found = saliency_map(image, SaliencySettings(segments=120))
    assert found[disc].mean() > 200 and found[~disc].mean() < 40


def test_a_picture_of_one_color_has_nothing_salient():
    assert saliency_map(np.full((40, 60, 3), 90, dtype=np.uint8), SaliencySettings()).max() == 0


def test_boundary_contrast_helps_where_the_background_has_two_colors():
    """A disc on a horizon between sky and meadow, off the middle: the sharpened sum of both cues separates it better
    than background detection alone, and its corners are dark."""
    image, disc = picture(40, 56)
    image[:48][~disc[:48]] = image[:48][~disc[:48]] // 2 + np.array((20, 60, 110), dtype=np.uint8)
    errors = {}
    for detector in ("combined", "robust_background"):
        found = saliency_map(image, SaliencySettings(segments=120, detector=detector))
        errors[detector] = np.abs(found / 255 - disc).mean()
        assert found[disc].mean() > 2 * found[~disc].mean()
    assert errors["combined"] < errors["robust_background"]
    corners = saliency_map(image, SaliencySettings(segments=120))[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 5


def test_maps_of_a_reduced_picture_have_the_picture_s_size():
    image, disc = picture(48, 64)
    large = np.repeat(np.repeat(image, 3, axis=0), 3, axis=1)
    found = saliency_map(large, SaliencySettings(segments=120, max_side=128))
    assert found.shape == large.shape[:2]
    assert found[1::3, 1::3][disc].mean() > 200 and found[1::3, 1::3][~disc].mean() < 40


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = ShapesConfig(train=6, train_aug_extra=0, val=1, size=64, classes=2)
    return load_dataset(DatasetConfig(name="shapes", shapes=config), tmp_path_factory.mktemp("home"))


def test_the_stage_reads_pictures_alone_and_gives_the_same_again(shapes: Dataset, tmp_path: Path):
    stage = saliency_stage(SaliencySettings(segments=100), shapes, "train")
    assert stage.name == "saliency" and stage.reads == {"images"} and not stage.inputs
    run = run_pipeline(Pipeline((stage,)), shapes, open_store(str(tmp_path / "store")))
    view = shapes.view({"images", "masks"}, "train")
    inside, outside = [], []
    again = build_saliency(_context(view, stage.config))
    for name in view.names:
        found, mask = run.artifacts["saliency"].arrays(name)["saliency"], view.mask(name)
        assert found.shape == mask.shape and np.array_equal(found, again(name)["saliency"])
        inside.append(found[(mask > 0) & (mask < 255)].mean())
        outside.append(found[mask == 0].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_maps_are_read_from_a_folder_and_named_in_the_protocol(shapes: Dataset, tmp_path: Path):
    written = {}
    (tmp_path / "given").mkdir()
    for number, name in enumerate(shapes.names("train")):
        written[name] = np.full(shapes.view({"images"}, "train").image_size(name), 40 * number, dtype=np.uint8)
        Image.fromarray(written[name]).save(tmp_path / "given" / f"{name}.png")
    stage = saliency_stage(SaliencySettings(source="folder", folder=tmp_path / "given"), shapes, "train")
    run = run_pipeline(Pipeline((stage,)), shapes, open_store(str(tmp_path / "store")))
    for name, values in written.items():
        assert np.array_equal(run.artifacts["saliency"].arrays(name)["saliency"], values)
    assert saliency_in_words(stage) == f"folder given with digest {stage.config.content}"
    with pytest.raises(DataError, match=r"6 of 6 saliency files cannot be used \(6 missing\)"):
        saliency_stage(SaliencySettings(source="folder", folder=tmp_path), shapes, "train")


def test_a_constant_says_nothing_and_only_its_value_is_in_the_key(shapes: Dataset, tmp_path: Path):
    stage = saliency_stage(SaliencySettings(source="constant", constant=31, segments=99), shapes, "train")
    run = run_pipeline(Pipeline((stage,)), shapes, open_store(str(tmp_path / "store")))
    for name in shapes.names("train"):
        found = run.artifacts["saliency"].arrays(name)["saliency"]
        assert (
            found.shape == shapes.view({"images"}, "train").image_size(name)
            and found.dtype == np.uint8
            and (found == 31).all()
        )
    assert key_values(stage.config) == {"value": 31} and saliency_in_words(stage) == "constant 31"
    made = saliency_stage(SaliencySettings(constant=31), shapes, "train")
    assert made.config == saliency_stage(SaliencySettings(folder=tmp_path), shapes, "train").config
    assert saliency_in_words(made).startswith("made by robust background detection and boundary contrast")
    alone = saliency_stage(SaliencySettings(detector="robust_background"), shapes, "train")
    assert saliency_in_words(alone) == "made by robust background detection, without masks"


@pytest.mark.parametrize(
    ("key", "value"), [("segments", 40), ("sigma_color", 2.0), ("sigma_border", 2.0), ("max_side", 64)]
)
def test_settings_matter(key: str, value: float):
    image, _ = picture(48, 64)
    first = saliency_map(image, SaliencySettings(segments=120))
    second = saliency_map(image, SaliencySettings(**{"segments": 120, key: value}))
    assert not np.array_equal(first, second)


def _context(view: Any, config: SaliencySettings) -> Any:
    return SimpleNamespace(data=view, config=config)
