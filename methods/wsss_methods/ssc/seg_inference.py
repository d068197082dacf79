"""Final inference: multi-scale scores of two networks, dense CRF, label map (SSC, section 6.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_probabilities

# Mean colour (R, G, B) on the 8-bit scale that the official program subtracts before the CRF.
CRF_IMAGE_MEAN = (122.675, 116.669, 104.008)


@torch.no_grad()
def base_scores(networks: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Mean of the networks' `pre_logits`: images (N, 3, H, W) to float32 (N, C, H/s, W/s).

    The networks must be in evaluation mode; each returns (pre_logits, logits).
    """
    total = networks[0](images)[0].float()
    for network in networks[1:]:
        total = total + network(images)[0].float()
    return total / len(networks)


@torch.no_grad()
def multiscale_scores(networks: Sequence[nn.Module], images: Tensor, scales: Sequence[float]) -> Tensor:
    """Element-wise maximum of `base_scores` over the images and their resized copies, before softmax.

    images: float32 (N, 3, H, W) normalized, 512x512 in the published protocol.  Each copy is `images`
    resized by a factor of `scales` (bilinear), its scores are resized back to those of the base pass.
    Scale 1 is the base pass itself and costs nothing.  Returns float32 (N, C, H/s, W/s).
    """
    best = base_scores(networks, images)
    for scale in scales:
        if scale == 1:
            continue
        resized = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        scores = base_scores(networks, resized)
        scores = F.interpolate(scores, size=best.shape[2:], mode="bilinear", align_corners=False)
        best = torch.maximum(best, scores)
    return best


def class_probabilities(scores: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Scores (C, h, w) before softmax to probabilities float32 (C, H, W) at `size` = (H, W)."""
    values = torch.from_numpy(np.asarray(scores, dtype=np.float32))[None]
    resized = F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.softmax(dim=1)[0].numpy()


def crf_image(image: np.ndarray, on_raw_image: bool = False) -> np.ndarray:
    """The uint8 (H, W, 3) image that the dense CRF compares colours in.

    By default the mean colour is subtracted and negative values wrap around modulo 256, an accident of the
    official program that the published number has gone through (SSC, section 9, item 19).  `on_raw_image`
    returns the RGB image itself.  The cast is spelled out, because casting a negative float to uint8 is not
    defined.
    """
    if on_raw_image:
        return np.array(image, dtype=np.uint8)
    shifted = np.trunc(image.astype(np.float64) - np.array(CRF_IMAGE_MEAN))
    return np.mod(shifted.astype(np.int64), 256).astype(np.uint8)


def refined_steps(
    probabilities: np.ndarray, image: np.ndarray, settings: DenseCrfSettings, on_raw_image: bool = False
) -> Iterator[np.ndarray]:
    """Probabilities after 1, 2, ... `settings.iterations` steps of a dense CRF with unary -log(probabilities).

    float32 (C, H, W) in and out; image uint8 (H, W, 3) RGB. One run gives them all, each to the bit what a run of
    that many steps gives.
    """
    crf = DenseCrf(crf_image(image, on_raw_image), len(probabilities), settings)
    return crf.steps(unary_from_probabilities(probabilities))


def predicted_label(probabilities: np.ndarray) -> np.ndarray:
    """Class of the largest of (C, H, W): uint8 (H, W)."""
    return probabilities.argmax(axis=0).astype(np.uint8)
