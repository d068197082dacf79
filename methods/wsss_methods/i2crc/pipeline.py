"""I2CRC as a graph of stages: saliency, class maps, pseudo labels, two rounds of segmentation, refined labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.metric_name import MetricName
from wsss.pipeline import GridColumn, MapStage, Pipeline, SampleGrid, Stage, TrainStage
from wsss.stages.cam import cam_stages
from wsss.stages.partial_labels import partial_label_stages
from wsss.stages.prediction_crf import RAW, WRAPPED, crf_label_stage
from wsss.stages.references import with_references
from wsss.stages.refine import named
from wsss.stages.saliency import saliency_in_words, saliency_stage
from wsss.stages.segmentation import (
    SegmentationSettings,
    build_wrapped_predictions,
    scores_stage,
    segmentation_stages,
)
from wsss.weights import WEIGHTS, WeightUse, required_weights, start_in_words
from wsss_methods.i2crc.label_refinement import build_pseudo_label, build_refined_label
from wsss_methods.i2crc.networks import starts_small
from wsss_methods.i2crc.recipe import CamSettings, I2crcRecipe, WeightSettings
from wsss_methods.i2crc.training import active_cam_settings, build_cam, build_cam_training

ROUND_ONE, ROUND_TWO = "segmentation_round1", "segmentation"


def build_pipeline(recipe: I2crcRecipe, dataset: Dataset) -> Pipeline:
    """All stages of a recipe.

    Raises:
        WeightsError: a weight file that the recipe needs is missing.
        DataError: naming every file of a saliency folder that does not fit.
    """
    files = required_weights(recipe.weights, _weight_uses(recipe), dataset, _without_weights(recipe))
    training_list = "train_aug" if "train_aug" in dataset.lists else "train"
    saliency = saliency_stage(recipe.saliency, dataset, training_list)
    stages: list[Stage] = [
        saliency,
        *_cam_stages(recipe, recipe.cam, files, training_list),
        MapStage(
            name="pseudo_label",
            version=1,
            config=recipe.pseudo_label,
            inputs={"cam": "cam", "saliency": "saliency"},
            image_list=training_list,
            build=build_pseudo_label,
        ),
        *partial_label_stages("pseudo_label"),
        *_round(recipe, recipe.round_one(), ROUND_ONE, "pseudo_label", files, training_list),
        *_refinement_stages(recipe, training_list),
        *_round(recipe, recipe.segmentation, ROUND_TWO, "refined_label", files, training_list),
    ]
    pipeline = Pipeline(
        stages=tuple(stages),
        headline=(
            *(str(MetricName(scored, "miou", "train")) for scored in ("cam", "pseudo_label", "refined_label")),
            *(name for prefix in (ROUND_ONE, ROUND_TWO) for name in _headline(recipe, prefix)),
        ),
        grids=(
            SampleGrid(
                "train",
                (
                    GridColumn("saliency", "saliency", "saliency", "grey"),
                    GridColumn("CAM", "cam", "high_res", "cam"),
                    GridColumn("pseudo label", "pseudo_label", "label", "labels"),
                    GridColumn("refined label", "refined_label", "label", "labels"),
                ),
            ),
            SampleGrid("val", (_column(recipe, "round one", ROUND_ONE), _column(recipe, "round two", ROUND_TWO))),
        ),
        protocol={
            "image labels": dataset.label_provenance,
            "saliency": saliency_in_words(saliency),
            **_protocol(recipe, files),
        },
    )
    plain = _cam_stages(recipe, replace(recipe.cam, relation_losses=False), files, training_list)
    return with_references(pipeline, recipe.references, plain)


def build_released_pipeline(recipe: I2crcRecipe, dataset: Dataset) -> Pipeline:
    """For `checkpoint_69.3.pth`, the network of round two: no weights are asked for, and no saliency."""
    chosen = replace(recipe, weights=WeightSettings(), segmentation=replace(recipe.segmentation, selection="last"))
    training, *downstream = _round(chosen, chosen.segmentation, ROUND_TWO, "refined_label", {}, "train")
    return Pipeline(
        stages=(replace(training, inputs={}), *downstream),
        headline=_headline(chosen, ROUND_TWO),
        grids=(SampleGrid("val", (_column(chosen, "prediction", ROUND_TWO),)),),
        protocol={
            "segmentation network": f"{_network(chosen.segmentation)}, released weights",
            "checkpoint": "the released one",
            **_inference_protocol(chosen),
        },
    )


def _cam_stages(
    recipe: I2crcRecipe, settings: CamSettings, files: Mapping[str, Path], training_list: str
) -> list[Stage]:
    settings = active_cam_settings(settings)
    train = TrainStage(
        name="cam_train",
        version=2 if starts_small(settings.backbone, settings.normalization) else 1,
        config=settings,
        inputs={"saliency": "saliency"} if settings.relation_losses else {},
        reads=frozenset({"images", "image_labels"}),
        image_list=training_list,
        files={"backbone": files["cam"]} if "cam" in files else {},
        uses_gpu=True,
        build=build_cam_training,
        seed=recipe.seed,
        epochs=settings.num_epochs,
    )
    return cam_stages(train, (1.0,), recipe.cam_score.threshold, build_cam)


def _round(
    recipe: I2crcRecipe,
    settings: SegmentationSettings,
    prefix: str,
    label_stage: str,
    files: Mapping[str, Path],
    training_list: str,
) -> list[Stage]:
    """Training on labels from ImageNet again, and the numbers on val."""
    return segmentation_stages(
        settings,
        prefix=prefix,
        label_stage=label_stage,
        seed=recipe.seed,
        training_list=training_list,
        files={"backbone": files["segmentation"]} if "segmentation" in files else {},
        predictions=recipe.crf.predictions(),
        iterations=recipe.crf.iterations,
        build=build_wrapped_predictions,
    )


def _refinement_stages(recipe: I2crcRecipe, training_list: str) -> list[Stage]:
    """What round one says of its own training images, and the labels made of it; or the pseudo labels again."""
    inputs, stages = {"pseudo_label": "pseudo_label"}, []
    if recipe.refinement.enabled:
        scores, labels = f"{ROUND_ONE}_train_scores", f"{ROUND_ONE}_labels"
        inputs["prediction"] = labels
        stages = [
            scores_stage(recipe.round_one(), ROUND_ONE, training_list, name=scores),
            crf_label_stage(labels, recipe.crf_train.labels(), scores, training_list),
        ]
    return [
        *stages,
        MapStage(
            name="refined_label",
            version=1,
            config=recipe.refinement.active(),
            inputs=inputs,
            reads=frozenset({"image_labels"}),
            image_list=training_list,
            build=build_refined_label,
        ),
        *partial_label_stages("refined_label"),
    ]


def _weight_uses(recipe: I2crcRecipe) -> list[WeightUse]:
    cam, segmentation = recipe.cam, recipe.segmentation
    uses = [WeightUse("cam", cam.backbone, "cam.width", cam.width)]
    if (row := _segmentation_weights(segmentation)) in WEIGHTS:
        uses.append(WeightUse("segmentation", row, "segmentation.width", segmentation.width))
    return uses


def _segmentation_weights(settings: SegmentationSettings) -> str:
    return settings.form if settings.form == "mobilenet_v2" else f"resnet{settings.depth}"


def _without_weights(recipe: I2crcRecipe) -> list[str]:
    row = _segmentation_weights(recipe.segmentation)
    if recipe.weights.allow_random or row in WEIGHTS:
        return []
    return [
        f"no weight file of {row} is known, and random weights are refused: set segmentation.depth to 101, 50 or 18"
    ]


def _headline(recipe: I2crcRecipe, prefix: str) -> tuple[str, ...]:
    return tuple(str(MetricName(prefix, "miou", "val", variant)) for variant in ("", *recipe.crf.variants))


def _column(recipe: I2crcRecipe, title: str, prefix: str) -> GridColumn:
    """Predictions on val, with the CRF where it runs."""
    return GridColumn(title, prefix, named("prediction", ("", *recipe.crf.variants)[int(recipe.crf.enabled)]), "labels")


def _network(settings: SegmentationSettings) -> str:
    body = settings.form if settings.form == "mobilenet_v2" else f"ResNet-{settings.depth} ({settings.form})"
    return f"DeepLabV2 on {body}"


def _protocol(recipe: I2crcRecipe, files: Mapping[str, Path]) -> dict[str, str]:
    """What belongs to the numbers, in words."""
    starts = {role: start_in_words(files, role) for role in ("cam", "segmentation")}
    crf = recipe.crf_train.labels()
    refined = f"predictions of round one {_crf_in_words(crf.crf is not None, crf.wrapped)}, and its labels"
    segmentation = recipe.segmentation
    return {
        "CAM network": f"{recipe.cam.backbone} from {starts['cam']}, "
        + ("with relation losses" if recipe.cam.relation_losses else "classification alone"),
        "pseudo label score": "a pixel without a label counts as wrong; numbers ending in labeled leave it out",
        "segmentation network": f"{_network(segmentation)} from {starts['segmentation']}, in both rounds",
        "refined label": refined if recipe.refinement.enabled else "the pseudo label as it is",
        "checkpoint": "last step"
        if segmentation.selection == "last"
        else "round one: last step; round two: epoch with the best mIoU on the masks of val",
        **_inference_protocol(recipe),
    }


def _crf_in_words(enabled: bool, wrapped: bool) -> str:
    return f"after the CRF ({WRAPPED if wrapped else RAW})" if enabled else "without CRF"


def _inference_protocol(recipe: I2crcRecipe) -> dict[str, str]:
    scales = ", ".join(f"{scale:g}" for scale in (1.0, *recipe.segmentation.msc_scales))
    return {"inference": f"whole picture, scales {scales}, maximum, no mirror", "CRF": recipe.crf.in_words()}
