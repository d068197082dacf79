"""Says which nodes a stage waits for and which it lost, and ends a wait that lasts too long."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from wsss.errors import WsssError
from wsss.execution.growth import current_cluster
from wsss.execution.liveness import head_answers
from wsss.execution.nodes import Cluster, Resources, present_cluster
from wsss.formatting import duration

WAIT_VARIABLE = "WSSS_WAIT_MINUTES"
_WAIT_MINUTES = 30.0
# Seconds of a wait after which a line says that it goes on; then one every five minutes.
_LINES_AT = (3.0, 30.0, 60.0, 120.0, 300.0)
_LOOK_SECONDS = 1.0
_IDLE = 4  # Ray's reason of a node's end: the autoscaler no longer needed it

Tell = Callable[[str], None]


class NodesMissingError(WsssError):
    """The nodes that a stage asks for did not come."""


def wait_seconds() -> float:
    """How long a stage waits for nodes: WSSS_WAIT_MINUTES, half an hour by default.

    A training ends its wait between two tries of Ray Train to start the workers, so that less than a minute is refused.

    Raises:
        NodesMissingError: the variable is no number of at least 1.
    """
    text = os.environ.get(WAIT_VARIABLE, "")
    try:
        minutes = float(text) if text else _WAIT_MINUTES
    except ValueError:
        minutes = 0.0
    if not 1 <= minutes < float("inf"):
        raise NodesMissingError(
            f"{text!r} is no number of minutes of at least 1",
            WAIT_VARIABLE,
            "give the minutes that a stage may wait for nodes, for example 45, or leave it out",
        )
    return 60 * minutes


class NodeWatch:
    """Follows the nodes under one stage.

    Args:
        workers: that must fit at the same time, or the stage stands still.
        each: what each of them asks of a node.
        tell: shown to people.

    Attributes:
        waited: seconds of all waits that are over.
    """

    def __init__(self, stage: str, workers: int, each: Resources, tell: Tell) -> None:
        self._stage, self._workers, self._each, self._tell = stage, workers, each, tell
        self._limit = wait_seconds()
        self._grows = current_cluster().grows
        self._alive = _alive()
        self._looked = time.monotonic()
        self._since: float | None = None
        self.waited = 0.0
        self._told = 0
        self._away = False

    @property
    def fits(self) -> bool:
        """Whether the workers would fit on the nodes of the last look, if nothing else ran there."""
        return self._cluster().slots_here(self._each) >= self._workers

    def spare(self, tasks: int) -> int:
        """How many tasks more than these may be asked for at a time, so that no node waits for its next one.

        One where they fill the nodes. It would run beside them where the nodes hold more, or make the cluster grow.
        """
        return int(not self._grows and self._cluster().slots_here(self._each) <= tasks)

    def look(self, waiting: Callable[[], bool] | None = None, lost: str = "") -> None:
        """Tell of lost nodes and of a wait. Asks Ray at most once a second.

        Args:
            waiting: tells whether the stage stands still; None: it does while its workers do not fit on the nodes.
            lost: said behind a lost node.

        Raises:
            NodesMissingError: it has waited for longer than it may.
            RayEndedError: the Ray under this command has ended.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if (away := not head_answers(self._stage)) != self._away:
            self._away = away
            self._say(f"the head of the Ray cluster {'does not answer' if away else 'answers again'}")
        if away:
            return
        before, self._alive = self._alive, _alive()
        for node in _ended(set(before) - set(self._alive)):
            size = before[node["NodeID"]]
            self._say(f"lost node {node['NodeManagerAddress']} ({_size(size)}){f'; {lost}' if lost else ''}")
        if self.fits if waiting is None else not waiting():
            self.arrived()
            return
        self._since = self._since or now
        waited = now - self._since
        if waited > self._limit:
            raise NodesMissingError(
                f"{self._asked()} did not come in {duration(self._limit)}: {autoscaler_report()}",
                f"stage {self._stage}",
                f"finished stages are kept, the same command continues; {WAIT_VARIABLE} sets how long a stage waits",
            )
        lines = sum(waited >= second for second in _LINES_AT) + int(waited // 300)
        if lines > self._told:
            self._told = lines
            why = "nodes that hold them are busy" if self.fits else autoscaler_report()
            self._say(f"waits for {self._asked()}: {duration(waited)} of at most {duration(self._limit)}; {why}")

    def arrived(self) -> None:
        """The wait, if there was one, is over."""
        if self._since is not None:
            waited = time.monotonic() - self._since
            self.waited += waited
            if self._told:
                self._say(f"has its nodes after {duration(waited)}")
        self._since, self._told = None, 0

    def _say(self, text: str) -> None:
        self._tell(f"{self._stage}: {text}")

    def _asked(self) -> str:
        here = min(self._cluster().slots_here(self._each), self._workers)
        return f"{self._workers} x ({self._each.text})" + (f", {here} of them here" if here else "")

    def _cluster(self) -> Cluster:
        return present_cluster(self._alive.values())


def wait_for_first_node(stage: str, workers: int, each: Resources, tell: Tell) -> None:
    """Return when a node is there that holds one of the workers, which can then begin.

    Meanwhile the cluster is asked for all of them, so that it starts their nodes together.

    Raises:
        NodesMissingError: none came in time.
    """
    watch = NodeWatch(stage, 1, each, tell)
    if watch.fits:
        return
    group = placement_group([_bundle(each)] * workers, strategy="PACK")
    try:
        while not (group.wait(timeout_seconds=_LOOK_SECONDS) or watch.fits):
            watch.look(waiting=lambda: True)
        watch.arrived()
    finally:
        remove_placement_group(group)


def waits_for_group(workers: int, each: Resources) -> bool:
    """Whether workers that must start together, such as those of a training, have no room yet."""
    bundles = [_bundle(each)] * workers
    return any(
        group["state"] in ("PENDING", "RESCHEDULING") and list(group["bundles"].values()) == bundles
        for group in placement_group_table().values()
    )


def autoscaler_report() -> str:
    """What Ray's autoscaler says that it does, in one line."""
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except (RayError, RuntimeError, ValueError) as error:
        return f"the autoscaler does not answer ({type(error).__name__})"
    failed = {launch.ray_node_type_name: launch for launch in status.failed_launches}
    parts = [f"could not start {name}: {_line(launch.details)}" for name, launch in failed.items()]
    starting = Counter[str]()
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    starting.update(node.ray_node_type_name for node in status.pending_nodes)
    parts += [f"starts {', '.join(f'{count} {name}' for name, count in starting.items())}"] if starting else []
    return "the autoscaler " + ("; ".join(parts) if parts else "starts no node")


def _bundle(each: Resources) -> dict[str, float]:
    return {"CPU": float(each.cpus), **({"GPU": float(each.gpus)} if each.gpus else {})}


def _alive() -> dict[str, dict[str, float]]:
    """Node id -> resources of the nodes that are alive."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _ended(ids: set[str]) -> list[dict[str, Any]]:
    """Those of the nodes that did not end because nobody needed them."""
    if not ids:
        return []
    return [node for node in ray.nodes() if node["NodeID"] in ids and node.get("DeathReason") != _IDLE]


def _size(resources: dict[str, float]) -> str:
    return Resources(cpus=int(resources.get("CPU", 0)), gpus=int(resources.get("GPU", 0))).text


def _line(text: str | None) -> str:
    return " ".join((text or "no reason given").split())[:300]
