"""The typed recipe of SBNet: every setting with its range. Defaults are the published configuration.

A stage's configuration is built from whole sections, so that a setting enters the keys of the stages that use it and of
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from wsss.data.config import DatasetConfig
from wsss.method import ExecutionSettings
from wsss.optimizers import optimizer_setting
from wsss.recipe import setting
from wsss.stages.affinity_psa import FeatureAffinitySettings, FeatureWalkSettings
from wsss.stages.prediction_crf import CrfSettings
from wsss.stages.pseudo_label import off_curve
from wsss.stages.references import CamReferenceSettings
from wsss.stages.score import HIGHEST_THRESHOLD
from wsss.stages.segmentation import SegmentationSettings
from wsss.weights import weight_setting
from wsss_methods.sbnet.deeplabv1 import DeepLabV1Settings

CAM_BACKBONES = ("resnet38", "mobilenet_v2")
BOUNDARY_SOURCES = ("cam_crf", "edge_prior", "zeros", "folder", "ground_truth")

# The curve that the paper reports the best of.
BACKGROUND_SCORES = tuple(round(0.01 * step, 2) for step in range(60))


@dataclass(frozen=True)
class WeightSettings:
    """Weight files that the networks start from: a path, which may begin with ${dataset.root}, auto or none."""

    resnet38: Path | None = weight_setting("resnet38")
    deeplabv1_resnet101_coco: Path | None = weight_setting("deeplabv1_resnet101_coco")
    resnet101: Path | None = weight_setting("resnet101")
    mobilenet_v2: Path | None = weight_setting("mobilenet_v2")
    allow_random: bool = setting(
        True, in_key=False, help="false: refuse to run when a weight file that the networks need is none"
    )


@dataclass(frozen=True)
class BoundarySettings:
    """Where the boundary maps come from. The authors' own are not released, nor the code that makes them."""

    source: str = setting(
        "cam_crf",
        choices=BOUNDARY_SOURCES,
        help="cam_crf: contours of SEAM's CAM after a CRF; edge_prior: edges near its classes; zeros: none; folder: "
        "given; ground_truth: contours of the masks, an upper bound",
    )
    crf_alpha: float = setting(
        4.0, minimum=0.05, maximum=100, help="power of the background in the CRF of the first CAM; wide maps: below 1"
    )
    thickness: int = setting(1, minimum=1, maximum=10, help="pixels of a contour on each side of a region's rim")
    dilation: int = setting(5, minimum=0, maximum=50, help="edge_prior: pixels beyond a region where edges are its own")
    folder: Path | None = setting(
        None, in_key=False, help="sb_map: <name>.npy, (classes, H, W), 1 on a boundary; bytes are divided by 255"
    )
    edge_folder: Path | None = setting(
        None, in_key=False, help="edge_prior: grey <name>.png, 255 an edge; none: strength of the picture's color edges"
    )

    @property
    def from_cam(self) -> bool:
        """Whether a first CAM is needed."""
        return self.source in ("cam_crf", "edge_prior")

    def in_words(self) -> str:
        """For the protocol of a number."""
        first = f"SEAM's CAM after a CRF with background power {self.crf_alpha:g}"
        edges = "color edges of the picture (Di Zenzo)" if self.edge_folder is None else "edges given as a folder"
        return {
            "cam_crf": f"not the authors': contours of {first}, {self.thickness} px on each side",
            "edge_prior": f"not the authors': {edges} within {self.dilation} px of the classes of {first}",
            "zeros": "none: smoothness without a gate, an empty target",
            "folder": "given as a folder",
            "ground_truth": "contours of the masks: an upper bound, not weakly supervised",
        }[self.source]


