"""A sweep from its plan to the best recipe: search, confirmation, records.

The same request is the same sweep: killed at any point, it continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsss.errors import WsssError
from wsss.evaluation.racing import RaceRules
from wsss.execution.bookkeeping import data_digest
from wsss.execution.cluster import connect
from wsss.execution.nodes import Cluster
from wsss.execution.scheduling import check_schedulable, growth_in_words
from wsss.files import LockHeld, locked
from wsss.plan import Plan
from wsss.recipe import RecipeError, change_recipe, flat_dict, to_dict
from wsss.search.choose.best import best_of, confirm, confirmed_best, ranked, recipe_numbers, write_best
from wsss.search.choose.rules import compare_rules
from wsss.search.choose.score import ImageCounts, paired_gain, read_counts
from wsss.search.evaluate.batch import BatchEvaluator
from wsss.search.evaluate.trial import CONFUSIONS, SweepContext
from wsss.search.evaluate.tune import run_tune
from wsss.search.propose.nested import NestedSearch
from wsss.search.records import (
    BEST_FILE,
    STUDY_FILE,
    SWEEP_FILE,
    Best,
    ConfirmedTrial,
    SearchedKey,
    SweepRecord,
    TrialRecord,
    load_sweep,
)
from wsss.search.request import PreparedSweep, SweepError, racing
from wsss.search.space.pipelines import metric_stage
from wsss.search.study.ledger import Ledger, tracked
from wsss.store import Artifact, DamagedArtifact
from wsss.tracking.names import sweep_experiment
from wsss.tracking.provenance import collect_provenance
from wsss.tracking.redact import redact_text
from wsss.tracking.tracker import open_tracker
from wsss.tracking.view import ExperimentView
from wsss.weights import fetch_missing


class SweepObserver:
    """Who is shown the progress of a sweep; shows nothing by default."""

    def trial(self, trial: TrialRecord, record: SweepRecord) -> None:
        """A trial ended."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def ended(self, record: SweepRecord) -> None:
        """The sweep is finished, and no other process can begin it before this returns."""


def run_sweep(prepared: PreparedSweep, observer: SweepObserver) -> SweepRecord:
    """Search, confirm, write best.yaml, and return the record. Continues what an earlier attempt left.

    Raises:
        SweepError: another process runs the sweep.
        KeyboardInterrupt: it was stopped; the same request continues.
        WsssError: nothing could be evaluated at all.
    """
    request, folder = prepared.request, prepared.folder
    with _only_process(folder):
        record = _open_record(prepared)
        record.save(folder)
        home = request.home.absolute()
        tracker = open_tracker(
            request.tracking_uri,
            home,
            sweep_experiment(record.dataset, record.sweep_id),
            note=f"The sweep `{record.sweep_id}`: {record.method}, space `{record.space_name}`, number "
            f"`{record.metric}`. Its trials are nested in one run; choose them and press Compare for parallel "
            "coordinates. The report is among the artifacts of that run.",
            view=ExperimentView((tracked(record.metric), record.metric), tuple(_of_every_trial(prepared.keys))),
        )
        ledger = Ledger(record, folder, tracker, request.study_url or f"sqlite:///{folder / STUDY_FILE}")
        try:
            search = _search(prepared, ledger.trials)
            if not search.finished:
                _evaluate(prepared, search, ledger, observer)
            _declare(prepared, ledger, observer)
            ledger.update(status="finished", error="", ended=time.time())
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            text = "stopped" if stopped else str(error) or type(error).__name__
            with suppress(WsssError, OSError):  # of a full disk, the first error tells
                ledger.update(status="stopped" if stopped else "failed", error=text, ended=time.time())
            with suppress(WsssError, OSError):
                ledger.close()
            with suppress(WsssError, OSError):
                tracker.close(wait_seconds=5)
            raise
        ledger.close()
        message = tracker.close(wait_seconds=20).message
        if message:
            observer.message(message)
        observer.ended(ledger.record)
        return ledger.record


def _search(prepared: PreparedSweep, trials: Mapping[int, TrialRecord]) -> NestedSearch:
    recipe = prepared.request.recipe

    def fits(settings: Mapping[str, Any]) -> bool:
        try:
            change_recipe(recipe, settings)
        except RecipeError:
            return False
        return True

    search = NestedSearch(prepared.keys, flat_dict(recipe), prepared.plan, fits)
    search.restore(list(trials.values()))
    return search


