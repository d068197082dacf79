"""Makes a request ready to run: data set, pipeline, store and plan, and every refusal that can come early.

Needs no Ray, so that `wsss plan` starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsss.data.check import preflight
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.told import Told
from wsss.execution.space import check_space
from wsss.method import ExecutionSettings, Method
from wsss.pipeline import ImportStage, Pipeline
from wsss.plan import CostHistory, Plan, PlannedStage, make_plan
from wsss.released import check_checkpoint, pipeline_of
from wsss.store import CHECKPOINTS, Store, open_store
from wsss.weights import check_weights


@dataclass(frozen=True)
class RunRequest:
    """What to run and where results go.

    Attributes:
        recipe_name: name of a shipped recipe or stem of a recipe file, for people.
        home: folder for everything that a run writes (`WSSS_HOME`).
        store_url: folder or s3://bucket/prefix.
        tracking_uri: MLflow address; None for sqlite and a folder below `home`.
        until: last stage to run; None for all.
        checkpoint: file of a released model that stands for the training; None trains.
    """

    method: Method
    recipe: Any
    recipe_name: str
    home: Path
    store_url: str
    tracking_uri: str | None = None
    until: str | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True)
class PreparedRun:
    """A request with its data set, pipeline and plan; nothing has been computed yet."""

    request: RunRequest
    dataset: Dataset
    pipeline: Pipeline
    store: Store
    plan: Plan

    @property
    def execution(self) -> ExecutionSettings:
        """How the run uses the machine."""
        return self.request.recipe.execution

    @property
    def checkpoints(self) -> str:
        """Folder or address below which running trainings keep their checkpoints."""
        if "://" in self.store.url:
            return f"{self.store.url.rstrip('/')}/{CHECKPOINTS}"
        return str(self.request.home.absolute() / CHECKPOINTS)


def prepare_run(request: RunRequest) -> PreparedRun:
    """Everything that can go wrong before an hour is spent goes wrong here. Needs no Ray.

    Raises:
        WsssError: recipe, data set, weights or store do not fit.
    """
    home = request.home.absolute()
    dataset = load_dataset(request.recipe.dataset, home)
    if request.checkpoint is not None:
        check_checkpoint(request.method, request.recipe, dataset, request.checkpoint)
    pipeline = pipeline_of(request.method, request.recipe, dataset, request.checkpoint)
    store = open_store(request.store_url, home / "cache" / "store")
    plan = make_plan(pipeline, dataset, store, CostHistory(home / "costs.json"), request.until)
    if plan.needed or any(planned.damage for planned in plan.stages):
        store.check_writable()
        check_space(plan, store, home)
        trained = [planned.stage for planned in plan.needed if not isinstance(planned.stage, ImportStage)]
        check_weights({path for stage in trained for path in stage.files.values()}, dataset.cache)
        told = Told("pictures and masks are read once", "execution.check_data=headers leaves it out")
        for image_list, reads in used_data(plan.needed).items():
            decode = request.recipe.execution.check_data == "all"
            preflight(dataset, image_list, frozenset(reads), decode, told)
    return PreparedRun(request=request, dataset=dataset, pipeline=pipeline, store=store, plan=plan)


def plan_again(prepared: PreparedRun) -> PreparedRun:
    """The same run with a plan of what the store holds now."""
    costs = CostHistory(prepared.request.home.absolute() / "costs.json")
    plan = make_plan(prepared.pipeline, prepared.dataset, prepared.store, costs, prepared.request.until)
    return replace(prepared, plan=plan)


def used_data(stages: tuple[PlannedStage, ...]) -> dict[str, set[Any]]:
    """Image list -> what the stages read of it."""
    used: dict[str, set[Any]] = {}
    for planned in stages:
        if planned.stage.image_list is not None:
            used.setdefault(planned.stage.image_list, set()).update(planned.stage.reads)
    return used
