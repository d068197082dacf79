"""MSA: weakly supervised semantic segmentation via multi-type semantic affinity learning."""

from __future__ import annotations

from pathlib import Path

from wsss.method import Method
from wsss_methods.msa.official import exporters
from wsss_methods.msa.pipeline import build_pipeline
from wsss_methods.msa.recipe import MsaRecipe

METHOD = Method(
    name="msa",
    title="Multi-type semantic affinity: superpixel network, dynamic reconstruction, propagation, prototype contrast",
    citation=(
        "Weakly Supervised Semantic Segmentation Via Multi-Type Semantic Affinity Learning; authors, venue and year "
        "unverified (code: CHENDL-SHEN/MSA, June 2024)"
    ),
    recipe_type=MsaRecipe,
    pipeline=build_pipeline,
    folder=Path(__file__).resolve().parent,
    exporters=exporters(),
)
