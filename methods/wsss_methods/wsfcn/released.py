"""The released model, `model_enc_e018Xs0.905.pth`, scored without training (WS-FCN, section 11)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from wsss.data.dataset import Dataset
from wsss.pipeline import Pipeline
from wsss_methods.wsfcn.networks import WsFcn
from wsss_methods.wsfcn.official_checkpoint import load_official
from wsss_methods.wsfcn.pipeline import build_pipeline
from wsss_methods.wsfcn.recipe import WeightSettings, WsFcnRecipe
from wsss_methods.wsfcn.training import structure_of


def build_released_pipeline(recipe: WsFcnRecipe, dataset: Dataset) -> Pipeline:
    """S2 and S3 alone: S1 only names the stage that the file stands for; no ImageNet weights, no choice of an epoch."""
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


def check_released_network(path: Path, recipe: WsFcnRecipe, dataset: Dataset) -> None:
    """Raises CheckpointError where the file is in another layout or is not of the recipe's network."""
    with torch.random.fork_rng():  # building a network draws weights
        load_official(WsFcn(structure_of(recipe.network, dataset.num_classes)), path)