def _evaluate(prepared: PreparedSweep, search: NestedSearch, ledger: Ledger, observer: SweepObserver) -> None:
    fetch_missing(prepared.run.plan.downloads, observer.message)
    _connect(prepared, observer)
    run_tune(
        search,
        ledger,
        sweep_context(prepared, prepared.sweep_id, ledger.record.provenance),
        rungs=prepared.rungs,
        concurrency=prepared.request.concurrency,
        on_trial=lambda trial: observer.trial(trial, ledger.record),
        show=observer.message,
    )


def _of_every_trial(keys: Iterable[SearchedKey]) -> Iterator[str]:
    """Keys that every trial has a value of: MLflow leaves a run without one out of parallel coordinates."""
    return (each.key for each in keys if each.level in ("outer", "inner") and not each.conditions)


def sweep_context(prepared: PreparedSweep, run_id: str, code: Mapping[str, Any]) -> SweepContext:
    """What the trials of a sweep have in common."""
    request = prepared.request
    return SweepContext(
        method=request.method,
        recipe=request.recipe,
        recipe_name=request.recipe_name,
        home=request.home.absolute(),
        store_url=request.store_url,
        metric=request.metric,
        select=request.select,
        limits=prepared.limits,
        run_id=run_id,
        code=code,
        criterion=request.criterion,
        varied=_varied(prepared),
        race=RaceRules(seed=request.seed) if racing(request) else None,
        trials=prepared.plan.trials,
    )


def _varied(prepared: PreparedSweep) -> tuple[str, ...]:
    if prepared.request.against_cost:
        return ()  # the cost of a trial is that of its stages as a run computes them
    innermost = ("inner",) if prepared.plan.nests(prepared.keys) else ("inner", "outer")
    return tuple({key.stage: None for key in prepared.keys if key.level in innermost})


def check_capacity(prepared: PreparedSweep, cluster: Cluster) -> list[str]:
    """Refuse what such a cluster can never hold. Raises SchedulingError; returns by what it will grow, in words."""
    # Trials recompute stages that the store holds for the recipe itself.
    changed = {stage.stage.name for stage in prepared.expected() if stage.executions > 0}
    stages = tuple(
        replace(planned, needed=planned.needed or planned.stage.name in changed) for planned in prepared.run.plan.stages
    )
    check_schedulable(Plan(stages), prepared.run.execution, cluster)
    return growth_in_words(Plan(stages), prepared.run.execution, cluster)


def _connect(prepared: PreparedSweep, observer: SweepObserver) -> None:
    for line in check_capacity(prepared, connect()):
        observer.message(line)


def _declare(prepared: PreparedSweep, ledger: Ledger, observer: SweepObserver) -> None:
    """Confirm the best trials under other seeds, where asked for, and write the best recipe."""
    request = prepared.request
    best = best_of(list(ledger.trials.values()), request.metric, prepared.keys, request.select)
    if best is None:
        failed = ledger.trials.get(0)
        raise SweepError(
            "the recipe itself could not be evaluated" + (f": {failed.reason}" if failed and failed.reason else ""),
            f"sweep {prepared.sweep_id}, trial 0",
            "make the recipe run (`wsss run`), then begin a new sweep with --new",
        )
    if request.select == "held_out" and ledger.trials[0].held_out is None:
        note = f"{request.metric} has no counts per image: chosen and reported on the same images"
        ledger.update(notes=(note,))
    if request.confirm_top and request.confirm_seeds:
        confirmations = _confirm(prepared, ledger, observer)
        best = confirmed_best(ledger.trials, confirmations, request.metric, prepared.keys, request.select)
        ledger.update(confirmations=tuple(confirmations))
    counts = _counts_reader(prepared, ledger, observer)
    best = replace(best, **_gain(prepared, ledger, best, counts))
    finished = ranked(list(ledger.trials.values()), request.metric)
    ledger.update(best=best, selected=compare_rules(finished, prepared.keys, counts))
    write_best(prepared.folder / BEST_FILE, request.recipe, ledger.record, best)


def _counts_reader(
    prepared: PreparedSweep, ledger: Ledger, observer: SweepObserver
) -> Callable[[TrialRecord], ImageCounts | None]:
    """Reads the counts of a trial's images from the store; None when it keeps none."""
    request = prepared.request
    scorer = prepared.base.pipeline.stage(ledger.record.metric_stage).inputs.get(CONFUSIONS)

    def find(trial: TrialRecord) -> list[Artifact | None]:
        return [
            prepared.run.store.find(name, trial.artifacts[name]) if name in trial.artifacts else None
            for name in (ledger.record.metric_stage, scorer or "")
        ]

    def counts(trial: TrialRecord) -> ImageCounts | None:
        try:
            found = find(trial)
        except DamagedArtifact:
            _connect(prepared, observer)
            context = sweep_context(prepared, prepared.sweep_id, ledger.record.provenance)
            evaluator = BatchEvaluator(context, observer.message)
            evaluator.advance([evaluator.open(trial.number, trial.settings)], request.metric)
            found = find(trial)
        if found[0] is None:
            return None
        return read_counts(request.metric, found[0], found[1])

    return counts


