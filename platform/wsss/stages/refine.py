"""From a trained segmentation network to its numbers: scores, dense CRF after every step, label maps, evaluation.

Four stages with a prefix, for example "segmentation":

    <prefix>_scores       multi-scale scores of the network, which the method loads
    <prefix>_predictions  label maps without the CRF and after every number of its steps, and their counts
    <prefix>              the label maps that the recipe asks for
    <prefix>_evaluation   mIoU of every variant, with the numbers of steps that would have been better

The CRF runs once for an image. Its label map after every number of mean-field steps is kept and scored, so that
another number of steps is read and not computed. A *variant* is one way of running the CRF; its name is the ending of
its numbers ("crf"). The prediction without the CRF has no ending.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.augment.scale_crop import CAFFE_MEAN_BGR
from wsss.evaluation.confusion import class_counts, confusion_matrix
from wsss.evaluation.counts import Counts
from wsss.evaluation.selection import choose
from wsss.metric_name import MetricName
from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_probabilities
from wsss.pipeline import Arrays, MapStage, Reads, ReduceStage, Reduction, Stage, StageContext
from wsss.recipe import setting
from wsss.stages.candidates import epoch_to_use
from wsss.stages.score import SummaryConfig, choice_scores, label_scores, scored_images

Network = Callable[[Tensor], Tensor]
# What the CRF compares colours in, made of the picture: uint8 (H, W, 3) -> uint8 (H, W, 3).
CrfImage = Callable[[np.ndarray], np.ndarray]
# Probabilities float32 (C, H, W) from the arrays of an image and its size (H, W).
ReadProbabilities = Callable[[Arrays, tuple[int, int]], np.ndarray]
IMAGES_AND_MASKS: frozenset[Reads] = frozenset({"images", "masks"})


@dataclass(frozen=True)
class ScoresConfig:
    """The networks' settings, the square that images are squeezed to, and the scales of the maximum."""

    network: Any
    input_size: int
    scales: tuple[float, ...]


@dataclass(frozen=True)
class PredictionConfig:
    """The dense CRF with its largest number of steps, and its variants; None and () for no CRF."""

    crf: DenseCrfSettings | None
    variants: tuple[str, ...]


@dataclass(frozen=True)
class ChoiceConfig:
    """The variants of the CRF and the number of its steps that is kept."""

    variants: tuple[str, ...]
    iterations: int


@dataclass(frozen=True)
class EvaluationConfig:
    """What is reported.

    Attributes:
        variants, iterations: of the CRF; the number of steps that the recipe asks for.
        bootstrap_samples: resamples of the intervals.
        prefix, split: of the names of the numbers, `<prefix>/miou_<split>`. The stage's name and its input determine
            them, so they are in no key.
    """

    variants: tuple[str, ...]
    iterations: int
    bootstrap_samples: int = 1000
    prefix: str = setting("segmentation", in_key=False)
    split: str = setting("val", in_key=False)


def named(what: str, variant: str) -> str:
    """`prediction` or `prediction_crf`."""
    return f"{what}_{variant}" if variant else what


def refinement_stages(
    prefix: str,
    *,
    predictions: PredictionConfig,
    iterations: int,
    build: Callable[[StageContext], Callable[[str], Arrays]],
    image_list: str = "val",
) -> list[Stage]:
    """`<prefix>_predictions`, `<prefix>` and `<prefix>_evaluation` downstream of `<prefix>_scores`.

    Args:
        predictions: CRF and variants; `iterations` of its steps are what the recipe asks for.
        build: `build_predictions`, or a function that calls it with the method's own images for the CRF or scores.
    """
    variants = predictions.variants
    return [
        MapStage(
            name=f"{prefix}_predictions",
            version=1,
            config=predictions,
            inputs={"scores": f"{prefix}_scores"},
            reads=IMAGES_AND_MASKS,
            image_list=image_list,
            build=build,
        ),
        MapStage(
            name=prefix,
            version=1,
            config=ChoiceConfig(variants, iterations),
            inputs={"predictions": f"{prefix}_predictions"},
            image_list=image_list,
            build=build_chosen_prediction,
        ),
        ReduceStage(
            name=f"{prefix}_evaluation",
            version=2,
            config=EvaluationConfig(variants, iterations, prefix=prefix, split=image_list),
            inputs={"confusions": f"{prefix}_predictions"},
            compute=evaluate_predictions,
            metrics=tuple(str(MetricName(prefix, "miou", image_list, variant)) for variant in ("", *variants)),
        ),
    ]


