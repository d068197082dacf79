"""The released model, `best_ckpt.pth` of the co-trained networks, scored without training (SSC, section 10)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.nn.checkpoint import load_weights
from wsss.pipeline import GridColumn, Pipeline, SampleGrid
from wsss_methods.ssc.networks import build_segmentation_network
from wsss_methods.ssc.pipeline import best_prediction, inference_protocol, segmentation_stages
from wsss_methods.ssc.recipe import SscRecipe
from wsss_methods.ssc.seg_checkpoint import read_cotraining_checkpoint
from wsss_methods.ssc.segmentation_stages import crf_variants


def build_released_pipeline(recipe: SscRecipe, dataset: Dataset) -> Pipeline:
    """S7 to S9 alone: S7 only names the stage that the file stands for, so that no ImageNet weights are asked for."""
    training, *behind = segmentation_stages(recipe, {}, "train_aug")
    variants = crf_variants(recipe.crf)
    return Pipeline(
        stages=(replace(training, inputs={}), *behind),
        headline=("segmentation/miou_val", *(f"segmentation/miou_val_{variant}" for variant in variants)),
        grids=(SampleGrid("val", (GridColumn("prediction", "segmentation", best_prediction(recipe), "labels"),)),),
        protocol={
            "segmentation networks": f"two {recipe.segmentation.architecture}, released weights",
            "checkpoint": "the authors' choice, by the masks of val (SSC, section 7)",
            **inference_protocol(recipe),
        },
    )


def check_released_networks(path: Path, recipe: SscRecipe, dataset: Dataset) -> None:
    """Raises CheckpointError where the file is in another layout or a network of it is not the recipe's."""
    network = build_segmentation_network(recipe.segmentation, dataset.num_classes)
    for name, state in read_cotraining_checkpoint(path).items():
        load_weights(network, state, where=f"{path}, {name}")
