"""Looks whether the nodes of the cluster have what a stage reads, before work is handed to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._raylet import RAY_NODE_ID_KEY  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import RayError

from wsss.data.dataset import Dataset
from wsss.data.errors import DataError
from wsss.data.layout import Place
from wsss.data.origin import Origin
from wsss.errors import WsssError
from wsss.execution.waiting import Tell
from wsss.formatting import byte_count, count
from wsss.weights import fetch_missing

_LOOKED_AT = 3  # pictures that a folder must have
# (node id, root or address of the data set, weight files) of what was found to be there.
_ready: set[tuple[str, str, tuple[Path, ...]]] = set()


class NodeDataError(WsssError):
    """Nodes of the cluster lack what a stage reads."""


@dataclass(frozen=True)
class _Wanted:
    """What a node must have: the data set, some of its pictures, weight files."""

    origin: Origin
    images: Place
    names: tuple[str, ...]
    files: tuple[Path, ...]


def check_nodes(stage: str, dataset: Dataset, files: Sequence[Path], tell: Tell) -> None:
    """Return when every node that is alive and takes work has the data set and the files, fetched where it can be.

    A node that comes later looks by itself, when its first task begins.

    Args:
        files: weight files that the stage reads.
        tell: told what was fetched where.

    Raises:
        NodeDataError: naming each node that lacks something, and what.
    """
    origin = dataset.origin
    if origin is None:
        return
    wanted = _Wanted(
        origin, dataset.view({"images"}, None).images or dataset.files.images(), _some(dataset), tuple(files)
    )
    mine = ray.get_runtime_context().get_node_id()
    asked = {}
    for node in ray.nodes():
        known = (node["NodeID"], dataset.source, wanted.files)
        if node["Alive"] and node["NodeID"] != mine and node["Resources"].get("CPU") and known not in _ready:
            task = _look.options(label_selector={RAY_NODE_ID_KEY: node["NodeID"]})
            asked[known] = (node, task.remote(wanted))
    problems = []
    for known, (node, reference) in asked.items():
        try:
            received: Any = ray.get(reference)
        except RayError as error:
            if node["NodeID"] in {each["NodeID"] for each in ray.nodes() if each["Alive"]}:
                problems.append(f"node {node['NodeManagerAddress']}: {str(error).strip().splitlines()[-1]}")
            continue  # else it is gone, and with it the question
        if isinstance(received, WsssError):
            where = f" ({received.where})" if received.where else ""
            problems.append(f"node {node['NodeManagerAddress']}: {received.what}{where}; {received.remedy}")
        else:
            _ready.add(known)
            if received:
                tell(f"node {node['NodeManagerAddress']}: fetched {byte_count(received)} of the data set")
    if problems:
        raise NodeDataError(
            "\n".join([f"{count(len(problems), 'node')} cannot take the work:", *(f"  - {each}" for each in problems)]),
            f"stage {stage}, data set {dataset.source}",
            "put the data set on a folder that all nodes share at this path, or into an object store: "
            "`wsss data push` (cluster/README.md)",
        )


def _some(dataset: Dataset) -> tuple[str, ...]:
    names = dataset.names(None)
    return names[:: max(1, len(names) // _LOOKED_AT)][:_LOOKED_AT]


@ray.remote(num_cpus=0, max_retries=1, scheduling_strategy="DEFAULT")
def _look(wanted: _Wanted) -> int | WsssError:
    """Bytes that this node has fetched now; what it lacks."""
    try:
        received = 0
        if wanted.origin.address:
            from wsss.data.fetched import fetch_packed

            received = fetch_packed(wanted.origin.address, wanted.origin.home_here(), wanted.origin.digest).received
        for name in wanted.names:
            if not (path := wanted.images.path(name)).is_file():
                raise DataError("the data set is not there", str(path), "this node does not share that folder")
        files = [wanted.origin.here(path) for path in wanted.files]
        fetch_missing(files, lambda text: None)
        for path in files:
            if not path.is_file():
                raise DataError("a weight file is not there", str(path), "copy it there, or to a folder that is shared")
    except WsssError as error:
        return error
    return received
