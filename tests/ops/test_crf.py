"""Dense CRF: one set of kernels for many unaries, and one run for every number of steps, against plain runs."""

import re
from dataclasses import replace

import numpy as np
import pytest
from pydensecrf import densecrf  # pyright: ignore[reportAttributeAccessIssue]

from wsss.commands.methods import find_method, method_names
from wsss.errors import WsssError
from wsss.ops.crf import (
    SMALLEST_DEVIATION,
    DenseCrf,
    DenseCrfSettings,
    refine_labels,
    unary_from_labels,
    unary_from_probabilities,
)
from wsss.recipe import settings_of

SETTINGS = DenseCrfSettings(
    iterations=4, gaussian_sxy=3.0, gaussian_compat=3.0, bilateral_sxy=20.0, bilateral_srgb=7.0, bilateral_compat=10.0
)


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, 5, 3)).repeat(8, axis=0).repeat(8, axis=1)
    noisy = blocks + rng.integers(-12, 13, blocks.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def energies(seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(3, 4, 5)).repeat(8, axis=1).repeat(8, axis=2) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    return unary_from_probabilities(np.roll(probabilities, 3, axis=2))


def one_shot(image: np.ndarray, unary: np.ndarray, settings: DenseCrfSettings) -> np.ndarray:
    """The library's own sequence of calls, with nothing shared."""
    labels, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1)))
    if settings.gaussian_compat:
        crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    if settings.bilateral_compat:
        crf.addPairwiseBilateral(
            sxy=settings.bilateral_sxy,
            srgb=settings.bilateral_srgb,
            rgbim=np.array(image),
            compat=settings.bilateral_compat,
        )
    return np.array(crf.inference(settings.iterations), dtype=np.float32).reshape(unary.shape)


@pytest.mark.parametrize("weights", [(3.0, 10.0), (0.0, 6.0), (2.0, 0.0), (0.0, 0.0)])
def test_every_step_equals_a_run_of_that_length(image: np.ndarray, weights: tuple[float, float]) -> None:
    settings = replace(SETTINGS, gaussian_compat=weights[0], bilateral_compat=weights[1])
    unary = energies(1)
    steps = list(DenseCrf(image, 3, settings).steps(unary))
    assert len(steps) == 4
    for count, marginals in enumerate(steps, 1):
        alone = replace(settings, iterations=count)
        assert np.array_equal(marginals, one_shot(image, unary, alone))
        assert np.array_equal(marginals, DenseCrf(image, 3, alone).marginals(unary))
    if any(weights):
        assert not np.array_equal(steps[0], steps[3])


def test_one_set_of_kernels_serves_every_unary(image: np.ndarray) -> None:
    """After another unary, and after steps of another one, the result is to the bit that of a CRF of its own."""
    crf = DenseCrf(image, 3, SETTINGS)
    unaries = [energies(seed) for seed in (1, 2, 3)]
    alone = [one_shot(image, unary, SETTINGS) for unary in unaries]
    assert not np.array_equal(alone[0], alone[1])
    for index in (0, 1, 2, 0):
        assert np.array_equal(crf.marginals(unaries[index]), alone[index])
        *_, last = crf.steps(unaries[index])
        assert np.array_equal(last, alone[index])


def test_marginals_are_probabilities(image: np.ndarray) -> None:
    unary = energies(1)
    refined = DenseCrf(image, 3, SETTINGS).marginals(unary)
    assert refined.dtype == np.float32 and refined.shape == unary.shape
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-4)


def test_labels_follow_the_image() -> None:
    truth = (np.arange(40) >= 16).astype(np.int64)[None].repeat(32, axis=0)
    image = np.where(truth[..., None] > 0, np.uint8(220), np.uint8(30)).astype(np.uint8).repeat(3, axis=2)
    wrong = [truth.copy(), truth.copy()]
    wrong[0][10:14, 4:8] = 1
    wrong[1][20:23, 30:35] = 0
    settings = replace(SETTINGS, iterations=10, bilateral_sxy=50.0, bilateral_srgb=5.0)
    for refined in refine_labels(image, wrong, 2, 0.7, settings):
        assert refined.dtype == np.int64 and np.array_equal(refined, truth)


def test_label_maps_together_are_label_maps_one_by_one(image: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    labels = [rng.integers(0, 3, image.shape[:2]) for _ in range(2)]
    together = refine_labels(image, labels, 3, 0.6, SETTINGS)
    for label, refined in zip(labels, together, strict=True):
        expected = one_shot(image, unary_from_labels(label, 3, 0.6), SETTINGS).argmax(axis=0)
        assert np.array_equal(refined, expected) and not np.array_equal(refined, label)


def test_a_read_only_image_is_accepted(image: np.ndarray) -> None:
    unary = energies(1)
    expected = DenseCrf(image, 3, SETTINGS).marginals(unary)
    image.setflags(write=False)
    assert np.array_equal(DenseCrf(image, 3, SETTINGS).marginals(unary), expected)


def test_one_label_is_returned_and_unary_needs_two() -> None:
    label = np.zeros((4, 5), dtype=np.uint8)
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    assert np.array_equal(refine_labels(image, [label], 1, 0.7, SETTINGS)[0], label)
    with pytest.raises(ValueError, match="at least two labels"):
        unary_from_labels(label, 1, 0.7)


def test_unary_of_labels_has_the_given_probability() -> None:
    label = np.array([[0, 2]])
    probabilities = np.exp(-unary_from_labels(label, 3, 0.7))
    np.testing.assert_allclose(probabilities[:, 0, 0], [0.7, 0.15, 0.15], rtol=1e-6)
    np.testing.assert_allclose(probabilities[:, 0, 1], [0.15, 0.15, 0.7], rtol=1e-6)


def test_image_and_unary_must_fit(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a uint8 image"):
        DenseCrf(np.zeros((5, 5), dtype=np.uint8), 3, SETTINGS)
    with pytest.raises(ValueError, match="expected energies of shape"):
        DenseCrf(image, 4, SETTINGS).marginals(energies(1))


@pytest.mark.parametrize("name", ["gaussian_sxy", "bilateral_sxy", "bilateral_srgb"])
def test_a_kernel_that_would_kill_the_process_is_refused(image: np.ndarray, name: str) -> None:
    settings = DenseCrfSettings(1, 3.0, 3.0, 50.0, 5.0, 10.0)
    with pytest.raises(WsssError, match=rf"{name} = 1e-06 is too small[\s\S]*give 0\.01 or more"):
        DenseCrf(image, 2, replace(settings, **{name: 1e-6}))
    without = replace(settings, gaussian_compat=0.0, bilateral_compat=0.0)
    DenseCrf(image, 2, replace(without, **{name: 1e-6}))


def test_no_recipe_takes_a_smaller_kernel_than_the_crf() -> None:
    for method in method_names():
        kernels = [
            setting
            for key, setting in settings_of(find_method(method).recipe_type).items()
            if "crf" in key and re.search(r"_(sxy|srgb|xy_std|rgb_std)$", key)
        ]
        assert all((setting.minimum or 0) >= SMALLEST_DEVIATION for setting in kernels), method
