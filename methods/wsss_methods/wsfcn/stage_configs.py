"""What each stage's numbers depend on: parts of the recipe, put together so that nothing else enters its key."""

from __future__ import annotations

from dataclasses import dataclass

from wsss.ops.crf import DenseCrfSettings
from wsss_methods.wsfcn.recipe import InferenceSettings, NetworkSettings, PseudoLabelSettings, TrainSettings


@dataclass(frozen=True)
class TrainConfig:
    """S1. `candidate_every`: epochs between stored candidates, 0 for none."""

    network: NetworkSettings
    train: TrainSettings
    pseudo_label: PseudoLabelSettings
    candidate_every: int


@dataclass(frozen=True)
class CandidateConfig:
    """Losses of the candidates on val, with the training transform and this seed."""

    network: NetworkSettings
    train: TrainSettings
    pseudo_label: PseudoLabelSettings
    seed: int


@dataclass(frozen=True)
class ChoiceConfig:
    """The choice among candidates.

    Attributes:
        mask_loss_weight: in the total loss.
        batch_size: the loss is a mean over batches of so many images.
        first_epoch, every, last_epoch: epochs that compete.
    """

    mask_loss_weight: float
    batch_size: int
    first_epoch: int
    every: int
    last_epoch: int


@dataclass(frozen=True)
class ScoresConfig:
    """S2a."""

    network: NetworkSettings
    inference: InferenceSettings


@dataclass(frozen=True)
class PresenceConfig:
    """Which classes an image may hold.

    Attributes:
        source: "scores": those that score above `fp_cut_score`; "image_labels": those of its label.
        fp_cut_score: 0 with image labels.
    """

    source: str
    fp_cut_score: float


@dataclass(frozen=True)
class PredictionConfig:
    """S2b."""

    presence: PresenceConfig
    bg_score: float


@dataclass(frozen=True)
class CurveConfig:
    """S2b for every background constant; `ignore_index` and `normalize` are what the curve scorer asks for."""

    presence: PresenceConfig
    thresholds: tuple[float, ...]
    upsample: int = 0
    normalize: str = "none"
    ignore_index: int = 255


@dataclass(frozen=True)
class CrfConfig:
    """S2c."""

    presence: PresenceConfig
    alpha: float
    crf: DenseCrfSettings
