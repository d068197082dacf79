"""Disks that are full, read-only or gone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.faults.kind import Kind
from tests.faults.process_kinds import ALL_BEFORE_MEAN
from tests.faults.scene import Command, Scene, Seen


def full(stage: str):
    """The disk is full from the middle of a stage on."""

    def act(scene: Scene) -> Seen:
        assert scene.disk is not None
        command = scene.held(stage)
        scene.disk.fill()
        return _go_on(scene, command)

    return act


def read_only(stage: str):
    """The disk takes no more writing from the middle of a stage on, as after an error of its file system."""

    def act(scene: Scene) -> Seen:
        assert scene.disk is not None
        command = scene.held(stage)
        scene.disk.allow_writing(False)
        return _go_on(scene, command)

    return act


def read_only_at_start(scene: Scene) -> Seen:
    """The disk can only be read."""
    assert scene.disk is not None
    scene.disk.allow_writing(False)
    return scene.start().end()


def full_at_start(scene: Scene) -> Seen:
    """The disk is full."""
    assert scene.disk is not None
    scene.disk.fill()
    return scene.start().end()


def free_space(scene: Scene) -> None:
    """What the message asks for."""
    assert scene.disk is not None
    scene.disk.free()


def allow_writing(scene: Scene) -> None:
    """What the message asks for."""
    assert scene.disk is not None
    scene.disk.allow_writing(True)


def store_removed(scene: Scene) -> Seen:
    """Somebody removes the store."""
    command = scene.held("toy_score")
    shutil.rmtree(scene.store)
    return _go_on(scene, command)


def home_removed(scene: Scene) -> Seen:
    """Somebody removes the home, but not the store."""
    command = scene.held("toy_score")
    shutil.rmtree(scene.home)
    return _go_on(scene, command)


def file_in_the_way(scene: Scene) -> Seen:
    """Where the next stage's folder belongs in the store lies a file."""
    command = scene.held("toy_score")
    (Path(scene.store) / "toy_mean").write_text("in the way")
    return _go_on(scene, command)


def clear_the_way(scene: Scene) -> None:
    """What the message asks for."""
    (Path(scene.store) / "toy_mean").unlink()


def _go_on(scene: Scene, command: Command) -> Seen:
    scene.release()
    command.fault_at = time.monotonic()
    return command.end()


STORE, HOME, DATABASE = "store disk", "home disk", "database disk"
KINDS = (
    Kind("the store's disk is full in a map stage", full("toy_score"), 1, "no space", needs=STORE, remedy=free_space),
    Kind(
        "the store's disk is full in a training",
        full("toy_train"),
        1,
        "no space",
        there=(),
        needs=STORE,
        remedy=free_space,
    ),
    Kind(
        "the store's disk is full at the start", full_at_start, 1, "no space to write", needs=STORE, remedy=free_space
    ),
    Kind(
        "the home's disk is full in a training", full("toy_train"), 1, "space", there=(), needs=HOME, remedy=free_space
    ),
    Kind("the home's disk is full in a map stage", full("toy_score"), 1, "space", needs=HOME, remedy=free_space),
    Kind(
        "the home's disk is full in a reduce stage",
        full("toy_mean"),
        1,
        "space",
        there=ALL_BEFORE_MEAN,
        needs=HOME,
        remedy=free_space,
    ),
    Kind(
        "the disk of MLflow's database is full",
        full("toy_score"),
        0,
        needs=DATABASE,
        remedy=free_space,
        on_screen="have not reached",
    ),
    Kind(
        "the store can only be read from a map stage on",
        read_only("toy_score"),
        1,
        "store",
        needs=STORE,
        remedy=allow_writing,
    ),
    Kind("the store can only be read", read_only_at_start, 1, "store", needs=STORE, remedy=allow_writing),
    Kind(
        "the home can only be read from a map stage on",
        read_only("toy_score"),
        1,
        "ead-only",
        needs=HOME,
        remedy=allow_writing,
    ),
    Kind("the home can only be read", read_only_at_start, 1, "ead-only", needs=HOME, remedy=allow_writing),
    Kind("the store's folder is removed in a map stage", store_removed, 1, "shard", lost=True),
    Kind("the home's folder is removed in a map stage", home_removed, lost=True, on_screen="have not reached"),
    Kind("a file lies where the store needs a folder", file_in_the_way, 1, "needs a folder", remedy=clear_the_way),
)
