"""`wsss store ls`: artifacts, their sizes, what they were computed from, and who needs them.
`wsss store verify`: compare every file with its checksum (an object store is downloaded for that).
`wsss store gc`: what nobody needs, and what dead processes left; `--remove` removes it.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsss.commands.arguments import Locations, locations
from wsss.commands.artifacts import store_at
from wsss.commands.methods import UsageError
from wsss.commands.references import Held, References, held_by, references_of
from wsss.commands.screen import print_table
from wsss.formatting import byte_count, count, duration
from wsss.store import CHECKPOINTS, DamagedArtifact, Store
from wsss.store.backend import Entry
from wsss.store.leftovers import Leftover, checkpoints_in, find_leftovers, remove_leftover
from wsss.store.local import LocalFiles

HOURS = 24.0


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("action", choices=("ls", "verify", "gc"))
    options.add_argument("--remove", action="store_true", help="gc: remove what is listed; without it nothing changes")
    options.add_argument(
        "--homes",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="gc, ls: all homes whose runs and sweeps use the store; gc needs them to remove artifacts of a store "
        "outside of the home (default: this home)",
    )
    options.add_argument(
        "--older-than",
        type=float,
        default=HOURS,
        metavar="HOURS",
        help="gc: spare what changed later than this (default: %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """List, compare or clean."""
    places = locations(arguments)
    store = store_at(places.store_url, places.home)
    homes = [home.expanduser().absolute() for home in arguments.homes or [places.home]]
    for home in homes if arguments.homes else ():
        if not home.is_dir():
            raise UsageError("there is no such home", str(home), "give the folders that WSSS_HOME named")
    if arguments.action == "ls":
        list_store(store, homes)
        return 0
    if arguments.action == "verify":
        return verify(store)
    if arguments.older_than < 0:
        raise UsageError("hours are not negative", "--older-than", "give 0 to spare nothing")
    seconds = arguments.older_than * 3600
    collect(store, homes, seconds, arguments.remove, bool(arguments.homes) or _inside(store, places))
    return 0


def list_store(store: Store, homes: Iterable[Path]) -> None:
    """Every artifact with its size, inputs and those who need it, and the sum."""
    held = held_by(store)
    references = references_of(homes)
    needed = references.needed(held)
    by_name = {(each.stage, each.key): each for each in held}
    rows, total = [], 0
    for ref in store.list(include_unfinished=True):
        each = by_name.get((ref.stage, ref.key))
        inputs = ", ".join(f"{stage}/{key[:8]}" for stage, key in each.inputs) if each is not None else ""
        who = needed.get((ref.stage, ref.key), ())
        named = "; ".join(who[:2]) + (f" and {len(who) - 2} more" if len(who) > 2 else "")
        rows.append((ref.stage, ref.key, byte_count(ref.size), "" if ref.published else "unfinished", inputs, named))
        total += ref.size
    print_table(f"store {store.url}", ["stage", "key", "size", "", "computed from", "needed by"], rows, right="size")
    for path in references.unreadable:
        print(f"{path} cannot be read: what it needs is not shown")
    leftovers = find_leftovers(store.backend)
    print(f"\n{count(len(rows), 'artifact')}, {byte_count(total)}", end="")
    print(f"; {byte_count(sum(each.size for each in leftovers))} of leftovers (`wsss store gc`)" if leftovers else "")


def verify(store: Store) -> int:
    """Name what is damaged or superfluous; 1 when something is damaged."""
    damaged = superfluous = checked = 0
    for ref in store.list():
        artifact = store.artifact(ref.stage, ref.key)
        checked += 1
        try:
            artifact.check(anew=True)
        except DamagedArtifact as error:
            damaged += 1
            print(f"damaged: {ref.stage}/{ref.key}: {error.what}")
            continue
        known = {"manifest.json", *artifact.files, *(f"finished/{file}.json" for file in artifact.files)}
        for file in sorted(set(store.backend.sizes(artifact.folder)) - known):
            superfluous += 1
            print(f"superfluous: {ref.stage}/{ref.key}: {file} is not in the manifest; nobody reads it")
    print(f"{count(checked, 'artifact')} compared: {damaged} damaged, {count(superfluous, 'superfluous file')}")
    if damaged:
        print("A run that needs a damaged artifact sets it aside and computes it again; `wsss rm` removes it.")
    return 1 if damaged else 0


@dataclass(frozen=True)
class _Garbage:
    """What can be removed: artifacts (stage, key, size), leftovers of the store, and checkpoints (home or None for the
    store, stage, key, size)."""

    artifacts: list[tuple[str, str, int]]
    leftovers: list[Leftover]
    checkpoints: list[tuple[Path | None, str, str, int]]

    @property
    def size(self) -> int:
        sizes = [size for _, _, size in self.artifacts] + [each.size for each in self.leftovers]
        return sum(sizes) + sum(size for _, _, _, size in self.checkpoints)


def collect(store: Store, homes: list[Path], older_than: float, remove: bool, with_artifacts: bool) -> None:
    """Print what nobody needs and, if asked, remove it.

    Args:
        older_than: seconds; what changed later is spared, because its run may not have written its record yet.
        with_artifacts: whether the homes are all that use the store, so that artifacts may be judged.

    Raises:
        UsageError: a record of a run or a sweep cannot be read, so that nobody knows what it needs.
    """
    references = references_of(homes)
    if references.unreadable:
        raise UsageError(
            "a record cannot be read, so that nobody knows what it needs",
            ", ".join(map(str, references.unreadable)),
            "remove its folder if it is not needed any more, then clean again",
        )
    held = held_by(store)
    garbage = _garbage(store, homes, references, held, older_than, with_artifacts)
    for stage, key, size in garbage.artifacts:
        print(f"{byte_count(size):>10}  {stage}/{key}: no run and no sweep needs it")
    for place, stage, key, size in garbage.checkpoints:
        where = f"{place}/{CHECKPOINTS}" if place is not None else f"{store.url}/{CHECKPOINTS}"
        print(f"{byte_count(size):>10}  {where}/{stage}-{key}: of a training that is over")
    for leftover in garbage.leftovers:
        print(f"{byte_count(leftover.size):>10}  {leftover.path}: {leftover.what}, {duration(leftover.age)} old")
    kept = len(held) - sum((each.stage, each.key) in {g[:2] for g in garbage.artifacts} for each in held)
    if not with_artifacts:
        print("Artifacts stay: other homes may use this store. Name them all with --homes to have artifacts judged.")
    number = len(garbage.artifacts) + len(garbage.leftovers) + len(garbage.checkpoints)
    what = f"{count(number, 'thing')}, {byte_count(garbage.size)}; {count(kept, 'artifact')} of the store stay"
    if not remove:
        print(f"would remove {what}" + (" (--remove does it)" if number else ""))
        return
    for stage, key, _ in garbage.artifacts:
        with store.single_flight(stage, key, lambda holder: print(f"waiting for {holder}")):
            store.delete(stage, key)
    for place, stage, key, _ in garbage.checkpoints:
        if place is None:
            store.backend.remove_folder(f"{CHECKPOINTS}/{stage}-{key}")
        else:
            shutil.rmtree(place / CHECKPOINTS / f"{stage}-{key}", ignore_errors=True)
    for leftover in garbage.leftovers:
        remove_leftover(store.backend, leftover)
    print(f"removed {what}")


def _garbage(
    store: Store,
    homes: list[Path],
    references: References,
    held: list[Held],
    older_than: float,
    with_artifacts: bool,
) -> _Garbage:
    now = time.time()
    entries = store.backend.entries()
    changed: dict[tuple[str, str], float] = {}
    for path, entry in entries.items():
        if path.count("/") >= 2:
            stage, key = path.split("/")[:2]
            changed[stage, key] = max(entry.modified, changed.get((stage, key), 0.0))
    needed = {**references.by_name, **references.needed(held)}
    published = {(each.stage, each.key) for each in held}

    def over(name: tuple[str, str], files: Iterable[Entry]) -> bool:
        """Whether a training is published, or nobody needs it."""
        old = now - max(entry.modified for entry in files) > older_than
        return old and (name in published or (with_artifacts and name not in needed))

    places: dict[Path | None, Mapping[str, Entry]] = {None: entries}
    places.update({home: _checkpoint_files(home) for home in homes})
    return _Garbage(
        artifacts=[
            (ref.stage, ref.key, ref.size)
            for ref in store.list(include_unfinished=True)
            if with_artifacts
            and (ref.stage, ref.key) not in needed
            and now - changed.get((ref.stage, ref.key), now) > older_than
        ],
        leftovers=[each for each in find_leftovers(store.backend) if each.age > older_than],
        checkpoints=[
            (place, stage, key, sum(entry.size for entry in files))
            for place, found in places.items()
            for (stage, key), files in sorted(checkpoints_in(found).items())
            if over((stage, key), files)
        ],
    )


def _checkpoint_files(home: Path) -> dict[str, Entry]:
    found = LocalFiles(home / CHECKPOINTS).entries()
    return {f"{CHECKPOINTS}/{path}": entry for path, entry in found.items()}


def _inside(store: Store, places: Locations) -> bool:
    """Whether the store belongs to the home alone."""
    return "://" not in store.url and Path(store.url).resolve().is_relative_to(places.home.resolve())
