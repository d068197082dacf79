"""What is written down of a run: its record, the outcome of each stage, its tags in MLflow."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Literal

from wsss.execution.prepare import PreparedRun, used_data
from wsss.execution.stage_job import load_metrics
from wsss.pipeline import Pipeline, ReduceStage, TrainStage
from wsss.plan import PlannedStage
from wsss.recipe import to_dict
from wsss.run_record import RunRecord, StageResult, find_runs
from wsss.store import Artifact
from wsss.tracking.provenance import collect_provenance
from wsss.weights import file_digest


def open_record(prepared: PreparedRun) -> tuple[RunRecord, Path]:
    """The record and the folder of the unfinished run with the same keys, or of a new run."""
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


def stage_tags(planned: PlannedStage) -> dict[str, str]:
    return {
        "stage": planned.stage.name,
        "stage_kind": planned.stage.kind,
        "stage_key": planned.key,
        "split": planned.stage.image_list or "",
        "seed": str(planned.stage.seed) if isinstance(planned.stage, TrainStage) else "",
    }
