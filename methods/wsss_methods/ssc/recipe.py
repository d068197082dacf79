"""The typed recipe of SSC: every setting with its range. Defaults are the published configuration.

Names follow the official options, with the stage's prefix turned into a section. A stage's configuration is built from
whole sections, so that a setting enters the keys of the stages that use it and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wsss.data.config import DatasetConfig
from wsss.method import ExecutionSettings
from wsss.nn.backbones import BACKBONES
from wsss.optimizers import optimizer_setting
from wsss.recipe import setting
from wsss.stages.affinity_irn import AffinityConfig, IrLabelConfig
from wsss.stages.prediction_crf import CrfSettings
from wsss.stages.pseudo_label import PseudoLabelConfig, off_curve
from wsss.stages.references import CamReferenceSettings
from wsss.stages.score import HIGHEST_THRESHOLD
from wsss.stages.superpixels import SuperpixelConfig
from wsss.weights import weight_setting

PERCEPTUAL_NETWORKS = ("vgg19", "mobilenet_v2", "pixel_pyramid")
# The ImageNet weights that each architecture is published with.
SEGMENTATION_WEIGHTS = {
    "deeplabv2_r101": "resnet101_v2",
    "deeplabv3plus_r101": "resnetv1d101",
    "segformer_b2": "mit_b2",
    "deeplabv2_r18": "resnet18",
    "deeplabv2_mobilenet_v2": "mobilenet_v2",
}
SEGMENTATION_ARCHITECTURES = tuple(SEGMENTATION_WEIGHTS)


@dataclass(frozen=True)
class WeightSettings:
    """Weight files that the networks start from: a path, which may begin with ${dataset.root}, auto or none."""

    resnet50: Path | None = weight_setting("resnet50")
    resnet101_v2: Path | None = weight_setting("resnet101_v2")
    resnet18: Path | None = weight_setting("resnet18")
    vgg19: Path | None = weight_setting("vgg19")
    mobilenet_v2: Path | None = weight_setting("mobilenet_v2")
    resnetv1d101: Path | None = weight_setting("resnetv1d101")
    mit_b2: Path | None = weight_setting("mit_b2")
    allow_random: bool = setting(
        True, in_key=False, help="false: refuse to run when a weight file that the networks need is none"
    )


@dataclass(frozen=True)
class CamSettings:
    """CAM training (first step of the official `run_sample.py`): network, augmentation, constraints, optimization."""

    backbone: str = setting("resnet50", choices=BACKBONES, help="ImageNet classifier that gives the maps")
    width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the backbone; 1 takes ImageNet weights")
    normalization: str = setting(
        "frozen",
        choices=("frozen", "batch"),
        help="frozen: ImageNet statistics, never updated; batch: trained, for networks without weights",
    )
    gradient_stop: bool = setting(
        True, help="stop the gradient after layer2, which freezes everything before it; false to train from scratch"
    )
    drs_delta: float = setting(0.55, minimum=0.3, maximum=1, help="discriminative region suppression bound; 1: off")
    drs_after_stage2: bool = setting(True, help="suppression after layer2, in training only")
    crop_size: int = setting(512, minimum=32, maximum=1024, multiple_of=16, help="side of a training crop")
    resize_long_min: int = setting(320, minimum=32, maximum=1024, help="smallest longer side before the crop")
    resize_long_max: int = setting(640, minimum=32, maximum=2048, help="largest longer side before the crop")
    batch_size: int = setting(6, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(10, minimum=1, maximum=200, help="passes over the training images")
    learning_rate: float = setting(0.1, above=0, maximum=1, help="SGD rate of the backbone")
    classifier_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for the classifier")
    weight_decay: float = setting(1e-4, minimum=0, maximum=0.1, help="SGD weight decay")
    # 1e-4, not 0.9: the official optimizer is handed its weight decay in the place of the momentum.
    momentum: float = setting(1e-4, minimum=0, maximum=0.99, help="SGD momentum; with 0.9 use a lower learning rate")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of the polynomial schedule")
    loss_weight_perceptual: float = setting(
        1.0, minimum=0, maximum=10, help="weight of the reconstruction constraint; 0: off"
    )
    loss_weight_alignment: float = setting(
        1.0, minimum=0, maximum=10, help="weight of the self-modulation constraint; 0: off"
    )
    alignment_warmup_epochs: int = setting(2, minimum=0, maximum=50, help="epochs without self-modulation")
    alignment_threshold: float = setting(0.3, minimum=0.05, maximum=0.9, help="reliable activation, above")
    alignment_erosion_kernel: int = setting(
        8, minimum=0, maximum=64, help="side of the erosion of the reliable region at the reduced size; 0: none"
    )
    alignment_downscale: float = setting(
        0.5, choices=(0.25, 0.5, 1.0), help="size of superpixels and maps in the constraint, of the crop"
    )
    perceptual_network: str = setting(
        "vgg19", choices=PERCEPTUAL_NETWORKS, help="features that the reconstruction is compared in"
    )
    perceptual_layer_weights: tuple[float, ...] = setting(
        (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0),
        minimum=0,
        maximum=10,
        length=5,
        help="weights of the five levels, fine to coarse",
    )
    rescale_reconstruction: bool = setting(
        False, help="bring the tanh image to the range of the normalized image before comparing"
    )
    decoder_width: float = setting(1.0, minimum=0.0625, maximum=2, help="width of the reconstruction decoder")
    rec_learning_rate: float = setting(5e-4, above=0, maximum=0.1, help="Adam rate of the decoder")
    rec_adam_beta1: float = setting(0.5, minimum=0, below=1, help="Adam beta1 of the decoder")
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    def check(self) -> list[str]:
        """Relations between settings."""
        if self.resize_long_min <= self.resize_long_max:
            return []
        return [f"resize_long_min = {self.resize_long_min} is above resize_long_max = {self.resize_long_max}"]


@dataclass(frozen=True)
class CamInferenceSettings:
    """Class activation maps at several scales, and their score."""

    scales: tuple[float, ...] = setting(
        (1.0, 0.5, 1.5, 2.0), minimum=0.25, maximum=4, help="input scales whose maps are added"
    )
    cam_eval_thres: float = setting(
        0.20,
        minimum=0.05,
        maximum=HIGHEST_THRESHOLD,
        help="background constant of the headline score, in steps of 0.01",
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = off_curve("cam_eval_thres", self.cam_eval_thres)
        if not self.scales:
            problems.append("scales is empty; [1.0] runs at the image's own size")
        return problems


@dataclass(frozen=True)
class RandomWalkSettings:
    """Random walk of the CAM on the learned affinities (IRN's `step/make_sem_seg_labels.py`)."""

    input_size: int = setting(
        512, minimum=64, maximum=2048, multiple_of=16, help="the image is zero-padded to this square"
    )
    radius: int = setting(5, minimum=2, maximum=12, help="radius of the transitions, in positions of stride 4")
    beta: int = setting(10, minimum=1, maximum=50, help="power of the affinities")
    exp_times: int = setting(8, minimum=1, maximum=12, help="2 to this power steps of the walk")


@dataclass(frozen=True)
class SegmentationSettings:
    """Co-training of two segmentation networks (BECO's `main.py`)."""

    architecture: str = setting(
        "deeplabv2_r101", choices=SEGMENTATION_ARCHITECTURES, help="of both networks; default: published"
    )
    width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the backbone; 1 takes ImageNet weights")
    crop_size: int = setting(512, minimum=32, maximum=1024, multiple_of=16, help="side of a training crop")
    crop_area_min: float = setting(0.5, above=0, maximum=1, help="smallest share of the image in a crop")
    crop_area_max: float = setting(0.75, above=0, maximum=1, help="largest share of the image in a crop")
    batch_size: int = setting(16, minimum=2, maximum=256, multiple_of=2, help="images in a step, over all workers")
    num_epochs: int = setting(100, minimum=1, maximum=500, help="passes over the training images")
    optimizer: str = optimizer_setting()
    learning_rate: float = setting(0.01, above=0, maximum=1, help="rate of both networks")
    head_lr_mult: float = setting(1.0, minimum=1, maximum=100, help="factor for the classifiers")
    momentum: float = setting(0.9, minimum=0, maximum=0.999, help="momentum")
    weight_decay: float = setting(1e-4, minimum=0, maximum=0.1, help="weight decay")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of the polynomial schedule")
    min_lr: float = setting(1e-5, minimum=0, maximum=0.01, help="smallest learning rate of the schedule")
    warmup_epochs: int = setting(2, minimum=0, maximum=100, help="epochs on offline labels only")
    mix_prob: float = setting(0.5, minimum=0, maximum=1, help="chance that an image is class-mixed")
    mix_ignore_bg: bool = setting(True, help="never paste the background")
    online_conf_thres: float = setting(0.95, minimum=0, below=1, help="on-line labels above it are trusted")
    bdry_size: int = setting(1, minimum=1, maximum=10, help="half width of the band around pasted objects, pixels")
    bdry_weight_sup: tuple[float, ...] = setting(
        (0.2, 0.2), minimum=0, maximum=5, length=2, help="extra weight of the band, networks 1 and 2"
    )
    bdry_weight_cotrain: tuple[float, ...] = setting(
        (0.0, 0.0), minimum=0, maximum=5, length=2, help="the same in the co-training losses"
    )
    photometric_prob: float = setting(0.8, minimum=0, maximum=1, help="chance of brightness and color changes")
    grey_prob: float = setting(0.2, minimum=0, maximum=1, help="chance of grey")
    blur_prob: float = setting(0.5, minimum=0, maximum=1, help="chance of blur")
    selection: str = setting(
        "best_val", choices=("best_val", "last"), help="best_val: epoch chosen by val masks, as published"
    )
    candidate_every: int = setting(
        1,
        minimum=1,
        maximum=100,
        help="epochs between the weights that best_val chooses from; 1: as published, the best of all epochs",
    )
    # The official co-training script runs in mixed precision.
    precision: str = setting("amp", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = []
        if self.crop_area_min > self.crop_area_max:
            problems.append(f"crop_area_min = {self.crop_area_min} is above crop_area_max = {self.crop_area_max}")
        if self.min_lr > self.learning_rate:
            problems.append(f"min_lr = {self.min_lr} is above learning_rate = {self.learning_rate}")
        return problems


@dataclass(frozen=True)
class SegmentationInferenceSettings:
    """Scores of the trained networks."""

    input_size: int = setting(512, minimum=32, maximum=2048, multiple_of=16, help="images are squeezed to this square")
    multi_scale: bool = setting(True, help="maximum over the scales below; false: the image once")
    scales: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5), minimum=0.25, maximum=4, help="scales of the maximum"
    )


@dataclass(frozen=True)
class SscRecipe:
    """A full configuration of SSC."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, help="of all training stages")
    weights: WeightSettings = field(default_factory=WeightSettings)
    superpixels: SuperpixelConfig = field(default_factory=SuperpixelConfig)
    cam: CamSettings = field(default_factory=CamSettings)
    cam_inference: CamInferenceSettings = field(default_factory=CamInferenceSettings)
    ir_label: IrLabelConfig = field(default_factory=IrLabelConfig)
    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    random_walk: RandomWalkSettings = field(default_factory=RandomWalkSettings)
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    segmentation_inference: SegmentationInferenceSettings = field(default_factory=SegmentationInferenceSettings)
    crf: CrfSettings = field(default_factory=CrfSettings)
    references: CamReferenceSettings = field(default_factory=CamReferenceSettings)
