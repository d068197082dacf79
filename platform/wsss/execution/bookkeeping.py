"""What is written down of a run: its record, the outcome of each stage, its tags in MLflow."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from wsss.execution.prepare import PreparedRun, used_data
from wsss.execution.stage_job import HISTORY_FILE, load_metrics
from wsss.files import LockHeld, locked
from wsss.pipeline import Pipeline, ReduceStage, Stage, TrainStage
from wsss.plan import PlannedStage
from wsss.recipe import key_values, to_dict
from wsss.run_record import RunRecord, StageResult, find_runs
from wsss.store import Artifact
from wsss.tracking.provenance import collect_provenance
from wsss.weights import file_digest

_CURVE_POINTS = 500  # of a curve on the page of a run; its stage's page has every step
# Run folders of this process; each holds its lock.
_claims: dict[Path, ExitStack] = {}


def open_record(prepared: PreparedRun) -> tuple[RunRecord, Path]:
    """The record and the folder of the unfinished run with the same keys, recipe and store, or of a new run.

    A run that another process has under way is left to it: what both need is computed once all the same.
    """
    request = prepared.request
    runs = request.home.absolute() / "runs"
    keys = {planned.stage.name: planned.key for planned in prepared.plan.stages}
    seed = int(request.recipe.seed)
    wanted = (request.method.name, request.recipe_name, prepared.store.url, keys)
    for found in reversed(find_runs(request.home.absolute())):
        folder = runs / found.run_id
        same = (found.method, found.recipe_name, found.store_url, found.keys) == wanted
        if not same or found.status == "finished" or not _claim(folder):
            continue
        record = RunRecord.load(folder)  # its process may have finished it before the claim
        if record.status != "finished":
            record.status, record.error = "running", ""
            record.recipe = to_dict(request.recipe)  # what is in no key may be another: paths, workers
            record.provenance = collect_provenance().as_dict()
            return record, folder
    folder = _new_folder(runs, f"{time.strftime('%Y%m%d-%H%M%S')}-{request.method.name}-{request.recipe_name}-s{seed}")
    record = RunRecord(
        run_id=folder.name,
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
    record.save(folder)
    return record, folder


def _new_folder(runs: Path, stem: str) -> Path:
    """A folder that no other process has, claimed: runs may begin in one second."""
    for count in itertools.count(1):
        folder = runs / (stem if count == 1 else f"{stem}-{count}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            _claim(folder)
            return folder
    raise AssertionError("counting has no end")


def _claim(folder: Path) -> bool:
    """Whether the run is this process's from now on; the lock is free when the process ends."""
    if folder not in _claims:
        stack = ExitStack()
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except LockHeld:
            return False
        _claims[folder] = stack
    return True


def _protocol(prepared: PreparedRun) -> dict[str, str]:
    """Protocol of the pipeline, with the facts that only the run knows."""
    facts = {**prepared.pipeline.protocol, "masks": prepared.dataset.files.mask_provenance}
    checkpoint = prepared.request.checkpoint
    if checkpoint is not None:
        stage = prepared.pipeline.stages[0].name
        facts["released model"] = f"{checkpoint.name}, sha256 {file_digest(checkpoint)}, in place of {stage}"
    return facts


def data_digest(prepared: PreparedRun) -> str:
    """Digest (16 hex digits) of all that the stages of a run read of the data set."""
    digests = [
        f"{image_list}:{prepared.dataset.digest(image_list, frozenset(reads))}"
        for image_list, reads in sorted(used_data(prepared.plan.stages).items())
    ]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def stage_result(
    pipeline: Pipeline, planned: PlannedStage, artifact: Artifact | None, status: Literal["executed", "cached"]
) -> StageResult:
    """The outcome of a stage, read from its artifact. A stage without an artifact was not needed."""
    stage = planned.stage
    if artifact is None:
        return StageResult(stage.name, stage.kind, planned.key, "not_needed", 0.0)
    provenance = artifact.provenance
    return StageResult(
        name=stage.name,
        kind=stage.kind,
        key=planned.key,
        status=status,
        seconds=float(provenance.get("seconds", 0.0)),
        metrics=load_metrics(artifact) if isinstance(stage, ReduceStage) else {},
        facts=dict(provenance.get("facts", {})),
        workers=int(provenance.get("workers", 0)),
        device=str(provenance.get("device", "cpu")),
        mode=str(provenance.get("mode", "")),
        rests_on_masks=any(stage.name in pipeline.downstream(each.name) for each in pipeline if each.chooses_by_masks),
        imported=bool(provenance.get("imported", False)),
    )


def run_tags(prepared: PreparedRun, record: RunRecord) -> dict[str, str]:
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


def run_note(record: RunRecord) -> str:
    """What people read on the page of a run, Markdown."""
    facts = "\n".join(f"- {name}: {text}" for name, text in record.protocol.items())
    return (
        f"**{record.method}**, recipe `{record.recipe_name}`, seed {record.seed}, on {record.dataset}.\n\n"
        f"- run: `{record.run_id}`; where a number comes from: `wsss explain {record.run_id} NUMBER`\n"
        "- report with image grids and verdicts: artifacts, `report/index.html`\n"
        f"- stages: the runs nested in this one; their curves stand here as `STAGE/LOSS`\n\nProtocol\n\n{facts}\n"
    )


def stage_params(stage: Stage) -> dict[str, Any]:
    """What a stage's numbers depend on, for its run in MLflow: its own settings, and the seed of a training."""
    seed = {"seed": stage.seed} if isinstance(stage, TrainStage) else {}
    return {**key_values(stage.config), **seed}


def curves_of(stage: Stage, artifact: Artifact) -> dict[str, list[tuple[int, float]]]:
    """Losses of a training for the run that it belongs to: `STAGE/LOSS` -> (step, value), `_CURVE_POINTS` at most."""
    if not isinstance(stage, TrainStage) or HISTORY_FILE not in artifact.files:
        return {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, values in artifact.json(HISTORY_FILE).items():
        every = max(1, -(-len(values) // _CURVE_POINTS))
        kept = [(step, value) for step, value in enumerate(values, start=1) if step % every == 0 or step == len(values)]
        curves[f"{stage.name}/{name}"] = [(step, value) for step, value in kept if math.isfinite(value)]
    return curves


def stage_tags(planned: PlannedStage) -> dict[str, str]:
    return {
        "stage": planned.stage.name,
        "stage_kind": planned.stage.kind,
        "stage_key": planned.key,
        "split": planned.stage.image_list or "",
        "seed": str(planned.stage.seed) if isinstance(planned.stage, TrainStage) else "",
    }
