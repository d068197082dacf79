"""Runs a pipeline: plan, preflight, one stage after the other, everything recorded.

Whatever a stage finished is in the store; whatever a run learned is in its `run.json`. The same command
after a crash continues the same run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wsss.data.check import preflight
from wsss.data.dataset import Dataset, load_dataset
from wsss.execution.scheduling import check_schedulable, stage_resources
from wsss.execution.stage_job import StageJob, bind_job, publish_stage
from wsss.formatting import percent
from wsss.method import ExecutionSettings, Method
from wsss.pipeline import ImportStage, MapStage, Pipeline, ReduceStage, Resources, Stage, TrainStage
from wsss.plan import CostHistory, Plan, PlannedStage, make_plan
from wsss.recipe import flat_dict, to_dict
from wsss.released import check_checkpoint, pipeline_of
from wsss.run_record import RunRecord, StageResult, find_runs
from wsss.store import Artifact, Store, open_store
from wsss.tracking.provenance import collect_provenance
from wsss.tracking.tracker import RunStatus, TrackedRun, open_tracker
from wsss.weights import fetch_missing, file_digest


class RunObserver(Protocol):
    """Who is shown the progress of a run."""

    def start(self, stage: str, total: int, unit: str) -> None: ...
    def update(self, stage: str, done: int, note: str = "") -> None: ...
    def finish(self, stage: str, seconds: float, summary: str) -> None: ...
    def message(self, text: str) -> None: ...


class StageLog(Protocol):
    """Where the numbers of a stage execution go; a `TrackedRun` is one."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...
    def series(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None: ...
    def finish(self, status: RunStatus = "FINISHED") -> None: ...


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


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    record: RunRecord
    untracked: str = ""


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
    costs = CostHistory(home / "costs.json")
    plan = make_plan(pipeline, dataset, store, costs, request.until)
    if plan.needed:
        store.check_writable()
        for image_list, reads in _needed_data(plan).items():
            preflight(dataset, image_list, frozenset(reads))
    return PreparedRun(request=request, dataset=dataset, pipeline=pipeline, store=store, plan=plan)


def execute_run(prepared: PreparedRun, observer: RunObserver) -> RunResult:
    """Compute what is missing, record everything, and return the record.

    Raises:
        WsssError: a stage failed; all stages before it are in the store and in the record.
    """
    request = prepared.request
    home = request.home.absolute()
    record, folder = _open_record(prepared)
    experiment = f"{prepared.dataset.name}/{request.method.name}"
    tracker = open_tracker(request.tracking_uri, home, experiment)
    parent = tracker.run(
        key=record.run_id,
        name=f"{request.recipe_name}, seed {record.seed}",
        tags=_run_tags(prepared, record),
        params=flat_dict(request.recipe),
        dataset=(prepared.dataset.name, str(prepared.dataset.root), record.data_digest),
    )
    artifacts: dict[str, Artifact] = {}
    try:
        if prepared.plan.needed:
            fetch_missing(prepared.plan.downloads, observer.message)
            _connect(prepared)
        for planned in prepared.plan.stages:
            result = _settle_stage(prepared, planned, artifacts, observer, record, tracker, parent)
            record.stages = [stage for stage in record.stages if stage.name != result.name] + [result]
            record.save(folder)
            parent.metrics(result.metrics)
        record.status, record.ended = "finished", time.time()
        record.save(folder)
        parent.finish("FINISHED")
    except BaseException as error:
        record.status, record.ended = "failed", time.time()
        record.error = str(error) or type(error).__name__
        record.save(folder)
        parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        tracker.close(wait_seconds=5)
        raise
    return RunResult(folder=folder, record=record, untracked=tracker.close(wait_seconds=20).message)


def _settle_stage(
    prepared: PreparedRun,
    planned: PlannedStage,
    artifacts: dict[str, Artifact],
    observer: RunObserver,
    record: RunRecord,
    tracker: Any,
    parent: TrackedRun,
) -> StageResult:
    stage = planned.stage
    artifact, seconds, status = planned.artifact, 0.0, "cached"
    workers, device = 0, "cpu"
    if artifact is None and not planned.needed:
        return StageResult(stage.name, stage.kind, planned.key, "not_needed", 0.0)
    if artifact is None:
        with prepared.store.single_flight(
            stage.name,
            planned.key,
            on_wait=lambda holder: observer.message(f"{stage.name}: another run computes it ({holder}); waiting"),
        ):
            artifact = prepared.store.find(stage.name, planned.key)  # it may have been computed while we waited
            if artifact is None:
                tracked = tracker.run(
                    key=f"{record.run_id}/{stage.name}",
                    name=stage.name,
                    tags={**_stage_tags(planned), "run_id": record.run_id},
                    params={},
                    parent=parent,
                )
                try:
                    artifact = compute_stage(
                        prepared, planned, artifacts, observer, tracked, record.run_id, record.provenance
                    )
                except BaseException:
                    tracked.finish("FAILED")
                    raise
                status = "executed"
    artifacts[stage.name] = artifact
    provenance = artifact.provenance
    seconds = float(provenance.get("seconds", 0.0))
    workers, device = int(provenance.get("workers", 0)), str(provenance.get("device", "cpu"))
    metrics: dict[str, float] = {}
    if isinstance(stage, ReduceStage):
        from wsss.execution.map_stage import load_reduction

        metrics = load_reduction(artifact).metrics
    return StageResult(
        name=stage.name,
        kind=stage.kind,
        key=planned.key,
        status=status,  # pyright: ignore[reportArgumentType]
        seconds=seconds,
        metrics=metrics,
        facts=dict(provenance.get("facts", {})),
        workers=workers,
        device=device,
        rests_on_masks=stage.name in _behind_masks(prepared.pipeline),
        imported=bool(provenance.get("imported", False)),
    )


def _behind_masks(pipeline: Pipeline) -> set[str]:
    """Stages that choose something by masks, and all whose numbers rest on that choice."""
    return set().union(*(pipeline.downstream(stage.name) for stage in pipeline if stage.chooses_by_masks))


def compute_stage(
    prepared: PreparedRun,
    planned: PlannedStage,
    artifacts: Mapping[str, Artifact],
    observer: RunObserver,
    tracked: StageLog,
    run_id: str,
    code: Mapping[str, Any],
) -> Artifact:
    """Compute and publish one stage. The caller holds its single flight and has looked for it in the store.

    Args:
        artifacts: stage name -> artifact, of all that the stage reads.
        run_id, code: who computes it, and the provenance of the code, for the artifact's manifest.

    Raises:
        WsssError: what the stage raised.
    """
    from wsss.execution.cluster import capacity
    from wsss.execution.import_stage import run_import_stage
    from wsss.execution.map_stage import run_map_stage, run_reduce_stage

    stage, execution = planned.stage, prepared.execution
    fetch_missing(stage.files.values(), observer.message)  # a setting of a sweep may need a file of its own
    job = bind_job(stage, planned.key, prepared.dataset, prepared.store, artifacts)
    started = time.monotonic()
    if isinstance(stage, ImportStage):
        observer.start(stage.name, 1, "file")
        artifact = run_import_stage(job, prepared.dataset, run_id)
        tracked.finish("FINISHED")
        observer.finish(stage.name, time.monotonic() - started, "released model taken in")
        return artifact
    have = capacity()
    workers, resources = stage_resources(stage, execution, int(have.cpus), int(have.gpus))
    gpu = resources.gpus > 0
    facts: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    if isinstance(stage, TrainStage):
        facts = _train(prepared, job, workers, resources, observer, tracked)
    elif isinstance(stage, MapStage):
        observer.start(stage.name, len(job.view.names), "images")
        facts = run_map_stage(job, workers, gpu, lambda done, total: observer.update(stage.name, done))
    else:
        observer.start(stage.name, 1, "pass")
        metrics = run_reduce_stage(job).metrics
        tracked.metrics(metrics)
    seconds = time.monotonic() - started
    artifact = publish_stage(job, seconds, workers, gpu, facts, run_id, code)
    preview = stage.preview if isinstance(stage, TrainStage) else None
    if not facts.get("resumed_images") and not facts.get("resumed_steps") and preview is None:
        CostHistory(prepared.request.home.absolute() / "costs.json").record(stage, planned.images, seconds)
    tracked.metrics({"seconds": seconds, **{name: float(value) for name, value in facts.items()}})
    tracked.finish("FINISHED")
    observer.finish(stage.name, seconds, _summary(stage, facts, metrics))
    return artifact


def _train(
    prepared: PreparedRun, job: StageJob, workers: int, resources: Resources, observer: RunObserver, tracked: StageLog
) -> dict[str, Any]:
    from wsss.execution.train_loop import LoopSettings
    from wsss.execution.train_stage import TrainPlan, remove_checkpoints, run_train_stage

    execution = prepared.execution
    gpu = resources.gpus > 0
    plan = TrainPlan(
        workers=workers,
        gpu=gpu,
        threads=int(resources.cpus),
        settings=LoopSettings(
            micro_batch=execution.micro_batch,
            loader_workers=execution.loader_workers,
            checkpoint_steps=execution.checkpoint_steps,
            channels_last=execution.mode == "fast",
        ),
        max_failures=execution.max_failures,
        checkpoints=checkpoints_place(prepared),
        parity=execution.mode == "parity",
        forbidden_folders=() if "masks" in job.stage.reads else prepared.dataset.mask_folders,
    )
    observer.start(job.stage.name, 0, "steps")

    def show(total: int, steps: list[tuple[int, dict[str, float]]]) -> None:
        done, losses = steps[-1]
        observer.start(job.stage.name, total, "steps")
        observer.update(job.stage.name, done, f"loss {losses['loss']:.4f}")
        names = {name for _, values in steps for name in values}
        tracked.series({name: [(step, values[name]) for step, values in steps if name in values] for name in names})

    _, facts = run_train_stage(job, plan, show)
    if isinstance(job.stage, TrainStage) and job.stage.preview is None:
        remove_checkpoints(plan, job)
    return facts


def checkpoints_place(prepared: PreparedRun) -> str:
    """Folder or address below which running trainings keep their checkpoints."""
    store_url = prepared.store.url
    if "://" in store_url:
        return f"{store_url.rstrip('/')}/checkpoints"
    return str(prepared.request.home.absolute() / "checkpoints")


def _connect(prepared: PreparedRun) -> None:
    from wsss.execution.cluster import connect

    have = connect()
    check_schedulable(
        prepared.plan,
        prepared.execution,
        int(have.cpus),
        int(have.gpus),
        int(have.largest_node_cpus),
        have.autoscaling,
    )


def _open_record(prepared: PreparedRun) -> tuple[RunRecord, Path]:
    """The unfinished run of the same keys, or a new one."""
    request = prepared.request
    runs = request.home.absolute() / "runs"
    keys = {planned.stage.name: planned.key for planned in prepared.plan.stages}
    seed = int(request.recipe.seed)
    for record in reversed(find_runs(request.home.absolute())):
        if record.status != "finished" and record.keys == keys and record.method == request.method.name:
            record.status, record.error = "running", ""
            record.provenance = collect_provenance().as_dict()
            return record, runs / record.run_id
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{request.method.name}-{request.recipe_name}-s{seed}"
    run_id, count = stem, 1
    while (runs / run_id).exists():
        count += 1
        run_id = f"{stem}-{count}"
    record = RunRecord(
        run_id=run_id,
        method=request.method.name,
        recipe_name=request.recipe_name,
        recipe=to_dict(request.recipe),
        seed=seed,
        dataset=prepared.dataset.name,
        store_url=prepared.store.url,
        keys=keys,
        protocol=_protocol(prepared),
        checkpoint=str(request.checkpoint.resolve()) if request.checkpoint is not None else "",
        provenance=collect_provenance().as_dict(),
        data_digest=data_digest(prepared),
    )
    record.save(runs / run_id)
    return record, runs / run_id


def _protocol(prepared: PreparedRun) -> dict[str, str]:
    """The pipeline's, and what only the run knows."""
    facts = {**prepared.pipeline.protocol, "masks": prepared.dataset.files.mask_provenance}
    checkpoint = prepared.request.checkpoint
    if checkpoint is not None:
        stage = prepared.pipeline.stages[0].name
        facts["released model"] = f"{checkpoint.name}, sha256 {file_digest(checkpoint)}, in place of {stage}"
    return facts


def data_digest(prepared: PreparedRun) -> str:
    """Digest (16 hex digits) of all that the stages of a run read of the data set."""
    import hashlib

    digests = [
        f"{image_list}:{prepared.dataset.digest(image_list, frozenset(reads))}"
        for image_list, reads in sorted(_used_data(prepared.plan.stages).items())
    ]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def _needed_data(plan: Plan) -> dict[str, set[Any]]:
    return _used_data(plan.needed)


def _used_data(stages: tuple[PlannedStage, ...]) -> dict[str, set[Any]]:
    used: dict[str, set[Any]] = {}
    for planned in stages:
        if planned.stage.image_list is not None:
            used.setdefault(planned.stage.image_list, set()).update(planned.stage.reads)
    return used


def _run_tags(prepared: PreparedRun, record: RunRecord) -> dict[str, str]:
    selects = [stage.name for stage in prepared.pipeline if stage.chooses_by_masks]
    return {
        "method": record.method,
        "dataset": record.dataset,
        "recipe": record.recipe_name,
        "seed": str(record.seed),
        "data_manifest": record.data_digest,
        **collect_provenance().tags(),
        "selection": f"by masks: {', '.join(selects)}" if selects else "none",
        **{f"protocol.{name}": text for name, text in record.protocol.items()},
    }


def _stage_tags(planned: PlannedStage) -> dict[str, str]:
    return {
        "stage": planned.stage.name,
        "stage_kind": planned.stage.kind,
        "stage_key": planned.key,
        "split": planned.stage.image_list or "",
        "seed": str(planned.stage.seed) if isinstance(planned.stage, TrainStage) else "",
    }


def _summary(stage: Stage, facts: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    mious = [f"{name} {percent(value)} %" for name, value in metrics.items() if "/miou_" in name][:2]
    if mious:
        return ", ".join(mious)
    rate = facts.get("images_per_second")
    return f"{rate:.1f} images/s" if rate else ""
