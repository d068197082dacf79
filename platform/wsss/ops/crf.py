"""Dense conditional random fields (Krähenbühl and Koltun, 2011) through pydensecrf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydensecrf import densecrf  # pyright: ignore[reportAttributeAccessIssue]

from wsss.errors import WsssError

_SMALLEST_PROBABILITY = 1e-5
# Far smaller kernels overflow the library's lattice and kill the process.
SMALLEST_DEVIATION = 0.01


@dataclass(frozen=True)
class DenseCrfSettings:
    """The two kernels of a dense CRF and how long it runs.

    Attributes:
        iterations: mean-field steps.
        gaussian_sxy, bilateral_sxy: standard deviations in pixels, 0.01 or more.
        bilateral_srgb: standard deviation in grey levels, 0.01 or more.
        gaussian_compat, bilateral_compat: weights of the smoothness and the appearance kernel (Potts); 0 leaves a
            kernel out.
    """

    iterations: int
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


class DenseCrf:
    """Mean field of one image. The kernels are built once and serve any number of unaries.

    A second unary costs its mean field alone, and gives to the bit what a CRF of its own would.
    """

    def __init__(self, image: np.ndarray, num_labels: int, settings: DenseCrfSettings) -> None:
        """image: uint8 (H, W, 3), which ValueError says when it is not. WsssError for a deviation that is too small."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 image (H, W, 3), got {image.dtype} {image.shape}")
        _refuse_small_kernels(settings)
        height, width = image.shape[:2]
        self.shape = (num_labels, height, width)
        self.iterations = settings.iterations
        self._model = densecrf.DenseCRF2D(width, height, num_labels)
        if settings.gaussian_compat:
            self._model.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
        if settings.bilateral_compat:
            # A copy: the wrapper wants a writable, contiguous buffer, which an array made from a picture may not be.
            self._model.addPairwiseBilateral(
                sxy=settings.bilateral_sxy,
                srgb=settings.bilateral_srgb,
                rgbim=np.array(image, order="C"),
                compat=settings.bilateral_compat,
            )

    def marginals(self, unary: np.ndarray) -> np.ndarray:
        """Energies float32 (C, H, W) -> marginals float32 (C, H, W) after `iterations` steps; sums over C are 1."""
        self._set(unary)
        return np.array(self._model.inference(self.iterations), dtype=np.float32).reshape(self.shape)

    def steps(self, unary: np.ndarray) -> Iterator[np.ndarray]:
        """The marginals after 1, 2, ... `iterations` steps of one run, each to the bit what a run of that length gives.

        Take no other unary before the last step.
        """
        self._set(unary)
        marginals, first, second = self._model.startInference()
        for _ in range(self.iterations):
            self._model.stepInference(marginals, first, second)
            yield np.array(marginals, dtype=np.float32).reshape(self.shape)

    def _set(self, unary: np.ndarray) -> None:
        if unary.shape != self.shape:
            raise ValueError(f"expected energies of shape {self.shape}, got {unary.shape}")
        self._model.setUnaryEnergy(np.ascontiguousarray(unary.reshape(self.shape[0], -1), dtype=np.float32))


def _refuse_small_kernels(settings: DenseCrfSettings) -> None:
    deviations = {
        "gaussian_sxy": settings.gaussian_compat,
        "bilateral_sxy": settings.bilateral_compat,
        "bilateral_srgb": settings.bilateral_compat,
    }
    for name, weight in deviations.items():
        value = getattr(settings, name)
        if weight and not value >= SMALLEST_DEVIATION:
            raise WsssError(
                f"the standard deviation {name} = {value:g} is too small for the CRF",
                "dense CRF",
                f"give {SMALLEST_DEVIATION} or more; a weight of 0 leaves the kernel out",
            )


def unary_from_labels(label: np.ndarray, num_labels: int, gt_prob: float) -> np.ndarray:
    """Energies float32 (num_labels, H, W) of a label map that is right with probability `gt_prob`."""
    if num_labels < 2:
        raise ValueError(f"a label map needs at least two labels for a CRF, got {num_labels}")
    energy = np.full((num_labels, label.size), -np.log((1.0 - gt_prob) / (num_labels - 1)), dtype=np.float32)
    energy[label.reshape(-1), np.arange(label.size)] = -np.log(gt_prob)
    return energy.reshape(num_labels, *label.shape)


def unary_from_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Energies -log p, float32 (C, H, W); p is kept above 1e-5."""
    return -np.log(np.clip(probabilities, _SMALLEST_PROBABILITY, 1.0)).astype(np.float32)


def refine_probabilities(image: np.ndarray, probabilities: np.ndarray, settings: DenseCrfSettings) -> np.ndarray:
    """Marginals float32 (C, H, W) of a dense CRF with unary -log(probabilities); image uint8 (H, W, 3) RGB."""
    return DenseCrf(image, len(probabilities), settings).marginals(unary_from_probabilities(probabilities))


def refine_labels(
    image: np.ndarray, labels: list[np.ndarray], num_labels: int, gt_prob: float, settings: DenseCrfSettings
) -> list[np.ndarray]:
    """Refine label maps of one image: integer (H, W) in 0..num_labels-1 each -> int64 (H, W) each.

    The kernels are built once for all of them. With one label there is nothing to decide and the maps are returned.
    `gt_prob` is the trust in the labels.
    """
    if num_labels == 1:
        return [label.astype(np.int64) for label in labels]
    crf = DenseCrf(image, num_labels, settings)
    return [crf.marginals(unary_from_labels(label, num_labels, gt_prob)).argmax(axis=0) for label in labels]
