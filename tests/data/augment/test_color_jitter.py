"""Color jitter: ranges, order, and that a range of 0 changes nothing."""

from __future__ import annotations

import numpy as np

from wsss.data.augment.color_jitter import ColorJitter, random_color_jitter

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(30, 220, (12, 10, 3)).astype(np.uint8)


def test_nothing_is_done_without_a_range_and_the_generator_moves_alike() -> None:
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    assert np.array_equal(random_color_jitter(IMAGE, ColorJitter(), one), IMAGE)
    assert not np.array_equal(random_color_jitter(IMAGE, ColorJitter(0.3, 0.3, 0.3, 0.1), other), IMAGE)
    assert one.random() == other.random()


def test_brightness_is_a_factor_within_its_range() -> None:
    factors = []
    for seed in range(60):
        out = random_color_jitter(IMAGE, ColorJitter(brightness=0.3), np.random.default_rng(seed))
        assert out.dtype == np.uint8 and out.shape == IMAGE.shape
        factors.append(np.median(out / IMAGE))
    assert 0.68 < min(factors) < 0.78 and 1.12 < max(factors) < 1.32


def test_saturation_keeps_the_grey_value_and_contrast_the_mean() -> None:
    grey = np.repeat(IMAGE[..., :1], 3, axis=2)
    assert np.array_equal(random_color_jitter(grey, ColorJitter(saturation=0.9), np.random.default_rng(3)), grey)
    out = random_color_jitter(grey, ColorJitter(contrast=0.5), np.random.default_rng(3))
    assert abs(float(out.mean()) - float(grey.mean())) < 2 and out.std() != grey.std()


def test_hue_turns_the_colour_and_wraps_around() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    turned = {tuple(random_color_jitter(red, ColorJitter(hue=0.5), np.random.default_rng(s))[0, 0]) for s in range(40)}
    assert len(turned) > 10 and all(max(color) == 200 for color in turned)
    assert any(color[2] > color[0] for color in turned) and any(color[1] > color[0] for color in turned)


def test_scaled_ranges() -> None:
    assert ColorJitter(0.3, 0.3, 0.3, 0.4).scaled(2) == ColorJitter(0.6, 0.6, 0.6, 0.5)
