"""The nodes that a cluster has and those that it can grow by. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from wsss.errors import WsssError

# Name of the variable that declares node types where the cluster itself can not be asked.
NODE_TYPES_VARIABLE = "WSSS_NODE_TYPES"


class NodeTypesError(WsssError):
    """The declared node types can not be read."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage asks of one node."""

    cpus: int = 1
    gpus: int = 0

    @property
    def text(self) -> str:
        """`4 CPU + 1 GPU`."""
        return f"{self.cpus} CPU" + (f" + {self.gpus} GPU" if self.gpus else "")


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes of one size.

    Attributes:
        name: of the cluster's configuration; "node" for nodes that belong to none of its types.
        here: nodes that are alive.
        most: nodes that there can be at a time.
    """

    name: str
    cpus: int
    gpus: int = 0
    here: int = 0
    most: int = 0

    @property
    def text(self) -> str:
        """`cpu_worker (16 CPU, 2 of at most 8 here)`."""
        size = Resources(cpus=self.cpus, gpus=self.gpus).text
        return f"{self.name} ({size}, {self.here}{f' of at most {self.most}' if self.most > self.here else ''} here)"

    def holds(self, each: Resources) -> int:
        """Workers that fit on one node at a time."""
        found = [have // asked for have, asked in ((self.cpus, each.cpus), (self.gpus, each.gpus)) if asked]
        return min(found, default=0)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a cluster is and can become.

    Attributes:
        room: how many nodes more there can be, of all types together; None where only the types have limits.
    """

    node_types: tuple[NodeType, ...]
    room: int | None = None

    @property
    def grows(self) -> bool:
        """Whether there can be more nodes than there are."""
        return self.room != 0 and any(each.most > each.here for each in self.node_types)

    @property
    def gpus(self) -> int:
        """GPUs that there can be, up to the limit of each type."""
        return sum(each.most * each.gpus for each in self.node_types)

    def slots(self, each: Resources) -> int:
        """Workers that fit at a time, once the cluster has grown as far as it can."""
        return sum(count * node_type.holds(each) for node_type, count in self.placed(10**9, each))

    def slots_here(self, each: Resources) -> int:
        """Workers that would fit at a time on the nodes that are alive, if nothing else ran there."""
        return sum(node_type.here * node_type.holds(each) for node_type in self.node_types)

    def placed(self, workers: int, each: Resources) -> list[tuple[NodeType, int]]:
        """Node types with the number of nodes that so many workers need, as far as there can be so many.

        Nodes that are alive come first, then types without GPUs for workers that need none, then those that hold most.
        """
        missing, found = workers, dict.fromkeys(self.node_types, 0)
        room = sum(each.most - each.here for each in self.node_types) if self.room is None else self.room
        order = sorted(
            (node_type for node_type in self.node_types if node_type.holds(each)),
            key=lambda node_type: (node_type.gpus > 0 and not each.gpus, -node_type.holds(each)),
        )
        for grown in (False, True):
            for node_type in order:
                there = min(node_type.most - node_type.here, room) if grown else node_type.here
                count = max(0, min(there, -(-missing // node_type.holds(each))))
                found[node_type] += count
                missing -= count * node_type.holds(each)
                room -= count if grown else 0
        return [(node_type, count) for node_type, count in found.items() if count]

    def without_idle_gpus(self) -> Cluster:
        """The part for work that needs no GPU: a growing cluster does not start GPU nodes for it if it has others."""
        plain = tuple(each for each in self.node_types if not each.gpus and each.most * each.cpus)
        gpu_nodes = tuple(replace(each, most=each.here) for each in self.node_types if each.gpus and each.here)
        return replace(self, node_types=(*plain, *gpu_nodes)) if plain else self


def present_cluster(alive: Iterable[Mapping[str, float]]) -> Cluster:
    """The cluster that does not grow beyond the nodes that are alive, each given by its resources."""
    types: dict[tuple[int, int], NodeType] = {}
    for resources in alive:
        size = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        known = types.get(size, NodeType(name="node", cpus=size[0], gpus=size[1]))
        types[size] = replace(known, here=known.here + 1, most=known.most + 1)
    return Cluster(node_types=tuple(types[size] for size in sorted(types)))


def growing_cluster(
    worker_types: Sequence[NodeType], most_workers: int | None, alive: Iterable[Mapping[str, float]]
) -> Cluster:
    """The cluster that grows by these types; a node that is alive belongs to the type of its size."""
    counted = list(worker_types)
    others = []
    for resources in alive:
        size = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        places = [
            place for place, each in enumerate(counted) if size == (each.cpus, each.gpus) and each.here < each.most
        ]
        if places and "node:__internal_head__" not in resources:
            counted[places[0]] = replace(counted[places[0]], here=counted[places[0]].here + 1)
        else:
            others.append(resources)
    room = None if most_workers is None else max(0, most_workers - sum(each.here for each in counted))
    return Cluster(node_types=(*counted, *present_cluster(others).node_types), room=room)


def types_of_configuration(config: Mapping[str, Any]) -> tuple[tuple[NodeType, ...], int | None]:
    """Worker types and the limit over all of them, of a configuration of Ray's cluster launcher."""
    limit = config.get("max_workers")
    types = []
    for name, node_type in config["available_node_types"].items():
        resources, most = node_type.get("resources") or {}, node_type.get("max_workers", limit)
        if name != config["head_node_type"] and most:
            cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            types.append(NodeType(name=name, cpus=cpus, gpus=gpus, most=int(most)))
    return tuple(types), None if limit is None else int(limit)


def declared_types(text: str) -> tuple[NodeType, ...]:
    """Worker types from text such as `{cpu: {CPU: 16, max: 8}, gpu: {CPU: 16, GPU: 1, max: 8}}`.

    Raises:
        NodeTypesError: it is not of this form.
    """
    try:
        declared = yaml.safe_load(text)
        types = []
        for name, each in declared.items():
            if unknown := sorted(map(str, set(each) - {"CPU", "GPU", "max"})):
                raise ValueError(f"{name} has {', '.join(unknown)}")
            cpus, gpus, most = int(each["CPU"]), int(each.get("GPU", 0)), int(each["max"])
            if cpus < 1 or gpus < 0 or most < 1:
                raise ValueError(f"{name} has a number that is too small")
            types.append(NodeType(name=str(name), cpus=cpus, gpus=gpus, most=most))
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise NodeTypesError(
            f"the declared node types can not be read: {reason}",
            f"{NODE_TYPES_VARIABLE}={text}",
            "give resources and the largest number of every type, as in {cpu: {CPU: 16, max: 8}, "
            "gpu: {CPU: 16, GPU: 1, max: 8}}",
        ) from None
    return tuple(types)
