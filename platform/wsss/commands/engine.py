"""What `reproduce.py`, `wsss run` and `wsss plan` share: from options to a plan, from a plan to finished runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from wsss.commands.arguments import locations, select, with_seed
from wsss.commands.methods import UsageError
from wsss.commands.progress import LineObserver, TreeObserver, wants_tree
from wsss.commands.screen import print_plan
from wsss.execution.nodes import Cluster, present_cluster
from wsss.execution.prepare import PreparedRun, RunRequest, prepare_run
from wsss.execution.run import RunResult, execute_run
from wsss.execution.scheduling import check_schedulable, growth_in_words, stage_resources
from wsss.plan import PlannedStage


def build_requests(arguments: argparse.Namespace) -> tuple[RunRequest, ...]:
    """One request a seed; without `--seeds` the seed of the recipe."""
    selection = select(arguments.method, arguments.recipe, arguments.overrides)
    places = locations(arguments)
    seeds = arguments.seeds or (selection.recipe.seed,)
    checkpoint: Path | None = arguments.from_checkpoint
    if checkpoint is not None and len(seeds) > 1:
        raise UsageError(
            "a released model has one seed, its own", "--seeds", "leave --seeds out with --from-checkpoint"
        )
    return tuple(
        RunRequest(
            method=selection.method,
            recipe=with_seed(selection.recipe, seed, "--seeds"),
            recipe_name=selection.recipe_name,
            home=places.home,
            store_url=places.store_url,
            tracking_uri=places.tracking_uri,
            until=arguments.until,
            checkpoint=checkpoint.expanduser().absolute() if checkpoint is not None else None,
        )
        for seed in seeds
    )


def run_title(request: RunRequest) -> str:
    """Method, recipe and seed in one line."""
    if request.checkpoint is not None:
        return f"{request.method.name}, recipe {request.recipe_name}, released model {request.checkpoint.name}"
    return f"{request.method.name}, recipe {request.recipe_name}, seed {request.recipe.seed}"


def show_plan(request: RunRequest) -> None:
    """Print what the run would do.

    Raises:
        SchedulingError: the cluster (of RAY_ADDRESS, else this machine) can never hold a stage.
        WsssError: data, weights or store do not fit.
    """
    prepared = prepare_run(request)
    cluster = cluster_now()
    wanted = {planned.stage.name: _resources(prepared, planned, cluster) for planned in prepared.plan.needed}
    print_plan(prepared.plan, run_title(request), wanted)
    print(f"store: {prepared.store.url}")
    for line in growth_in_words(prepared.plan, prepared.execution, cluster):
        print(line)
    check_schedulable(prepared.plan, prepared.execution, cluster)


def run_all(groups: Sequence[tuple[RunRequest, ...]], ended: Callable[[tuple[RunResult, ...]], None]) -> None:
    """Run one request after the other on one cluster, showing progress, and leave it at the end.

    ended: called with the results of a group as soon as it has run, so that what follows cannot cost its report.
    """
    from wsss.execution.cluster import disconnect

    try:
        for group in groups:
            ended(tuple(_run(prepare_run(request)) for request in group))
    finally:
        disconnect()


def _run(prepared: PreparedRun) -> RunResult:
    planned = prepared.plan.stages
    if wants_tree():
        with TreeObserver(run_title(prepared.request), planned) as observer:
            return execute_run(prepared, observer)
    print(f"{run_title(prepared.request)}: {len(prepared.plan.needed)} of {len(planned)} stages to compute")
    return execute_run(prepared, LineObserver(planned))


def _resources(prepared: PreparedRun, planned: PlannedStage, cluster: Cluster) -> str:
    workers, each = stage_resources(planned.stage, prepared.execution, cluster)
    return f"{workers} x {each.text}"


def cluster_now() -> Cluster:
    """The cluster of RAY_ADDRESS, else this machine, for a look at which no Ray is started."""
    if os.environ.get("RAY_ADDRESS"):
        from wsss.execution.cluster import connect, disconnect

        try:
            return connect()
        finally:
            disconnect()
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return present_cluster([{"CPU": cpus, "GPU": torch.cuda.device_count()}])