@dataclass(frozen=True)
class CamSettings:
    """CAM training (the official `train_SB.py`): network, augmentation, losses, optimization.

    A loss of weight 0 is left out, with the part of the network that it alone trains: without the boundary loss there
    is no boundary branch, without the two equivariance losses no second, smaller image.
    """

    backbone: str = setting("resnet38", choices=CAM_BACKBONES, help="ImageNet classifier that gives the maps")
    width: float = setting(1.0, minimum=0.0625, maximum=2, help="of the backbone and of the correlation's features")
    edge_width: float = setting(1.0, minimum=0.0625, maximum=2, help="width of the boundary branch")
    output_stride: int = setting(8, choices=(8, 16), help="pixels between positions of the maps; 16: mobilenet_v2 only")
    normalization: str = setting(
        "frozen",
        choices=("frozen", "batch"),
        help="frozen: ImageNet statistics and first layers, never updated; batch: all trained, for random weights",
    )
    crop_size: int = setting(448, minimum=64, maximum=1024, multiple_of=16, help="side of a training crop")
    resize_long_min: int = setting(448, minimum=32, maximum=1024, help="smallest longer side before the crop")
    resize_long_max: int = setting(768, minimum=32, maximum=2048, help="largest longer side before the crop")
    color_jitter: float = setting(1.0, minimum=0, maximum=2, help="factor on the published color jitter; 0: none")
    batch_size: int = setting(8, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(8, minimum=1, maximum=500, help="epochs; SEAM's 8, the official program's default is 100")
    optimizer: str = optimizer_setting()
    learning_rate: float = setting(0.01, above=0, maximum=1, help="rate of the backbone")
    head_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for classifier and correlation layers")
    edge_lr_mult: float = setting(
        1.0, minimum=0.1, maximum=100, help="factor for the boundary branch, twice for biases"
    )
    # 5e-4, not 0.9: the official optimizer is handed its weight decay in the place of the momentum.
    momentum: float = setting(5e-4, minimum=0, maximum=0.99, help="momentum; with 0.9 use a lower learning rate")
    weight_decay: float = setting(5e-4, minimum=0, maximum=0.1, help="weight decay; biases and norms have none")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of the polynomial schedule")
    siamese_scale: float = setting(0.3, minimum=0.1, maximum=0.9, help="size of the second image, of the crop")
    er_loss_weight: float = setting(1.0, minimum=0, maximum=10, help="weight of the equivariance of the CAM; 0: off")
    ecr_loss_weight: float = setting(1.0, minimum=0, maximum=10, help="weight of the cross equivariance; 0: off")
    ecr_topk_ratio: float = setting(0.2, above=0, maximum=1, help="share of the largest differences that it averages")
    rvmin_loss_weight: float = setting(1.0, minimum=0, maximum=10, help="weight of the minimum pooling; 0: off")
    rvmin_ratio: float = setting(0.25, above=0, maximum=1, help="share of the smallest values that it averages")
    boundary_loss_weight: float = setting(0.01, minimum=0, maximum=10, help="weight of the boundary loss; 0: off")
    smoothness_loss_weight: float = setting(1.0, minimum=0, maximum=10, help="weight of the smoothness loss; 0: off")
    smoothness_first_order_weight: float = setting(10.0, minimum=0, maximum=100, help="of first differences in it")
    smoothness_second_order_weight: float = setting(1.0, minimum=0, maximum=100, help="of second differences in it")
    smoothness_alpha: float = setting(10.0, minimum=0, maximum=100, help="how fast a boundary value opens its gate")
    canny_input: str = setting(
        "wrapped",
        choices=("wrapped", "rgb", "none"),
        help="where edges are detected. wrapped: as published, in the normalized image cast to 8 bits; none: no edges",
    )
    canny_low: int = setting(10, minimum=0, maximum=1000, help="lower threshold of the edge detector")
    canny_high: int = setting(100, minimum=1, maximum=1000, help="upper threshold of the edge detector")
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    @property
    def siamese(self) -> bool:
        """Whether each image is also seen at `siamese_scale`."""
        return self.er_loss_weight > 0 or self.ecr_loss_weight > 0

    @property
    def correlation(self) -> bool:
        """Whether the pixel correlation module is trained; the CAM is then its output, else the classifier's."""
        return self.ecr_loss_weight > 0 or self.rvmin_loss_weight > 0

    @property
    def branch(self) -> bool:
        """Whether there is a boundary branch."""
        return self.boundary_loss_weight > 0

    @property
    def boundaries(self) -> bool:
        """Whether the training reads boundary maps, as target or as gate."""
        return self.branch or self.smoothness_loss_weight > 0

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = []
        if self.resize_long_min > self.resize_long_max:
            problems.append(
                f"resize_long_min = {self.resize_long_min} is above resize_long_max = {self.resize_long_max}"
            )
        if self.canny_low > self.canny_high:
            problems.append(f"canny_low = {self.canny_low} is above canny_high = {self.canny_high}")
        if self.backbone == "resnet38" and self.output_stride != 8:
            problems.append("output_stride: resnet38 has 8; 16 needs backbone mobilenet_v2")
        return problems


def active_cam_settings(settings: CamSettings) -> CamSettings:
    """The settings with those reset that belong to a loss of weight 0, so that they enter no key."""
    reset: list[str] = []
    if not settings.siamese:
        reset.append("siamese_scale")
    if not settings.ecr_loss_weight:
        reset.append("ecr_topk_ratio")
    if not settings.rvmin_loss_weight:
        reset.append("rvmin_ratio")
    if not settings.branch:
        reset += ["edge_width", "edge_lr_mult", "canny_input"]
    if not settings.branch or settings.canny_input == "none":
        reset += ["canny_low", "canny_high"]
    if not settings.smoothness_loss_weight:
        reset += ["smoothness_first_order_weight", "smoothness_second_order_weight", "smoothness_alpha"]
    defaults = CamSettings()
    return replace(settings, **{name: getattr(defaults, name) for name in reset})


def seam_settings(settings: CamSettings, num_epochs: int) -> CamSettings:
    """The SEAM baseline: the same training without boundary branch and smoothness."""
    off = {"boundary_loss_weight": 0.0, "smoothness_loss_weight": 0.0}
    return active_cam_settings(replace(settings, num_epochs=num_epochs, **off))


def plain_settings(settings: CamSettings, num_epochs: int) -> CamSettings:
    """The CAM baseline: the same classifier by its classification loss alone."""
    off = {"er_loss_weight": 0.0, "ecr_loss_weight": 0.0, "rvmin_loss_weight": 0.0}
    return seam_settings(replace(settings, **off), num_epochs)


@dataclass(frozen=True)
class CamInferenceSettings:
    """Class maps at several scales (the official `infer_SB.py`), and their score."""

    scales: tuple[float, ...] = setting(
        (0.5, 1.0, 1.5, 2.0), minimum=0.25, maximum=4, help="input scales, each also mirrored, whose maps are added"
    )
    background_score: float = setting(
        0.26,
        minimum=0,
        maximum=HIGHEST_THRESHOLD,
        help="background constant of the score beside the best one, in steps of 0.01",
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = off_curve("background_score", self.background_score)
        return problems if self.scales else [*problems, "scales is empty; [1.0] runs at the image's own size"]


@dataclass(frozen=True)
class RetrainingSettings:
    """The network that is trained on the pseudo labels. The authors name a code base and no configuration of it."""

    network: str = setting(
        "deeplabv2",
        choices=("deeplabv2", "deeplabv1_resnet38"),
        help="deeplabv2: section segmentation, the README's; deeplabv1_resnet38: section deeplabv1, SEAM's own",
    )


@dataclass(frozen=True)
class BaselineSettings:
    """What SBNet is compared with."""

    seam: bool = setting(False, help="score SEAM, the same network without boundaries, also where nothing needs it")
    num_epochs: int = setting(
        8, minimum=1, maximum=500, help="epochs of it, and of references.plain_cam; 8 is SEAM's own"
    )


@dataclass(frozen=True)
class EvaluationSettings:
    """Which further images are scored."""

    on_val: bool = setting(False, help="also score class maps and pseudo labels on val, whose image labels they use")


@dataclass(frozen=True)
class SbnetRecipe:
    """A full configuration of SBNet."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, help="of all training stages")
    weights: WeightSettings = field(default_factory=WeightSettings)
    boundary: BoundarySettings = field(default_factory=BoundarySettings)
    cam: CamSettings = field(default_factory=CamSettings)
    cam_inference: CamInferenceSettings = field(default_factory=CamInferenceSettings)
    affinity: FeatureAffinitySettings = field(default_factory=FeatureAffinitySettings)
    random_walk: FeatureWalkSettings = field(default_factory=FeatureWalkSettings)
    retraining: RetrainingSettings = field(default_factory=RetrainingSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    deeplabv1: DeepLabV1Settings = field(default_factory=DeepLabV1Settings)
    crf: CrfSettings = field(default_factory=CrfSettings)
    baseline: BaselineSettings = field(default_factory=BaselineSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    references: CamReferenceSettings = field(default_factory=CamReferenceSettings)

    @property
    def crf_variants(self) -> tuple[str, ...]:
        """Endings of the numbers, as of the section crf; DeepLab-v1's own CRF is "crf" and runs on the picture."""
        own = ("crf",) if self.crf.enabled else ()
        return own if self.retraining.network == "deeplabv1_resnet38" else self.crf.variants
