"""The record of a run: one JSON file, saved after every stage, that all later commands read."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsss.errors import WsssError
from wsss.files import write_json

RUN_FILE = "run.json"


class RunRecordError(WsssError):
    """There is no such run, or its record cannot be read or written."""


@dataclass(frozen=True)
class StageResult:
    """Outcome of one stage.

    Attributes:
        status: "executed" now, "cached" (found in the store) or "not_needed" (only fed cached stages).
        seconds: wall time of this run's execution; for a cached stage what its execution took, as its artifact says.
        mode: numeric mode that computed it, "fast" or "parity"; empty where its artifact does not say.
        metrics: numbers of a reduce stage by full name; facts such as images per second of the others.
        rests_on_masks: this stage, or one upstream of it, chose something by looking at masks.
    """

    name: str
    kind: str
    key: str
    status: Literal["executed", "cached", "not_needed"]
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    device: str = "cpu"
    mode: str = ""
    rests_on_masks: bool = False
    imported: bool = False


@dataclass
class RunRecord:
    """One run, finished or not. `checkpoint`: file of the released model that it started from, or empty."""

    run_id: str
    method: str
    recipe_name: str
    recipe: dict[str, Any]
    seed: int
    dataset: str
    store_url: str
    keys: dict[str, str]
    protocol: dict[str, str]
    provenance: dict[str, Any]
    data_digest: str = ""
    status: Literal["running", "finished", "failed"] = "running"
    error: str = ""
    started: float = field(default_factory=time.time)
    ended: float = 0.0
    stages: list[StageResult] = field(default_factory=list)
    checkpoint: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers of all reduce stages."""
        return {name: value for stage in self.stages for name, value in stage.metrics.items()}

    @property
    def executed(self) -> int:
        """How many stages this run computed itself."""
        return sum(stage.status == "executed" for stage in self.stages)

    def save(self, folder: Path) -> None:
        """Write the record in one step.

        Raises:
            RunRecordError: it cannot be written.
        """
        try:
            write_json(folder / RUN_FILE, {**asdict(self), "metrics": self.metrics}, sort_keys=True)
        except OSError as error:
            raise RunRecordError(
                f"the record of the run cannot be written: {error.strerror}",
                str(folder),
                "free some space, or make the home writable, and run again; finished work is kept",
            ) from error

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read the record of a run folder.

        Raises:
            RunRecordError: there is none, or it is not readable.
        """
        path = folder / RUN_FILE
        try:
            content = json.loads(path.read_text())
            content.pop("metrics")
            for stage in content["stages"]:
                if "selects_by_masks" in stage:  # its name in records of earlier versions
                    stage["rests_on_masks"] = stage.pop("selects_by_masks")
            content["stages"] = [StageResult(**stage) for stage in content["stages"]]
            return cls(**content)
        except FileNotFoundError as error:
            raise RunRecordError("there is no such run", str(path), "`wsss ls runs` lists the runs") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunRecordError(f"the record of the run cannot be read: {error}", str(path), "run it again") from error


def find_runs(home: Path) -> list[RunRecord]:
    """All readable runs below `home`, oldest first."""
    records = []
    for path in sorted((home / "runs").glob(f"*/{RUN_FILE}")):
        with suppress(RunRecordError):
            records.append(RunRecord.load(path.parent))
    return records
