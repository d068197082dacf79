"""What a stage asks of the cluster, and whether the cluster can ever hold it. Knows nothing of Ray."""

from __future__ import annotations

from dataclasses import dataclass

from wsss.errors import WsssError
from wsss.method import ExecutionSettings
from wsss.pipeline import MapStage, Stage, TrainStage
from wsss.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage asks of the cluster."""

    cpus: float = 1.0
    gpus: float = 0.0


class SchedulingError(WsssError):
    """The cluster can never hold what a stage asks."""


def stage_resources(stage: Stage, execution: ExecutionSettings, cpus: int, gpus: int) -> tuple[int, Resources]:
    """Number of workers of a stage and the resources of each, on a cluster with `cpus` CPUs and `gpus` GPUs."""
    gpu = stage.uses_gpu and execution.device != "cpu" and (gpus > 0 or execution.device == "cuda")
    if isinstance(stage, TrainStage):
        workers = execution.train_workers or (gpus if gpu and gpus else 1)
        threads = execution.threads or max(1, min(cpus // workers if cpus else 1, 16))
        return workers, Resources(cpus=threads, gpus=1.0 if gpu else 0.0)
    if isinstance(stage, MapStage):
        fitting = gpus if gpu else cpus
        return execution.map_workers or max(1, fitting), Resources(cpus=1.0, gpus=1.0 if gpu else 0.0)
    return 1, Resources(cpus=1.0)


def check_schedulable(
    plan: Plan, execution: ExecutionSettings, cpus: int, gpus: int, largest_node_cpus: int, grows: bool
) -> None:
    """Refuse a plan at once when the cluster can never hold one of its stages; Ray itself would wait for ever.

    A cluster that `grows` refuses nothing.

    Raises:
        SchedulingError: naming the stage, what it asks and what there is.
    """
    if grows:
        return
    for planned in plan.needed:
        workers, resources = stage_resources(planned.stage, execution, cpus, gpus)
        count = workers if isinstance(planned.stage, TrainStage) else 1  # at the same time, or none starts
        if count * resources.gpus > gpus:
            raise SchedulingError(
                f"{count * resources.gpus:g} GPUs are asked for and the cluster has {gpus}",
                f"stage {planned.stage.name} (execution.device, execution.train_workers)",
                "use execution.device=cpu, fewer workers, or a cluster with GPUs (WSSS_AUTOSCALING=1 if it grows)",
            )
        if count * resources.cpus > cpus or resources.cpus > largest_node_cpus:
            raise SchedulingError(
                f"{workers} workers with {resources.cpus:g} CPUs each are asked for; the cluster has {cpus} CPUs, "
                f"its largest node {largest_node_cpus}",
                f"stage {planned.stage.name} (execution.train_workers, execution.threads)",
                "ask for fewer workers or threads, or set WSSS_AUTOSCALING=1 if the cluster grows",
            )
