"""A segmentation network trained on the label maps of another stage: training, scores, label maps, numbers.

DeepLabV2 with multi-scale inputs (`wsss.nn.deeplabv2_msc`) as kazuto1011/deeplab-pytorch trains it: a fixed number of
steps, the sum of one cross entropy for each scale, a polynomial learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss.data.augment.scale_crop import IGNORE, InputFormat, draw_scale_crop, network_input, scale_crop
from wsss.nn.deeplabv2_msc import DeepLabV2Msc, DeepLabV2Structure, parameter_groups
from wsss.nn.mobilenet import dilation_version
from wsss.optimizers import build_optimizer, optimizer_setting
from wsss.pipeline import Arrays, MapStage, Stage, StageContext, TrainStage
from wsss.recipe import setting
from wsss.schedules import polynomial_decay
from wsss.stages.candidates import (
    SelectionConfig,
    candidate_epochs,
    choose_by_masks,
    count_candidates,
    epoch_to_use,
    read_weights,
    selection_stages,
    weight_inputs,
)
from wsss.stages.references import LABEL, given_label
from wsss.stages.refine import (
    PredictionConfig,
    build_predictions,
    class_probabilities,
    mean_subtracted,
    predicted_label,
    refinement_stages,
)
from wsss.train_task import Batch, OptimizerPlan, TrainTask

WEIGHTS = "network"


@dataclass(frozen=True)
class SegmentationSettings:
    """A recipe's section: the network and its training; the defaults are those of kazuto1011/deeplab-pytorch."""

    form: str = setting(
        "caffe",
        choices=("caffe", "torchvision", "mobilenet_v2"),
        help="ResNet with Caffe's strides and dilations, torchvision's, or MobileNetV2",
    )
    depth: int = setting(101, choices=(18, 34, 50, 101, 152), help="layers of the ResNet")
    output_stride: int = setting(8, choices=(8, 16), help="pixels in a cell of the backbone's last map, each way")
    width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the backbone; 1 takes published weights")
    msc_scales: tuple[float, ...] = setting((0.5, 0.75), minimum=0.25, maximum=2, help="inputs beside the whole image")
    freeze_norm: bool = setting(True, help="batch norms keep their running statistics")
    crop_size: int = setting(321, minimum=33, maximum=1025, help="side of a training crop")
    crop_scales: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5), minimum=0.1, maximum=4, help="scales that training images are drawn at"
    )
    input_scale: float = setting(
        1.0, minimum=0.1, maximum=4, help="scale of a picture that is scored; where crops are drawn small, theirs"
    )
    steps: int = setting(20_000, minimum=1, maximum=1_000_000, help="optimizer steps")
    batch_size: int = setting(10, minimum=1, maximum=256, help="images in a step, over all workers")
    loss_group: int = setting(5, minimum=1, maximum=256, help="images whose pixels one mean of the loss is taken over")
    optimizer: str = optimizer_setting()
    learning_rate: float = setting(2.5e-4, above=0, maximum=1, help="rate of the backbone")
    head_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for the classifiers")
    momentum: float = setting(0.9, minimum=0, maximum=0.999, help="momentum")
    weight_decay: float = setting(5e-4, minimum=0, maximum=0.1, help="weight decay")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of the polynomial schedule")
    lr_update_steps: int = setting(10, minimum=1, maximum=10_000, help="steps between changes of the learning rate")
    selection: str = setting("last", choices=("last", "best_val"), help="best_val: epoch chosen by the masks of val")
    candidate_every: int = setting(
        1, minimum=1, maximum=100, help="epochs between the weights that best_val chooses from"
    )
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    def check(self) -> list[str]:
        """Relations between settings."""
        if self.batch_size % self.loss_group:
            return [f"batch_size = {self.batch_size} is no multiple of loss_group = {self.loss_group}"]
        return []

    def structure(self) -> DeepLabV2Structure:
        """Of the network in training."""
        settings = without_unused(self)
        return DeepLabV2Structure(
            form=cast(Any, settings.form),
            freeze_norm=settings.freeze_norm,
            depth=settings.depth,
            width=settings.width,
            scales=settings.msc_scales,
            norm_group=settings.loss_group,
            output_stride=settings.output_stride,
        )


@dataclass(frozen=True)
class NetworkConfig:
    """What the scores of a trained network depend on."""

    structure: DeepLabV2Structure
    input_scale: float

    @classmethod
    def of(cls, settings: SegmentationSettings) -> NetworkConfig:
        """From the recipe's section; whether and how norms train is past by then."""
        return cls(replace(settings.structure(), freeze_norm=True, norm_group=0), settings.input_scale)