def build_scores(
    context: StageContext,
    load: Callable[[StageContext, int], Network],
    prepare: Callable[[np.ndarray, tuple[int, int]], np.ndarray],
) -> Callable[[str], Arrays]:
    """Map function (config ScoresConfig): image name -> "scores" float32 (C, h, w) before softmax.

    Args:
        load: (context, epoch) -> network in evaluation mode on the stage's device, images (N, 3, H, W) to scores
            (N, C, h, w); epoch 0 stands for the last weights.
        prepare: uint8 (H, W, 3), size -> float32 (3, *size), the network's input.
    """
    config: ScoresConfig = context.config
    network = load(context, epoch_to_use(context))
    size = (config.input_size, config.input_size)

    def scores(name: str) -> Arrays:
        image = torch.from_numpy(prepare(context.data.image(name), size))[None].to(context.device)
        return {"scores": multiscale_maximum(network, image, config.scales)[0].cpu().numpy()}

    return scores


@torch.no_grad()
def multiscale_maximum(network: Network, images: Tensor, scales: Sequence[float]) -> Tensor:
    """Element-wise maximum of the network's scores over the images and their resized copies, before softmax.

    Each copy is `images`, float32 (N, 3, H, W), resized by a factor of `scales` (bilinear); its scores are resized
    back to those of the images themselves. Scale 1 is the images themselves and costs nothing. Returns float32
    (N, C, h, w).
    """
    best = network(images)
    for scale in scales:
        if scale == 1:
            continue
        resized = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        scores = F.interpolate(network(resized), size=best.shape[2:], mode="bilinear", align_corners=False)
        best = torch.maximum(best, scores)
    return best


