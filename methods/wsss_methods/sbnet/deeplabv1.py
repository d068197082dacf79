"""DeepLab-v1 on Wide-ResNet-38, the other reading of the last row of the paper's table.

Names, training and inference of YudeWang/semantic-segmentation-codebase, with which SEAM's authors retrain their
labels. Its program never leaves training mode: every norm takes the statistics of the images of its GPU, two GPUs with
five images each, and all convolutions are trained, those of the first blocks too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.augment.photometric import PhotometricDraw, augment_picture
from wsss.data.augment.rescaled_crop import cropped_image, cropped_map, sample_canvas_crop
from wsss.data.augment.scale_crop import IGNORE
from wsss.data.transforms import channels_first, normalize, resize
from wsss.nn.backbone import scaled_channels
from wsss.nn.checkpoint import load_imagenet_body, load_weights, read_checkpoint
from wsss.nn.norms import GroupedBatchNorm2d
from wsss.nn.wide_resnet38 import WideResNet38
from wsss.ops.crf import DenseCrfSettings
from wsss.pipeline import Arrays, MapStage, Stage, StageContext, TrainStage
from wsss.recipe import setting
from wsss.schedules import polynomial_decay
from wsss.stages.references import LABEL, given_label
from wsss.stages.refine import PredictionConfig, build_predictions, refinement_stages
from wsss.stages.segmentation import cross_entropy_sums
from wsss.train_task import Batch, OptimizerPlan, TrainTask

WEIGHTS = "network"
PUBLISHED_CRF = DenseCrfSettings(1, 3, 3, 32, 13, 10)
_HEAD = ("conv_fov", "conv_fov2", "cls_conv")


@dataclass(frozen=True)
class DeepLabV1Settings:
    """The recipe's section; defaults are those of the codebase."""

    width: float = setting(1.0, minimum=0.0625, maximum=2, help="width of the network; 1 takes published weights")
    crop_size: int = setting(448, minimum=33, maximum=1025, help="side of a training crop")
    scale_min: float = setting(0.5, minimum=0.1, maximum=4, help="smallest scale that training images are drawn at")
    scale_max: float = setting(1.5, minimum=0.1, maximum=4, help="largest one")
    hsv_jitter: int = setting(10, minimum=0, maximum=90, help="largest shift of hue, saturation and value")
    steps: int = setting(20_000, minimum=1, maximum=1_000_000, help="optimizer steps")
    batch_size: int = setting(10, minimum=1, maximum=256, help="images in a step, over all workers")
    norm_group: int = setting(5, minimum=1, maximum=256, help="images whose statistics a norm takes, one GPU's share")
    norm_momentum: float = setting(3e-4, above=0, maximum=1, help="share of a step in the norms' running statistics")
    learning_rate: float = setting(1e-3, above=0, maximum=1, help="SGD rate of the backbone")
    head_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for the head, twice for its bias")
    momentum: float = setting(0.9, minimum=0, maximum=0.999, help="SGD momentum")
    weight_decay: float = setting(5e-4, minimum=0, maximum=0.1, help="SGD weight decay; the bias has none")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of the polynomial schedule")
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")
    scales: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), minimum=0.1, maximum=4, help="of the inference, each with its mirror image"
    )

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = []
        if self.batch_size % self.norm_group:
            problems.append(f"batch_size = {self.batch_size} is no multiple of norm_group = {self.norm_group}")
        if self.scale_min > self.scale_max:
            problems.append(f"scale_min = {self.scale_min} is above scale_max = {self.scale_max}")
        return problems


@dataclass(frozen=True)
class ScoresConfig:
    """The trained network and the scales of its inputs."""

    width: float
    scales: tuple[float, ...]


