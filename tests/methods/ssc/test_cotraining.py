"""Properties of the co-training step: class mixing, mode keeping, independence of a batch's split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.data.transforms import channels_first, normalize
from wsss_methods.ssc.cotraining import (
    LOSS_NAMES,
    CoTraining,
    CoTrainingSettings,
    Targets,
    boundary_map,
    cotraining_denominators,
    cotraining_losses,
    evaluation_mode,
    mix_pairs,
)

SIZE = 12
CLASSES = 6


class TinyNetwork(nn.Module):
    """Stride-2 network with the common (pre_logits, logits) call; `norm` adds batch statistics."""

    def __init__(self, seed: int, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.classifier = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pre_logits = self.classifier(torch.relu(self.norm(self.features(images))))
        logits = nn.functional.interpolate(pre_logits, size=images.shape[2:], mode="bilinear")
        return pre_logits, 4 * logits


def make_batch(count: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, (count, 3, 3)).repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    labels[:, 0] = 255
    return {
        "image": torch.from_numpy(np.stack([channels_first(normalize(image)) for image in images])),
        "label": torch.from_numpy(labels),
        "mask": torch.from_numpy(rng.integers(0, 2, labels.shape).astype(np.uint8)),
        "pair_seed": torch.from_numpy(rng.integers(0, 2**62, count)),
        "photometric_seed": torch.from_numpy(rng.integers(0, 2**62, count)),
    }


def part(batch: dict[str, Tensor], begin: int, end: int) -> dict[str, Tensor]:
    return {name: value[begin:end] for name, value in batch.items()}


def total_and_gradients(module: CoTraining, batches: list[dict[str, Tensor]], epoch: int):
    module.zero_grad()
    sums = dict.fromkeys(LOSS_NAMES, torch.zeros(()))
    for batch in batches:
        losses = module(batch, epoch, 0)
        torch.stack(list(losses.values())).sum().backward()
        sums = {name: sums[name] + losses[name].detach() for name in LOSS_NAMES}
    return sums, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("epoch", [0, 2])
def test_two_workers_give_the_sums_and_gradients_of_one(epoch: int) -> None:
    settings = CoTrainingSettings(mix_probability=0.7, online_confidence=0.2)
    module = CoTraining(TinyNetwork(1), TinyNetwork(2), settings)
    batch = make_batch(8)
    whole, whole_gradients = total_and_gradients(module, [batch], epoch)
    split, split_gradients = total_and_gradients(module, [part(batch, 0, 2), part(batch, 2, 8)], epoch)
    assert set(whole_gradients) == {name for name, _ in module.named_parameters()}
    for name in LOSS_NAMES:
        assert whole[name] > 0
        torch.testing.assert_close(split[name], whole[name], rtol=1e-5, atol=1e-5)
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(split_gradients[name], gradient, rtol=1e-4, atol=1e-4)
    pixels = cotraining_denominators(batch)
    halves = [cotraining_denominators(part(batch, 0, 2)), cotraining_denominators(part(batch, 2, 8))]
    assert all(sum(float(h[name]) for h in halves) == float(pixels[name]) == 8 * SIZE**2 for name in LOSS_NAMES)


def test_online_labels_leave_statistics_and_modes_alone() -> None:
    network1 = TinyNetwork(1, norm=True)
    module = CoTraining(network1, TinyNetwork(2, norm=True))
    network1.features.eval()  # a part frozen on purpose must stay so
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    module.augmented(make_batch(4), epoch=5)
    assert [m.training for m in module.modules()] == modes
    assert modes.count(False) == 1
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    module(make_batch(4), 5, 0)
    # Only the one training forward counts.
    assert int(network1.state_dict()["norm.num_batches_tracked"]) == 1


def test_online_labels_under_autocast_do_not_cut_gradients() -> None:
    # Autocast caches the low-precision weights; a copy made without gradients must not serve the training forward.
    module = CoTraining(TinyNetwork(1), TinyNetwork(2), CoTrainingSettings(online_confidence=0.2))
    with torch.autocast("cpu", torch.bfloat16):
        losses = module(make_batch(4), 5, 0)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_modes_come_back_after_an_error() -> None:
    network = TinyNetwork(1)
    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(network):
        assert not network.training
        assert not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert network.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("present", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("ignore_background", [True, False])
def test_half_of_the_donor_classes_are_pasted_rounding_up(present: int, ignore_background: bool) -> None:
    settings = CoTrainingSettings(mix_probability=1.0, mix_ignore_background=ignore_background)
    labels = torch.zeros(2, SIZE, SIZE, dtype=torch.long)
    labels[0] = 40
    labels[1, 0] = 255
    for i in range(present):
        labels[1, 1 + i] = 10 + i
    images = torch.stack([torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)])
    offline = Targets(labels, torch.ones_like(labels, dtype=torch.bool))
    mixed = mix_pairs(images, offline, None, [3, 4], settings)
    pasted = mixed.images[0, 0] == 1
    available = present + (not ignore_background)
    classes = set(mixed.targets.labels[0][pasted].tolist())
    assert len(classes) == (available + available % 2) // 2
    assert 255 not in classes
    assert (0 not in classes) or not ignore_background
    # A pasted class is pasted completely, everything else is the target's.
    for value in classes:
        assert torch.equal(pasted & (labels[1] == value), labels[1] == value)
    assert torch.equal(mixed.targets.labels[0], torch.where(pasted, labels[1], labels[0]))
    assert not mixed.boundary.any()


def test_every_class_is_chosen_equally_often() -> None:
    settings = CoTrainingSettings(mix_probability=1.0)
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[1] = torch.tensor([1, 5, 9, 20])
    images = torch.zeros(2, 3, 4, 4)
    offline = Targets(labels, torch.ones_like(labels, dtype=torch.bool))
    counts = dict.fromkeys((1, 5, 9, 20), 0)
    for seed in range(400):
        mixed = mix_pairs(images, offline, None, [seed, 0], settings)
        for value in set(mixed.targets.labels[0].unique().tolist()) - {0}:
            counts[value] += 1
    assert sum(counts.values()) == 800
    assert all(160 < count < 240 for count in counts.values()), counts


def test_mixing_uses_online_pair_after_the_warmup_and_offline_for_the_rest() -> None:
    shape = (2, SIZE, SIZE)
    offline = Targets(torch.full(shape, 1), torch.zeros(shape, dtype=torch.bool))
    online_labels = torch.full(shape, 2)
    online_labels[1, :6] = 3
    online_masks = torch.ones(shape, dtype=torch.bool)
    online_masks[1, 6:] = False
    online = Targets(online_labels, online_masks)
    images = torch.stack([torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)])
    mixed = mix_pairs(images, offline, online, [1, 2], CoTrainingSettings(mix_probability=1.0))
    # The donor's class 2 is untrusted and never chosen, so class 3 is.
    assert torch.equal(mixed.images[0, 0], (torch.arange(SIZE) < 6).float()[:, None].expand(-1, SIZE))
    assert mixed.targets.labels[0, :6].unique().tolist() == [3]
    assert mixed.targets.labels[0, 6:].unique().tolist() == [2]
    assert mixed.boundary[0].any(dim=1).nonzero().flatten().tolist() == [5, 6]
    unmixed = mix_pairs(images, offline, online, [1, 2], CoTrainingSettings(mix_probability=0.0))
    assert torch.equal(unmixed.targets.labels, offline.labels)
    assert torch.equal(unmixed.targets.masks, offline.masks)
    assert torch.equal(unmixed.images, images)
    assert not unmixed.boundary.any()
    assert not unmixed.mixed.any()


def test_mixed_share_follows_the_probability() -> None:
    images = torch.zeros(2, 3, 2, 2)
    offline = Targets(torch.ones(2, 2, 2, dtype=torch.long), torch.ones(2, 2, 2, dtype=torch.bool))
    settings = CoTrainingSettings(mix_probability=0.25)
    mixed = [mix_pairs(images, offline, None, [2 * s, 2 * s + 1], settings).mixed for s in range(400)]
    assert 0.2 < torch.cat(mixed).float().mean() < 0.3


def test_odd_batches_are_refused() -> None:
    labels = torch.zeros(3, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="whole pairs"):
        mix_pairs(torch.zeros(3, 3, 2, 2), Targets(labels, labels > 0), None, [1, 2, 3], CoTrainingSettings())


def test_losses_weight_masks_and_boundary() -> None:
    logits = torch.zeros(1, CLASSES, 1, 4)
    labels = torch.tensor([[[1, 1, 255, 2]]])
    masks = torch.tensor([[[True, True, True, False]]])
    band = torch.tensor([[[False, True, True, True]]])
    losses = cotraining_losses(logits, logits, Targets(labels, masks), band, (0.2, 0.5), (0.0, 3.0))
    one = float(np.log(CLASSES))
    expected = {"supervised_1": 2.2 * one, "supervised_2": 2.5 * one, "cotrain_1": one, "cotrain_2": 4 * one}
    assert {name: round(float(v), 4) for name, v in losses.items()} == {
        name: round(v, 4) for name, v in expected.items()
    }


def test_boundary_ignores_what_is_outside() -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, :, :4] = True
    mask[1] = True
    band, inside = boundary_map(mask, 1)
    assert band[0].any(dim=0).nonzero().flatten().tolist() == [3, 4]
    assert torch.equal(inside[0], (torch.arange(8) < 3).expand(8, 8))
    assert not band[1:].any()
    assert not inside[1:].any()
