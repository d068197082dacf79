"""Whether the disk of a local store will hold what is written: a plan, as far as earlier runs tell; then a stage."""

from __future__ import annotations

import shutil
from pathlib import Path

from wsss.errors import WsssError
from wsss.formatting import byte_count, count
from wsss.plan import Plan
from wsss.store import Store

# The smallest demo writes about so much with its records.
_LEAST = 50_000_000


class SpaceError(WsssError):
    """A disk will not hold what the plan writes."""


def check_space(plan: Plan, store: Store, home: Path) -> None:
    """Refuse a plan whose results do not fit on their disk. An object store has no such limit.

    A stage is expected to write as much as the largest artifact that the store holds of it; one that never ran is
    not counted.

    Raises:
        SpaceError: naming the disk, what is free and what is expected of which stages.
    """
    places = {"home": home} if "://" in store.url else {"store": Path(store.url), "home": home}
    for name, folder in places.items():
        free = _free(folder)
        if free < _LEAST:
            raise SpaceError(
                f"{byte_count(free)} are free on the disk of the {name}; a run needs {byte_count(_LEAST)} at least",
                str(folder),
                f"free some space (`wsss ls store`, `wsss rm`), or put it elsewhere with --{name} FOLDER",
            )
    if "://" in store.url or not plan.needed:
        return
    largest: dict[str, int] = {}
    for artifact in store.list():
        largest[artifact.stage] = max(largest.get(artifact.stage, 0), artifact.size)
    expected = {planned.stage.name: largest.get(planned.stage.name, 0) for planned in plan.needed}
    total, free = sum(expected.values()), _free(Path(store.url))
    if total > free:
        most = sorted(expected, key=lambda name: -expected[name])[:3]
        parts = ", ".join(f"{name} {byte_count(expected[name])}" for name in most)
        raise SpaceError(
            f"the plan writes about {byte_count(total)} ({parts}), {byte_count(free)} are free on the store's disk",
            store.url,
            "free some space (`wsss ls store`, `wsss rm`), or put the store elsewhere with --store FOLDER",
        )


def check_rest(stage: str, bytes_per_image: float, images: int, store: Path) -> None:
    """Refuse to go on with a stage whose other images will not fit on the disk of the folder `store`.

    Args:
        bytes_per_image: mean over the images that are stored.
        images: how many are not.

    Raises:
        SpaceError: what is expected, and what is free. What is stored stays.
    """
    rest, free = bytes_per_image * images, _free(store)
    if rest > free:
        raise SpaceError(
            f"the other {count(images, 'image')} of stage {stage} will take about {byte_count(rest)},"
            f" {byte_count(free)} are free on the store's disk",
            str(store),
            "free some space (`wsss ls store`, `wsss rm`) and run the same command, which continues; or put the store"
            " elsewhere with --store FOLDER",
        )


def _free(folder: Path) -> int:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
