"""Dense conditional random fields (Krähenbühl and Koltun, 2011) through pydensecrf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydensecrf import densecrf  # pyright: ignore[reportAttributeAccessIssue]

Array = np.ndarray[Any, np.dtype[Any]]

_SMALLEST_PROBABILITY = 1e-5


def unary_from_labels(label: Array, num_labels: int, gt_prob: float) -> Array:
    """Energies float32 (num_labels, H, W) of a label map that is right with probability `gt_prob`."""
    if num_labels < 2:
        raise ValueError(f"a label map needs at least two labels for a CRF, got {num_labels}")
    energy = np.full((num_labels, label.size), -np.log((1.0 - gt_prob) / (num_labels - 1)), dtype=np.float32)
    energy[label.reshape(-1), np.arange(label.size)] = -np.log(gt_prob)
    return energy.reshape(num_labels, *label.shape)


def unary_from_probabilities(probabilities: Array) -> Array:
    """Energies -log p, float32 (C, H, W); p is kept above 1e-5."""
    return -np.log(np.clip(probabilities, _SMALLEST_PROBABILITY, 1.0)).astype(np.float32)


def dense_crf(
    image: Array,
    unary: Array,
    *,
    iterations: int = 10,
    gaussian_sxy: float = 3.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float = 50.0,
    bilateral_srgb: float = 5.0,
    bilateral_compat: float = 10.0,
) -> Array:
    """Mean-field marginals with a smoothness and an appearance kernel.

    Args:
        image: uint8 (H, W, 3).
        unary: energies, float32 (C, H, W).
        iterations: mean-field steps.
        gaussian_sxy, bilateral_sxy: standard deviations in pixels.
        bilateral_srgb: standard deviation in grey levels.
        gaussian_compat, bilateral_compat: weights of the two kernels (Potts).

    Returns:
        float32 (C, H, W), sums over C are 1.
    """
    crf = _model(image, unary)
    _add_kernels(crf, image, gaussian_sxy, gaussian_compat, bilateral_sxy, bilateral_srgb, bilateral_compat)
    return np.array(crf.inference(iterations), dtype=np.float32).reshape(unary.shape)


def dense_crf_steps(
    image: Array,
    unary: Array,
    *,
    iterations: int = 10,
    gaussian_sxy: float = 3.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float = 50.0,
    bilateral_srgb: float = 5.0,
    bilateral_compat: float = 10.0,
) -> Iterator[Array]:
    """The marginals after 1, 2, ... `iterations` steps of one run; arguments as in `dense_crf`."""
    crf = _model(image, unary)
    _add_kernels(crf, image, gaussian_sxy, gaussian_compat, bilateral_sxy, bilateral_srgb, bilateral_compat)
    marginals, first, second = crf.startInference()
    for _ in range(iterations):
        crf.stepInference(marginals, first, second)
        yield np.array(marginals, dtype=np.float32).reshape(unary.shape)


def dense_crf_from_labels(
    image: Array,
    label: Array,
    num_labels: int,
    *,
    gt_prob: float = 0.7,
    iterations: int = 10,
    gaussian_sxy: float = 3.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float = 50.0,
    bilateral_srgb: float = 5.0,
    bilateral_compat: float = 10.0,
) -> Array:
    """Refine a label map: integer (H, W) in 0..num_labels-1 -> int64 (H, W).

    With one label there is nothing to decide and the map is returned. `gt_prob` is the trust in the labels; the
    other arguments are those of `dense_crf`.
    """
    if num_labels == 1:
        return label.astype(np.int64)
    return dense_crf(
        image,
        unary_from_labels(label, num_labels, gt_prob),
        iterations=iterations,
        gaussian_sxy=gaussian_sxy,
        gaussian_compat=gaussian_compat,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=bilateral_srgb,
        bilateral_compat=bilateral_compat,
    ).argmax(axis=0)


def dense_crf_from_probabilities(
    image: Array,
    probabilities: Array,
    *,
    iterations: int = 10,
    gaussian_sxy: float = 1.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float = 67.0,
    bilateral_srgb: float = 3.0,
    bilateral_compat: float = 4.0,
) -> Array:
    """Refine probabilities: float (C, H, W) -> float32 (C, H, W). Arguments as in `dense_crf`."""
    return dense_crf(
        image,
        unary_from_probabilities(probabilities),
        iterations=iterations,
        gaussian_sxy=gaussian_sxy,
        gaussian_compat=gaussian_compat,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=bilateral_srgb,
        bilateral_compat=bilateral_compat,
    )


class SharedLattice:
    """The two kernels of an image, built once, for many unaries, weights and iteration counts.

    A CRF with one kernel of weight 1 and no unary turns marginals q into softmax(K q); its logarithm is the
    kernel's message up to a constant for each pixel, which the next softmax takes out again. So one lattice
    serves every compatibility. Agrees with `dense_crf` to float32 rounding.
    """

    def __init__(
        self, image: Array, num_labels: int, gaussian_sxy: float, bilateral_sxy: float, bilateral_srgb: float
    ) -> None:
        self.shape = (num_labels, *image.shape[:2])
        zero = np.zeros(self.shape, dtype=np.float32)
        self._gaussian, self._bilateral = _model(image, zero), _model(image, zero)
        self._gaussian.addPairwiseGaussian(sxy=gaussian_sxy, compat=1.0)
        self._bilateral.addPairwiseBilateral(
            sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=np.array(image, order="C"), compat=1.0
        )

    def steps(self, unary: Array, gaussian_compat: float, bilateral_compat: float, iterations: int) -> Iterator[Array]:
        """The marginals float32 (C, H, W) after 1, 2, ... `iterations` steps."""
        energy = unary.reshape(self.shape[0], -1).astype(np.float32)
        marginals = _softmax(-energy)
        for _ in range(iterations):
            logits = -energy
            for crf, compat in ((self._gaussian, gaussian_compat), (self._bilateral, bilateral_compat)):
                if compat:
                    logits += compat * self._message(crf, marginals)
            marginals = _softmax(logits)
            yield marginals.reshape(self.shape).copy()

    def _message(self, crf: Any, marginals: Array) -> Array:
        values, first, second = crf.startInference()
        np.asarray(values)[...] = marginals
        crf.stepInference(values, first, second)
        return np.log(np.asarray(values))


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
    return shifted / shifted.sum(axis=0, keepdims=True)


def _model(image: Array, unary: Array) -> Any:
    if image.dtype != np.uint8 or image.shape != (*unary.shape[1:], 3):
        raise ValueError(f"expected a uint8 image of {(*unary.shape[1:], 3)}, got {image.dtype} {image.shape}")
    labels, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), dtype=np.float32))
    return crf


def _add_kernels(
    crf: Any,
    image: Array,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
) -> None:
    if gaussian_compat:
        crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_compat)
    if bilateral_compat:
        # A copy: the wrapper wants a writable, contiguous buffer, which an array made from a picture may not be.
        crf.addPairwiseBilateral(
            sxy=bilateral_sxy,
            srgb=bilateral_srgb,
            rgbim=np.array(image, order="C"),
            compat=bilateral_compat,
        )