def _gain(
    prepared: PreparedSweep, ledger: Ledger, best: Best, counts: Callable[[TrialRecord], ImageCounts | None]
) -> dict[str, float]:
    """How sure the gain over the recipe is, as far as images can tell."""
    trial = ledger.trials[best.trial]
    ours, recipe = counts(trial), counts(ledger.trials[0])
    select = prepared.request.select
    gain = None if ours is None or recipe is None else paired_gain(ours, trial.threshold, recipe, select)
    return {} if gain is None else {"gain_low": gain.low, "gain_high": gain.high}


def _confirm(prepared: PreparedSweep, ledger: Ledger, observer: SweepObserver) -> list[ConfirmedTrial]:
    request = prepared.request
    top = [trial for trial in ranked(list(ledger.trials.values()), request.metric) if trial.number != 0]
    chosen = [ledger.trials[0], *top[: request.confirm_top]]
    _connect(prepared, observer)
    evaluator = BatchEvaluator(sweep_context(prepared, prepared.sweep_id, ledger.record.provenance), observer.message)
    # A number tells trials of a batch apart: each seed of a trial has its own.
    runs = [(trial.number, seed) for trial in chosen for seed in request.confirm_seeds]
    settings = [
        evaluator.open(place, {**ledger.trials[number].settings, "seed": seed})
        for place, (number, seed) in enumerate(runs)
    ]
    evaluator.advance(settings, request.metric)
    outcomes = evaluator.outcomes(settings)
    confirmations = []
    for trial in chosen:
        scores = [outcome.score for (number, _), outcome in zip(runs, outcomes, strict=True) if number == trial.number]
        if any(score is None for score in scores):
            observer.message(f"trial {trial.number} failed under another seed and is not confirmed")
            continue
        found = [score for score in scores if score is not None]
        values = [score.quoted for score in found]
        if trial.number == 0:
            values = [recipe_numbers(score, score.value, prepared.keys, request.select)[1] for score in found]
        confirmations.append(confirm(trial.number, request.confirm_seeds, values))
    if not confirmations or confirmations[0].trial != 0:
        raise SweepError("the recipe itself failed under another seed", "--confirm-seeds", "look at the message above")
    return confirmations


def _open_record(prepared: PreparedSweep) -> SweepRecord:
    request, plan = prepared.request, prepared.plan
    path = prepared.folder / SWEEP_FILE
    provenance = collect_provenance().as_dict()
    changes: dict[str, Any] = {
        "trials": plan.trials,
        "inner_trials": plan.inner_trials,
        "batch": plan.batch,
        "concurrency": request.concurrency,
        "provenance": provenance,
        "status": "running",
        "error": "",
    }
    if path.is_file():
        record = load_sweep(prepared.folder)
        if record.identity != prepared.identity:
            raise SweepError(
                "another sweep has this name: its recipe, space, metric, rule, sampler or seed differ",
                str(prepared.folder),
                "choose another --name, or leave it out",
            )
        return replace(record, **changes)
    return SweepRecord(
        sweep_id=prepared.sweep_id,
        method=request.method.name,
        recipe_name=request.recipe_name,
        recipe=to_dict(request.recipe),
        dataset=prepared.run.dataset.name,
        store_url=prepared.run.store.url,
        space_name=prepared.space.name,
        space=prepared.keys,
        metric=request.metric,
        metric_stage=metric_stage(prepared.base.pipeline, request.metric),
        select=request.select,
        criterion=request.criterion or "",
        objectives=prepared.objectives,
        sampler=request.sampler,
        seed=request.seed,
        seeds=(int(request.recipe.seed),),
        data_digest=data_digest(prepared.run),
        scheduler="asha" if prepared.rungs else "none",
        rungs=prepared.rungs,
        identity=prepared.identity,
        study_url=redact_text(request.study_url or f"sqlite:///{prepared.folder / STUDY_FILE}"),
        **changes,
    )


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """One process at a time writes a sweep's records; the lock ends with the process."""
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except LockHeld as held:
        raise SweepError(
            f"another process runs this sweep: {held}", str(folder), "wait for it, or begin another one with --new"
        ) from None
