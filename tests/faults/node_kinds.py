"""Nodes of a cluster that die, or are taken away with notice, and its head."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults import processes
from tests.faults.kind import Kind
from tests.faults.scene import Scene, Seen
from tests.faults.sweep_kinds import in_the_middle

_LATER_SECONDS = 60


def kill_node(stage: str):
    """The raylet under the worker that stands still in a stage is killed, with all that it holds."""

    def act(scene: Scene) -> Seen:
        command = scene.held(stage)
        raylet = processes.parent_of(scene.worker(stage))
        scene.release()
        command.fault_at = time.monotonic()
        assert processes.kill(raylet)
        return command.end()

    return act


def kill_node_while_publishing(scene: Scene) -> Seen:
    """A node dies while the driver publishes what was computed there."""
    assert scene.nodes is not None
    scene.plan("hold-publish-toy_score")
    command = scene.start()
    command.until(lambda: (scene.faults / "held-publish-toy_score").exists())
    command.fault_at = time.monotonic()
    assert processes.kill(scene.nodes.raylets()[0])
    scene.release()
    return command.end()


def kill_node_in_a_sweep(scene: Scene) -> Seen:
    """A node dies when some trials have ended."""
    assert scene.nodes is not None
    command = in_the_middle(scene)
    command.fault_at = time.monotonic()
    assert processes.kill(scene.nodes.raylets()[0])
    return command.end()


def take_node_away(scene: Scene) -> Seen:
    """The node of a training is taken away after a notice, in the middle of an epoch, as a spot machine is."""
    assert scene.nodes is not None
    # A step lasts so long that the node is gone before the training has ended.
    command = scene.held("toy_train", "pause=4", RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    raylet = processes.parent_of(scene.worker("toy_train"))
    scene.nodes.take_away(raylet, _LATER_SECONDS)
    before = checkpoints(scene)
    command.fault_at = time.monotonic()
    time.sleep(2.0)  # Train asks for notices twice a second
    scene.release()
    command.until(lambda: bool(checkpoints(scene) - before))
    time.sleep(2.0)  # Train notes the checkpoint
    assert processes.kill(raylet)
    return command.end()


def checkpoints(scene: Scene) -> set[Path]:
    """Finished checkpoints of the training."""
    return {path.parent for path in scene.home.glob("checkpoints/toy_train-*/checkpoint_*/state.pt")}


def kill_head(stage: str, *parts: str):
    """Parts of the head die, through which the driver speaks to the cluster."""

    def act(scene: Scene) -> Seen:
        assert scene.nodes is not None
        command = scene.held(stage)
        command.fault_at = time.monotonic()
        scene.nodes.kill_head(*parts)
        return command.end()

    return act


def another_cluster(scene: Scene) -> None:
    """What the message asks for."""
    assert scene.nodes is not None
    scene.nodes.restart()
    scene.variables["RAY_ADDRESS"] = scene.nodes.address


NODES = "nodes"
NO_RAYLET = "the Ray node (raylet) of this machine has ended"
KINDS = (
    Kind("SIGKILL of a node (raylet) under a training", kill_node("toy_train"), there=(), needs=NODES),
    Kind("SIGKILL of a node (raylet) under a map stage", kill_node("toy_score"), needs=NODES),
    Kind("SIGKILL of a node (raylet) while a map stage is published", kill_node_while_publishing, needs=NODES),
    Kind("SIGKILL of a node (raylet) in a sweep", kill_node_in_a_sweep, there=(), needs="sweep on nodes"),
    Kind(
        "a node is taken away after a notice (spot) in a training",
        take_node_away,
        there=(),
        needs=NODES,
        on_screen="toy_train: goes on from step 10 with 1 worker",
    ),
    Kind(
        "SIGKILL of the cluster's head in a training",
        kill_head("toy_train", "gcs_server", "raylet"),
        1,
        NO_RAYLET,
        there=(),
        needs=NODES,
        remedy=another_cluster,
    ),
    Kind(
        "SIGKILL of the cluster's head in a map stage",
        kill_head("toy_score", "gcs_server", "raylet"),
        1,
        NO_RAYLET,
        needs=NODES,
        remedy=another_cluster,
    ),
    Kind(
        "SIGKILL of the gcs_server of the cluster's head in a map stage",
        kill_head("toy_score", "gcs_server"),
        1,
        "has not answered for 45 s",
        needs=NODES,
        remedy=another_cluster,
    ),
)
