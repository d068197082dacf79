"""Keeps the records of a sweep while it runs, and fills the Optuna study and MLflow from them.

The trial files are written first; what is derived from them is brought up to date when a sweep begins, so that a
kill between the two costs nothing and counts nothing twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from wsss.errors import WsssError
from wsss.search.choose.best import best_of
from wsss.search.evaluate.trial import TrialOutcome
from wsss.search.propose.nested import ProposedTrial
from wsss.search.propose.samplers import DIRECTIONS, study_trial
from wsss.search.records import SweepRecord, TrialRecord, executed_stages, load_trials, value_text
from wsss.search.study.database import AWAY_SECONDS, PAUSE_SECONDS, is_lost, while_it_restarts
from wsss.tracking.names import cut_text
from wsss.tracking.redact import redact_text
from wsss.tracking.tracker import Tracker
from wsss.tracking.view import TRIAL_TAG

COST = "cost_seconds"
_NUMBER = "trial"
_NAME_CHARACTERS = 80  # of a trial in MLflow
_NUMBERS = ("threshold", "quoted", "oracle", "chosen", "held_out", "label_free")


class StudyError(WsssError):
    """The database of the study cannot be used."""


class Ledger:
    """The records of one sweep. One process at a time; see `wsss.search.sweep` for the lock.

    Args:
        record: as it is to be continued.
        tracker: MLflow; None writes nothing there.
        study_url: SQLAlchemy address of the study's database.
    """

    def __init__(self, record: SweepRecord, folder: Path, tracker: Tracker | None, study_url: str) -> None:
        self.record = record
        self.folder = folder
        self.trials = {trial.number: trial for trial in load_trials(folder)}
        self._wall_before, self._opened = record.wall_seconds, time.monotonic()
        self._declared = False
        self._tracker = tracker
        self._study = _open_study(record, study_url)
        self._in_study = _numbers(self._study)
        self._given_up = make_url(study_url).get_backend_name() == "sqlite"  # a file does not start again
        # A database answers in tens of milliseconds, which must not hold up the next batch.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wsss-study")
        self._written: list[Future[None]] = []
        self._parent = None
        if tracker is not None:
            self._parent = tracker.run(key=record.sweep_id, name=f"sweep {record.sweep_id}", tags=_tags(record))
            self._parent.params(
                {
                    "space": {
                        key.key: f"{key.kind} {key.text} ({key.level}, stage {key.stage or 'none'})"
                        for key in record.space
                    },
                    "search": _search(record),
                }
            )
        for trial in self.trials.values():
            if trial.status != "running":
                self._pass_on(trial)

    def begin(self, proposed_trials: Sequence[ProposedTrial]) -> None:
        """Trials that are handed out; those that were handed out before keep their record."""
        for proposed in proposed_trials:
            if proposed.number not in self.trials:
                self._put(
                    TrialRecord(
                        number=proposed.number,
                        outer=proposed.outer,
                        inner=proposed.inner,
                        outer_key=proposed.outer_key,
                        batch=proposed.batch,
                    )
                )

    def finish(
        self, outcome: TrialOutcome, pruned: str = "", stopped_at: tuple[int, float] | None = None
    ) -> TrialRecord:
        """The outcome of a trial, on disk when this returns. `pruned`: why it was stopped early, at `stopped_at`."""
        before = self.trials[outcome.number]
        score = outcome.score
        if score is not None and not math.isfinite(score.value):
            outcome, score = (
                replace(outcome, error="the metric is undefined: no pixel of a known class was scored"),
                None,
            )
        found: dict[str, Any] = {}
        if score is not None:
            found = {name: value for name, value in vars(score).items() if name != "value"}
            found["values"] = self._objectives(score.value, outcome.cost_seconds)
        failed = "failed" if outcome.error or score is None else "finished"
        trial = replace(
            before,
            status="pruned" if pruned else failed,
            reason=pruned or outcome.error,
            stopped_at=stopped_at if pruned else None,
            previews=outcome.previews,
            race=outcome.race,
            metrics=outcome.metrics,
            stages=outcome.stages,
            artifacts=outcome.artifacts,
            cost_seconds=outcome.cost_seconds,
            spent_seconds=outcome.spent_seconds,
            seed=outcome.seed,
            ended=time.time(),
            **found,
        )
        if self._tracker is not None:
            parts = [stage.name for stage in trial.stages if stage.executed]
            trial = replace(
                trial, run_ids=tuple(f"{self._key(trial)}{part}" for part in ["", *(f"/{p}" for p in parts)])
            )
        self._put(trial)
        self._pass_on(trial)
        return trial

    def update(self, **changes: Any) -> None:
        """Change fields of the sweep's record; totals and the best so far are brought up to date with it."""
        self._declared = self._declared or "best" in changes
        if not self._declared:
            changes.setdefault("best", best_of(self._all(), self.record.metric, self.record.space, self.record.select))
        ended = [trial for trial in self.trials.values() if trial.status != "running"]
        stages = [stage for trial in ended for stage in trial.stages]
        computed = executed_stages(ended)
        given = sum(stage.seconds for stage in stages if (stage.name, stage.key) not in computed)
        self.record = replace(
            self.record,
            asked=len(stages),
            executed=sum(stage.executed for stage in stages),
            served=sum(not stage.executed for stage in stages),
            independent_seconds=max(0.0, sum(trial.cost_seconds for trial in ended) - given),
            executed_seconds=sum(trial.spent_seconds for trial in ended),
            wall_seconds=self._wall_before + time.monotonic() - self._opened,
            **changes,
        )
        self.record.save(self.folder)

    def close(self) -> None:
        """Write what is left to the study and end the tracked run."""
        self._given_up |= self.record.status != "finished"  # who stops a sweep does not wait for a server
        self._writer.shutdown(wait=True)
        errors = [error for write in self._written if (error := write.exception()) is not None]
        if errors:  # the records are whole; the next time the sweep is opened, what is missing is added
            note = f"{len(errors)} trials are not in the study yet: {type(errors[0]).__name__}: {errors[0]}"
            self.update(notes=(*self.record.notes, redact_text(note)))
        if self._parent is not None:
            record = self.record
            totals = {
                "stages_asked": record.asked,
                "stages_executed": record.executed,
                "stages_served": record.served,
                "independent_seconds": record.independent_seconds,
                "executed_seconds": record.executed_seconds,
                "wall_seconds": record.wall_seconds,
            }
            self._parent.metrics({name: float(value) for name, value in totals.items()})
            if record.best is not None:
                self._parent.metrics(
                    {record.metric: record.best.reported, f"{record.metric}_default": record.best.default_reported}
                )
                self._parent.params({"best": record.best.settings})
            statuses = {"finished": "FINISHED", "failed": "FAILED"}
            self._parent.finish(statuses.get(record.status, "KILLED"))  # pyright: ignore[reportArgumentType]

    def _objectives(self, value: float, cost: float) -> dict[str, float]:
        every = {self.record.metric: value, COST: cost}
        return {name: every[name] for name in self.record.objectives}

    def _all(self) -> list[TrialRecord]:
        return list(self.trials.values())

    def _put(self, trial: TrialRecord) -> None:
        self.trials[trial.number] = trial
        trial.save(self.folder)

    def _pass_on(self, trial: TrialRecord) -> None:
        if trial.number not in self._in_study:
            self._in_study.add(trial.number)
            self._written.append(self._writer.submit(self._add_patiently, trial))
        if self._tracker is not None:
            self._track(trial)

    def _add_patiently(self, trial: TrialRecord) -> None:
        """As `_add_to_study`; a server that is away is asked again for two minutes, and then no more in this sweep."""
        tries, deadline = 0, time.monotonic() + AWAY_SECONDS
        while True:
            try:
                # What was written when the connection broke is not written again.
                if not tries or trial.number not in _numbers(self._study):
                    self._add_to_study(trial)
                return
            except Exception as error:
                lost = is_lost(error)
                if not lost or self._given_up or time.monotonic() > deadline:
                    self._given_up |= lost
                    raise
            tries += 1
            time.sleep(PAUSE_SECONDS)

    def _add_to_study(self, trial: TrialRecord) -> None:
        states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        attributes = {
            _NUMBER: trial.number,
            "outer_key": trial.outer_key,
            "cost_seconds": trial.cost_seconds,
            "spent_seconds": trial.spent_seconds,
            **{
                name: value
                for name in ("reason", *_NUMBERS, "default_value", "low", "high")
                if (value := getattr(trial, name)) not in (None, "")
            },
            **({f"race_{name}": value for name, value in asdict(trial.race).items()} if trial.race else {}),
        }
        values = list(trial.values.values()) if trial.status == "finished" else None
        keys = [key for key in self.record.space if key.level in ("outer", "inner")]
        span = (trial.started, max(trial.ended, trial.started))
        self._study.add_trial(study_trial(keys, trial.settings, states[trial.status], values, attributes, span))

    def _key(self, trial: TrialRecord) -> str:
        return f"{self.record.sweep_id}/trial-{trial.number:05d}"

    def _track(self, trial: TrialRecord) -> None:
        assert self._tracker is not None
        tags = {
            **_tags(self.record),
            TRIAL_TAG: trial.number,
            "outer_key": trial.outer_key,
            "status": trial.status,
            "reason": trial.reason or None,
            **{f"stage.{stage.name}": f"{stage.key} ({_how(stage.executed)})" for stage in trial.stages},
        }
        run = self._tracker.run(
            key=self._key(trial), name=_trial_name(trial), parent=self._parent, tags=tags, params=trial.settings
        )
        numbers = {
            **trial.metrics,
            **{
                f"search/{name}": value
                for name in (*_NUMBERS, "low", "high", "cost_seconds", "spent_seconds")
                if (value := getattr(trial, name)) is not None
            },
            **{tracked(name): value for name, value in trial.values.items()},
        }
        if trial.race is not None and trial.race.estimate is not None:
            # So that trials that lost a race have their line among the parallel coordinates.
            numbers[tracked(self.record.metric)] = trial.race.estimate
        run.metrics(numbers)
        for name in dict.fromkeys(each.metric for each in trial.previews):
            seen = [(each.epoch, each.value) for each in trial.previews if each.metric == name]
            run.series({f"while_training/{name}": seen})
        if trial.curve:
            run.series({"search/curve": [(round(1000 * point.threshold), point.value) for point in trial.curve]})
        for stage in trial.stages:
            if stage.executed:
                nested = self._tracker.run(
                    key=f"{self._key(trial)}/{stage.name}",
                    name=f"{stage.name}, trial {trial.number}",
                    parent=run,
                    tags={"stage": stage.name, "stage_kind": stage.kind, "stage_key": stage.key},
                )
                nested.metrics({"seconds": stage.seconds})
                nested.finish("FINISHED")
        run.finish("FAILED" if trial.status == "failed" else "KILLED" if trial.status == "pruned" else "FINISHED")


