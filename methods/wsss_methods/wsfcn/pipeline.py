"""WS-FCN as a graph of stages: one training run, then scores, labels, CRF and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset
from wsss.nn.backbones import TAP_BACKBONES
from wsss.ops.crf import DenseCrfSettings
from wsss.pipeline import GridColumn, MapStage, Pipeline, Reads, ReduceStage, SampleGrid, Stage, TrainStage
from wsss.stages import score
from wsss.stages.candidates import selection_stages, weight_inputs
from wsss.stages.references import with_references
from wsss.weights import WeightUse, required_weights, start_in_words
from wsss_methods.wsfcn import inference
from wsss_methods.wsfcn.recipe import CrfSettings, TrainSettings, WeightSettings, WsFcnRecipe
from wsss_methods.wsfcn.training import TrainConfig, build_training

# Backbone -> the ImageNet weights that it is published with.
WEIGHTS = {name: name for name in TAP_BACKBONES} | {"vgg16": "vgg16_20m"}
# Where a data set has no such list, its train list is what is trained on.
TRAINING_LIST = "train_aug"
IMAGES: frozenset[Reads] = frozenset({"images"})
IMAGE_LABELS: frozenset[Reads] = frozenset({"image_labels"})
MASKS: frozenset[Reads] = frozenset({"masks"})
# Ending of the names of stages and numbers whose presence filter are the image labels.
BY_LABELS = "image_labels"


def build_pipeline(recipe: WsFcnRecipe, dataset: Dataset) -> Pipeline:
    """All stages of a recipe.

    Raises:
        WeightsError: the weight file that the recipe needs is missing.
    """
    network = recipe.network
    use = WeightUse("backbone", WEIGHTS[network.backbone], "network.backbone_width", network.backbone_width)
    files = required_weights(recipe.weights, [use], dataset)
    stages: list[Stage] = [*_training_stages(recipe, dataset, files), *_result_stages(recipe, "")]
    if recipe.prediction.image_label_filter:
        stages += _result_stages(recipe, BY_LABELS)
    final = "segmentation_crf" if recipe.crf.enabled else "segmentation"
    pipeline = Pipeline(
        stages=tuple(stages),
        headline=_headline(recipe),
        grids=(SampleGrid("val", (GridColumn("prediction", final, "prediction", "labels"),)),),
        protocol=_protocol(recipe, dataset, files),
    )
    return with_references(pipeline, recipe.references)


def build_released_pipeline(recipe: WsFcnRecipe, dataset: Dataset) -> Pipeline:
    """For the released model `model_enc_e018Xs0.905.pth`: no ImageNet weights are asked for, no epoch is chosen."""
    chosen = replace(recipe, weights=WeightSettings(), selection=replace(recipe.selection, rule="last"))
    pipeline = build_pipeline(chosen, dataset)
    return replace(
        pipeline,
        protocol={
            **pipeline.protocol,
            "network": f"{recipe.network.backbone}, released weights",
            "checkpoint": "the authors' choice, by the losses on val, which look at its image labels",
        },
    )


def _training_stages(recipe: WsFcnRecipe, dataset: Dataset, files: Mapping[str, Path]) -> list[Stage]:
    train, by_loss = _active(recipe.train), recipe.selection.rule == "val_loss"
    stages: list[Stage] = [
        TrainStage(
            name="segmentation_train",
            version=1,
            config=TrainConfig(recipe.network, train, recipe.pseudo_label, recipe.selection.every if by_loss else 0),
            reads=IMAGES | IMAGE_LABELS,
            image_list=TRAINING_LIST if TRAINING_LIST in dataset.lists else "train",
            files=files,
            uses_gpu=True,
            build=build_training,
            seed=recipe.seed,
            epochs=recipe.train.num_epochs,
        )
    ]
    if by_loss:
        stages += selection_stages(
            "segmentation",
            "lowest_val_loss",
            candidates=inference.CandidateConfig(recipe.network, train, recipe.pseudo_label, recipe.seed),
            build=inference.build_candidate_losses,
            # The official program looks at the network before an epoch is trained, so never after the last one.
            selection=inference.ChoiceConfig(
                mask_loss_weight=train.mask_loss_weight,
                batch_size=train.batch_size,
                first_epoch=train.pretrain_epochs,
                every=recipe.selection.every,
                last_epoch=train.num_epochs - 1,
            ),
            compute=inference.select_epoch,
        )
    stages.append(
        MapStage(
            name="segmentation_scores",
            version=1,
            config=inference.ScoresConfig(recipe.network, recipe.inference),
            inputs=weight_inputs("segmentation", chosen=by_loss),
            reads=IMAGES,
            image_list="val",
            uses_gpu=True,
            build=inference.build_scores,
        )
    )
    return stages


def _result_stages(recipe: WsFcnRecipe, ending: str) -> list[Stage]:
    """From stored masks to numbers, under one presence filter: "" by scores, `BY_LABELS` by image labels."""
    by_labels = ending == BY_LABELS
    presence = (
        inference.PresenceConfig(BY_LABELS, 0.0)
        if by_labels
        else inference.PresenceConfig("scores", recipe.prediction.fp_cut_score)
    )
    labels = IMAGE_LABELS if by_labels else frozenset[Reads]()
    background = recipe.prediction.bg_score

    def named(what: str) -> str:
        return "_".join(part for part in ("segmentation", ending, what) if part)

    def on_val(what: str, config: Any, reads: frozenset[Reads], build: Any, **inputs: str) -> MapStage:
        inputs = inputs or {"scores": "segmentation_scores"}
        return MapStage(
            name=named(what), version=1, config=config, inputs=inputs, reads=reads, image_list="val", build=build
        )

    stages: list[Stage] = [
        on_val("", inference.PredictionConfig(presence, background), labels, inference.build_predictions),
        on_val(
            "curve",
            inference.CurveConfig(presence, score.thresholds_with(background)),
            MASKS | labels,
            inference.build_curve,
        ),
        ReduceStage(
            name=named("evaluation"),
            version=2,
            config=_summary("", ending, background),
            inputs={"confusions": named("curve")},
            compute=score.summarize_curve,
        ),
    ]
    if recipe.crf.enabled:
        crf = inference.CrfConfig(presence, recipe.crf.alpha, dense_crf(recipe.crf))
        stages += [
            on_val("crf", crf, IMAGES | labels, inference.build_crf_predictions),
            on_val(
                "crf_score",
                score.LabelScoreConfig(labels="prediction"),
                MASKS,
                score.build_label_scorer,
                labels=named("crf"),
            ),
            ReduceStage(
                name=named("crf_evaluation"),
                version=2,
                config=_summary("crf", ending),
                inputs={"confusions": named("crf_score")},
                compute=score.summarize_labels,
            ),
        ]
    return stages


def _summary(variant: str, ending: str, threshold: float = 0.0) -> score.SummaryConfig:
    """The numbers of one way of predicting; `variant` is "" or "crf", `ending` that of the presence filter."""
    return score.SummaryConfig(
        prefix="segmentation",
        split="val",
        variant="_".join(part for part in (variant, ending) if part),
        default_threshold=threshold,
        mean_over="truth",
    )


def _active(train: TrainSettings) -> TrainSettings:
    """The settings with those reset that another one switches off, so that they enter no key."""
    return train if train.lr_schedule == "poly" else replace(train, lr_power=TrainSettings().lr_power)


def dense_crf(crf: CrfSettings) -> DenseCrfSettings:
    """The recipe's section without the background's exponent."""
    return DenseCrfSettings(
        iterations=crf.iters,
        gaussian_sxy=crf.gauss_sxy,
        gaussian_compat=crf.gauss_compat,
        bilateral_sxy=crf.bi_sxy,
        bilateral_srgb=crf.bi_srgb,
        bilateral_compat=crf.bi_compat,
    )


def _headline(recipe: WsFcnRecipe) -> tuple[str, ...]:
    endings = ("", BY_LABELS) if recipe.prediction.image_label_filter else ("",)
    variants = ("", "crf") if recipe.crf.enabled else ("",)
    return tuple(str(_summary(variant, ending).name) for ending in endings for variant in variants)


def _protocol(recipe: WsFcnRecipe, dataset: Dataset, files: Mapping[str, Path]) -> dict[str, str]:
    """What belongs to the numbers, in words."""
    train, prediction, crf = recipe.train, recipe.prediction, recipe.crf
    scales = ", ".join(f"{scale:g}" for scale in recipe.inference.infer_scales)
    canvas = " x ".join(map(str, dict.fromkeys(recipe.inference.canvas)))
    group = f"groups of {train.norm_group} images" if train.norm_group else f"the batch of {train.batch_size}"
    return {
        "image labels": dataset.label_provenance,
        "network": f"{recipe.network.backbone} from {start_in_words(files, 'backbone')}",
        "normalization": f"body {recipe.network.normalization}; the rest over {group}, on any number of workers",
        "checkpoint": f"epoch with the lowest loss on val, by its image labels; every {recipe.selection.every} epochs"
        if recipe.selection.rule == "val_loss"
        else "last epoch",
        "inference": f"canvas {canvas}, scales {scales}, each mirrored, mean",
        "presence": f"scores above {prediction.fp_cut_score:g}; numbers ending in {BY_LABELS}: classes of the label",
        "background": f"constant {prediction.bg_score:g}",
        "CRF": f"background (1 - largest class)^{crf.alpha:g}, {crf.iters} iterations, appearance kernel "
        f"{crf.bi_sxy:g} px, {crf.bi_srgb:g} levels, weight {crf.bi_compat:g}"
        if crf.enabled
        else "none",
    }
