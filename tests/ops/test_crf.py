"""Dense CRF: step by step and with a shared lattice it is the one-shot CRF."""

import numpy as np
import pytest

from wsss.ops.crf import (
    SharedLattice,
    dense_crf,
    dense_crf_from_labels,
    dense_crf_from_probabilities,
    dense_crf_steps,
    unary_from_labels,
    unary_from_probabilities,
)

KERNELS = {"gaussian_sxy": 3.0, "bilateral_sxy": 20.0, "bilateral_srgb": 7.0}


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, 5, 3)).repeat(8, axis=0).repeat(8, axis=1)
    noisy = blocks + rng.integers(-12, 13, blocks.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture
def unary(image: np.ndarray) -> np.ndarray:
    logits = np.random.default_rng(1).normal(size=(3, 4, 5)).repeat(8, axis=1).repeat(8, axis=2) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    return unary_from_probabilities(np.roll(probabilities, 3, axis=2))


def test_every_step_equals_a_run_of_that_length(image, unary):
    steps = list(dense_crf_steps(image, unary, iterations=4, **KERNELS))
    assert len(steps) == 4
    for count, marginals in enumerate(steps, 1):
        assert np.array_equal(marginals, dense_crf(image, unary, iterations=count, **KERNELS))


def test_one_lattice_serves_every_weight(image, unary):
    lattice = SharedLattice(image, 3, **KERNELS)
    for gaussian, bilateral in ((3.0, 10.0), (1.0, 4.0), (0.0, 6.0)):
        *_, shared = lattice.steps(unary, gaussian, bilateral, 10)
        alone = dense_crf(image, unary, iterations=10, gaussian_compat=gaussian, bilateral_compat=bilateral, **KERNELS)
        np.testing.assert_allclose(shared, alone, atol=2e-4)
        assert (shared.argmax(axis=0) == alone.argmax(axis=0)).mean() > 0.999
        assert not np.allclose(shared, np.exp(-unary), atol=0.05)


def test_marginals_are_probabilities(image, unary):
    probabilities = np.exp(-unary)
    refined = dense_crf_from_probabilities(image, probabilities, iterations=5)
    assert refined.dtype == np.float32 and refined.shape == probabilities.shape
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-4)


def test_labels_follow_the_image(image):
    truth = (np.arange(40) >= 16).astype(np.int64)[None].repeat(32, axis=0)
    image = np.where(truth[..., None] > 0, np.uint8(220), np.uint8(30)).astype(np.uint8).repeat(3, axis=2)
    wrong = truth.copy()
    wrong[10:14, 4:8] = 1
    assert np.array_equal(dense_crf_from_labels(image, wrong, 2), truth)


def test_a_read_only_image_is_accepted(image, unary):
    expected = dense_crf(image, unary, iterations=2)
    image.setflags(write=False)
    assert np.array_equal(dense_crf(image, unary, iterations=2), expected)


def test_one_label_is_returned_and_unary_needs_two():
    label = np.zeros((4, 5), dtype=np.uint8)
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    assert np.array_equal(dense_crf_from_labels(image, label, 1), label)
    with pytest.raises(ValueError, match="at least two labels"):
        unary_from_labels(label, 1, 0.7)


def test_unary_of_labels_has_the_given_probability():
    label = np.array([[0, 2]])
    probabilities = np.exp(-unary_from_labels(label, 3, 0.7))
    np.testing.assert_allclose(probabilities[:, 0, 0], [0.7, 0.15, 0.15], rtol=1e-6)
    np.testing.assert_allclose(probabilities[:, 0, 1], [0.15, 0.15, 0.7], rtol=1e-6)


def test_image_and_unary_must_agree(unary):
    with pytest.raises(ValueError, match="expected a uint8 image"):
        dense_crf(np.zeros((5, 5, 3), dtype=np.uint8), unary)
