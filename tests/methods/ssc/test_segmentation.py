"""What the shared stages behind the co-training get from SSC: scores of two networks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from wsss.stages.refine import multiscale_maximum
from wsss_methods.ssc.segmentation import base_scores


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
    scores = multiscale_maximum(partial(base_scores, [_ScaleProbe(), _ScaleProbe()]), images, (0.5, 1.0, 1.5))
    assert scores.shape == (1, 2, 4, 4)
    assert scores[0, 0].unique().tolist() == [48.0]
    assert scores[0, 1].unique().tolist() == [-16.0]
    assert base_scores([_ScaleProbe()], images)[0, 0].unique().tolist() == [32.0]
