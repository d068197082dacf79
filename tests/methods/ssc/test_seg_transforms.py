"""Final inference of the segmentation stage: CRF image, multi-scale maximum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wsss_methods.ssc.seg_inference import (
    CRF_IMAGE_MEAN,
    base_scores,
    class_probabilities,
    crf_image,
    multiscale_scores,
    predicted_label,
)


def test_crf_image_wraps_around_unless_told_otherwise() -> None:
    image = np.array([[[0, 116, 200], [123, 255, 104]]], dtype=np.uint8)
    # -122.675 becomes -122 and wraps to 134; -0.669 becomes 0; 95.992 becomes 95.
    assert crf_image(image).tolist() == [[[134, 0, 95], [0, 138, 0]]]
    assert np.array_equal(crf_image(image, on_raw_image=True), image)
    assert len(CRF_IMAGE_MEAN) == 3


class _ScaleProbe(nn.Module):
    """Scores that name the input's size, so that a maximum shows which passes were made."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        scores = torch.zeros(len(images), 2, height // 8, width // 8)
        scores[:, 0] = height
        scores[:, 1] = -height
        return scores, scores


def test_multiscale_takes_the_maximum_of_all_passes() -> None:
    images = torch.randn(1, 3, 32, 32)
    scores = multiscale_scores([_ScaleProbe(), _ScaleProbe()], images, (0.5, 1.0, 1.5))
    assert scores.shape == (1, 2, 4, 4)
    assert scores[0, 0].unique().tolist() == [48.0]
    assert scores[0, 1].unique().tolist() == [-16.0]
    assert base_scores([_ScaleProbe()], images)[0, 0].unique().tolist() == [32.0]


def test_probabilities_sum_to_one_and_give_labels() -> None:
    scores = np.zeros((3, 2, 2), dtype=np.float32)
    scores[1, :, 1] = 9
    scores[2, :, 0] = 9
    probabilities = class_probabilities(scores, (8, 10))
    assert probabilities.shape == (3, 8, 10)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    label = predicted_label(probabilities)
    assert label.dtype == np.uint8
    assert set(label[:, :4].ravel()) == {2}
    assert set(label[:, 6:].ravel()) == {1}
