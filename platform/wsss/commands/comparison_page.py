"""Gathers and writes the page of a comparison: pictures come from the stores of the runs."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsss.commands.artifacts import selection_of, store_at
from wsss.data.dataset import load_dataset
from wsss.metric_name import MetricName
from wsss.pipeline import GridColumn, GridKind, SampleGrid
from wsss.released import pipeline_of
from wsss.reporting.comparison import Contender
from wsss.reporting.comparison_report import ComparisonReport, comparison_grids, write_comparison
from wsss.reporting.run_report import SampleImage, SampleRows
from wsss.run_record import RunRecord

FOLDER = "comparisons"
_TITLE_WIDTH = 30  # letters above a column of pictures


def write_comparison_page(
    records: Sequence[RunRecord],
    methods: Sequence[Contender],
    others: Sequence[Contender],
    metrics: Sequence[str],
    home: Path,
) -> Path:
    """`HOME/comparisons/<methods and runs>/report/index.html`, the same place for the same runs.

    methods: rows that have pictures of their own. others: references and baselines, behind them in the tables.
    """
    by_run = {record.run_id: record for record in records}
    classes: dict[str, Sequence[str]] = {}
    for record in records:
        if record.dataset not in classes:
            classes[record.dataset] = load_dataset(selection_of(record).recipe.dataset, home).classes

    def grid(metric: str, shown: Sequence[Contender], images: Sequence[str]) -> tuple[SampleRows, Sequence[str]] | None:
        return _grid(metric, [(each.title, by_run[each.runs[0]]) for each in shown], images, home)

    report = ComparisonReport(
        title=f"Comparison on {' and '.join(classes)}",
        contenders=(*methods, *others),
        metrics=metrics,
        classes=classes,
        grids=comparison_grids(methods, metrics, grid),
    )
    runs = hashlib.sha256(" ".join(sorted(by_run)).encode()).hexdigest()[:12]
    names = "-".join(dict.fromkeys(record.method for record in records))
    return write_comparison(home / FOLDER / f"{names[:60]}-{runs}", report, home)


def pictured_column(grids: Sequence[SampleGrid], scored: str) -> GridColumn | None:
    """The first column of a pipeline's grids that shows what is scored: "cam", "pseudo_label", "segmentation".

    Where a method's CRF is a stage of its own, its pictures stand for the segmentation, as they do in the others.
    """
    columns = [each for grid in grids for each in grid.columns]
    return next((each for stage in (scored, f"{scored}_crf") for each in columns if each.stage == stage), None)


def _grid(
    metric: str, shown: Sequence[tuple[str, RunRecord]], images: Sequence[str], home: Path
) -> tuple[SampleRows, Sequence[str]] | None:
    """What each run made of the images in the stage of a number; None where fewer than two keep pictures of it."""
    name = MetricName.parse(metric)
    columns: dict[str, GridKind] = {}
    arrays: dict[str, dict[str, np.ndarray]] = {image: {} for image in images}
    dataset = None
    for title, record in shown:
        selection = selection_of(record)
        dataset = load_dataset(selection.recipe.dataset, home)
        checkpoint = Path(record.checkpoint) if record.checkpoint else None
        grids = pipeline_of(selection.method, selection.recipe, dataset, checkpoint).grids
        column = pictured_column(grids, name.scored)
        if column is None or column.stage not in record.keys:
            continue
        artifact = store_at(record.store_url, home).find(column.stage, record.keys[column.stage])
        if artifact is None or not set(images) <= set(artifact.images()):
            continue
        wrapped = textwrap.fill(title, _TITLE_WIDTH)
        columns[wrapped] = column.kind
        for image in images:
            arrays[image][wrapped] = artifact.arrays(image)[column.array]
    if dataset is None or len(columns) < 2:
        return None
    view = dataset.view(("images", "masks"), name.split)
    samples = tuple(
        SampleImage(name=image, image=view.image(image), arrays={**arrays[image], "truth": view.mask(image)})
        for image in images
    )
    return SampleRows(title=metric, columns={**columns, "truth": "labels"}, samples=samples), dataset.classes
