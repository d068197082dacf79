"""The typed recipe of MSA: every setting with its range. Defaults are the released variant `image`.

A stage's configuration is built from whole sections, so that a setting enters the keys of the stages that use it and of
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from wsss.data.config import DatasetConfig
from wsss.method import ExecutionSettings
from wsss.nn.backbones import BACKBONES
from wsss.optimizers import optimizer_setting
from wsss.recipe import setting
from wsss.stages.prediction_crf import CrfSettings
from wsss.stages.pseudo_label import off_curve
from wsss.stages.references import CamReferenceSettings
from wsss.stages.saliency import SaliencySettings
from wsss.stages.score import HIGHEST_THRESHOLD
from wsss.stages.segmentation import SegmentationSettings
from wsss.weights import weight_setting

# Pixels along the side of a grid cell. The classification network's stride is the same, and must be.
CELL = 16
SEGMENTATION_DEPTHS = (18, 50, 101)
# Mean and standard deviation of a picture's values in [0, 1], by `network.norm_stats`.
STATISTICS = {
    "coco": ((0.471, 0.448, 0.408), (0.234, 0.239, 0.242)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def _sizes(low: int, high: int) -> list[str]:
    return [f"resize_long_min = {low} is above resize_long_max = {high}"] if low > high else []


@dataclass(frozen=True)
class WeightSettings:
    """Weight files that the networks start from: a path, which may begin with ${dataset.root}, auto or none."""

    spixelnet_bsd: Path | None = weight_setting("spixelnet_bsd")
    resnet50: Path | None = weight_setting("resnet50")
    deeplabv1_resnet101_coco: Path | None = weight_setting("deeplabv1_resnet101_coco")
    resnet101: Path | None = weight_setting("resnet101")
    resnet18: Path | None = weight_setting("resnet18")
    mobilenet_v2: Path | None = weight_setting("mobilenet_v2")
    allow_random: bool = setting(
        True, in_key=False, help="false: refuse to run when a weight file that the networks need is none"
    )


@dataclass(frozen=True)
class SuperpixelSettings:
    """Training of the superpixel network on images alone (official `train_scn.py`)."""

    base_channels: int = setting(16, minimum=2, maximum=64, help="channels at full resolution; 16 is published")
    crop_size: int = setting(512, minimum=32, maximum=1024, multiple_of=CELL, help="side of a training crop")
    resize_long_min: int = setting(320, minimum=32, maximum=1024, help="smallest longer side before the crop")
    resize_long_max: int = setting(640, minimum=32, maximum=2048, help="largest longer side before the crop")
    position_weight: float = setting(
        0.003, minimum=1e-5, maximum=1, help="weight of place against color in what superpixels must reconstruct"
    )
    batch_size: int = setting(16, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(50, minimum=1, maximum=500, help="passes over the training images, in the list's order")
    learning_rate: float = setting(5e-5, above=0, maximum=0.1, help="Adam rate, constant")

    def check(self) -> list[str]:
        """Relations between settings."""
        return _sizes(self.resize_long_min, self.resize_long_max)


@dataclass(frozen=True)
class NetworkSettings:
    """The classification network; inference needs it as well as training."""

    backbone: str = setting("resnet50", choices=BACKBONES, help="ImageNet classifier that gives the maps")
    width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the backbone; 1 takes ImageNet weights")
    normalization: str = setting(
        "frozen",
        choices=("frozen", "batch"),
        help="of the backbone. frozen: ImageNet statistics, never updated; batch: trained, for random weights",
    )
    head_width: int = setting(128, minimum=8, maximum=512, multiple_of=4, help="channels of the reconstruction's parts")
    superpixels: bool = setting(
        True, help="false: without the superpixel network; maps are resized, and so is what IPC reconstructs"
    )
    dcr: bool = setting(
        True, help="dynamic convolutional reconstruction and channel gates; false: the plain classifier"
    )
    dcr_inputs: str = setting(
        "both",
        choices=("both", "features", "superpixels"),
        help="what the kernels are predicted from; the released file declares the channels of one and feeds both",
    )
    gradient_stop: bool = setting(
        True, help="plain classifier: stop the gradient behind layer2; false to train from scratch"
    )
    norm_stats: str = setting(
        "coco",
        choices=tuple(STATISTICS),
        help="statistics that images are normalized by; coco: on every data set, as published by accident",
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        return ["dcr needs superpixels"] if self.dcr and not self.superpixels else []


@dataclass(frozen=True)
class TrainSettings:
    """Optimization and augmentation of the classification network (official `train_cls_image.py` and `_sal.py`)."""

    crop_size: int = setting(480, minimum=32, maximum=1024, multiple_of=CELL, help="side of a training crop")
    resize_long_min: int = setting(320, minimum=32, maximum=1024, help="smallest longer side before the crop")
    resize_long_max: int = setting(640, minimum=32, maximum=2048, help="largest longer side before the crop")
    batch_size: int = setting(16, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(12, minimum=1, maximum=200, help="passes over the training images")
    optimizer: str = optimizer_setting()
    learning_rate: float = setting(0.1, above=0, maximum=1, help="rate of the backbone's weights; biases: twice")
    head_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for what is not the backbone")
    weight_decay: float = setting(4e-5, minimum=0, maximum=0.1, help="weight decay; biases have none")
    # 4e-5, not 0.9: the official optimizer is handed its weight decay in the place of the momentum.
    momentum: float = setting(4e-5, above=0, maximum=0.99, help="Nesterov's; with 0.9 use a lower learning rate")
    lr_power: float = setting(0.5, minimum=0.1, maximum=3, help="power of the polynomial schedule (saliency: 0.9)")
    clip_norm: float = setting(1.0, above=0, maximum=100, help="largest norm of the gradient")

    def check(self) -> list[str]:
        """Relations between settings."""
        return _sizes(self.resize_long_min, self.resize_long_max)


@dataclass(frozen=True)
class ContrastSettings:
    """Intra-patch prototype contrast (IPC): the CAM must explain a patch by one prototype for each class."""

    weight: float = setting(0.3, minimum=0, maximum=10, help="weight of the loss, the paper's alpha; 0: off")
    target: str = setting(
        "image", choices=("image", "saliency"), help="what is reconstructed: the colors, or a saliency map"
    )
    patches: int = setting(9, minimum=1, maximum=100, help="patches of a crop, n x n of them (saliency: 1)")
    ignore_threshold: float = setting(
        0.1, above=0, below=1, help="patches whose CAM or background stays below are left out (saliency: 0.01)"
    )
    ap_iterations: int = setting(
        8, minimum=0, maximum=50, help="affinity propagation of the scores that it sees; 0: off (saliency: 0)"
    )
    ap_threshold: float = setting(0.6, minimum=0, maximum=0.99, help="least likeness of features in it, gamma")


@dataclass(frozen=True)
class SelectionSettings:
    """Which epoch's classification network is used."""

    rule: str = setting(
        "best_train_masks",
        choices=("best_train_masks", "last"),
        help="best_train_masks: as published, by the masks of the first images of train; last: no choice",
    )
    images: int = setting(600, minimum=1, maximum=100_000, help="of train, whose masks choose (COCO 1000)")
    thresholds: tuple[float, ...] = setting(
        (0.15, 0.2, 0.3, 0.4), above=0, below=1, help="constants of which each epoch's best counts (saliency: no 0.4)"
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        return [] if self.thresholds else ["thresholds is empty"]


@dataclass(frozen=True)
class InferenceSettings:
    """CAM at full resolution."""

    scales: tuple[float, ...] = setting(
        (0.5, 1.0, 1.5, 2.0), minimum=0.25, maximum=4, help="input scales whose maps are added"
    )
    mirrored: bool = setting(True, help="add the maps of the mirrored image too")
    merged_at: str = setting(
        "last_scale",
        choices=("last_scale", "image"),
        help="size at which scales are added: that of the last one, or the image's (saliency)",
    )
    ap_iterations: int = setting(8, minimum=0, maximum=50, help="affinity propagation of the scores; 0: off")
    ap_threshold: float = setting(0.6, minimum=0, maximum=0.99, help="least likeness of features in it, gamma")
    refine_steps: int = setting(
        0, minimum=0, maximum=100, help="refinement of the scores by the affinity of superpixels, steps"
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        return [] if self.scales else ["scales is empty; [1.0] runs at the image's own size"]

    @property
    def signed_scales(self) -> tuple[float, ...]:
        """In the order in which they run; negative: mirrored."""
        return (*self.scales, *(-scale for scale in self.scales)) if self.mirrored else self.scales


@dataclass(frozen=True)
class PseudoLabelSettings:
    """From class maps to label maps: a constant that stands for the background."""

    threshold: float = setting(
        0.25,
        minimum=0.05,
        maximum=HIGHEST_THRESHOLD,
        help="constant of the CAM's headline, in steps of 0.01; of the labels if fixed",
    )
    rule: str = setting(
        "best_train_masks",
        choices=("best_train_masks", "fixed"),
        help="of the labels' constant. best_train_masks: as published, the best on train of `candidates`",
    )
    candidates: tuple[float, ...] = setting(
        (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
        minimum=0.05,
        maximum=HIGHEST_THRESHOLD,
        help="constants that masks choose from, in steps of 0.01",
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = off_curve("threshold", self.threshold)
        problems += [problem for each in self.candidates for problem in off_curve("candidates", each)]
        return problems if self.candidates else [*problems, "candidates is empty"]

    @property
    def largest(self) -> float:
        """The largest constant that is scored."""
        return max((self.threshold, *(self.candidates if self.rule == "best_train_masks" else ())))


@dataclass(frozen=True)
class MsaRecipe:
    """All sections."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, help="of all training stages")
    weights: WeightSettings = field(default_factory=WeightSettings)
    superpixels: SuperpixelSettings = field(default_factory=SuperpixelSettings)
    saliency: SaliencySettings = field(default_factory=SaliencySettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    contrast: ContrastSettings = field(default_factory=ContrastSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    pseudo_label: PseudoLabelSettings = field(default_factory=PseudoLabelSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    crf: CrfSettings = field(default_factory=CrfSettings)
    references: CamReferenceSettings = field(default_factory=CamReferenceSettings)

    def check(self) -> list[str]:
        """Relations between sections."""
        form, depth = self.segmentation.form, self.segmentation.depth
        if form != "mobilenet_v2" and depth not in SEGMENTATION_DEPTHS:
            return [f"segmentation.depth = {depth}: the section weights has files for {SEGMENTATION_DEPTHS}"]
        return []

    @property
    def segmentation_weights(self) -> str:
        """Row of the weight table that the segmentation network starts from.

        That of the named code, which was trained with the masks of COCO, unless only ImageNet's is given.
        """
        form, depth = self.segmentation.form, self.segmentation.depth
        if form == "mobilenet_v2":
            return form
        without_masks = self.weights.deeplabv1_resnet101_coco is None and self.weights.resnet101 is not None
        return "deeplabv1_resnet101_coco" if (form, depth, without_masks) == ("caffe", 101, False) else f"resnet{depth}"

    @property
    def uses_saliency(self) -> bool:
        """Whether the contrast loss reconstructs saliency."""
        return self.contrast.weight > 0 and self.contrast.target == "saliency"


def plain_recipe(recipe: MsaRecipe) -> MsaRecipe:
    """The same classifier without superpixels, reconstruction, contrast and propagation."""
    return replace(
        recipe,
        network=replace(recipe.network, superpixels=False, dcr=False),
        contrast=replace(recipe.contrast, weight=0.0),
        inference=replace(recipe.inference, ap_iterations=0),
    )


def active_network_settings(settings: NetworkSettings) -> NetworkSettings:
    """The settings with those reset that another one switches off, so that they enter no key."""
    defaults = NetworkSettings()
    if settings.dcr:
        return replace(settings, gradient_stop=defaults.gradient_stop)
    return replace(settings, dcr_inputs=defaults.dcr_inputs, head_width=defaults.head_width)


def active_contrast_settings(settings: ContrastSettings) -> ContrastSettings:
    """The same for the contrast loss, which alone sees propagated scores in training."""
    if not settings.weight:
        return replace(ContrastSettings(), weight=0.0)
    if not settings.ap_iterations:
        return replace(settings, ap_threshold=ContrastSettings().ap_threshold)
    return settings


def active_inference_settings(settings: InferenceSettings, network: NetworkSettings) -> InferenceSettings:
    """The same for inference."""
    defaults = InferenceSettings()
    if not network.superpixels:
        settings = replace(settings, refine_steps=defaults.refine_steps)
    return settings if settings.ap_iterations else replace(settings, ap_threshold=defaults.ap_threshold)
