"""The typed recipe of WS-FCN: every setting with its range. Defaults are the published configuration on VOC.

A stage's configuration is built from whole sections, so that a setting enters the keys of the stages that use it and
of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wsss.data.config import DatasetConfig
from wsss.method import ExecutionSettings
from wsss.nn.backbones import TAP_BACKBONES
from wsss.ops.pamr import DILATIONS
from wsss.optimizers import optimizer_setting
from wsss.recipe import setting
from wsss.stages.references import ReferenceSettings
from wsss.stages.score import HIGHEST_THRESHOLD
from wsss.weights import weight_setting

# The curve over background constants is scored on this grid, so that choosing another constant costs nothing.
BACKGROUND_STEP = 0.01


@dataclass(frozen=True)
class WeightSettings:
    """Weight files that the networks start from: a path, which may begin with ${dataset.root}, auto or none."""

    resnet38: Path | None = weight_setting("resnet38")
    resnet50: Path | None = weight_setting("resnet50")
    resnet101: Path | None = weight_setting("resnet101")
    vgg16_20m: Path | None = weight_setting("vgg16_20m")
    resnet18: Path | None = weight_setting("resnet18")
    mobilenet_v2: Path | None = weight_setting("mobilenet_v2")
    allow_random: bool = setting(
        True, in_key=False, help="false: refuse to run when a weight file that the networks need is none"
    )


@dataclass(frozen=True)
class NetworkSettings:
    """Network and class score. Inference needs them as well as training."""

    backbone: str = setting("resnet38", choices=TAP_BACKBONES, help="body of the network; the first four are published")
    backbone_width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the body; 1 takes ImageNet weights")
    head_width: int = setting(256, minimum=8, maximum=1024, multiple_of=2, help="channels of everything behind it")
    normalization: str = setting(
        "frozen",
        choices=("frozen", "batch"),
        help="of the body. frozen: ImageNet statistics, never updated; batch: all trained, for bodies without weights",
    )
    gate_psi: float = setting(0.3, minimum=0, maximum=0.5, help="share of the shallow map in the stochastic gate")
    focal_p: float = setting(3.0, minimum=0.5, maximum=8, help="power of the penalty on small masks")
    focal_lambda: float = setting(0.01, above=0, maximum=0.5, help="floor in the penalty's logarithm (COCO 0.1)")


@dataclass(frozen=True)
class TrainSettings:
    """Optimization and augmentation."""

    crop_size: int = setting(321, minimum=33, maximum=1024, help="side of a training crop")
    crop_scale_min: float = setting(0.9, minimum=0.1, maximum=1, help="smallest share of the area that is cropped")
    color_jitter: float = setting(
        1.0, minimum=0, maximum=2, help="factor on brightness 0.3, contrast 0.3, saturation 0.3 and hue 0.1"
    )
    batch_size: int = setting(16, minimum=1, maximum=512, help="images in a step, over all workers")
    norm_group: int = setting(
        0,
        minimum=0,
        maximum=512,
        help="images normalized together; 0: the batch; 8: two published GPUs; 16: one GPU",
    )
    num_epochs: int = setting(31, minimum=1, maximum=500, help="epochs; the official NUM_EPOCHS = 30 runs 31")
    pretrain_epochs: int = setting(7, minimum=0, maximum=100, help="epochs with the classification loss alone")
    optimizer: str = optimizer_setting()
    lr: float = setting(1e-3, above=0, maximum=1, help="rate of the body's weights")
    lr_mult_old_bias: float = setting(
        0.0, minimum=0, maximum=20, help="factor for the body's biases; 0: as published (2; ResNet-50 and -101: 1)"
    )
    lr_mult_new_weight: float = setting(20.0, above=0, maximum=100, help="factor for weights behind the body")
    lr_mult_new_bias: float = setting(
        0.0, minimum=0, maximum=200, help="factor for their biases; 0: as published (40; ResNet-50 and -101: 10)"
    )
    lr_schedule: str = setting("constant", choices=("constant", "poly"), help="poly: (1 - step / steps) ** lr_power")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of lr_schedule: poly")
    momentum: float = setting(0.9, minimum=0, maximum=0.99, help="momentum")
    weight_decay: float = setting(5e-4, minimum=0, maximum=0.1, help="weight decay; biases have none")
    mask_loss_weight: float = setting(1.0, above=0, maximum=10, help="weight of the mask loss after the first epochs")
    fca_dropout: float = setting(0.5, minimum=0, below=1, help="dropout behind the context aggregation")
    dec_dropout1: float = setting(0.5, minimum=0, below=1, help="dropout behind the decoder's first convolution")
    dec_dropout2: float = setting(0.1, minimum=0, below=1, help="dropout behind its second")
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    def multipliers(self, backbone: str) -> tuple[float, float, float, float]:
        """Learning-rate factors of body weights, body biases, new weights, new biases."""
        published = (1.0, 10.0) if backbone in ("resnet50", "resnet101") else (2.0, 40.0)
        biases = (self.lr_mult_old_bias or published[0], self.lr_mult_new_bias or published[1])
        return 1.0, biases[0], self.lr_mult_new_weight, biases[1]

    def check(self) -> list[str]:
        """Relations between settings."""
        problems: list[str] = []
        if self.norm_group and self.batch_size % self.norm_group:
            problems.append(f"batch_size: must be a multiple of norm_group = {self.norm_group}")
        if self.pretrain_epochs >= self.num_epochs:
            problems.append(f"pretrain_epochs: must be below num_epochs = {self.num_epochs}")
        return problems


@dataclass(frozen=True)
class PseudoLabelSettings:
    """On-line pseudo labels: masks refined by PAMR, of which the certain pixels are labels."""

    pamr_iters: int = setting(10, minimum=0, maximum=50, help="iterations of the mask refinement (COCO 5)")
    pamr_dilations: tuple[int, ...] = setting(DILATIONS, minimum=1, maximum=64, help="distances of its neighbours")
    pseudo_fg_ratio: float = setting(0.6, minimum=0, below=1, help="share of a class's maximum that makes a label")
    pseudo_bg_ratio: float = setting(0.7, minimum=0, below=1, help="the same for the background (COCO 0.8)")
    pseudo_min_score: float = setting(0.2, minimum=0, below=1, help="least mask value of a label (COCO 0.1)")

    def check(self) -> list[str]:
        """Relations between settings."""
        return [] if self.pamr_dilations else ["pamr_dilations: must not be empty"]


@dataclass(frozen=True)
class SelectionSettings:
    """Which epoch's weights are used."""

    rule: str = setting(
        "val_loss",
        choices=("val_loss", "last"),
        help="val_loss: as published, by the losses on val, which use its image labels and no mask; last: no choice",
    )
    every: int = setting(2, minimum=1, maximum=100, help="epochs between candidates")


