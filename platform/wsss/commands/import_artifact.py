"""`wsss import METHOD STAGE PATH`: an official checkpoint, CAM folder or label folder becomes a stage's artifact.

It is stored under the key that the stage has in the given recipe, so a run with that recipe starts after it.
Its manifest says that it was imported, and every report and explanation repeats it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsss.commands.arguments import add_recipe, locations, select
from wsss.commands.methods import UsageError
from wsss.formatting import count


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("method", help="name of the method; `wsss ls METHOD all` lists what it can take in")
    options.add_argument("stage", help="stage, or the name of one of its layouts")
    options.add_argument("path", type=Path, help="file or folder in the layout of the official code")
    add_recipe(options)
    options.add_argument("--note", default="", help="where the files come from; kept with the artifact")


def run(arguments: argparse.Namespace) -> int:
    """Read the layout, publish it under the stage's key, say what a run will now skip."""
    from wsss.commands.artifacts import exporter_of, place_of, store_at
    from wsss.execution.import_stage import imported_provenance
    from wsss.official import superfluous_files
    from wsss.store import DamagedArtifact

    places = locations(arguments)
    selection = select(arguments.method, arguments.recipe, arguments.overrides)
    exporter = exporter_of(selection.method, arguments.stage)
    if exporter.read is None:
        raise UsageError(
            f"the layout of stage {exporter.stage!r} can only be written",
            "STAGE",
            "choose one that `wsss ls METHOD all` lists for export and import",
        )
    if not arguments.path.exists():
        raise UsageError("the path to import does not exist", str(arguments.path), "check the path")
    place = place_of(selection, exporter.stage, places.home)
    stage, key = place.stage, place.key
    store = store_at(places.store_url, places.home)
    store.check_writable()
    with store.single_flight(stage.name, key):
        try:
            present = store.find(stage.name, key)
        except DamagedArtifact as error:
            print(f"what is there is damaged and is replaced: {error.what}")
            present = None
        if present is not None:
            kind = "imported" if present.provenance.get("imported") else "computed"
            raise UsageError(
                f"stage {stage.name!r} of this recipe is in the store already ({kind})",
                present.location,
                f"remove it first with `wsss rm {stage.name}/{key}`, or import into another store with --store",
            )
        if store.delete(stage.name, key):
            print("what was left of this artifact was removed")
        writer = store.writer(stage.name, key)
        names = place.dataset.lists[stage.image_list] if stage.image_list else ()
        exporter.read(arguments.path, place.dataset, tuple(names), writer)
        artifact = writer.publish(imported_provenance(arguments.path, exporter.description, arguments.note))
    held = f"{count(len(artifact.files), 'file')} ({count(len(artifact.images()), 'image')})"
    print(f"imported {held} as {stage.name}/{key}")
    if names and (further := superfluous_files(arguments.path, names)):
        print(
            f"{count(len(further), 'file')} in {arguments.path} not read, because the list {stage.image_list} has no "
            f"such image: {', '.join(further[:3])}{', ...' if len(further) > 3 else ''}"
        )
    print(f"a run of recipe {selection.recipe_name!r} with the same overrides now starts after {stage.name!r}")
    return 0