def without_unused(settings: SegmentationSettings) -> SegmentationSettings:
    """The settings with those at their defaults that change nothing in the training."""
    unused = ["input_scale"]
    if settings.selection != "best_val":
        unused.append("candidate_every")
    if settings.form == "mobilenet_v2":
        unused.append("depth")
    return replace(settings, **{name: getattr(SegmentationSettings(), name) for name in unused})


def input_format(form: str) -> InputFormat:
    """What a form of the network is given."""
    return "imagenet" if form == "mobilenet_v2" else "caffe"


class SegmentationSamples:
    """Augmented crops of pictures with the label maps of role "label", or with the masks if there is none."""

    def __init__(self, context: StageContext) -> None:
        self.data, self.context = context.data, context
        self.config: SegmentationSettings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label uint8 (S, S), 255 not trained on."""
        name = self.data.names[index]
        image = self.data.image(name)
        label = given_label(self.context, name)
        assert label is not None
        size = self.config.crop_size
        drawn = draw_scale_crop(rng, image.shape[0], image.shape[1], self.config.crop_scales, size)
        pixels, labels = scale_crop(image, label, drawn, size, input_format(self.config.form))
        return {"image": torch.from_numpy(pixels), "label": torch.from_numpy(labels)}


class SegmentationTraining(nn.Module):
    """The network and its losses as sums over groups of `group` images, each group a mean over its own pixels.

    That is gradient accumulation over the groups. A group without a labeled pixel counts as 0 (published: NaN with a
    gradient of 0).
    """

    def __init__(self, network: DeepLabV2Msc, group: int) -> None:
        super().__init__()
        self.network = network
        self.group = group
        self.names = ("scale_1", *(f"scale_{scale:g}" for scale in network.structure.scales), "maximum")

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        losses = {}
        for name, logits in zip(self.names, self.network(batch["image"]), strict=True):
            with torch.autocast(logits.device.type, enabled=False):
                precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
                sums, counts = cross_entropy_sums(precise, batch["label"])
            sums, counts = (values.unflatten(0, (-1, self.group)).sum(dim=1) for values in (sums, counts))
            losses[name] = (sums / counts.clamp(min=1)).sum()
        return losses

    def denominators(self, batch: Batch) -> Mapping[str, Tensor]:
        """Groups of the batch."""
        return dict.fromkeys(self.names, torch.tensor(len(batch["label"]) / self.group))


def cross_entropy_sums(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over the labeled pixels of each image, and their number: (N,) each.

    logits (N, C, h, w); label uint8 (N, H, W), shrunk by nearest to (h, w) before.
    """
    small = shrunk_label(label, (logits.shape[2], logits.shape[3])).long()
    losses = F.cross_entropy(logits, small, ignore_index=IGNORE, reduction="none")
    return losses.sum(dim=(1, 2)), (small != IGNORE).sum(dim=(1, 2))


