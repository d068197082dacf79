"""The typed recipe of I2CRC: every setting with its range.

Defaults are the published configuration on VOC, but for those of the platform's sections: of `segmentation`, whose
published values stand in the recipe `paper`, and of `saliency`, whose published maps are a download.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from wsss.data.config import DatasetConfig
from wsss.method import ExecutionSettings
from wsss.nn.backbones import BACKBONES
from wsss.ops.crf import DenseCrfSettings
from wsss.optimizers import optimizer_setting
from wsss.recipe import setting
from wsss.stages.prediction_crf import CrfLabelConfig, CrfSettings
from wsss.stages.pseudo_label import off_curve
from wsss.stages.references import CamReferenceSettings
from wsss.stages.saliency import SaliencySettings
from wsss.stages.score import HIGHEST_THRESHOLD
from wsss.stages.segmentation import SegmentationSettings
from wsss.weights import weight_setting


@dataclass(frozen=True)
class WeightSettings:
    """Weight files that the networks start from: a path, which may begin with ${dataset.root}, auto or none."""

    vgg16: Path | None = weight_setting("vgg16")
    resnet101: Path | None = weight_setting("resnet101")
    resnet50: Path | None = weight_setting("resnet50")
    resnet18: Path | None = weight_setting("resnet18")
    mobilenet_v2: Path | None = weight_setting("mobilenet_v2")
    allow_random: bool = setting(
        True, in_key=False, help="false: refuse to run when a weight file that the networks need is none"
    )


@dataclass(frozen=True)
class CamSettings:
    """The classifier whose class maps are the CAM (official `classification/train.sh`)."""

    backbone: str = setting(
        "vgg16", choices=("vgg16", *BACKBONES), help="of the classifier; vgg16 at stride 8 is published, others have 16"
    )
    width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the backbone; 1 takes ImageNet weights")
    head_width: int = setting(512, minimum=8, maximum=1024, help="channels of the three convolutions behind it")
    normalization: str = setting(
        "frozen",
        choices=("frozen", "batch"),
        help="of a backbone with norms. frozen: ImageNet statistics; batch: trained, for networks without weights",
    )
    input_size: int = setting(
        256, minimum=32, maximum=1024, multiple_of=16, help="images are squeezed to this square, for the CAM too"
    )
    color_jitter: float = setting(
        1.0, minimum=0, maximum=2, help="factor on brightness 0.3, contrast 0.3, saturation 0.3 and hue 0.1"
    )
    batch_size: int = setting(5, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(30, minimum=1, maximum=500, help="passes over the training images")
    optimizer: str = optimizer_setting()
    learning_rate: float = setting(1e-3, above=0, maximum=1, help="rate of the backbone's weights; biases: twice")
    head_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for what is behind the backbone")
    momentum: float = setting(0.9, above=0, maximum=0.999, help="momentum, Nesterov's")
    weight_decay: float = setting(5e-4, minimum=0, maximum=0.1, help="weight decay, of biases too")
    lr_decay_epochs: tuple[int, ...] = setting(
        (5, 10), minimum=1, maximum=500, help="epochs after which the rate falls"
    )
    lr_decay_factor: float = setting(0.1, above=0, maximum=1, help="by which it falls")
    relation_losses: bool = setting(True, help="false: the classification loss alone")
    loss_weight_intra_object: float = setting(
        0.01, minimum=0, maximum=10, help="weight of the distances to the object's prototype, L_cad_ob"
    )
    loss_weight_intra_background: float = setting(
        0.025, minimum=0, maximum=10, help="weight of the distances to the background's prototype, L_cad_bg"
    )
    loss_weight_inter: float = setting(0.1, minimum=0, maximum=10, help="weight of what parts the two, L_csd")
    saliency_size: int = setting(
        256, minimum=16, maximum=1024, help="side of the square at which maps and saliency are compared"
    )
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    def check(self) -> list[str]:
        """Relations between settings."""
        if self.backbone == "vgg16" and self.normalization == "batch":
            return ["normalization = batch needs a backbone with norms, and vgg16 has none"]
        return []


@dataclass(frozen=True)
class PseudoLabelSettings:
    """Labels from class maps and saliency (official `gen_gt.py`): a recipe's section, and the stage's config."""

    foreground_threshold: float = setting(
        0.3, minimum=0, below=1, help="confidence below it is none, of the background too"
    )
    conflict_threshold: float = setting(
        0.9, above=0, maximum=1, help="a pixel at which two confidences exceed it is ignored"
    )
    saliency_threshold: int = setting(32, minimum=1, maximum=255, help="background this salient (of 255) is ignored")
    attention_threshold: float = setting(
        0.5, minimum=0, maximum=1, help="background where a class map exceeds it is ignored"
    )
    min_object_ratio: float = setting(
        0.01, minimum=0, maximum=0.5, help="an image with a smaller share of object pixels is ignored"
    )


@dataclass(frozen=True)
class RefinementSettings:
    """Object-guided label refinement (official `label_refinement.py`)."""

    enabled: bool = setting(True, help="false: the refined label is the pseudo label, and nothing is predicted")
    initial_for_multiclass: bool = setting(
        True, help="where an image of several classes is predicted background, take the first label"
    )
    missing_class_ignores_background: bool = setting(
        True, help="when a class of the image is not predicted anywhere, ignore the background"
    )
    min_object_ratio: float = setting(
        0.01, minimum=0, maximum=0.5, help="an image with a smaller share of object pixels is ignored"
    )

    def active(self) -> RefinementSettings:
        """The settings with those reset that a refinement that is off does not use, so that they enter no key."""
        return self if self.enabled else RefinementSettings(enabled=False)


@dataclass(frozen=True)
class CamScoreSettings:
    """The class maps as labels, to be compared with other methods; nothing else depends on it."""

    threshold: float = setting(
        0.3, minimum=0.05, maximum=HIGHEST_THRESHOLD, help="background constant of the headline score, in steps of 0.01"
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        return off_curve("threshold", self.threshold)


@dataclass(frozen=True)
class RoundOneSettings:
    """What differs in the training of round one; 0 stands for the value of `segmentation`."""

    steps: int = setting(0, minimum=0, maximum=1_000_000, help="optimizer steps; 0: as segmentation.steps")
    learning_rate: float = setting(0.0, minimum=0, maximum=1, help="0: as segmentation.learning_rate")
    head_lr_mult: float = setting(0.0, minimum=0, maximum=100, help="0: as segmentation.head_lr_mult")
    lr_power: float = setting(0.0, minimum=0, maximum=3, help="0: as segmentation.lr_power")

    def applied_to(self, settings: SegmentationSettings) -> SegmentationSettings:
        """Round one's settings. Its last step is used: no mask has a part in what round two is trained on."""
        own = {name: value for name, value in vars(self).items() if value}
        return replace(settings, selection="last", **own)


