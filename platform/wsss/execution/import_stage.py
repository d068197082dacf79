"""Imports a file or folder of the official code as the artifact of a stage."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset
from wsss.execution.numeric_mode import numeric_mode
from wsss.execution.stage_job import StageJob
from wsss.pipeline import ImportStage
from wsss.store import Artifact
from wsss.tracking.provenance import collect_provenance


def run_import_stage(job: StageJob, dataset: Dataset, run_id: str) -> Artifact:
    """Read the stage's file into its artifact and publish it.

    Raises:
        WsssError: the file is not in the layout.
    """
    stage = job.stage
    assert isinstance(stage, ImportStage)
    path = stage.files["checkpoint"]
    writer = job.writer()
    started = time.monotonic()
    with numeric_mode(job.mode):
        stage.read(path, dataset, (), writer)
    provenance = imported_provenance(path, stage.description)
    seconds = round(time.monotonic() - started, 3)
    return writer.publish({**provenance, "mode": job.mode, "seconds": seconds, "run_id": run_id})


def imported_provenance(path: Path, layout: str, note: str = "") -> dict[str, Any]:
    """Provenance of an imported artifact: its source, the digest of the source, and the code that read it."""
    return {
        "imported": True,
        "imported_from": str(path.resolve()),
        "imported_digest": source_digest(path),
        "note": note,
        "layout": layout,
        "created": time.time(),
        "inputs": {},
        "code": collect_provenance().as_dict(),
    }


def source_digest(path: Path) -> str:
    """sha256 over the names and contents of a file or of all files below a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        digest.update(f"{file.relative_to(path) if file != path else file.name}\0".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
