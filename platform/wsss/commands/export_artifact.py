"""`wsss export RUN|METHOD STAGE FOLDER`: write an artifact in the layout that the official code reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from wsss.commands.arguments import add_recipe, locations, run_folder, select
from wsss.commands.methods import UsageError, method_names
from wsss.formatting import count


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("source", metavar="RUN|METHOD", help="a run, or a method with --recipe and overrides")
    options.add_argument("stage", help="stage, or the name of one of its layouts")
    options.add_argument("folder", type=Path, help="folder to write into")
    add_recipe(options)


def run(arguments: argparse.Namespace) -> int:
    """Find the artifact and let the method write it."""
    from wsss.commands.artifacts import exporter_of, place_of, selection_of, store_at
    from wsss.data.dataset import load_dataset
    from wsss.run_record import RunRecord

    places = locations(arguments)
    if arguments.source in method_names():
        selection = select(arguments.source, arguments.recipe, arguments.overrides)
        exporter = exporter_of(selection.method, arguments.stage)
        place = place_of(selection, exporter.stage, places.home)
        dataset, key = place.dataset, place.key
        store = store_at(places.store_url, places.home)
    else:
        record = RunRecord.load(run_folder(places.home, arguments.source))
        selection = selection_of(record)
        exporter = exporter_of(selection.method, arguments.stage)
        dataset = load_dataset(selection.recipe.dataset, places.home)
        key = record.keys.get(exporter.stage, "")
        store = store_at(record.store_url, places.home)
    artifact = store.find(exporter.stage, key) if key else None
    if artifact is None:
        raise UsageError(
            f"stage {exporter.stage!r} has not been computed",
            store.url,
            f"run it first, with --until {exporter.stage}",
        )
    written = exporter.write(artifact, dataset, arguments.folder)
    print(f"{count(written, 'file')} in {arguments.folder}: {exporter.description}")
    return 0
