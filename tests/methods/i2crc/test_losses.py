"""The relation losses against a plain reading of the formulae, and the parts of a split batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss_methods.i2crc.losses import RelationSums, classification_loss, of_one_class, relation_losses
from wsss_methods.i2crc.networks import Classifier
from wsss_methods.i2crc.training import RELATIONS, ClassifierTraining

CLASSES = 4


def batch_of(seed: int = 0, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Class maps, saliency and labels of five images: one class, two, one, none, one."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(5, CLASSES, 6, 6, generator=generator, dtype=torch.float64)
    saliency = torch.rand(5, size, size, generator=generator, dtype=torch.float64)
    labels = torch.zeros(5, CLASSES)
    for row, present in enumerate(([1], [0, 2], [3], [], [1])):
        labels[row, present] = 1
    return maps, saliency, labels


def plain_reading(maps: Tensor, saliency: Tensor, labels: Tensor) -> dict[str, float]:
    """Pixel by pixel, image by image: the sums that `relation_losses` returns."""
    totals: dict[str, float] = {name: 0.0 for name in RELATIONS}
    large = torch.nn.functional.interpolate(maps, size=saliency.shape[1:], mode="bilinear", align_corners=False)
    for image in range(len(maps)):
        if labels[image].sum() != 1:
            continue
        means: dict[str, list[float]] = {}
        for term, mask in (("intra_object", saliency[image]), ("intra_background", 1 - saliency[image])):
            area = float(mask.sum()) + 1e-5
            means[term] = []
            for values in large[image]:
                mean = float((values * mask).sum()) / area
                means[term].append(mean)
                totals[term] += float((((values - mean) * mask) ** 2).sum()) / area
        present = int(labels[image].argmax())
        totals["inter"] += means["intra_background"][present] - means["intra_object"][present]
    return totals


def as_dict(sums: RelationSums) -> dict[str, float]:
    return {name: float(getattr(sums, name).detach()) for name in RELATIONS}


@pytest.mark.parametrize("size", [6, 12, 17])
def test_sums_are_those_of_a_plain_reading(size: int) -> None:
    maps, saliency, labels = batch_of(size=size)
    assert as_dict(relation_losses(maps, saliency, labels)) == pytest.approx(plain_reading(maps, saliency, labels))


def test_the_sums_of_the_parts_are_the_sum_of_the_batch() -> None:
    maps, saliency, labels = batch_of()
    whole = as_dict(relation_losses(maps, saliency, labels))
    # The second part has no image with one class.
    parts = [as_dict(relation_losses(maps[rows], saliency[rows], labels[rows])) for rows in ([0, 2], [1, 3], [4])]
    assert whole == pytest.approx({name: sum(part[name] for part in parts) for name in RELATIONS})
    assert parts[1] == dict.fromkeys(RELATIONS, 0.0)


def test_gradients_run_through_maps_and_prototypes() -> None:
    """Numeric derivatives see a prototype that was detached, because the mask is soft."""
    maps, saliency, labels = batch_of(size=6)
    weights = {"intra_object": 0.3, "intra_background": 0.5, "inter": 0.7}

    def total(values: Tensor) -> Tensor:
        sums = relation_losses(values, saliency, labels)
        return torch.stack([weight * getattr(sums, name) for name, weight in weights.items()]).sum()

    assert torch.autograd.gradcheck(total, maps.requires_grad_())
    total(maps).backward()
    assert maps.grad is not None
    assert (maps.grad[[1, 3]] == 0).all(), "images of no class and of several classes take no part"
    assert (maps.grad[[0, 2, 4]].abs().amax(dim=(2, 3)) > 0).all(), "every channel takes part, not the present alone"


def test_separated_maps_have_no_distance_and_the_least_inter_loss() -> None:
    saliency = torch.zeros(1, 8, 8)
    saliency[:, :, :4] = 1
    labels = torch.tensor([[0.0, 1.0, 0.0]])
    maps = torch.zeros(1, 3, 8, 8)
    maps[0, 1, :, :4] = 5.0
    sums = relation_losses(maps, saliency, labels)
    assert float(sums.intra_object) == pytest.approx(0, abs=1e-4)
    assert float(sums.intra_background) == pytest.approx(0, abs=1e-4)
    assert float(sums.inter) == pytest.approx(-5, rel=1e-5)
    for empty in (saliency * 0, saliency * 0 + 1):  # one of the regions is empty
        sums = relation_losses(maps, empty, labels)
        assert all(torch.isfinite(getattr(sums, name)) for name in RELATIONS)


def test_classification_is_the_mean_of_log_sigmoids() -> None:
    maps, _, labels = batch_of()
    scores = maps.mean(dim=(2, 3))
    expected = -(labels * scores.sigmoid().log() + (1 - labels) * (1 - scores.sigmoid()).log()).sum()
    assert float(classification_loss(maps, labels)) == pytest.approx(float(expected))
    mean = torch.nn.functional.multilabel_soft_margin_loss(scores, labels.double())
    assert float(classification_loss(maps, labels)) / labels.numel() == pytest.approx(float(mean))


def test_a_step_counts_what_its_sums_run_over() -> None:
    _, saliency, labels = batch_of()
    torch.manual_seed(0)
    module = ClassifierTraining(Classifier(width=0.125, head_width=8, num_classes=CLASSES), relations=True)
    batch = {"image": torch.randn(5, 3, 48, 48), "label": labels, "saliency": (saliency * 255).to(torch.uint8)}
    assert of_one_class(labels).tolist() == [True, False, True, False, True]
    counts = {name: float(count) for name, count in module.denominators(batch).items()}
    assert counts == {"classification": 20.0, **dict.fromkeys(RELATIONS, 12.0)}
    losses = module(batch, 0, 0)
    assert losses.keys() == counts.keys() and all(loss.isfinite() for loss in losses.values())
    maps = module.network(batch["image"])
    expected = relation_losses(maps, batch["saliency"].float() / 255, labels)
    assert {name: float(losses[name].detach()) for name in RELATIONS} == pytest.approx(as_dict(expected))
    plain = ClassifierTraining(module.network, relations=False)
    assert plain(batch, 0, 0).keys() == plain.denominators(batch).keys() == {"classification"}
