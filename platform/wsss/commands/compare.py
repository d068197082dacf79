"""`wsss compare RUN RUN ... | --dataset voc2012 --recipe mini`: finished runs side by side, with paired differences.

Runs that differ by their seed alone are one row. The others are held against the first row, over the same images;
runs on other data stand in the table but are not held against it. References that the runs computed (the same network
trained on masks, on image-sized boxes) and a predictor that says background everywhere are rows of their own. A page
with pictures, classes, ranks over seeds and cost is written below HOME/comparisons.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsss.changed_settings import changed_settings
from wsss.commands.arguments import locations, run_folder
from wsss.commands.artifacts import selection_of, store_at
from wsss.commands.comparison_page import write_comparison_page
from wsss.commands.methods import UsageError
from wsss.commands.readme_block import add_block, require_whole_block, write_block
from wsss.commands.screen import console
from wsss.errors import nearest
from wsss.files import write_file
from wsss.metric_name import MetricName
from wsss.recipe import flat_dict
from wsss.reporting.comparison import (
    Contender,
    Cost,
    Scored,
    all_background,
    common_metrics,
    difference_table,
    number_table,
    with_one_mean,
)
from wsss.reporting.comparison_report import NUMBERS_PICTURE
from wsss.reporting.tables import Table, main_mious, to_markdown, to_rich
from wsss.run_record import RunRecord, StageResult, find_runs
from wsss.search.choose.score import read_counts
from wsss.stages.references import REFERENCE_TITLES, REFERENCES_SECTION, beside, is_of_reference


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("runs", nargs="*", metavar="RUN", help="run id, or its beginning; `wsss ls runs` lists them")
    options.add_argument("--dataset", metavar="NAME", help="with --recipe: the newest run of every method and seed")
    options.add_argument("--recipe", metavar="NAME", help="the shipped recipe of those runs")
    options.add_argument("--metric", metavar="NAME", action="append", default=[], help="only this number; repeatable")
    options.add_argument("--picture", type=Path, metavar="FILE", help="the numbers as a picture (PNG)")
    add_block(options)


def run(arguments: argparse.Namespace) -> int:
    """Print both tables, or put the first into a README."""
    require_whole_block(arguments)
    home = locations(arguments).home
    table, picture = show_comparison(_chosen_runs(arguments, home), home, arguments.metric)
    _heading, _, content = to_markdown(table).partition("\n\n")
    write_block(arguments, content.rstrip("\n"))
    if arguments.picture is not None:
        write_file(arguments.picture, picture)
        print(f"picture: {arguments.picture}")
    return 0


def show_comparison(records: Sequence[RunRecord], home: Path, asked: Sequence[str] = ()) -> tuple[Table, Path]:
    """Print the numbers of the runs and their differences, and write the page.

    Returns the table of the numbers, and the picture of them.

    asked: names of numbers; empty for all that at least two of them have.

    Raises:
        UsageError: a run has not finished, a seed of one recipe was given twice, or no run has a number.
    """
    gathered = gather_contenders(records, home)
    metrics = _chosen_metrics(asked, gathered)
    rows = with_one_mean([*gathered, *gather_references(records, home)])
    contenders, references = rows[: len(gathered)], rows[len(gathered) :]
    others = [*references, *all_background(contenders)]
    rows = [*contenders, *others]
    table = number_table(rows, metrics)
    for each in (table, difference_table(rows, metrics)):
        if each.rows:
            console().print(to_rich(each))
    page = write_comparison_page(records, contenders, others, metrics, home)
    print(f"page:    {page}")
    return table, page.parent / NUMBERS_PICTURE


def gather_references(records: Sequence[RunRecord], home: Path) -> list[Contender]:
    """The references that the runs computed, as rows whose numbers stand where those of the method stand.

    Methods whose network, training and start are the same share a reference's artifacts, and its row.
    """
    rows: dict[tuple[Any, ...], Contender] = {}
    whose: dict[tuple[Any, ...], list[str]] = {}
    for group in _grouped(records):
        first, scored = group[0], [_scored(record, home) for record in group]
        for reference in REFERENCE_TITLES:
            numbers = {
                beside(name, reference): _together([each[name] for each in scored])
                for name in scored[0]
                if is_of_reference(MetricName.parse(name).scored, reference) and _in_all(name, scored)
            }
            if not numbers:
                continue
            own = [stage for each in group for stage in each.stages if is_of_reference(stage.name, reference)]
            identity = (reference, first.dataset, *(stage.key for stage in own))
            whose.setdefault(identity, []).append(f"{first.method} {first.recipe_name}")
            row = Contender(
                title=f"{REFERENCE_TITLES[reference]} ({', '.join(whose[identity])})",
                runs=tuple(record.run_id for record in group),
                seeds=tuple(record.seed for record in group),
                dataset=first.dataset,
                cost=_cost(group, lambda stage, of=reference: is_of_reference(stage.name, of), home),
                numbers=numbers,
                is_reference=True,
            )
            rows[identity] = replace(rows.get(identity, row), title=row.title)
    return list(rows.values())


def _grouped(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs that differ by their seed alone together, by ascending seed."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_kind(record), []).append(record)
    return [sorted(group, key=lambda record: record.seed) for group in groups.values()]


def gather_contenders(records: Sequence[RunRecord], home: Path) -> list[Contender]:
    """Runs as rows of a comparison, in the given order; those that differ by their seed alone are one row.

    Raises:
        UsageError: a run has not finished, or a seed of one recipe was given twice.
        WsssError: a method or an artifact is no longer what it was.
    """
    for record in records:
        if record.status != "finished":
            raise UsageError(f"the run is {record.status}", record.run_id, "the command that made it continues it")
    return [_contender(group, home) for group in _grouped(records)]


def _chosen_runs(arguments: argparse.Namespace, home: Path) -> list[RunRecord]:
    if bool(arguments.runs) == bool(arguments.dataset and arguments.recipe):
        raise UsageError("say which runs", "wsss compare", "give run ids, or both --dataset and --recipe")
    if arguments.runs:
        return [RunRecord.load(run_folder(home, name)) for name in arguments.runs]
    newest: dict[tuple[str, int], RunRecord] = {}
    for record in find_runs(home):
        asked = record.dataset == arguments.dataset and record.recipe_name == arguments.recipe
        if asked and record.status == "finished" and not _changed(record):
            newest[record.method, record.seed] = record
    if not newest:
        raise UsageError(
            f"no finished run of recipe {arguments.recipe!r} on {arguments.dataset!r}", str(home), "see `wsss ls runs`"
        )
    return list(newest.values())


def _chosen_metrics(asked: Sequence[str], contenders: Sequence[Contender]) -> list[str]:
    known = list(dict.fromkeys(metric for each in contenders for metric in each.numbers))
    for metric in asked:
        if metric not in known:
            close = nearest(metric, known)
            raise UsageError(f"no run has the number {metric!r}", "--metric", close or f"one of {', '.join(known)}")
    return list(asked) or common_metrics(contenders)


def _kind(record: RunRecord) -> str:
    recipe = {
        key: value for key, value in record.recipe.items() if key not in ("seed", "execution", REFERENCES_SECTION)
    }
    facts = [record.method, record.dataset, record.checkpoint, recipe]
    return json.dumps(facts, sort_keys=True)


def _changed(record: RunRecord) -> dict[str, Any]:
    """Keys that differ from the shipped recipe, with their values."""
    selection = selection_of(record)
    values = flat_dict(selection.recipe)
    return {key: values[key] for key in changed_settings(selection.method, selection.recipe, record.recipe_name)}


def _contender(records: Sequence[RunRecord], home: Path) -> Contender:
    first = records[0]
    if len({record.seed for record in records}) < len(records):
        runs = ", ".join(record.run_id for record in records)
        raise UsageError("the same recipe and seed are given twice", runs, "give each run once")
    changed = ", ".join(f"{key}={json.dumps(value)}" for key, value in _changed(first).items())
    scored = [_scored(record, home) for record in records]
    names = [name for name in scored[0] if not is_of_reference(MetricName.parse(name).scored)]
    return Contender(
        title=f"{first.method} {first.recipe_name}" + (f" with {changed}" if changed else ""),
        runs=tuple(record.run_id for record in records),
        seeds=tuple(record.seed for record in records),
        dataset=first.dataset,
        cost=_cost(records, lambda stage: not is_of_reference(stage.name), home),
        numbers={name: _together([each[name] for each in scored]) for name in names if _in_all(name, scored)},
    )


def _cost(records: Sequence[RunRecord], counts: Callable[[StageResult], bool], home: Path) -> Cost:
    """What the stages took for which `counts` is true, mean over the runs."""
    seconds = gpu_seconds = size = 0.0
    for record in records:
        store = store_at(record.store_url, home)
        for stage in filter(counts, record.stages):
            seconds += stage.seconds
            gpu_seconds += stage.seconds * stage.workers if stage.device == "cuda" else 0.0
            artifact = store.find(stage.name, stage.key)
            size += artifact.size if artifact is not None else 0
    return Cost(*(total / len(records) for total in (seconds, gpu_seconds, size)))


def _in_all(name: str, scored: Sequence[Mapping[str, Scored]]) -> bool:
    return all(name in each for each in scored)


def _scored(record: RunRecord, home: Path) -> dict[str, Scored]:
    store = store_at(record.store_url, home)
    found: dict[str, Scored] = {}
    for stage in record.stages:
        names = main_mious(stage.metrics)
        artifact = store.find(stage.name, stage.key) if names else None
        for name in names:
            values = (stage.metrics[name],)
            counts = read_counts(name, artifact, None) if artifact is not None else None
            if counts is None:
                found[name] = Scored(values, rests_on_masks=stage.rests_on_masks)
                continue
            found[name] = Scored(values, (counts.at(None),), counts.names, counts.mean_over, stage.rests_on_masks)
    return found


def _together(seeds: Sequence[Scored]) -> Scored:
    """The numbers of several seeds as one; without counts where the seeds were not scored on the same images."""
    first = seeds[0]
    alike = all(each.counts and each.images == first.images and each.same_truth(first) for each in seeds)
    return Scored(
        values=tuple(value for each in seeds for value in each.values),
        counts=tuple(each.counts[0] for each in seeds) if alike else (),
        images=first.images if alike else (),
        mean_over=first.mean_over,
        rests_on_masks=any(each.rests_on_masks for each in seeds),
    )