def tracked(metric: str) -> str:
    """Name of the number that a trial is judged by, in MLflow."""
    return f"search/{metric.replace('/', '_')}"


def _numbers(study: optuna.Study) -> set[int | None]:
    """Our numbers of the trials that are in a study."""
    return {trial.user_attrs.get(_NUMBER) for trial in study.get_trials(deepcopy=False)}


def _open_study(record: SweepRecord, url: str) -> optuna.Study:
    directions = [DIRECTIONS[direction] for direction in record.objectives.values()]
    try:
        return while_it_restarts(
            lambda: optuna.create_study(
                storage=url, study_name=record.sweep_id, directions=directions, load_if_exists=True
            )
        )
    except Exception as error:  # SQLAlchemy and its drivers raise their own, which may repeat the address
        missing = isinstance(error, ModuleNotFoundError) or isinstance(error.__cause__, ModuleNotFoundError)
        raise StudyError(
            f"the study's database cannot be opened: {type(error).__name__}: {redact_text(str(error))}",
            f"--study or WSSS_STUDY: {redact_text(url)}",
            "install its driver, for PostgreSQL: pip install 'wsss[tracking-server]'"
            if missing
            else "give an SQLAlchemy address such as postgresql+psycopg2://user@host/name, with the password in the "
            "file that PGPASSFILE names, or leave it out",
        ) from None  # the cause would be printed with the address


def _trial_name(trial: TrialRecord) -> str:
    values = ", ".join(f"{key.rpartition('.')[2]} {value_text(value)}" for key, value in trial.settings.items())
    return cut_text(f"trial {trial.number}" + (f", {values}" if values else ""), _NAME_CHARACTERS, "...")


def _tags(record: SweepRecord) -> dict[str, Any]:
    return {
        "method": record.method,
        "dataset": record.dataset,
        "recipe": record.recipe_name,
        "sweep": record.sweep_id,
        "search_space": record.space_name,
        "selection": {
            "held_out": "by masks of one half of the images, reported on the other half",
            "oracle": "by masks",
            "default_threshold": "trials by masks, thresholds fixed",
            "label_free": f"without masks, by {record.criterion}",
        }[record.select],
        "data_manifest": record.data_digest or None,
        "git_commit": record.git_commit or None,
    }


def _search(record: SweepRecord) -> Mapping[str, Any]:
    names = ("metric", "select", "sampler", "scheduler", "seed", "trials", "inner_trials", "batch", "concurrency")
    fields = asdict(replace(record, space=(), recipe={}, provenance={}))
    return {name: fields[name] for name in names}


def _how(executed: bool) -> str:
    return "executed" if executed else "served"