@dataclass(frozen=True)
class TrainingCrfSettings:
    """Dense CRF of round one's predictions on the training images, which the refinement starts from.

    Officially that of the final predictions, section `crf`; apart from it, so that changing one of them trains nothing.
    """

    enabled: bool = setting(True, help="false: the predictions as they are")
    iterations: int = setting(10, minimum=1, maximum=50, help="mean field steps")
    pos_xy_std: float = setting(1.0, minimum=0.01, maximum=20, help="pixels")
    pos_w: float = setting(3.0, minimum=0, maximum=20, help="weight of the smoothness term")
    bi_xy_std: float = setting(67.0, minimum=0.01, maximum=300, help="pixels")
    bi_rgb_std: float = setting(3.0, minimum=0.01, maximum=100, help="grey levels")
    bi_w: float = setting(4.0, minimum=0, maximum=20, help="weight of the appearance term")
    image: str = setting(
        "wrapped", choices=("wrapped", "raw"), help="wrapped: mean subtracted with wrap-around bytes, as published"
    )

    def labels(self) -> CrfLabelConfig:
        """The config of the stage that makes the labels."""
        if not self.enabled:
            return CrfLabelConfig(None, wrapped=False)
        crf = DenseCrfSettings(
            iterations=self.iterations,
            gaussian_sxy=self.pos_xy_std,
            gaussian_compat=self.pos_w,
            bilateral_sxy=self.bi_xy_std,
            bilateral_srgb=self.bi_rgb_std,
            bilateral_compat=self.bi_w,
        )
        return CrfLabelConfig(crf, wrapped=self.image == "wrapped")


@dataclass(frozen=True)
class I2crcRecipe:
    """A full configuration of I2CRC."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, help="of all training stages")
    weights: WeightSettings = field(default_factory=WeightSettings)
    saliency: SaliencySettings = field(default_factory=SaliencySettings)
    cam: CamSettings = field(default_factory=CamSettings)
    cam_score: CamScoreSettings = field(default_factory=CamScoreSettings)
    pseudo_label: PseudoLabelSettings = field(default_factory=PseudoLabelSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    segmentation_round1: RoundOneSettings = field(default_factory=RoundOneSettings)
    crf_train: TrainingCrfSettings = field(default_factory=TrainingCrfSettings)
    refinement: RefinementSettings = field(default_factory=RefinementSettings)
    crf: CrfSettings = field(default_factory=CrfSettings)
    references: CamReferenceSettings = field(default_factory=CamReferenceSettings)

    def round_one(self) -> SegmentationSettings:
        """The network and training of round one."""
        return self.segmentation_round1.applied_to(self.segmentation)