def shrunk_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) -> (N, *size): the pixels that Pillow's nearest filter takes, on the label's device."""
    rows, columns = (
        torch.from_numpy(_nearest(length, wanted)).to(label.device)
        for length, wanted in zip(label.shape[1:], size, strict=True)
    )
    return label[:, rows][:, :, columns]


@lru_cache(maxsize=64)
def _nearest(length: int, wanted: int) -> np.ndarray:
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.array(line.resize((wanted, 1), Image.Resampling.NEAREST), dtype=np.int64)[0]


def stepped_decay(step: int, total_steps: int, power: float = 0.9, every: int = 10) -> float:
    """`polynomial_decay` that changes at every multiple of `every` steps."""
    return polynomial_decay(step - step % every, total_steps, power)


def build_segmentation_training(context: StageContext) -> TrainTask:
    """One network on the label maps of role "label"; file "backbone": weights to start from."""
    config: SegmentationSettings = context.config
    network = DeepLabV2Msc(config.structure(), context.data.num_classes)
    if "backbone" in context.files:
        network.load_backbone(context.files["backbone"])
    groups = parameter_groups(network, config.learning_rate, config.weight_decay, config.head_lr_mult)
    module = SegmentationTraining(network, config.loss_group)
    schedule = partial(stepped_decay, power=config.lr_power, every=config.lr_update_steps)
    optimizer = build_optimizer(config.optimizer, groups, config.learning_rate, config.momentum)
    return TrainTask(
        module=module,
        denominators=module.denominators,
        loss_weights=dict.fromkeys(module.names, 1.0),
        optimizers=(OptimizerPlan("segmentation", optimizer, schedule),),
        samples=SegmentationSamples(context),
        steps=config.steps,
        global_batch=config.batch_size,
        group_size=config.loss_group,
        trained_weights=lambda: {WEIGHTS: network.published_state_dict()},
        candidate_every=config.candidate_every if config.selection == "best_val" else 0,
        precision=cast(Any, config.precision),
    )


def build_scores(context: StageContext) -> Callable[[str], Arrays]:
    """The maximum over the scales before softmax, "scores" float32 (C, ~H / 8, ~W / 8), of the whole picture.

    H and W are those of the picture times `input_scale`. At output stride 16 a sixteenth.
    """
    network = _load(context, epoch_to_use(context))

    def scores(name: str) -> Arrays:
        return {"scores": cast(Tensor, network(_input(context, name)))[0].cpu().numpy()}

    return scores


def build_candidate_scorer(context: StageContext) -> Callable[[str], Arrays]:
    """What `count_candidates` says of the stored epochs, on whole pictures at one scale of `build_scores`."""
    artifact = context.inputs["weights"]
    epochs = candidate_epochs(artifact)
    networks = [_load(context, epoch) for epoch in epochs]

    def predict(name: str) -> tuple[np.ndarray, list[np.ndarray]]:
        truth = context.data.mask(name)
        image = _input(context, name)
        scores = [cast(Tensor, network(image))[0].cpu().numpy() for network in networks]
        return truth, [predicted_label(class_probabilities(each, truth.shape)) for each in scores]

    return count_candidates(context, epochs, predict)


def build_wrapped_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """`build_predictions` whose CRF "crf" compares colors as in kazuto1011/deeplab-pytorch: `mean_subtracted`."""
    return build_predictions(context, {"crf": mean_subtracted})


def _input(context: StageContext, name: str) -> Tensor:
    config: NetworkConfig = context.config
    pixels = network_input(context.data.image(name), input_format(config.structure.form), config.input_scale)
    return torch.from_numpy(pixels)[None].to(context.device)


def _load(context: StageContext, epoch: int) -> DeepLabV2Msc:
    config: NetworkConfig = context.config
    network = DeepLabV2Msc(config.structure, context.data.num_classes)
    network.load_published(read_weights(context.inputs["weights"], WEIGHTS, epoch))
    return network.to(context.device).eval()


def segmentation_stages(
    settings: SegmentationSettings,
    *,
    prefix: str,
    label_stage: str | None,
    seed: int,
    training_list: str = "train_aug",
    files: Mapping[str, Path] | None = None,
    predictions: PredictionConfig = PredictionConfig(None, ()),  # noqa: B008  frozen
    iterations: int = 1,
    build: Callable[[StageContext], Callable[[str], Arrays]] = build_predictions,
) -> list[Stage]:
    """`<prefix>_train`, where val's masks choose `_candidates` and `_selection`, `_scores`, and `refinement_stages`.

    Args:
        prefix: of stage and metric names, as "segmentation_round1"; another one for each round of a pipeline.
        label_stage: whose "label" uint8 (H, W) is trained on; None: the masks, a fully supervised upper bound.
        seed: of the training.
        files: "backbone": weights to start from.
        predictions, iterations, build: as of `refinement_stages`; no CRF unless given.
    """
    supervised, by_masks = label_stage is None, settings.selection == "best_val"
    stages: list[Stage] = [
        TrainStage(
            name=f"{prefix}_train",
            version=dilation_version(settings.form),
            config=without_unused(settings),
            inputs={} if label_stage is None else {LABEL: label_stage},
            reads=frozenset({"images", "masks"} if supervised else {"images"}),
            image_list=training_list,
            files=files or {},
            uses_gpu=True,
            build=build_segmentation_training,
            seed=seed,
            fully_supervised=supervised,
        )
    ]
    if by_masks:
        stages += selection_stages(
            prefix,
            "best_val",
            candidates=NetworkConfig.of(settings),
            build=build_candidate_scorer,
            selection=SelectionConfig(),
            compute=choose_by_masks,
        )
    return [
        *stages,
        scores_stage(settings, prefix, "val"),
        *refinement_stages(prefix, predictions=predictions, iterations=iterations, build=build),
    ]


def scores_stage(settings: SegmentationSettings, prefix: str, image_list: str, name: str = "") -> MapStage:
    """Scores of `<prefix>_train` on a list, called `<prefix>_scores` unless `name` is given (for a next round)."""
    return MapStage(
        name=name or f"{prefix}_scores",
        version=1,
        config=NetworkConfig.of(settings),
        inputs=weight_inputs(prefix, chosen=settings.selection == "best_val"),
        reads=frozenset({"images"}),
        image_list=image_list,
        uses_gpu=True,
        build=build_scores,
    )
