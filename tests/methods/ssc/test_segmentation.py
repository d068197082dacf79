"""What the shared stages behind the co-training get from SSC: scores of two networks, CRF and its image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from wsss.stages.refine import PredictionConfig, mean_subtracted, multiscale_maximum
from wsss_methods.ssc.recipe import CrfSettings
from wsss_methods.ssc.segmentation import base_scores, prediction_config


def test_as_many_steps_run_as_the_recipe_needs() -> None:
    longer = prediction_config(CrfSettings(iterations=15, scored_iterations=10)).crf
    assert longer is not None and longer.iterations == 15
    assert prediction_config(CrfSettings(iterations=4, scored_iterations=10)).crf == replace(longer, iterations=10)
    assert prediction_config(CrfSettings(enabled=False)) == PredictionConfig(None, ())


def test_published_crf_image_wraps_around() -> None:
    image = np.array([[[0, 116, 200], [123, 255, 104]]], dtype=np.uint8)
    # -122.675 becomes -122 and wraps to 134; -0.669 becomes 0; 95.992 becomes 95.
    assert mean_subtracted(image).tolist() == [[[134, 0, 95], [0, 138, 0]]]


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
