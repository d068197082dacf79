"""Saliency from pictures alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.methods.in_process import run_pipeline

from wsss.data.config import DatasetConfig
from wsss.data.dataset import load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.pipeline import Pipeline
from wsss.stages.saliency import SaliencySettings, build_saliency, saliency_map, saliency_stage
from wsss.store import open_store


def picture(row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a grey gradient with noise, and where it is."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:96, 0:128]
    image = np.repeat((90 + x / 4 + rng.normal(0, 4, x.shape))[..., None], 3, axis=2)
    disc = (y - row) ** 2 + (x - column) ** 2 < 20**2
    image[disc] = (200, 60, 50)
    return image.clip(0, 255).astype(np.uint8), disc


def test_an_object_stands_out_wherever_it_is():
    for row, column in ((48, 64), (30, 96)):
        image, disc = picture(row, column)
        found = saliency_map(image, SaliencySettings(segments=120))
        assert found.dtype == np.uint8 and found.shape == disc.shape and found.max() == 255 and found.min() == 0
        assert found[disc].mean() > 200 and found[~disc].mean() < 40


def test_what_fills_the_border_is_background():
    """The same two colors the other way round: the ring touches the border, so its hole is what stands out."""
    image, disc = picture(48, 64)
    image[~disc], image[disc] = (200, 60, 50), (100, 100, 100)
    found = saliency_map(image, SaliencySettings(segments=120))
    assert found[disc].mean() > 200 and found[~disc].mean() < 40


def test_a_picture_of_one_color_has_nothing_salient():
    assert saliency_map(np.full((40, 60, 3), 90, dtype=np.uint8), SaliencySettings()).max() == 0


def test_the_stage_reads_pictures_alone_and_gives_the_same_again(tmp_path: Path):
    shapes = ShapesConfig(train=6, train_aug_extra=0, val=1, size=64, classes=2)
    dataset = load_dataset(DatasetConfig(name="shapes", shapes=shapes), tmp_path)
    stage = saliency_stage(SaliencySettings(segments=100), "train")
    assert stage.reads == {"images"} and not stage.inputs
    run = run_pipeline(Pipeline((stage,)), dataset, open_store(str(tmp_path / "store")))
    view = dataset.view({"images", "masks"}, "train")
    inside, outside = [], []
    again = build_saliency(_context(view, stage.config))
    for name in view.names:
        found, mask = run.artifacts["saliency"].arrays(name)["saliency"], view.mask(name)
        assert found.shape == mask.shape and np.array_equal(found, again(name)["saliency"])
        inside.append(found[(mask > 0) & (mask < 255)].mean())
        outside.append(found[mask == 0].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


@pytest.mark.parametrize("key", ["segments", "sigma_color", "sigma_border"])
def test_settings_matter(key: str):
    image, _ = picture(48, 64)
    first = saliency_map(image, SaliencySettings(segments=120))
    second = saliency_map(image, SaliencySettings(**{"segments": 120, key: {"segments": 40}.get(key, 2.0)}))
    assert not np.array_equal(first, second)


def _context(view: Any, config: SaliencySettings) -> Any:
    return SimpleNamespace(data=view, config=config)
