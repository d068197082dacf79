"""What a stage asks of the cluster, and whether the cluster can ever hold it. Knows nothing of Ray."""

from __future__ import annotations

from wsss.errors import WsssError
from wsss.execution.nodes import Cluster, NodeType, Resources
from wsss.execution.stage_job import shard_size
from wsss.method import ExecutionSettings
from wsss.pipeline import MapStage, Stage, TrainStage
from wsss.plan import Plan, PlannedStage

MOST_THREADS = 16  # more threads of one training worker do not make it faster


class SchedulingError(WsssError):
    """The cluster can never hold what a stage asks."""


def stage_resources(stage: Stage, execution: ExecutionSettings, cluster: Cluster) -> tuple[int, Resources]:
    """Number of workers of a stage and the resources of each, on the cluster as it can become.

    A worker's threads fit one node, and as many of them as the nodes can hold for so many workers.
    """
    gpus = int(stage.uses_gpu and execution.device != "cpu" and (cluster.gpus > 0 or execution.device == "cuda"))
    if isinstance(stage, TrainStage):
        workers = execution.train_workers or (cluster.slots(Resources(gpus=1)) if gpus else 1) or 1
        fitting = cluster if gpus else cluster.without_idle_gpus()
        threads = execution.threads or max(
            (
                threads
                for threads in range(1, MOST_THREADS + 1)
                if fitting.slots(Resources(cpus=threads, gpus=gpus)) >= workers
            ),
            default=1,
        )
        return workers, Resources(cpus=threads, gpus=gpus)
    each = Resources(gpus=gpus)
    if isinstance(stage, MapStage):
        fitting = cluster if gpus else cluster.without_idle_gpus()
        return execution.map_workers or max(1, fitting.slots(each)), each
    return 1, Resources()


def check_schedulable(plan: Plan, execution: ExecutionSettings, cluster: Cluster) -> None:
    """Refuse a plan at once when the cluster can never hold one of its stages; Ray itself would wait for ever.

    Raises:
        SchedulingError: naming the stage, what it asks and what there can be.
    """
    for planned in plan.needed:
        workers, each = stage_resources(planned.stage, execution, cluster)
        at_once = workers if isinstance(planned.stage, TrainStage) else 1  # or none starts
        slots = cluster.slots(each)
        if slots >= at_once:
            continue
        settings = "execution.device, " if each.gpus else ""
        settings += "execution.train_workers, execution.threads" if isinstance(planned.stage, TrainStage) else ""
        raise SchedulingError(
            f"{at_once} {'worker' if at_once == 1 else 'workers'} with {each.text} each are asked for; "
            f"{slots} fit at a time on {_in_words(cluster)}",
            f"stage {planned.stage.name}" + (f" ({settings.rstrip(', ')})" if settings else ""),
            ("use execution.device=cpu, or " if each.gpus else "")
            + "ask for fewer workers or threads, or use a cluster with more or larger nodes; if this one grows, "
            "WSSS_NODE_TYPES can say by what (cluster/README.md)",
        )


def tasks_of(stage: Stage, workers: int, images: int) -> int:
    """How many of its workers a stage has work for at a time: as many as it has shards."""
    return min(workers, -(-images // shard_size(images)) or 1) if isinstance(stage, MapStage) else workers


def nodes_asked(planned: PlannedStage, execution: ExecutionSettings, cluster: Cluster) -> list[tuple[NodeType, int]]:
    """Node types and the number of nodes that a stage has work for, those that are there already among them."""
    workers, each = stage_resources(planned.stage, execution, cluster)
    workers = tasks_of(planned.stage, workers, planned.images)
    fitting = cluster if each.gpus else cluster.without_idle_gpus()
    return fitting.placed(workers, each)


def growth_in_words(plan: Plan, execution: ExecutionSettings, cluster: Cluster) -> list[str]:
    """What a plan will make a cluster that grows start, and what it can not give; nothing for one that does not."""
    if not cluster.grows:
        return []
    lines = [f"the cluster grows: {_in_words(cluster)}"]
    most: dict[str, tuple[int, list[str]]] = {}
    for planned in plan.needed:
        workers, each = stage_resources(planned.stage, execution, cluster)
        for node_type, count in nodes_asked(planned, execution, cluster):
            known, names = most.get(node_type.name, (0, []))
            most[node_type.name] = max(known, count), [*names, f"{planned.stage.name} {count}"]
        slots = cluster.slots(each)
        if isinstance(planned.stage, MapStage) and workers > slots:
            lines.append(f"{planned.stage.name}: {slots} of {workers} workers fit at a time")
    for name, (count, names) in most.items():
        lines.append(f"asks for up to {count} {name}: {', '.join(names)}")
    return lines


def _in_words(cluster: Cluster) -> str:
    types = [each.text for each in cluster.node_types if each.cpus or each.gpus]
    limit = "" if cluster.room is None or not cluster.grows else f", at most {cluster.room} more in all"
    return (", ".join(types) or "no node with CPUs") + limit
