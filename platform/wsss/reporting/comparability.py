"""What, beside the recipe, keeps a run's numbers from being comparable with published ones."""

from __future__ import annotations

from wsss.data.dataset import OFFICIAL_COUNTS, Dataset
from wsss.pipeline import Pipeline


def list_deviations(pipeline: Pipeline, dataset: Dataset) -> tuple[str, ...]:
    """One sentence for each list that the pipeline runs over and that is not as long as the official one.

    A cut or mixed copy of a data set goes by the same name: its numbers must not be held against claims.
    """
    official = OFFICIAL_COUNTS.get(dataset.name, {})
    used = dict.fromkeys(stage.image_list for stage in pipeline if stage.image_list is not None)
    return tuple(
        f"{name} has {len(dataset.names(name))} images, the official list {official[name]}"
        for name in used
        if name in official and len(dataset.names(name)) != official[name]
    )
