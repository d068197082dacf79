"""SBNet as a graph of stages: a first CAM and boundary maps, CAM, AffinityNet, random walk, segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset
from wsss.metric_name import MetricName
from wsss.nn.mobilenet import dilation_version
from wsss.ops.cam import Merge
from wsss.pipeline import Arrays, GridColumn, Pipeline, Reads, SampleGrid, Stage, StageContext, TrainStage
from wsss.stages.affinity_psa import (
    affinity_crf_stage,
    crf_score_stages,
    feature_affinity_stages,
    power_crf_stage,
    walked_label_stages,
)
from wsss.stages.cam import build_cam, cam_stages, full_resolution
from wsss.stages.references import with_references
from wsss.stages.refine import PredictionConfig, named
from wsss.stages.segmentation import build_wrapped_predictions, segmentation_stages
from wsss.weights import WeightUse, required_weights, resolve_path, start_in_words
from wsss_methods.sbnet.boundaries import boundary_stages
from wsss_methods.sbnet.deeplabv1 import PUBLISHED_CRF, deeplabv1_stages
from wsss_methods.sbnet.networks import build_cam_network
from wsss_methods.sbnet.recipe import (
    BACKGROUND_SCORES,
    CamSettings,
    SbnetRecipe,
    active_cam_settings,
    plain_settings,
    seam_settings,
)
from wsss_methods.sbnet.training import build_cam_training

VAL = "_val"
# Class maps as `infer_SB.py` adds and normalizes them.
MERGE = Merge("sum", "range", stride=1)


def build_pipeline(recipe: SbnetRecipe, dataset: Dataset) -> Pipeline:
    """All stages of a recipe.

    Raises:
        WeightsError: a weight file or a folder of maps that the recipe needs is missing.
        DataError: maps of a folder do not fit their pictures.
    """
    files = required_weights(recipe.weights, _weight_uses(recipe), dataset, _folder_problems(recipe, dataset))
    settings, training_list = active_cam_settings(recipe.cam), training_list_of(dataset)
    seam = recipe.baseline.seam or (settings.boundaries and recipe.boundary.from_cam)
    stages: list[Stage] = []
    if seam:
        first = seam_settings(recipe.cam, recipe.baseline.num_epochs)
        stages += _cam_stages(recipe, first, files, training_list, prefix="seam_")
    if settings.boundaries:
        if recipe.boundary.from_cam:
            alphas, crf = {"crf": recipe.boundary.crf_alpha}, recipe.affinity.crf
            stages.append(power_crf_stage("boundary_crf", crf, alphas, cam_stage="seam_cam", image_list=training_list))
        stages += boundary_stages(recipe.boundary, dataset, training_list)
    stages += [
        *_cam_stages(recipe, settings, files, training_list),
        *_pseudo_label_stages(recipe, files, training_list),
        *_segmentation_stages(recipe, files, training_list),
    ]
    on_labels = ("cam", *(["seam_cam"] if seam else ()), "crf_low", "crf_high", "pseudo_label")
    headline = [str(MetricName(scored, "miou", split)) for split in _splits(recipe) for scored in on_labels]
    pipeline = Pipeline(
        stages=tuple(stages),
        headline=(*headline, *segmentation_headline(recipe)),
        grids=(_training_grid(settings.boundaries, seam), prediction_grid(recipe)),
        protocol=_protocol(recipe, dataset, files),
    )
    plain = _cam_stages(recipe, plain_settings(recipe.cam, recipe.baseline.num_epochs), files, training_list)
    return with_references(pipeline, recipe.references, plain)


def training_list_of(dataset: Dataset) -> str:
    """What is trained on: train_aug where the data set has it."""
    return "train_aug" if "train_aug" in dataset.lists else "train"


def _splits(recipe: SbnetRecipe) -> tuple[str, ...]:
    return ("train", "val") if recipe.evaluation.on_val else ("train",)


def _weight_uses(recipe: SbnetRecipe) -> list[WeightUse]:
    cam, affinity = recipe.cam, recipe.affinity
    key, width = "segmentation.width", recipe.segmentation.width
    if recipe.retraining.network == "deeplabv1_resnet38":
        key, width = "deeplabv1.width", recipe.deeplabv1.width
    return [
        WeightUse("cam", cam.backbone, "cam.width", cam.width),
        WeightUse("affinity", affinity.backbone, "affinity.width", affinity.width),
        WeightUse("segmentation", _segmentation_weights(recipe), key, width),
    ]


def _segmentation_weights(recipe: SbnetRecipe) -> str:
    """Row of the table of weight files that the segmentation network starts from."""
    if recipe.retraining.network == "deeplabv1_resnet38":
        return "resnet38"
    if recipe.segmentation.form == "mobilenet_v2":
        return "mobilenet_v2"
    # The code base's own start, unless that of ImageNet alone is given.
    stricter = recipe.weights.deeplabv1_resnet101_coco is None and recipe.weights.resnet101 is not None
    return "deeplabv1_resnet101_coco" if recipe.segmentation.form == "caffe" and not stricter else "resnet101"


def _folder_problems(recipe: SbnetRecipe, dataset: Dataset) -> list[str]:
    boundary, problems = recipe.boundary, []
    if not recipe.cam.boundaries:
        return []
    folders = {"folder": boundary.folder} if boundary.source == "folder" else {}
    if boundary.source == "edge_prior" and boundary.edge_folder is not None:
        folders["edge_folder"] = boundary.edge_folder
    for key, folder in folders.items():
        if folder is None or not resolve_path(folder, dataset).is_dir():
            problems.append(f"boundary.{key} = {folder} is no folder: the maps are no part of the official release")
    return problems


def _cam_stages(
    recipe: SbnetRecipe, settings: CamSettings, files: Mapping[str, Path], training_list: str, prefix: str = ""
) -> list[Stage]:
    train = TrainStage(
        name=f"{prefix}cam_train",
        version=dilation_version(settings.backbone),
        config=settings,
        inputs={"boundary": "boundary"} if settings.boundaries else {},
        reads=frozenset[Reads]({"images", "image_labels"}),
        image_list=training_list,
        files={"backbone": files["cam"]} if "cam" in files else {},
        uses_gpu=True,
        build=build_cam_training,
        seed=recipe.seed,
        epochs=settings.num_epochs,
        fully_supervised=settings.boundaries and recipe.boundary.source == "ground_truth",
    )
    inference = recipe.cam_inference
    return cam_stages(
        train, inference.scales, inference.background_score, build_class_maps, BACKGROUND_SCORES, _splits(recipe)
    )


def build_class_maps(context: StageContext) -> Callable[[str], Arrays]:
    """`build_cam` with the CAM network, and its maps at full resolution."""
    return build_cam(context, build_network=build_cam_network, keep=full_resolution(MERGE))


def _pseudo_label_stages(recipe: SbnetRecipe, files: Mapping[str, Path], training_list: str) -> list[Stage]:
    """CRF scores, AffinityNet and labels of the walk; what is scored on val has a CAM, CRF and walk of its own."""
    affinity, walk = recipe.affinity, recipe.random_walk
    stages = feature_affinity_stages(
        affinity,
        walk,
        cam_stage="cam",
        seed=recipe.seed,
        image_list=training_list,
        files={"backbone": files["affinity"]} if "affinity" in files else {},
    )
    stages += crf_score_stages("train")
    if recipe.evaluation.on_val:
        stages += [
            affinity_crf_stage(affinity, cam_stage=f"cam{VAL}", image_list="val", suffix=VAL),
            *crf_score_stages("val", VAL),
            *walked_label_stages(affinity, walk, cam_stage=f"cam{VAL}", image_list="val", split="val", suffix=VAL),
        ]
    return stages


def _segmentation_stages(recipe: SbnetRecipe, files: Mapping[str, Path], training_list: str) -> list[Stage]:
    crf = recipe.crf
    shared: dict[str, Any] = {
        "prefix": "segmentation",
        "label_stage": "pseudo_label",
        "seed": recipe.seed,
        "training_list": training_list,
        "files": {"backbone": files["segmentation"]} if "segmentation" in files else {},
    }
    if recipe.retraining.network == "deeplabv1_resnet38":
        own = PredictionConfig(PUBLISHED_CRF if crf.enabled else None, recipe.crf_variants)
        return deeplabv1_stages(recipe.deeplabv1, predictions=own, **shared)
    return segmentation_stages(
        recipe.segmentation,
        predictions=crf.predictions(),
        iterations=crf.iterations,
        build=build_wrapped_predictions,
        **shared,
    )


def _training_grid(boundaries: bool, seam: bool) -> SampleGrid:
    return SampleGrid(
        "train",
        (
            *([GridColumn("SEAM", "seam_cam", "high_res", "cam")] if seam else ()),
            *([GridColumn("boundary", "boundary", "boundary", "cam")] if boundaries else ()),
            GridColumn("CAM", "cam", "high_res", "cam"),
            GridColumn("pseudo label", "pseudo_label", "label", "labels"),
        ),
    )


def prediction_grid(recipe: SbnetRecipe) -> SampleGrid:
    """The predictions on val that a report shows: with the CRF where it runs."""
    best = named("prediction", next(iter(recipe.crf_variants), ""))
    return SampleGrid("val", (GridColumn("prediction", "segmentation", best, "labels"),))


def segmentation_headline(recipe: SbnetRecipe) -> tuple[str, ...]:
    """Without the CRF and with each of its variants."""
    return tuple(str(MetricName("segmentation", "miou", "val", each)) for each in ("", *recipe.crf_variants))


def _protocol(recipe: SbnetRecipe, dataset: Dataset, files: Mapping[str, Path]) -> dict[str, str]:
    """What belongs to the numbers, in words."""
    starts = {role: start_in_words(files, role) for role in ("cam", "affinity")}
    cam, affinity, walk = recipe.cam, recipe.affinity, recipe.random_walk
    scales = ", ".join(f"{scale:g}" for scale in recipe.cam_inference.scales)
    return {
        "image labels": dataset.label_provenance,
        "boundary maps": recipe.boundary.in_words() if cam.boundaries else "none, no loss reads them",
        "CAM network": f"{cam.backbone} from {starts['cam']}, {cam.num_epochs} epochs, the last one",
        "CAM": f"scales {scales}, each mirrored, sum, range of each class",
        "CAM score": f"background {recipe.cam_inference.background_score:g}; the oracle beside it is the best of 0 to "
        "0.59 by the masks of these images; crf_low, crf_high: labels of the CRF scores, perhaps what was published",
        "affinity labels": f"CRF on the picture, {affinity.crf_iterations} iterations, background powers "
        f"{affinity.crf_alpha_low:g} and {affinity.crf_alpha_high:g}",
        "affinity network": f"{affinity.backbone} from {starts['affinity']}",
        "random walk": f"background power {walk.alpha:g}, affinities to the power {walk.beta:g}, "
        f"{2**walk.exp_times} steps, {'one step of a CRF' if walk.crf else 'no CRF'}",
        "segmentation network": _segmentation_in_words(recipe, files),
        "checkpoint": "epoch chosen by the masks of val" if _chosen_on_val(recipe) else "last step",
        **inference_protocol(recipe),
    }


def _chosen_on_val(recipe: SbnetRecipe) -> bool:
    return recipe.retraining.network == "deeplabv2" and recipe.segmentation.selection == "best_val"


def _segmentation_in_words(recipe: SbnetRecipe, files: Mapping[str, Path]) -> str:
    segmentation = recipe.segmentation
    name = "DeepLabV1 on Wide-ResNet-38"
    if recipe.retraining.network == "deeplabv2":
        bodies = {"mobilenet_v2": "MobileNetV2"}
        name = f"DeepLabV2 on {bodies.get(segmentation.form, f'ResNet-{segmentation.depth}, {segmentation.form}')}"
    coco = _segmentation_weights(recipe) == "deeplabv1_resnet101_coco"
    published = "COCO's masks, which are no weak supervision" if coco else "ImageNet"
    return f"{name}, from {start_in_words(files, 'segmentation', published)}"


def inference_protocol(recipe: SbnetRecipe) -> dict[str, str]:
    """What belongs to the numbers of the segmentation, in words."""
    if recipe.retraining.network == "deeplabv1_resnet38":
        scales = ", ".join(f"{scale:g}" for scale in recipe.deeplabv1.scales)
        inference, crf = (
            f"whole picture at scales {scales}, each mirrored, mean of logits",
            "1 iteration on the picture",
        )
    else:
        scales = ", ".join(f"{scale:g}" for scale in (1.0, *recipe.segmentation.msc_scales))
        inference = f"whole picture at scales {scales}, maximum"
        crf = f"{recipe.crf.iterations} iterations, {recipe.crf.in_words()}"
    return {"inference": inference, "CRF": crf if recipe.crf.enabled else "none"}