def class_probabilities(scores: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Scores (C, h, w) before softmax to probabilities float32 (C, H, W) at `size` = (H, W)."""
    values = torch.from_numpy(np.asarray(scores, dtype=np.float32))[None]
    resized = F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.softmax(dim=1)[0].numpy()


def refined_steps(probabilities: np.ndarray, image: np.ndarray, settings: DenseCrfSettings) -> Iterator[np.ndarray]:
    """Probabilities after 1, 2, ... `settings.iterations` steps of a dense CRF with unary -log(probabilities).

    float32 (C, H, W) in and out; image uint8 (H, W, 3). One run gives them all, each to the bit what a run of that
    many steps gives.
    """
    return DenseCrf(image, len(probabilities), settings).steps(unary_from_probabilities(probabilities))


def mean_subtracted(image: np.ndarray) -> np.ndarray:
    """What the CRF of kazuto1011/deeplab-pytorch compares colours in: uint8 RGB (H, W, 3) in and out.

    The mean colour is subtracted and negative values wrap around modulo 256, an accident that published numbers have
    gone through. The cast is spelled out, because casting a negative float to uint8 is not defined.
    """
    shifted = np.trunc(image.astype(np.float64) - np.array(CAFFE_MEAN_BGR[::-1]))
    return np.mod(shifted.astype(np.int64), 256).astype(np.uint8)


def predicted_label(probabilities: np.ndarray) -> np.ndarray:
    """Class of the largest of (C, H, W): uint8 (H, W)."""
    return probabilities.argmax(axis=0).astype(np.uint8)


def probabilities_of_scores(arrays: Arrays, size: tuple[int, int]) -> np.ndarray:
    """`class_probabilities` of the array "scores"."""
    return class_probabilities(arrays["scores"], size)


def build_predictions(
    context: StageContext,
    crf_images: Mapping[str, CrfImage] | None = None,
    read: ReadProbabilities = probabilities_of_scores,
) -> Callable[[str], Arrays]:
    """Map function (config PredictionConfig): label maps at original size, and what they are worth.

    Args:
        crf_images: variant -> what its CRF compares colours in; the picture itself for variants without an entry.
        read: how the arrays of role "scores" become probabilities.

    Returns "prediction" uint8 (H, W) and the counts "confusion" (C, C) without the CRF, and for every variant
    "steps_<variant>", packed as in `pack_steps`, and the counts "confusion_<variant>" (T, C, C) after each of T steps.
    """
    config: PredictionConfig = context.config
    images = crf_images or {}

    def predict(name: str) -> Arrays:
        picture, truth = context.data.image(name), context.data.mask(name)

        def counted(prediction: np.ndarray) -> np.ndarray:
            return confusion_matrix(truth, prediction, context.data.num_classes, context.data.ignore_index)

        probabilities = read(context.arrays("scores", name), (picture.shape[0], picture.shape[1]))
        prediction = predicted_label(probabilities)
        arrays = {"prediction": prediction, **Counts.of(counted(prediction)).arrays()}
        for variant in config.variants:
            assert config.crf is not None
            image = images[variant](picture) if variant in images else picture
            labels = [predicted_label(refined) for refined in refined_steps(probabilities, image, config.crf)]
            arrays[named("steps", variant)] = pack_steps(labels)
            counts = Counts.of(np.stack([counted(label) for label in labels]))
            arrays.update(counts.arrays(named("confusion", variant)))
        return arrays

    return predict


def build_chosen_prediction(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config ChoiceConfig): "prediction" and "prediction_<variant>", uint8 (H, W)."""
    config: ChoiceConfig = context.config

    def choice(name: str) -> Arrays:
        arrays = context.arrays("predictions", name)
        chosen = {"prediction": arrays["prediction"]}
        for variant in config.variants:
            steps = unpack_steps(arrays[named("steps", variant)], arrays["prediction"].shape)
            chosen[named("prediction", variant)] = steps[config.iterations - 1]
        return chosen

    return choice


def evaluate_predictions(context: StageContext) -> Reduction:
    """mIoU of every variant with its interval and the all-background baseline (config EvaluationConfig).

    A variant of the CRF is reported at the recipe's number of steps. Beside it stand `..._oracle` at the best number
    for these very images, which is `oracle_iterations_...`, `..._cross_fitted` with the number chosen on the other half
    of the images, and the table "iterations_<variant>" (iterations, miou, default, oracle).
    """
    config: EvaluationConfig = context.config
    artifact = context.inputs["confusions"]
    names = scored_images(artifact, context.stage)
    result = Reduction({})
    for variant in ("", *config.variants):
        summary = SummaryConfig(
            prefix=config.prefix,
            split=config.split,
            variant=variant,
            mean_over="truth",
            bootstrap_samples=config.bootstrap_samples,
        )
        counts = {name: Counts.read(artifact.arrays(name), named("confusion", variant)) for name in names}
        asked = {name: each.at(config.iterations - 1) if variant else each for name, each in counts.items()}
        part = label_scores(summary, asked, context)
        result.metrics.update(part.metrics)
        result.tables.update({named(table, variant): rows for table, rows in part.tables.items()})
        result.arrays.update({named(array, variant): values for array, values in part.arrays.items()})
        if variant:
            curves = np.stack([class_counts(counts[name].dense()) for name in names], axis=1)
            chosen = choose(curves, names, mean_over="truth")
            steps = range(1, curves.shape[0] + 1)
            metrics, rows = choice_scores(summary.name, chosen, "iterations", steps, config.iterations - 1)
            result.metrics.update(metrics)
            result.tables[named("iterations", variant)] = rows
    return result


def pack_steps(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Label maps uint8 (H, W) that hardly differ from one to the next -> compressed bytes, uint8 (n,).

    Each map is stored as what it changes in the one before, so that ten take about the room of one.
    """
    stacked = np.stack(labels)
    stacked[1:] ^= stacked[:-1].copy()
    return np.frombuffer(zlib.compress(stacked.tobytes(), 6), dtype=np.uint8)


def unpack_steps(packed: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Inverse of `pack_steps`: uint8 (T, H, W) for `size` = (H, W)."""
    changes = np.frombuffer(zlib.decompress(packed.tobytes()), dtype=np.uint8).reshape(-1, *size)
    return np.bitwise_xor.accumulate(changes, axis=0)