@dataclass(frozen=True)
class InferenceSettings:
    """Multi-scale inference on a padded canvas; what the network has to run for."""

    infer_scales: tuple[float, ...] = setting(
        (1.0, 0.5, 1.5, 2.0), minimum=0.25, maximum=4, help="sizes of the image, each also mirrored"
    )
    infer_canvas: int | tuple[int, ...] = setting(
        1024, minimum=32, maximum=4096, help="side of the square the image lies on, or [height, width] (COCO 1304)"
    )
    keep_score: float = setting(
        0.01, minimum=0, maximum=0.5, help="classes below this score and below keep_mask are not stored"
    )
    keep_mask: float = setting(
        0.05, minimum=0, maximum=0.05, help="see keep_score; at most the smallest background constant"
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = [] if self.infer_scales else ["infer_scales: must not be empty"]
        if isinstance(self.infer_canvas, tuple) and (len(self.infer_canvas), len(set(self.infer_canvas))) != (2, 2):
            problems.append("infer_canvas: [height, width] are two sides that differ; write a square as one number")
        return problems

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        sides = self.infer_canvas if isinstance(self.infer_canvas, tuple) else (self.infer_canvas,)
        return sides[0], sides[-1]


@dataclass(frozen=True)
class PredictionSettings:
    """From stored masks to labels."""

    fp_cut_score: float = setting(0.1, minimum=0.001, below=1, help="a class below this score is not in the image")
    bg_score: float = setting(0.25, minimum=0.05, maximum=HIGHEST_THRESHOLD, help="constant that a class must beat")
    image_label_filter: bool = setting(
        True, help="also score with the image labels in place of the scores: another protocol, other names"
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        if abs(self.bg_score / BACKGROUND_STEP - round(self.bg_score / BACKGROUND_STEP)) > 1e-6:
            return [f"bg_score: must be a multiple of {BACKGROUND_STEP:g}, the step of the curve"]
        return []


@dataclass(frozen=True)
class CrfSettings:
    """Dense CRF of `infer_val.py`."""

    enabled: bool = setting(True, help="also score after a dense CRF")
    alpha: float = setting(5.0, minimum=0.1, maximum=64, help="background is (1 - largest class) ** alpha")
    iters: int = setting(10, minimum=1, maximum=50, help="mean-field iterations")
    gauss_sxy: float = setting(3.0, minimum=0.01, maximum=100, help="smoothness kernel, pixels")
    gauss_compat: float = setting(3.0, minimum=0, maximum=100, help="smoothness kernel, weight")
    bi_sxy: float = setting(30.0, minimum=0.01, maximum=300, help="appearance kernel, pixels")
    bi_srgb: float = setting(13.0, minimum=0.01, maximum=100, help="appearance kernel, grey levels")
    bi_compat: float = setting(10.0, minimum=0, maximum=100, help="appearance kernel, weight")


@dataclass(frozen=True)
class WsFcnRecipe:
    """All sections."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(
        0, minimum=0, maximum=2**31 - 1, help="of training: initial weights, order of samples, augmentation, dropout"
    )
    weights: WeightSettings = field(default_factory=WeightSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    pseudo_label: PseudoLabelSettings = field(default_factory=PseudoLabelSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    crf: CrfSettings = field(default_factory=CrfSettings)
    references: ReferenceSettings = field(default_factory=ReferenceSettings)

    def check(self) -> list[str]:
        """Relations between sections."""
        if self.prediction.fp_cut_score < self.inference.keep_score:
            return [
                f"prediction.fp_cut_score: is below inference.keep_score = {self.inference.keep_score:g}, under which "
                "nothing is stored"
            ]
        return []
