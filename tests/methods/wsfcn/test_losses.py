"""Pseudo labels, presence gate and mask loss of WS-FCN at their edges."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from wsss_methods.wsfcn.inference import best_scores, label_from_masks, mean_average_precision, with_power_background
from wsss_methods.wsfcn.losses import (
    UNLABELED,
    FocalPenalty,
    class_counts,
    class_scores,
    label_map,
    mask_loss,
    presence_gate,
    pseudo_label,
)
from wsss_methods.wsfcn.recipe import PseudoLabelSettings

RULE = PseudoLabelSettings()


def masks_of(*values: list[float]) -> torch.Tensor:
    """Masks (1, C, 1, W) from one list of values a class."""
    return torch.tensor(values)[None, :, None, :]


def test_thresholds_are_strict_and_the_minimum_holds() -> None:
    # Class 1 has its maximum 0.5, so its threshold is 0.3; class 2 never exceeds the minimum 0.2.
    masks = masks_of([0.1, 0.1, 0.1, 0.1], [0.5, 0.3, 0.30001, 0.0], [0.2, 0.2, 0.2, 0.2])
    assert label_map(masks, RULE)[0, 0].tolist() == [1, UNLABELED, 1, UNLABELED]


def test_a_pixel_that_two_classes_claim_is_unlabeled() -> None:
    masks = masks_of([0.8, 0.8, 0.1], [0.7, 0.1, 0.1], [0.1, 0.1, 0.9])
    assert label_map(masks, RULE)[0, 0].tolist() == [UNLABELED, 0, 2]


def test_the_gate_asks_for_background_and_every_image_label() -> None:
    labels = torch.tensor([[1.0, 0.0, 1.0]] * 4)
    label = torch.tensor([[0, 1, 3, 255], [0, 1, 255, 255], [1, 3, 3, 255], [255, 255, 255, 255]], dtype=torch.uint8)
    counts = class_counts(label[:, None], 4)
    assert counts.tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]]
    assert presence_gate(counts, labels).tolist() == [1, 0, 0, 0]
    logits = torch.randn(4, 4, 1, 4, requires_grad=True)
    loss = mask_loss(logits, label[:, None], labels)
    loss.sum().backward()
    assert loss[0] > 0 and loss[1:].eq(0).all()
    assert logits.grad is not None and logits.grad[1:].eq(0).all()


def test_the_mean_runs_over_unlabeled_pixels_too() -> None:
    labels = torch.tensor([[1.0]])
    label = torch.tensor([[[0, 1, 1, 255]]], dtype=torch.uint8)
    logits = torch.randn(1, 2, 1, 4)
    entropy = F.cross_entropy(logits, label.long(), ignore_index=UNLABELED, reduction="none")[0, 0]
    weights = torch.tensor([2 / 4, 1 / 4, 1 / 4, 0.0])
    assert torch.allclose(mask_loss(logits, label, labels)[0], (weights * entropy).sum() / 4)


def test_pseudo_labels_hold_no_class_that_the_image_does_not_have() -> None:
    torch.manual_seed(0)
    masks = (3 * torch.randn(2, 5, 9, 9)).softmax(dim=1)
    labels = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    pseudo = pseudo_label(torch.rand(2, 3, 33, 33), masks, labels, RULE)
    assert pseudo.label.shape == (2, 33, 33) and pseudo.label.dtype == torch.uint8
    assert set(pseudo.label[0].unique().tolist()) <= {0, 1, 4, UNLABELED}
    assert set(pseudo.label[1].unique().tolist()) <= {0, 2, UNLABELED}
    assert pseudo.refined[0, [2, 3]].eq(0).all() and not pseudo.refined.requires_grad


def test_a_larger_mask_scores_higher() -> None:
    logits = torch.full((2, 2, 8, 8), -2.0)
    logits[:, 0] = 1.0
    logits[0, 1, :2, :2] = logits[1, 1, :6, :6] = 3.0
    small, large = class_scores(logits, logits.softmax(dim=1), FocalPenalty())[:, 0]
    assert large > small


def test_background_wins_ties_and_an_image_may_be_empty() -> None:
    masks, keys = np.array([[[0.25, 0.26]], [[0.1, 0.1]]], np.float32), np.array([3, 7])
    assert label_from_masks(masks, keys, 0.25).tolist() == [[0, 3]]
    nothing = np.zeros((0, 2, 3), np.float32)
    assert label_from_masks(nothing, np.zeros(0, np.int64), 0.25).tolist() == [[0] * 3] * 2
    probabilities = with_power_background(masks, keys, 5.0, 9)
    assert probabilities.shape == (9, 1, 2) and np.isclose(probabilities[0, 0, 0], 0.75**5)
    assert (with_power_background(nothing, np.zeros(0, np.int64), 5.0, 9)[0] == 1).all()
    assert best_scores(np.array([[-9.0, 0.0], [0.0, 2.0]], np.float32)).tolist()[0] == 0.5


def test_mean_average_precision() -> None:
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert mean_average_precision(np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.8, 0.2, 0]]), labels) == 1.0
    # First class: found at places 2 and 3; second at place 1.
    worse = np.array([[0.5, 0.1, 0], [0.9, 0.9, 0], [0.4, 0.2, 0]])
    assert np.isclose(mean_average_precision(worse, labels), ((1 / 2 + 2 / 3) / 2 + 1) / 2)
    assert np.isnan(mean_average_precision(worse, np.zeros_like(labels)))
