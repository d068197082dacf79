"""SSC as a graph of stages: superpixels, CAM, affinity, random walk, pseudo labels, segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.metric_name import MetricName
from wsss.nn.mobilenet import dilation_version
from wsss.pipeline import Arrays, GridColumn, MapStage, Pipeline, Reads, SampleGrid, Stage, StageContext, TrainStage
from wsss.stages.affinity_irn import affinity_stages
from wsss.stages.cam import build_cam, cam_stages
from wsss.stages.candidates import CandidateConfig, SelectionConfig, choose_by_masks, selection_stages, weight_inputs
from wsss.stages.pseudo_label import pseudo_label_stages
from wsss.stages.random_walk import RandomWalkConfig, random_walk_stage
from wsss.stages.references import with_references
from wsss.stages.refine import ScoresConfig, named, refinement_stages
from wsss.stages.segmentation import build_wrapped_predictions
from wsss.stages.superpixels import superpixel_stage
from wsss.weights import WeightUse, required_weights, resolve_path, start_in_words
from wsss_methods.ssc.recipe import SEGMENTATION_WEIGHTS, CamSettings, SscRecipe
from wsss_methods.ssc.segmentation import build_candidate_scorer, build_scores
from wsss_methods.ssc.training import (
    active_cam_settings,
    build_cam_network,
    build_cam_training,
    build_segmentation_training,
    plain_cam_settings,
)

IMAGES: frozenset[Reads] = frozenset({"images"})


def build_pipeline(recipe: SscRecipe, dataset: Dataset) -> Pipeline:
    """All stages of a recipe.

    Raises:
        WeightsError: a weight file or the superpixel folder that the recipe needs is missing.
    """
    files = required_weights(recipe.weights, _weight_uses(recipe), dataset, _superpixel_problems(recipe, dataset))
    settings = active_cam_settings(recipe.cam)
    training_list = "train_aug" if "train_aug" in dataset.lists else "train"
    walk = RandomWalkConfig(recipe.random_walk.radius, recipe.random_walk.beta, recipe.random_walk.exp_times)
    stages: list[Stage] = [
        *([superpixel_stage(recipe.superpixels, dataset, training_list)] if settings.loss_weight_alignment else ()),
        *_cam_stages(recipe, settings, files, training_list),
        *affinity_stages(
            recipe.ir_label,
            recipe.affinity,
            input_size=recipe.random_walk.input_size,
            image_list=training_list,
            files={"backbone": files["affinity"]} if "affinity" in files else {},
            seed=recipe.seed,
        ),
        random_walk_stage(walk, training_list),
        *pseudo_label_stages(recipe.pseudo_label, training_list),
        *segmentation_stages(recipe, files, training_list),
    ]
    on_train = (GridColumn("CAM", "cam", "cam", "cam"), GridColumn("pseudo label", "pseudo_label", "label", "labels"))
    pipeline = Pipeline(
        stages=tuple(stages),
        headline=("cam/miou_train", "pseudo_label/miou_train", *segmentation_headline(recipe)),
        grids=(SampleGrid("train", on_train), prediction_grid(recipe)),
        protocol=_protocol(recipe, dataset, files),
    )
    plain = _cam_stages(recipe, plain_cam_settings(recipe.cam), files, training_list)
    return with_references(pipeline, recipe.references, plain)


def _weight_uses(recipe: SscRecipe) -> list[WeightUse]:
    cam, affinity, segmentation = recipe.cam, recipe.affinity, recipe.segmentation
    uses = [WeightUse("cam", cam.backbone, "cam.width", cam.width)]
    if cam.loss_weight_perceptual and cam.perceptual_network != "pixel_pyramid":
        uses.append(WeightUse("perceptual", cam.perceptual_network))
    uses.append(WeightUse("affinity", affinity.backbone, "affinity.width", affinity.width))
    name = SEGMENTATION_WEIGHTS[segmentation.architecture]
    return [*uses, WeightUse("segmentation", name, "segmentation.width", segmentation.width)]


def _superpixel_problems(recipe: SscRecipe, dataset: Dataset) -> list[str]:
    folder = recipe.superpixels.folder
    if recipe.superpixels.source != "folder" or not recipe.cam.loss_weight_alignment:
        return []
    if folder is not None and resolve_path(folder, dataset).is_dir():
        return []
    return [
        f"superpixels.folder = {folder} is no folder: unpack the official voc_superpixels.zip there, "
        "or use superpixels.source=slic"
    ]


def _cam_stages(recipe: SscRecipe, settings: CamSettings, files: Mapping[str, Path], training_list: str) -> list[Stage]:
    train_files = {"backbone": files["cam"]} if "cam" in files else {}
    if settings.loss_weight_perceptual and "perceptual" in files:
        train_files["perceptual"] = files["perceptual"]
    train = TrainStage(
        name="cam_train",
        version=1,
        config=settings,
        inputs={"superpixels": "superpixels"} if settings.loss_weight_alignment else {},
        reads=frozenset({"images", "image_labels"}),
        image_list=training_list,
        files=train_files,
        uses_gpu=True,
        build=build_cam_training,
        seed=recipe.seed,
        epochs=recipe.cam.num_epochs,
    )
    inference = recipe.cam_inference
    return cam_stages(train, inference.scales, inference.cam_eval_thres, build_class_maps)


def build_class_maps(context: StageContext) -> Callable[[str], Arrays]:
    """`build_cam` with the CAM network."""
    return build_cam(context, build_network=build_cam_network)


def segmentation_stages(recipe: SscRecipe, files: Mapping[str, Path], training_list: str) -> list[Stage]:
    """Co-training, choice of the epoch, scores, CRF, numbers. files: role -> weights, as of `weights`."""
    settings, inference = recipe.segmentation, recipe.segmentation_inference
    by_masks = settings.selection == "best_val"
    train_settings = settings if by_masks else replace(settings, candidate_every=1)
    stages: list[Stage] = [
        TrainStage(
            name="segmentation_train",
            version=dilation_version(train_settings.architecture.removeprefix("deeplabv2_")),
            config=train_settings,
            inputs={"pseudo_label": "pseudo_label", "confidence_mask": "confidence_mask"},
            reads=IMAGES,
            image_list=training_list,
            files={"backbone": files["segmentation"]} if "segmentation" in files else {},
            uses_gpu=True,
            build=build_segmentation_training,
            seed=recipe.seed,
            epochs=settings.num_epochs,
        )
    ]
    if by_masks:
        stages += selection_stages(
            "segmentation",
            "best_val",
            candidates=CandidateConfig(network=settings),
            build=build_candidate_scorer,
            selection=SelectionConfig(),
            compute=choose_by_masks,
        )
    scales = inference.scales if inference.multi_scale else (1.0,)
    return [
        *stages,
        MapStage(
            name="segmentation_scores",
            version=1,
            config=ScoresConfig(network=settings, input_size=inference.input_size, scales=scales),
            inputs=weight_inputs("segmentation", chosen=by_masks),
            reads=IMAGES,
            image_list="val",
            uses_gpu=True,
            build=build_scores,
        ),
        *refinement_stages(
            "segmentation",
            predictions=recipe.crf.predictions(),
            iterations=recipe.crf.iterations,
            build=build_wrapped_predictions,
        ),
    ]


def prediction_grid(recipe: SscRecipe) -> SampleGrid:
    """The predictions on val that a report shows: with the CRF where it runs."""
    best = named("prediction", ("", *recipe.crf.variants)[1 if recipe.crf.enabled else 0])
    return SampleGrid("val", (GridColumn("prediction", "segmentation", best, "labels"),))


def segmentation_headline(recipe: SscRecipe) -> tuple[str, ...]:
    """Without the CRF and with each of its variants."""
    return tuple(str(MetricName("segmentation", "miou", "val", each)) for each in ("", *recipe.crf.variants))


def _protocol(recipe: SscRecipe, dataset: Dataset, files: Mapping[str, Path]) -> dict[str, str]:
    """What belongs to the numbers, in words."""
    segmentation = recipe.segmentation
    starts = {role: start_in_words(files, role) for role in ("cam", "affinity", "segmentation")}
    return {
        "image labels": dataset.label_provenance,
        "superpixels": recipe.superpixels.in_words() if recipe.cam.loss_weight_alignment else "none",
        "CAM network": f"{recipe.cam.backbone} from {starts['cam']}",
        "perceptual network": recipe.cam.perceptual_network
        + ("" if "perceptual" in files or recipe.cam.perceptual_network == "pixel_pyramid" else ", random weights"),
        "affinity network": f"{recipe.affinity.backbone} from {starts['affinity']}",
        "segmentation networks": f"two {segmentation.architecture} from {starts['segmentation']}",
        "CAM and pseudo label score": "thresholds fixed in the recipe; oracle and cross-fitted thresholds beside them",
        "checkpoint": _choice_in_words(recipe),
        **inference_protocol(recipe),
    }


def _choice_in_words(recipe: SscRecipe) -> str:
    segmentation = recipe.segmentation
    if segmentation.selection == "last":
        return "last epoch"
    every, epochs = segmentation.candidate_every, segmentation.num_epochs
    looked_at = sum(epoch % every == 0 or epoch == epochs for epoch in range(1, epochs + 1))
    official = "" if every == 1 else ", where the official program takes the best of all"
    return f"epoch with the best mIoU on the masks of val, of {looked_at} of {epochs}{official}"


def inference_protocol(recipe: SscRecipe) -> dict[str, str]:
    """What belongs to the numbers of the segmentation, in words."""
    inference = recipe.segmentation_inference
    scales = ", ".join(f"{scale:g}" for scale in inference.scales) if inference.multi_scale else "1"
    return {
        "inference": f"{inference.input_size}x{inference.input_size}, scales {scales}, maximum, no mirror",
        "CRF": recipe.crf.in_words(),
    }
