"""Collects what the report of one or more runs shows from their records, the store and the data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss.changed_settings import changed_settings
from wsss.claims import OurProtocol, load_claims, verdicts
from wsss.commands.artifacts import selection_of, store_at
from wsss.commands.methods import UsageError, recipe_names
from wsss.data.dataset import Dataset, load_dataset
from wsss.execution.stage_job import HISTORY_FILE, TABLES_FILE
from wsss.pipeline import GridColumn, GridKind, Pipeline, SampleGrid
from wsss.recipe import flat_dict
from wsss.released import pipeline_of
from wsss.reporting.comparability import list_deviations
from wsss.reporting.run_report import RunReport, SampleImage, SampleRows, StageReport
from wsss.run_record import RunRecord, StageResult
from wsss.store import Artifact, Store
from wsss.tracking.provenance import commit_in_words, machine_in_words

GRID_IMAGES = 6


def gather_report(records: Sequence[RunRecord], home: Path) -> RunReport:
    """Everything that `wsss.reporting.report.write_report` shows of the runs of one recipe under several seeds.

    Raises:
        UsageError: the runs are not of one method, recipe and data set.
        WsssError: the method, its data set or an artifact is no longer what it was.
    """
    first = records[0]
    _require_alike(records)
    selection = selection_of(first)
    method, recipe = selection.method, selection.recipe
    dataset = load_dataset(recipe.dataset, home)
    pipeline = pipeline_of(method, recipe, dataset, Path(first.checkpoint) if first.checkpoint else None)
    store = store_at(first.store_url, home)
    changed = changed_settings(method, recipe, first.recipe_name)
    settings = flat_dict(recipe)
    imported = sorted({stage.name for record in records for stage in record.stages if stage.imported})
    # The stage that the released model stands for is what is judged; another one would be an obstacle.
    foreign = [name for name in imported if not (first.checkpoint and name == pipeline.stages[0].name)]
    protocol = OurProtocol(
        dataset=first.dataset,
        recipe=first.recipe_name,
        changed_settings=changed,
        settings=settings,
        deviations=(*list_deviations(pipeline, dataset), *(f"stage {name} was imported" for name in foreign)),
        released=bool(first.checkpoint),
        chosen_by_masks=choices_by_masks(pipeline, first),
    )
    return RunReport(
        method=method.name,
        title=method.title,
        citation=method.citation,
        dataset=first.dataset,
        recipe=first.recipe_name,
        classes=dataset.classes,
        stages=tuple(_stage(record, stage, store) for record in records for stage in record.stages),
        verdicts=verdicts(
            load_claims(method.claims_path, recipe_names(method)),
            {record.seed: record.metrics for record in records},
            protocol,
        ),
        headline=pipeline.headline,
        grids=tuple(_grid(grid, dataset, first, store) for grid in pipeline.grids),
        protocol={**first.protocol, **({"imported stages": ", ".join(imported)} if imported else {})},
        settings={key: value for key, value in settings.items() if key != "seed"},
        changed_settings=changed,
        provenance=_provenance(records),
    )


def choices_by_masks(pipeline: Pipeline, record: RunRecord) -> dict[str, tuple[str, ...]]:
    """Metric name -> the stages upstream that chose something by looking at masks."""
    choosing = {
        stage.name: tuple(each.name for each in pipeline.upstream(stage.name) if each.chooses_by_masks)
        for stage in pipeline
    }
    return {
        metric: choosing[stage.name] for stage in record.stages for metric in stage.metrics if stage.name in choosing
    }


def _require_alike(records: Sequence[RunRecord]) -> None:
    kinds = set()
    for record in records:
        recipe = {key: value for key, value in record.recipe.items() if key not in ("seed", "execution")}
        facts = (record.method, record.recipe_name, record.dataset, record.checkpoint)
        kinds.add((*facts, json.dumps(recipe, sort_keys=True)))
    if len(kinds) > 1 or len({record.seed for record in records}) < len(records):
        raise UsageError(
            "the runs are not one recipe under different seeds",
            ", ".join(record.run_id for record in records),
            "report them one by one",
        )


def _stage(record: RunRecord, stage: StageResult, store: Store) -> StageReport:
    artifact = store.find(stage.name, stage.key) if stage.status != "not_needed" else None
    notes = [*(["imported"] if stage.imported else []), *(["chosen by masks"] if stage.rests_on_masks else [])]
    if artifact is None and stage.status != "not_needed":
        notes.append("no longer in the store")
    return StageReport(
        name=stage.name,
        kind=stage.kind,
        status=stage.status,
        seconds=stage.seconds,
        key=stage.key,
        seed=record.seed,
        metrics=stage.metrics,
        tables=_json(artifact, TABLES_FILE),
        history=_json(artifact, HISTORY_FILE),
        notes=tuple(notes),
    )


def _json(artifact: Artifact | None, file: str) -> Mapping[str, Any]:
    return artifact.json(file) if artifact is not None and file in artifact.files else {}


def _grid(grid: SampleGrid, dataset: Dataset, record: RunRecord, store: Store) -> SampleRows:
    """A few images, spread evenly over those of the list that all shown stages hold."""
    view = dataset.view(("images", "masks"), grid.image_list)
    found: list[tuple[GridColumn, Artifact]] = []
    for column in grid.columns:
        artifact = store.find(column.stage, record.keys[column.stage]) if column.stage in record.keys else None
        if artifact is not None:
            found.append((column, artifact))
    held = [set(artifact.images()) for _, artifact in found]
    names = [name for name in view.names if all(name in images for images in held)]
    names = names[:: max(1, len(names) // GRID_IMAGES)][:GRID_IMAGES] if found else []
    samples = []
    for name in names:
        arrays = {column.title: artifact.arrays(name)[column.array] for column, artifact in found}
        samples.append(SampleImage(name=name, image=view.image(name), arrays={**arrays, "truth": view.mask(name)}))
    columns: dict[str, GridKind] = {**{column.title: column.kind for column, _ in found}, "truth": "labels"}
    return SampleRows(title=f"{', '.join(columns)} on {grid.image_list}", columns=columns, samples=tuple(samples))


def _provenance(records: Sequence[RunRecord]) -> dict[str, str]:
    first = records[0]
    libraries = first.provenance.get("libraries", {})
    return {
        "runs": ", ".join(record.run_id for record in records),
        "commit": commit_in_words(first.provenance),
        "machine": machine_in_words(first.provenance),
        "libraries": ", ".join(f"{name} {version}" for name, version in libraries.items()),
        "data digest": first.data_digest,
        "store": first.store_url,
    }
