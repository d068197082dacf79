"""SSC as a graph of stages: superpixels, CAM, affinity, random walk, pseudo labels, segmentation (SSC, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.data.file_facts import folder_digest
from wsss.pipeline import GridColumn, MapStage, Pipeline, Reads, ReduceStage, SampleGrid, Stage, TrainStage
from wsss.stages.score import (
    CurveScoreConfig,
    SummaryConfig,
    build_curve_scorer,
    summarize_curve,
    thresholds_with,
)
from wsss.weights import WeightUse, required_weights, resolve_path
from wsss_methods.ssc.affinity_stages import (
    AffinityConfig,
    ConfidenceConfig,
    DisplacementConfig,
    EdgeConfig,
    RandomWalkConfig,
    ThresholdConfig,
    build_affinity_displacement,
    build_affinity_training,
    build_confidence_mask,
    build_edge,
    build_ir_label,
    build_pseudo_label,
    build_random_walk,
    build_random_walks,
)
from wsss_methods.ssc.cam_stages import (
    CamConfig,
    SuperpixelFolderConfig,
    active_cam_settings,
    build_cam,
    build_cam_score,
    build_cam_training,
    build_superpixel_reader,
    build_superpixels,
    plain_cam_settings,
)
from wsss_methods.ssc.prediction_stages import (
    ChoiceConfig,
    EvaluationConfig,
    PredictionConfig,
    build_chosen_prediction,
    build_predictions,
    crf_variants,
    evaluate_predictions,
    named,
)
from wsss_methods.ssc.recipe import CamSettings, SscRecipe
from wsss_methods.ssc.segmentation_stages import (
    CandidateConfig,
    ScoresConfig,
    SelectionConfig,
    build_candidate_scorer,
    build_scores,
    build_segmentation_training,
    select_candidate,
)

# Where a data set has no such list, its train list is what is trained on.
TRAINING_LIST = "train_aug"
# The ImageNet weights that each architecture is published with.
SEGMENTATION_WEIGHTS = {
    "deeplabv2_r101": "resnet101_v2",
    "deeplabv2_r18": "resnet18",
    "deeplabv2_mobilenet_v2": "mobilenet_v2",
    "deeplabv3plus_r101": "resnetv1d101",
    "segformer_b2": "mit_b2",
}
IMAGES: frozenset[Reads] = frozenset({"images"})
IMAGES_AND_LABELS: frozenset[Reads] = frozenset({"images", "image_labels"})
MASKS: frozenset[Reads] = frozenset({"masks"})
IMAGES_AND_MASKS: frozenset[Reads] = frozenset({"images", "masks"})


def build_pipeline(recipe: SscRecipe, dataset: Dataset) -> Pipeline:
    """All stages of a recipe.

    Raises:
        WeightsError: a weight file or the superpixel folder that the recipe needs is missing.
    """
    files = required_weights(recipe.weights, _weight_uses(recipe), dataset, _superpixel_problems(recipe, dataset))
    settings = active_cam_settings(recipe.cam)
    stages: list[Stage] = [
        *(_superpixel_stages(recipe, dataset) if settings.loss_weight_alignment else ()),
        *_cam_stages(recipe, settings, files, prefix=""),
        *_affinity_stages(recipe, files),
        *_pseudo_label_stages(recipe),
        *segmentation_stages(recipe, files),
    ]
    if recipe.baseline.plain_cam:
        stages += _cam_stages(recipe, plain_cam_settings(recipe.cam), files, prefix="plain_")
    if TRAINING_LIST not in dataset.lists:
        stages = [
            replace(stage, image_list="train") if stage.image_list == TRAINING_LIST else stage for stage in stages
        ]
    return Pipeline(
        stages=tuple(stages),
        headline=_headline(recipe),
        grids=(
            SampleGrid(
                "train",
                (
                    GridColumn("CAM", "cam", "cam", "cam"),
                    GridColumn("pseudo label", "pseudo_label", "label", "labels"),
                ),
            ),
            SampleGrid("val", (GridColumn("prediction", "segmentation", best_prediction(recipe), "labels"),)),
        ),
        protocol=_protocol(recipe, dataset, files),
    )


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


def _superpixel_stages(recipe: SscRecipe, dataset: Dataset) -> list[Stage]:
    settings = recipe.superpixels
    if settings.source == "slic":
        return [
            MapStage(
                name="superpixels",
                version=1,
                config=settings,
                reads=IMAGES,
                image_list=TRAINING_LIST,
                build=build_superpixels,
            )
        ]
    assert settings.folder is not None  # asked before
    folder = resolve_path(settings.folder, dataset)
    names = dataset.lists.get(TRAINING_LIST, dataset.lists["train"])
    content = folder_digest(folder, names, "superpixel", "complete it, or use superpixels.source=slic", dataset.cache)
    return [
        MapStage(
            name="superpixels",
            version=1,
            config=SuperpixelFolderConfig(folder=folder, content=content),
            reads=IMAGES,
            image_list=TRAINING_LIST,
            build=build_superpixel_reader,
        )
    ]


def _cam_stages(recipe: SscRecipe, settings: CamSettings, files: Mapping[str, Path], prefix: str) -> list[Stage]:
    train, cam, score = f"{prefix}cam_train", f"{prefix}cam", f"{prefix}cam_score"
    train_files = {"backbone": files["cam"]} if "cam" in files else {}
    if settings.loss_weight_perceptual and "perceptual" in files:
        train_files["perceptual"] = files["perceptual"]
    return [
        TrainStage(
            name=train,
            version=1,
            config=settings,
            inputs={"superpixels": "superpixels"} if settings.loss_weight_alignment else {},
            reads=IMAGES_AND_LABELS,
            image_list=TRAINING_LIST,
            files=train_files,
            uses_gpu=True,
            build=build_cam_training,
            seed=recipe.seed,
            epochs=recipe.cam.num_epochs,
        ),
        MapStage(
            name=cam,
            version=1,
            config=CamConfig(network=settings, scales=recipe.cam_inference.scales),
            inputs={"weights": train},
            reads=IMAGES_AND_LABELS,
            image_list=TRAINING_LIST,
            uses_gpu=True,
            build=build_cam,
        ),
        MapStage(
            name=score,
            version=1,
            config=CurveScoreConfig(thresholds=thresholds_with(recipe.cam_inference.cam_eval_thres)),
            inputs={"cam": cam},
            reads=MASKS,
            image_list="train",
            build=build_cam_score,
        ),
        ReduceStage(
            name=f"{prefix}cam_evaluation",
            version=2,
            config=SummaryConfig(
                prefix=f"{prefix}cam", split="train", default_threshold=recipe.cam_inference.cam_eval_thres
            ),
            inputs={"confusions": score},
            compute=summarize_curve,
        ),
    ]


def _affinity_stages(recipe: SscRecipe, files: Mapping[str, Path]) -> list[Stage]:
    backbone = {"backbone": files["affinity"]} if "affinity" in files else {}
    stages: list[Stage] = [
        MapStage(
            name="ir_label",
            version=1,
            config=recipe.ir_label,
            inputs={"cam": "cam"},
            reads=IMAGES,
            image_list=TRAINING_LIST,
            build=build_ir_label,
        ),
        TrainStage(
            name="affinity_train",
            version=1,
            config=replace(recipe.affinity, displacement_mean=False),
            inputs={"ir_label": "ir_label"},
            reads=IMAGES,
            image_list=TRAINING_LIST,
            files=backbone,
            uses_gpu=True,
            build=build_affinity_training,
            seed=recipe.seed,
            epochs=recipe.affinity.num_epochs,
        ),
    ]
    if recipe.affinity.displacement_mean:
        stages.append(
            MapStage(
                name="affinity_displacement",
                version=1,
                config=DisplacementConfig(AffinityConfig.of(recipe.affinity), recipe.affinity.crop_size),
                inputs={"weights": "affinity_train"},
                reads=IMAGES,
                image_list="train",
                uses_gpu=True,
                build=build_affinity_displacement,
            )
        )
    return stages


def _pseudo_label_stages(recipe: SscRecipe) -> list[Stage]:
    threshold = recipe.pseudo_label.sem_seg_bg_thres
    return [
        MapStage(
            name="edge",
            version=1,
            config=EdgeConfig(AffinityConfig.of(recipe.affinity), recipe.random_walk.input_size),
            inputs={"weights": "affinity_train"},
            reads=IMAGES,
            image_list=TRAINING_LIST,
            uses_gpu=True,
            build=build_edge,
        ),
        MapStage(
            name="random_walk",
            version=2,
            config=RandomWalkConfig.of(recipe.random_walk),
            inputs={"cam": "cam", "edge": "edge"},
            image_list=TRAINING_LIST,
            build=build_random_walk,
            build_many=build_random_walks,
        ),
        MapStage(
            name="pseudo_label",
            version=1,
            config=ThresholdConfig(sem_seg_bg_thres=threshold),
            inputs={"random_walk": "random_walk"},
            reads=IMAGES,
            image_list=TRAINING_LIST,
            build=build_pseudo_label,
        ),
        MapStage(
            name="confidence_mask",
            version=1,
            config=ConfidenceConfig(sem_seg_bg_thres=threshold, mask_keep_ratio=recipe.pseudo_label.mask_keep_ratio),
            inputs={"random_walk": "random_walk"},
            reads=IMAGES,
            image_list=TRAINING_LIST,
            build=build_confidence_mask,
        ),
        MapStage(
            name="pseudo_label_score",
            version=1,
            config=CurveScoreConfig(
                thresholds=thresholds_with(threshold), maps="walk", upsample=4, normalize="image_maximum"
            ),
            inputs={"scores": "random_walk"},
            reads=MASKS,
            image_list="train",
            build=build_curve_scorer,
        ),
        ReduceStage(
            name="pseudo_label_evaluation",
            version=2,
            config=SummaryConfig(prefix="pseudo_label", split="train", default_threshold=threshold),
            inputs={"confusions": "pseudo_label_score"},
            compute=summarize_curve,
        ),
    ]


def segmentation_stages(recipe: SscRecipe, files: Mapping[str, Path]) -> list[Stage]:
    """S7 to S9: co-training, choice of the epoch, scores, CRF, numbers. files: role -> weights, as of `weights`."""
    settings, inference = recipe.segmentation, recipe.segmentation_inference
    by_masks = settings.selection == "best_val"
    train_settings = settings if by_masks else replace(settings, candidate_every=1)
    stages: list[Stage] = [
        TrainStage(
            name="segmentation_train",
            version=1,
            config=train_settings,
            inputs={"pseudo_label": "pseudo_label", "confidence_mask": "confidence_mask"},
            reads=IMAGES,
            image_list=TRAINING_LIST,
            files={"backbone": files["segmentation"]} if "segmentation" in files else {},
            uses_gpu=True,
            build=build_segmentation_training,
            seed=recipe.seed,
            epochs=settings.num_epochs,
        )
    ]
    score_inputs = {"weights": "segmentation_train"}
    if by_masks:
        stages += [
            MapStage(
                name="segmentation_candidates",
                version=1,
                config=CandidateConfig(network=settings),
                inputs={"weights": "segmentation_train"},
                reads=IMAGES_AND_MASKS,
                image_list="val",
                uses_gpu=True,
                build=build_candidate_scorer,
            ),
            ReduceStage(
                name="segmentation_selection",
                version=1,
                config=SelectionConfig(),
                inputs={"candidates": "segmentation_candidates"},
                chooses_by_masks=True,
                compute=select_candidate,
            ),
        ]
        score_inputs["selection"] = "segmentation_selection"
    scales = inference.scales if inference.multi_scale else (1.0,)
    variants = crf_variants(recipe.crf)
    return [
        *stages,
        MapStage(
            name="segmentation_scores",
            version=1,
            config=ScoresConfig(network=settings, input_size=inference.input_size, scales=scales),
            inputs=score_inputs,
            reads=IMAGES,
            image_list="val",
            uses_gpu=True,
            build=build_scores,
        ),
        MapStage(
            name="segmentation_predictions",
            version=1,
            config=PredictionConfig.of(recipe.crf),
            inputs={"scores": "segmentation_scores"},
            reads=IMAGES_AND_MASKS,
            image_list="val",
            build=build_predictions,
        ),
        MapStage(
            name="segmentation",
            version=1,
            config=ChoiceConfig(variants, recipe.crf.iterations),
            inputs={"predictions": "segmentation_predictions"},
            image_list="val",
            build=build_chosen_prediction,
        ),
        ReduceStage(
            name="segmentation_evaluation",
            version=2,
            config=EvaluationConfig(variants, recipe.crf.iterations),
            inputs={"confusions": "segmentation_predictions"},
            compute=evaluate_predictions,
            metrics=tuple(named("segmentation/miou_val", variant) for variant in ("", *crf_variants(recipe.crf))),
        ),
    ]


def best_prediction(recipe: SscRecipe) -> str:
    """Array of the predictions that are shown: with the CRF where it runs."""
    return named("prediction", ("", *crf_variants(recipe.crf))[1 if recipe.crf.enabled else 0])


def _headline(recipe: SscRecipe) -> tuple[str, ...]:
    names = ["cam/miou_train"]
    if recipe.baseline.plain_cam:
        names.append("plain_cam/miou_train")
    names += ["pseudo_label/miou_train", "segmentation/miou_val"]
    return (*names, *(f"segmentation/miou_val_{variant}" for variant in crf_variants(recipe.crf)))


def _protocol(recipe: SscRecipe, dataset: Dataset, files: Mapping[str, Path]) -> dict[str, str]:
    """What belongs to the numbers, in words."""
    segmentation = recipe.segmentation
    starts = {role: ("ImageNet" if role in files else "random weights") for role in ("cam", "affinity", "segmentation")}
    return {
        "image labels": dataset.label_provenance,
        "superpixels": _superpixels_in_words(recipe),
        "CAM network": f"{recipe.cam.backbone} from {starts['cam']}",
        "perceptual network": recipe.cam.perceptual_network
        + ("" if "perceptual" in files or recipe.cam.perceptual_network == "pixel_pyramid" else ", random weights"),
        "affinity network": f"{recipe.affinity.backbone} from {starts['affinity']}",
        "segmentation networks": f"two {segmentation.architecture} from {starts['segmentation']}",
        "CAM and pseudo label score": "thresholds fixed in the recipe; oracle and cross-fitted thresholds beside them",
        "checkpoint": "epoch with the best mIoU on the masks of val"
        if segmentation.selection == "best_val"
        else "last epoch",
        **inference_protocol(recipe),
    }


def inference_protocol(recipe: SscRecipe) -> dict[str, str]:
    """What belongs to the numbers of S8 and S9, in words."""
    inference = recipe.segmentation_inference
    scales = ", ".join(f"{scale:g}" for scale in inference.scales) if inference.multi_scale else "1"
    return {
        "inference": f"{inference.input_size}x{inference.input_size}, scales {scales}, maximum, no mirror",
        "CRF": {
            "wrapped": "image with subtracted mean and wrap-around bytes",
            "raw": "on the picture",
            "both": "crf: image with subtracted mean and wrap-around bytes; crf_raw: on the picture",
        }[recipe.crf.image]
        if recipe.crf.enabled
        else "none",
    }


def _superpixels_in_words(recipe: SscRecipe) -> str:
    settings = recipe.superpixels
    if not recipe.cam.loss_weight_alignment:
        return "none"
    if settings.source == "folder":
        return "given as a folder"
    reduced = f", on the image reduced to {settings.max_side}" if settings.max_side else ""
    return f"SLIC, {settings.segments} segments, compactness {settings.compactness:g}{reduced}"