class DeepLabV1(nn.Module):
    """(N, 3, H, W) ImageNet-normalized -> logits (N, num_classes, H, W); state-dict names are those of the codebase.

    norm_group, norm_momentum: of norms in training mode, see `DeepLabV1Settings`; their weights are not trained.
    """

    def __init__(
        self, num_classes: int = 21, width: float = 1.0, norm_group: int = 5, norm_momentum: float = 3e-4
    ) -> None:
        super().__init__()
        self.backbone = WideResNet38(width, partial(GroupedBatchNorm2d, group=norm_group))
        channels = scaled_channels(512, width)
        self.conv_fov = nn.Conv2d(self.backbone.channels["b7"], channels, 3, padding=12, dilation=12, bias=False)
        self.bn_fov = GroupedBatchNorm2d(channels, norm_group)
        self.conv_fov2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn_fov2 = GroupedBatchNorm2d(channels, norm_group)
        self.dropout = nn.Dropout(0.5)
        self.cls_conv = nn.Conv2d(channels, num_classes, 1)
        for name in _HEAD:
            nn.init.kaiming_normal_(self.get_parameter(f"{name}.weight"), mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum
                module.requires_grad_(False)

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at stride 8, (N, num_classes, ceil(H / 8), ceil(W / 8))."""
        x = F.relu(self.bn_fov(self.conv_fov(self.backbone(images)[0])))
        x = F.relu(self.bn_fov2(self.conv_fov2(x)))
        return self.cls_conv(self.dropout(x))

    def forward(self, images: Tensor) -> Tensor:
        return _resized(self.coarse(images), (images.shape[2], images.shape[3]))

    def parameter_groups(self, learning_rate: float, weight_decay: float, head_factor: float) -> list[dict[str, Any]]:
        """Groups of the optimizer: the backbone, the head's weights, and its bias at twice their rate, not decayed."""
        head = [self.get_parameter(f"{name}.weight") for name in _HEAD]
        body = [value for value in self.backbone.parameters() if value.requires_grad]
        rate = head_factor * learning_rate
        groups = [(body, learning_rate, weight_decay), (head, rate, weight_decay), ([self.cls_conv.bias], 2 * rate, 0)]
        return [{"params": values, "lr": rate, "weight_decay": decay} for values, rate, decay in groups]


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def scaled_picture(image: np.ndarray, scale: float) -> np.ndarray:
    """uint8 (H, W, 3) resized by cubics as OpenCV does, sides rounded half to even."""
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


class DeepLabV1Samples:
    """Augmented crops of pictures with the label maps of role "label", or with the masks if there is none."""

    def __init__(self, context: StageContext) -> None:
        self.data, self.context = context.data, context
        self.config: DeepLabV1Settings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S) normalized, 0 where padded; label uint8 (S, S), 255 not trained on."""
        name, config = self.data.names[index], self.config
        hue, saturation, value = (int(shift) for shift in rng.integers(-config.hsv_jitter, config.hsv_jitter + 1, 3))
        draw = PhotometricDraw(hue=hue, saturation=saturation, value=value)
        mirrored, scale = bool(rng.random() < 0.5), float(rng.uniform(config.scale_min, config.scale_max))
        image = scaled_picture(augment_picture(self.data.image(name), draw), scale)
        size = (image.shape[0], image.shape[1])
        label = resize(self._label(name), size, "nearest")
        crop = sample_canvas_crop(rng, *size, config.crop_size)
        return {
            "image": torch.from_numpy(channels_first(cropped_image(image, mirrored, crop))),
            "label": torch.from_numpy(cropped_map(label, mirrored, crop, IGNORE)),
        }

    def _label(self, name: str) -> np.ndarray:
        label = given_label(self.context, name)
        assert label is not None
        return label


class DeepLabV1Training(nn.Module):
    """The network and its cross entropy, summed over labeled pixels."""

    def __init__(self, network: DeepLabV1) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        logits = self.network(batch["image"])
        with torch.autocast(logits.device.type, enabled=False):
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return {"cross_entropy": cross_entropy_sums(precise, batch["label"])[0].sum()}


def labeled_pixels(batch: Batch) -> dict[str, Tensor]:
    """Denominator of the loss: a mean over the pixels of all images of the batch, as published."""
    return {"cross_entropy": (batch["label"] != IGNORE).sum()}


def build_training(context: StageContext) -> TrainTask:
    """The network on the label maps of role "label"; file "backbone": an ImageNet file."""
    config: DeepLabV1Settings = context.config
    network = DeepLabV1(context.data.num_classes, config.width, config.norm_group, config.norm_momentum)
    if "backbone" in context.files:
        load_imagenet_body(network.backbone, context.files["backbone"])
    groups = network.parameter_groups(config.learning_rate, config.weight_decay, config.head_lr_mult)
    optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)

    def schedule(step: int, total_steps: int) -> float:
        return polynomial_decay(step, total_steps + 1, config.lr_power)

    return TrainTask(
        module=DeepLabV1Training(network),
        denominators=labeled_pixels,
        loss_weights={"cross_entropy": 1.0},
        optimizers=(OptimizerPlan("segmentation", optimizer, schedule),),
        samples=DeepLabV1Samples(context),
        steps=config.steps,
        global_batch=config.batch_size,
        group_size=config.norm_group,
        trained_weights=lambda: {WEIGHTS: network.state_dict()},
        precision=cast(Any, config.precision),
    )


def build_scores(context: StageContext) -> Callable[[str], Arrays]:
    """Logits at stride 8, "scores_<i>" float32 (C, h, w) of scale i, the mean of both mirrorings, and "sizes" int64
    (scales, 2), the size of the picture at each."""
    config: ScoresConfig = context.config
    network = DeepLabV1(context.data.num_classes, config.width)
    path = context.inputs["weights"].path(f"{WEIGHTS}.pt")
    load_weights(network, read_checkpoint(path), where=str(path))
    network.to(context.device).eval()

    def scores(name: str) -> Arrays:
        pictures = [scaled_picture(context.data.image(name), scale) for scale in config.scales]
        found: dict[str, np.ndarray] = {"sizes": np.array([picture.shape[:2] for picture in pictures], dtype=np.int64)}
        for index, picture in enumerate(pictures):
            planes = torch.from_numpy(channels_first(normalize(picture))).to(context.device)
            plain, mirrored = network.coarse(torch.stack([planes, planes.flip(-1)]))
            found[f"scores_{index}"] = ((plain + mirrored.flip(-1)) / 2).cpu().numpy()
        return found

    return scores


def mean_probabilities(arrays: Arrays, size: tuple[int, int]) -> np.ndarray:
    """Softmax of the mean logits of an image of `build_scores`: float32 (C, *size).

    As published the logits are first brought to the size of their own input.
    """
    total = torch.zeros(1)
    for index, scaled in enumerate(arrays["sizes"].tolist()):
        total = total + _resized(_resized(torch.from_numpy(arrays[f"scores_{index}"])[None], scaled), size)
    return (total / len(arrays["sizes"])).softmax(dim=1)[0].numpy()


def build_mean_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """`build_predictions` of the mean over all scales."""
    return build_predictions(context, read=mean_probabilities)


def deeplabv1_stages(
    settings: DeepLabV1Settings,
    *,
    prefix: str,
    label_stage: str,
    seed: int,
    training_list: str = "train_aug",
    files: Mapping[str, Path] | None = None,
    predictions: PredictionConfig = PredictionConfig(PUBLISHED_CRF, ("crf",)),  # noqa: B008  frozen
    iterations: int = 1,
) -> list[Stage]:
    """`<prefix>_train`, `<prefix>_scores` on val, and `refinement_stages`; arguments as of `segmentation_stages`."""
    return [
        TrainStage(
            name=f"{prefix}_train",
            version=1,
            config=replace(settings, scales=DeepLabV1Settings().scales),
            inputs={LABEL: label_stage},
            reads=frozenset({"images"}),
            image_list=training_list,
            files=files or {},
            uses_gpu=True,
            build=build_training,
            seed=seed,
        ),
        MapStage(
            name=f"{prefix}_scores",
            version=1,
            config=ScoresConfig(settings.width, settings.scales),
            inputs={"weights": f"{prefix}_train"},
            reads=frozenset({"images"}),
            image_list="val",
            uses_gpu=True,
            build=build_scores,
        ),
        *refinement_stages(
            prefix,
            predictions=predictions,
            iterations=iterations,
            build=build_mean_predictions,
        ),
    ]
