"""MSA as a graph of stages: superpixel network, classification network, CAM, pseudo labels, segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.metric_name import MetricName
from wsss.nn.mobilenet import dilation_version
from wsss.pipeline import GridColumn, MapStage, Pipeline, Reads, ReduceStage, SampleGrid, Stage, TrainStage
from wsss.stages import score
from wsss.stages.candidates import selection_stages, weight_inputs
from wsss.stages.pseudo_label import ThresholdConfig
from wsss.stages.references import with_references
from wsss.stages.saliency import saliency_in_words, saliency_stage
from wsss.stages.segmentation import build_wrapped_predictions, segmentation_stages
from wsss.weights import WeightUse, required_weights, start_in_words
from wsss_methods.msa import inference
from wsss_methods.msa.recipe import (
    MsaRecipe,
    active_contrast_settings,
    active_inference_settings,
    active_network_settings,
    plain_recipe,
)
from wsss_methods.msa.superpixel_network import build_superpixel_training
from wsss_methods.msa.training import TrainConfig, build_training

IMAGES: frozenset[Reads] = frozenset({"images"})
IMAGE_LABELS: frozenset[Reads] = frozenset({"images", "image_labels"})
MASKS: frozenset[Reads] = frozenset({"masks"})
SUPERPIXEL_STAGE = "superpixel_train"


def build_pipeline(recipe: MsaRecipe, dataset: Dataset) -> Pipeline:
    """All stages of a recipe.

    Raises:
        WeightsError: a weight file that the recipe needs is missing.
        DataError: a file of the saliency folder does not fit.
    """
    files = required_weights(recipe.weights, _weight_uses(recipe), dataset)
    training_list = "train_aug" if "train_aug" in dataset.lists else "train"
    saliency = saliency_stage(recipe.saliency, dataset, training_list) if recipe.uses_saliency else None
    stages: list[Stage] = [
        *([_superpixel_stage(recipe, files, training_list)] if recipe.network.superpixels else []),
        *([saliency] if saliency is not None else []),
        *_cam_stages(recipe, files, training_list),
        *_pseudo_label_stages(recipe, training_list),
        *segmentation_stages(
            recipe.segmentation,
            prefix="segmentation",
            label_stage="pseudo_label",
            seed=recipe.seed,
            training_list=training_list,
            files=_backbone(files, "segmentation"),
            predictions=recipe.crf.predictions(),
            iterations=recipe.crf.iterations,
            build=build_wrapped_predictions,
        ),
    ]
    on_train = (
        *([GridColumn("saliency", "saliency", "saliency", "grey")] if saliency is not None else []),
        GridColumn("CAM", "cam", "high_res", "cam"),
        GridColumn("pseudo label", "pseudo_label", "label", "labels"),
    )
    best = "_".join(("prediction", *recipe.crf.variants[:1]))
    on_val = (GridColumn("prediction", "segmentation", best, "labels"),)
    segmented = (str(MetricName("segmentation", "miou", "val", each)) for each in ("", *recipe.crf.variants))
    pipeline = Pipeline(
        stages=tuple(stages),
        headline=("cam/miou_train", "pseudo_label/miou_train", *segmented),
        grids=(SampleGrid("train", on_train), SampleGrid("val", on_val)),
        protocol=_protocol(recipe, dataset, files, saliency),
    )
    return with_references(pipeline, recipe.references, _cam_stages(plain_recipe(recipe), files, training_list))


def _weight_uses(recipe: MsaRecipe) -> list[WeightUse]:
    network, segmentation = recipe.network, recipe.segmentation
    uses = [WeightUse("cam", network.backbone, "network.width", network.width)]
    # A start that is offered and not published: without a file it is random, whatever allow_random says.
    if network.superpixels and recipe.weights.spixelnet_bsd is not None:
        uses.append(WeightUse("superpixels", "spixelnet_bsd"))
    start = WeightUse("segmentation", recipe.segmentation_weights, "segmentation.width", segmentation.width)
    return [*uses, start]


def _backbone(files: Mapping[str, Path], role: str) -> dict[str, Path]:
    return {"backbone": files[role]} if role in files else {}


def _superpixel_stage(recipe: MsaRecipe, files: Mapping[str, Path], training_list: str) -> TrainStage:
    """Depends on the pictures and its own section alone, so both variants share its weights."""
    return TrainStage(
        name=SUPERPIXEL_STAGE,
        version=1,
        config=recipe.superpixels,
        reads=IMAGES,
        image_list=training_list,
        files={"superpixels": files["superpixels"]} if "superpixels" in files else {},
        uses_gpu=True,
        build=build_superpixel_training,
        seed=recipe.seed,
        epochs=recipe.superpixels.num_epochs,
    )


def _cam_stages(recipe: MsaRecipe, files: Mapping[str, Path], training_list: str) -> list[Stage]:
    """Training, choice of the epoch, class maps, their score at every constant."""
    by_masks = recipe.selection.rule == "best_train_masks"
    network, selection = active_network_settings(recipe.network), recipe.selection
    settings = active_inference_settings(recipe.inference, network)
    superpixels = {"superpixel_network": SUPERPIXEL_STAGE} if network.superpixels else {}
    stages: list[Stage] = [
        TrainStage(
            name="cam_train",
            version=dilation_version(network.backbone),
            config=TrainConfig(network, recipe.train, active_contrast_settings(recipe.contrast), int(by_masks)),
            inputs={**superpixels, **({"saliency": "saliency"} if recipe.uses_saliency else {})},
            reads=IMAGE_LABELS,
            image_list=training_list,
            files=_backbone(files, "cam"),
            uses_gpu=True,
            build=build_training,
            seed=recipe.seed,
            epochs=recipe.train.num_epochs,
        )
    ]
    if by_masks:
        candidates, choice = selection_stages(
            "cam",
            "best_val",
            candidates=inference.CandidateConfig(network, settings, selection.thresholds, selection.images),
            build=inference.build_candidates,
            selection=inference.ChoiceConfig(selection.thresholds),
            compute=inference.choose_epoch,
            image_list="train",
        )
        reads = candidates.reads | {"image_labels"}
        stages += [replace(candidates, inputs={**candidates.inputs, **superpixels}, reads=reads), choice]
    labels = recipe.pseudo_label
    return [
        *stages,
        MapStage(
            name="cam",
            version=1,
            config=inference.CamConfig(network, settings),
            inputs={**weight_inputs("cam", chosen=by_masks), **superpixels},
            reads=IMAGE_LABELS,
            image_list=training_list,
            uses_gpu=True,
            build=inference.build_cam,
        ),
        MapStage(
            name="cam_score",
            version=1,
            config=score.CurveScoreConfig(thresholds=score.thresholds_with(labels.largest), maps="high_res"),
            inputs={"scores": "cam"},
            reads=MASKS,
            image_list="train",
            build=score.build_curve_scorer,
        ),
        ReduceStage(
            name="cam_evaluation",
            version=1,
            config=score.SummaryConfig(
                prefix="cam", split="train", default_threshold=labels.threshold, mean_over="all"
            ),
            inputs={"confusions": "cam_score"},
            compute=score.summarize_curve,
        ),
    ]


def _pseudo_label_stages(recipe: MsaRecipe, training_list: str) -> list[Stage]:
    """Label maps at one constant, and their score on train."""
    settings = recipe.pseudo_label
    by_masks = settings.rule == "best_train_masks"
    stages: list[Stage] = []
    if by_masks:
        stages.append(
            ReduceStage(
                name="cam_threshold",
                version=1,
                config=inference.ChoiceConfig(settings.candidates),
                inputs={"evaluation": "cam_evaluation"},
                chooses_by_masks=True,
                compute=inference.choose_threshold,
            )
        )
    return [
        *stages,
        MapStage(
            name="pseudo_label",
            version=1,
            config=ThresholdConfig(0.0 if by_masks else settings.threshold),
            inputs={"cam": "cam", **({"threshold": "cam_threshold"} if by_masks else {})},
            image_list=training_list,
            build=inference.build_pseudo_labels,
        ),
        MapStage(
            name="pseudo_label_score",
            version=1,
            config=score.LabelScoreConfig(labels="label"),
            inputs={"labels": "pseudo_label"},
            reads=MASKS,
            image_list="train",
            build=score.build_label_scorer,
        ),
        ReduceStage(
            name="pseudo_label_evaluation",
            version=1,
            config=score.SummaryConfig(prefix="pseudo_label", split="train", mean_over="all"),
            inputs={"confusions": "pseudo_label_score"},
            compute=score.summarize_labels,
        ),
    ]


def _protocol(
    recipe: MsaRecipe, dataset: Dataset, files: Mapping[str, Path], saliency: MapStage | None
) -> dict[str, str]:
    """What belongs to the numbers, in words."""
    network, contrast, settings = recipe.network, recipe.contrast, recipe.inference
    parts = {
        "DCR": network.dcr,
        f"AP ({settings.ap_iterations} steps)": settings.ap_iterations > 0,
        f"IPC on {contrast.target}": contrast.weight > 0,
    }
    chosen, labels = recipe.selection, recipe.pseudo_label
    return {
        "image labels": dataset.label_provenance,
        "superpixel network": _start_of_superpixels(recipe, files),
        "saliency": "none" if saliency is None else saliency_in_words(saliency),
        "CAM network": f"{network.backbone} from {start_in_words(files, 'cam')}, "
        f"{', '.join(part for part, used in parts.items() if used) or 'plain CAM'}",
        "checkpoint": "last epoch"
        if chosen.rule == "last"
        else f"epoch with the best CAM on the masks of the first {chosen.images} images of train",
        "inference": f"scales {', '.join(f'{scale:g}' for scale in settings.scales)}"
        f"{', each mirrored' if settings.mirrored else ''}, raw maps added at the size of "
        f"{'the last scale' if settings.merged_at == 'last_scale' else 'the image'}",
        "pseudo label": f"constant {labels.threshold:g}, no CRF"
        if labels.rule == "fixed"
        else f"constant with the best CAM on the masks of train, of {len(labels.candidates)}; no CRF",
        "mean of CAM and pseudo label": "all classes, absent ones as 0",
        "segmentation network": _segmentation_in_words(recipe, files),
        "segmentation inference": "whole picture, maximum over the network's scales, no mirror",
        "CRF": {
            "wrapped": "image with subtracted mean and wrap-around bytes",
            "raw": "on the picture",
            "both": "crf: image with subtracted mean and wrap-around bytes; crf_raw: on the picture",
        }[recipe.crf.image]
        if recipe.crf.enabled
        else "none",
    }


def _start_of_superpixels(recipe: MsaRecipe, files: Mapping[str, Path]) -> str:
    if not recipe.network.superpixels:
        return "none"
    start = "from the boundaries of BSDS500" if "superpixels" in files else "from random weights"
    return f"trained on the images alone, {recipe.superpixels.num_epochs} epochs {start}"


def _segmentation_in_words(recipe: MsaRecipe, files: Mapping[str, Path]) -> str:
    form, depth = recipe.segmentation.form, recipe.segmentation.depth
    body = "MobileNetV2" if form == "mobilenet_v2" else f"ResNet-{depth} ({form})"
    coco = recipe.segmentation_weights == "deeplabv1_resnet101_coco"
    published = "a DeepLab trained on COCO with masks: not weakly supervised" if coco else "ImageNet"
    return f"DeepLabV2 with multi-scale inputs, {body} from {start_in_words(files, 'segmentation', published)}"
