"""Photometric augmentation: what is drawn, and the bytes of every operation."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from wsss.data.augment.photometric import (
    PhotometricDraw,
    PhotometricSettings,
    augment_photometric,
    augment_picture,
    draw_photometric,
)
from wsss.data.transforms import channels_first, normalize

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def test_photometric_changes_depend_on_the_seed_alone() -> None:
    images = torch.from_numpy(np.stack([channels_first(normalize(PICTURE))] * 3))
    settings = PhotometricSettings()
    draws = [draw_photometric(seed, settings) for seed in (5, 6, 7)]
    together = augment_photometric(images, draws)
    alone = torch.cat([augment_photometric(images[i : i + 1], [draws[i]]) for i in range(3)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, images)
    off = PhotometricSettings(0.0, 0.0, 0.0)
    assert draw_photometric(5, off) == PhotometricDraw()
    # Nothing drawn: only the round trip through 8 bits, at most one grey level.
    identity = augment_photometric(images, [PhotometricDraw()] * 3)
    assert (identity - images).abs().max() < 0.02


def test_photometric_draws_have_the_stated_shares() -> None:
    draws = [draw_photometric(seed, PhotometricSettings()) for seed in range(3000)]
    share = lambda test: sum(map(test, draws)) / len(draws)  # noqa: E731
    assert share(lambda d: d.contrast != 1) == pytest.approx(0.8, abs=0.03)
    assert share(lambda d: d.grey) == pytest.approx(0.2, abs=0.03)
    assert share(lambda d: d.blur_kernel == 3) == pytest.approx(1 / 6, abs=0.03)
    assert share(lambda d: d.blur_kernel == 5) == pytest.approx(1 / 3, abs=0.03)
    assert all(abs(d.hue) <= 20 and abs(d.saturation) <= 30 and abs(d.value) <= 20 for d in draws)


def test_photometric_operations_on_known_colours() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 150, 200]]], dtype=np.uint8)
    images = torch.from_numpy(channels_first(normalize(pixels)))[None].repeat(1, 1, 4, 1)

    def levels(draw: PhotometricDraw) -> np.ndarray:
        mean = np.array((0.485, 0.456, 0.406)).reshape(3, 1, 1)
        std = np.array((0.229, 0.224, 0.225)).reshape(3, 1, 1)
        out = augment_photometric(images, [draw])[0].numpy() * std + mean
        return np.rint(out * 255).astype(int)[:, 0].T

    # Red gets the grey weight of blue and the other way round: the channels are swapped on purpose.
    assert levels(PhotometricDraw(grey=True))[:3].tolist() == [[29] * 3, [150] * 3, [76] * 3]
    assert levels(PhotometricDraw(contrast=0.5, brightness=10.0))[0].tolist() == [137, 10, 10]
    # 60 of 180 is a third of the circle; in swapped channels it turns red to blue.
    assert levels(PhotometricDraw(hue=60.0))[:3].tolist() == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    assert levels(PhotometricDraw(value=-55.0))[0].tolist() == [200, 0, 0]
    blurred = levels(PhotometricDraw(blur_kernel=3))
    assert blurred[0].tolist() == [127, 128, 0] or blurred[0].tolist() == [128, 128, 0]


def test_grey_has_integer_weights() -> None:
    first, second, third = PICTURE.astype(int).transpose(2, 0, 1)
    grey = (9798 * first + 19235 * second + 3735 * third + 2**14) >> 15
    assert np.array_equal(augment_picture(PICTURE, PhotometricDraw(grey=True)), grey[..., None].repeat(3, axis=2))


@pytest.mark.parametrize(("kernel", "weights"), [(3, (1, 2, 1)), (5, (1, 4, 6, 4, 1))])
def test_blur_is_binomial_and_reflects_at_the_border(kernel: int, weights: tuple[int, ...]) -> None:
    reach = kernel // 2
    padded = np.pad(PICTURE.astype(int), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    columns = sum(w * padded[:, i : i + PICTURE.shape[1]] for i, w in enumerate(weights))
    both = sum(w * np.asarray(columns)[i : i + PICTURE.shape[0]] for i, w in enumerate(weights))
    expected = np.floor(np.asarray(both) / sum(weights) ** 2 + 0.5)
    assert np.array_equal(augment_picture(PICTURE, PhotometricDraw(blur_kernel=kernel)), expected)


def test_hue_saturation_and_value_do_not_depend_on_the_width() -> None:
    draw = PhotometricDraw(hue=-13.4, saturation=21.7, value=-9.2)
    whole = augment_picture(PICTURE, draw)
    parts = [augment_picture(np.ascontiguousarray(PICTURE[:, i : i + 5]), draw) for i in range(0, 53, 5)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_hue_saturation_and_value_by_the_plain_formula() -> None:
    """Hue has 180 values, so that a level of a pure color is off by at most half of 255 / 30."""
    draw = PhotometricDraw(hue=17.0, saturation=-12.0, value=8.0)
    changed = augment_picture(PICTURE, draw).astype(int)
    for y, x in RNG.integers(0, (37, 53), (200, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(PICTURE[y, x] / 255))
        s, v = np.clip([saturation - 12 / 255, value + 8 / 255], 0, 1)
        exact = np.array(colorsys.hsv_to_rgb((hue + 17 / 180) % 1, s, v)) * 255
        assert np.abs(exact - changed[y, x]).max() < 5.5
