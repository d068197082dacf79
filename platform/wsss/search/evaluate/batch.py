"""Evaluates a batch of trials: every stage that several of them share is computed once, stage by stage.

Runs where the trial runs, on a worker that takes no CPU; the stages take the cluster's CPUs and GPUs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from wsss.data.dataset import load_dataset
from wsss.errors import WsssError
from wsss.execution.compute import compute_stage
from wsss.execution.growth import current_cluster
from wsss.execution.map_stage import JobOutcome, run_map_jobs, run_reduce_jobs
from wsss.execution.node_data import NodeDataError, check_nodes
from wsss.execution.nodes import Resources
from wsss.execution.prepare import PreparedRun, RunRequest
from wsss.execution.scheduling import stage_resources, tasks_of
from wsss.execution.stage_job import StageJob, bind_job, publish_stage, remove_checkpoints
from wsss.execution.tasks import call_many, describe
from wsss.execution.waiting import NodesMissingError, wait_for_first_node
from wsss.formatting import duration, percent
from wsss.pipeline import MapStage, Pipeline, ReduceStage, Stage, TrainStage
from wsss.plan import CostHistory, Plan, PlannedStage
from wsss.recipe import change_recipe
from wsss.search.choose.criteria import criterion_curve, criterion_input
from wsss.search.choose.score import Score, score_of
from wsss.search.evaluate.in_memory import Recomputed, fused_jobs
from wsss.search.evaluate.trial import CONFUSIONS, RunningTrial, SweepContext, TrialOutcome
from wsss.search.records import CriterionPoint, PreviewValue, Rung, Select, StageUse
from wsss.search.space.pipelines import KeyedPipelines, metric_stage
from wsss.stages.score import LabelScoreConfig
from wsss.store import Artifact, DamagedArtifact, open_store

Tell = Callable[[str], None]
Artifacts = tuple[Artifact, Artifact | None]
Limits = tuple[float, float] | None
CriterionOf = Callable[[], tuple[CriterionPoint, ...]]


# Times that damaged inputs of a stage are computed again.
_DAMAGES = 2


@dataclass(frozen=True)
class _Failure:
    """Why a stage of a trial failed, and whether damage of one of its inputs was to blame."""

    text: str
    by_damage: bool


class _Quiet:
    """Observer and log of one training stage: passes what people want to see on, keeps no numbers."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._totals = tell, {}

    def start(self, stage: str, total: int, unit: str) -> None:
        if stage not in self._totals:
            self._tell(f"{stage}: started")
        self._totals[stage] = f"{total} {unit}" if total else unit

    def update(self, stage: str, done: int, note: str = "") -> None:
        self._tell(f"{stage}: {done} of {self._totals.get(stage, '?')} {note}".rstrip())

    def finish(self, stage: str, seconds: float, summary: str) -> None:
        self._tell(f"{stage}: done in {duration(seconds)} {summary}".rstrip())

    def message(self, text: str) -> None:
        self._tell(text)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...
    def series(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None: ...


class _QuietLog(_Quiet):
    def finish(self, status: Any = "FINISHED") -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]


class BatchEvaluator:
    """Evaluates batch after batch; the data set, the artifacts that were found and the digests stay loaded.

    Args:
        sweep: what all trials share.
        tell: shown to people: a stage begins, progresses, ends.
    """

    def __init__(self, sweep: SweepContext, tell: Tell = lambda text: None) -> None:
        self.sweep = sweep
        self.tell = tell
        home = sweep.home
        self.dataset = load_dataset(sweep.recipe.dataset, home)
        self._pipelines = KeyedPipelines(sweep.method, self.dataset)
        self._store = open_store(sweep.store_url, home / "cache" / "store")
        self._costs = CostHistory(home / "costs.json")
        self._found: dict[tuple[str, str], Artifact] = {}

    @property
    def metric(self) -> str:
        """What is searched for."""
        return self.sweep.metric

    def pipeline_of_the_recipe(self) -> Pipeline:
        """The pipeline before any trial changes it."""
        return self._pipelines.of(self.sweep.recipe).pipeline

    def open(self, number: int, settings: Mapping[str, Any]) -> RunningTrial:
        """Build the pipeline of a trial; one that cannot be built has failed."""
        sweep = self.sweep
        try:
            keyed = self._pipelines.of(change_recipe(sweep.recipe, settings))
        except Exception as error:
            return RunningTrial(number, error=describe(error))
        request = RunRequest(sweep.method, keyed.recipe, sweep.recipe_name, sweep.home, sweep.store_url)
        prepared = PreparedRun(request, self.dataset, keyed.pipeline, self._store, Plan(()))
        return RunningTrial(number, keyed=keyed, prepared=prepared)

    def advance(self, trials: Sequence[RunningTrial], metric: str) -> None:
        """Compute what a metric needs, for all trials together. Failures are noted in the trials."""
        alive = [trial for trial in trials if trial.going_on]
        self.compute(alive, {trial.number: self.missing(trial, metric) for trial in alive})

    def preview(self, trial: RunningTrial, rung: Rung) -> float | None:
        """The rung's metric while the trial trains; None when it cannot be had, which stops nothing."""
        keyed = self._pipelines.preview(trial.pipeline, rung.stage, rung.fraction)
        if keyed is None or trial.prepared is None:
            return None
        early = RunningTrial(trial.number, keyed=keyed, prepared=replace(trial.prepared, pipeline=keyed.pipeline))
        self.advance([early], rung.metric)
        stage = keyed.pipeline.stage(rung.stage)
        assert isinstance(stage, TrainStage) and stage.preview is not None
        for use in self._outcome(early, None, rung.metric).stages:
            if use.key != trial.pipeline.keys[use.name] and use.name in early.artifacts:
                trial.looks.append(replace(use, name=f"{use.name}, epoch {stage.preview.epoch}"))
            elif use.executed:
                trial.executed.add(use.name)
                trial.artifacts[use.name] = early.artifacts[use.name]
        value = self.value(early, rung.metric)
        if value is None:
            self.tell(f"{rung.text}: {early.error}; trains on")
            return None
        trial.previews.append(PreviewValue(rung.metric, rung.stage, stage.preview.epoch, stage.epochs, value))
        self.tell(f"{rung.metric} {percent(value)} % after {stage.preview.epoch} of {stage.epochs} epochs")
        return value

    def discard(self, trials: Sequence[RunningTrial]) -> None:
        """Remove the checkpoints of trainings that were stopped."""
        for trial in trials:
            if trial.prepared is None:
                continue
            for seen in trial.previews:
                stage, key = trial.pipeline.pipeline.stage(seen.stage), trial.pipeline.keys[seen.stage]
                remove_checkpoints(trial.prepared.checkpoints, self._store, stage, key)

    def job(self, trial: RunningTrial, stage: Stage) -> StageJob:
        """The stage with those of its inputs that are there."""
        inputs = {role: name for role, name in stage.inputs.items() if name in trial.artifacts}
        bound = bind_job(
            replace(stage, inputs=inputs),
            trial.pipeline.keys[stage.name],
            self.dataset,
            self._store,
            trial.artifacts,
            self.sweep.recipe.execution.mode,
        )
        return replace(bound, stage=stage)

    def compute(self, trials: Sequence[RunningTrial], missing: Mapping[int, set[str]]) -> None:
        """Compute the missing stages (trial number -> names), for all trials together."""
        order: dict[str, None] = {}
        for trial in trials:
            order.update({stage.name: None for stage in trial.pipeline.pipeline})
        for name in order:
            wanting: dict[str, list[RunningTrial]] = {}
            for trial in trials:
                if not trial.error and name in missing[trial.number]:
                    wanting.setdefault(trial.pipeline.keys[name], []).append(trial)
            if wanting:
                self._settle(name, wanting)

    def value(self, trial: RunningTrial, metric: str) -> float | None:
        """A metric of a trial that has advanced to it; None when it failed."""
        if not trial.going_on:
            return None
        stage = trial.target(metric)
        return float(trial.artifacts[stage.name].json("metrics.json")[metric])

    def outcomes(self, trials: Sequence[RunningTrial]) -> list[TrialOutcome]:
        """Scores of trials that have advanced to the metric of the sweep."""
        alive = [trial for trial in trials if trial.going_on]
        sweep = self.sweep
        calls = [
            partial(_score, sweep.metric, sweep.select, self._scored(trial), sweep.limits, self._criterion(trial))
            for trial in alive
        ]
        scores = call_many(operator.call, calls, _cpus(), self.tell)
        by_number = dict(zip((trial.number for trial in alive), scores, strict=True))
        return [
            self._outcome(trial, by_number.get(trial.number))
            if trial.going_on or trial.error
            else self.so_far([trial])[0]
            for trial in trials
        ]

    def so_far(self, trials: Sequence[RunningTrial]) -> list[TrialOutcome]:
        """What trials that are stopped before their end have computed."""
        outcomes = []
        for trial in trials:
            outcome = self._outcome(trial, None)
            stages = () if trial.keyed is None else trial.keyed.pipeline.upstream(*trial.artifacts)
            there = {stage.name for stage in stages}
            uses = tuple(use for use in outcome.stages if use.name in there or use in trial.looks)
            outcomes.append(replace(outcome, stages=uses))
        return outcomes

    def _outcome(self, trial: RunningTrial, score: Score | RuntimeError | None, metric: str = "") -> TrialOutcome:
        if trial.keyed is None:
            return TrialOutcome(trial.number, error=trial.error)
        error = trial.error or (str(score) if isinstance(score, RuntimeError) else "")
        uses = []
        metrics: dict[str, float] = {}
        artifacts: dict[str, str] = {}
        target = metric_stage(trial.keyed.pipeline, metric or self.metric)
        # With the evaluations before the searched one, where early stopping looked at them.
        for stage in trial.keyed.pipeline.upstream(target, *trial.executed):
            artifact = trial.artifacts.get(stage.name) or self.find(stage.name, trial.keyed.keys[stage.name])
            seconds = float(artifact.provenance.get("seconds", 0.0)) if artifact is not None else 0.0
            executed = stage.name in trial.executed
            uses.append(StageUse(stage.name, stage.kind, trial.keyed.keys[stage.name], executed, seconds))
            if artifact is not None and isinstance(stage, ReduceStage):
                metrics.update({name: float(value) for name, value in artifact.json("metrics.json").items()})
            if stage.name == target or stage.name in trial.keyed.pipeline.stage(target).inputs.values():
                artifacts[stage.name] = trial.keyed.keys[stage.name]
        return TrialOutcome(
            trial.number,
            error=error,
            score=score if isinstance(score, Score) and not error else None,
            metrics=metrics,
            stages=(*trial.looks, *uses),
            artifacts=artifacts,
            seed=int(trial.keyed.recipe.seed),
            previews=tuple(trial.previews),
            race=trial.race,
            in_memory="" if trial.fused is None else trial.fused.stage.name,
            share=trial.share,
        )

    def _scored(self, trial: RunningTrial) -> Artifacts:
        """The artifact of the evaluation and of the stage with each image's confusion matrix."""
        keyed = trial.pipeline
        target = trial.target(self.metric)
        scorer = target.inputs.get(CONFUSIONS)
        return trial.artifacts[target.name], self.find(scorer, keyed.keys[scorer]) if scorer else None

    def _criterion(self, trial: RunningTrial) -> CriterionOf | None:
        """Computes the criterion without masks, where it was asked for."""
        criterion = self.sweep.criterion
        if criterion is None:
            return None
        keyed = trial.pipeline
        target = trial.target(self.metric)
        scorer = self._scorer(trial)
        source = criterion_input(scorer)
        artifact = trial.artifacts.get(source) or self.find(source, keyed.keys[source])
        if artifact is None:
            jobs = fused_jobs(trial.fused)
            place = next(place for place, job in enumerate(jobs) if job.stage.name == source)
            artifact = Recomputed(jobs[: place + 1])
        view = self.dataset.view({"images"}, scorer.image_list)
        default = None if isinstance(scorer.config, LabelScoreConfig) else target.config.default_threshold
        return partial(criterion_curve, criterion, scorer, artifact, view, self.sweep.limits, default)

    def _scorer(self, trial: RunningTrial) -> Stage:
        """The stage with each image's confusion matrix, where the metric has one."""
        return trial.pipeline.pipeline.stage(trial.target(self.metric).inputs[CONFUSIONS])

    def missing(self, trial: RunningTrial, metric: str) -> set[str]:
        """Stages to compute for a metric: what is not in the store and read by what must be computed and stored."""
        keyed = trial.pipeline
        wanted = [metric_stage(keyed.pipeline, metric)]
        if self.sweep.criterion is not None and metric == self.metric and trial.fused is None:
            wanted.append(criterion_input(self._scorer(trial)))  # an earlier attempt may have had it in memory
        return self._absent(trial, wanted)

    def _absent(self, trial: RunningTrial, wanted: Sequence[str]) -> set[str]:
        """Of stages and of those upstream of them, what must be computed and stored."""
        keyed = trial.pipeline
        in_memory = {job.stage.name for job in fused_jobs(trial.fused)[:-1]}

        def there(name: str) -> bool:
            if name not in trial.artifacts and name not in in_memory:
                artifact = self.find(name, keyed.keys[name])
                if artifact is None:
                    return False
                trial.artifacts[name] = artifact
            return True

        return {stage.name for stage in keyed.pipeline.upstream(*wanted, stop=there)}

    def find(self, name: str, key: str) -> Artifact | None:
        """An artifact by stage and key; None when it is not in the store, or damaged there."""
        if (name, key) not in self._found:
            try:
                artifact = self._store.find(name, key)
            except DamagedArtifact:
                return None
            if artifact is None:
                return None
            self._found[name, key] = artifact
        return self._found[name, key]

    def _settle(self, name: str, wanting: Mapping[str, Sequence[RunningTrial]]) -> None:
        """Compute the artifacts of one stage that nobody has computed meanwhile."""
        with ExitStack() as flights:
            # In one order everywhere: two batches that want the same artifacts can not wait for each other.
            for key in sorted(wanting):
                flights.enter_context(
                    self._store.single_flight(
                        name, key, lambda holder: self.tell(f"{name}: {holder} computes it; waiting")
                    )
                )
            needed = {key: trials[0] for key, trials in wanting.items() if self.find(name, key) is None}
            for key in needed:  # what is damaged makes way
                self._store.set_aside(name, key, self.tell)
            errors = self._compute(name, needed)
            for _ in range(_DAMAGES):
                damaged = {key: needed[key] for key, error in errors.items() if error.by_damage}
                again = {key: trial for key, trial in damaged.items() if self._mend(trial, name)}
                if not again:
                    break
                errors = {key: error for key, error in errors.items() if key not in again} | self._compute(name, again)
        for key, trials in wanting.items():
            artifact = self.find(name, key)
            for trial in trials:
                if artifact is None:
                    trial.error = errors[key].text if key in errors else f"stage {name} left no artifact"
                else:
                    trial.artifacts[name] = artifact
            if key in needed and artifact is not None:
                needed[key].executed.update({name, *(job.stage.name for job in fused_jobs(_fused(needed[key], name)))})

    def _compute(self, name: str, needed: Mapping[str, RunningTrial]) -> dict[str, _Failure]:
        """Compute a stage for keys, each for its trial; returns what failed."""
        errors: dict[str, _Failure] = {}
        if needed:
            stage = next(iter(needed.values())).pipeline.pipeline.stage(name)
            together = isinstance(stage, (MapStage, ReduceStage))
            compute = self._map_or_reduce if together else self._one_by_one
            for fused in (False, True):
                part = {key: each for key, each in needed.items() if (_fused(each, name) is not None) == fused}
                errors.update(compute(name, part) if part else {})
        return errors

    def _mend(self, trial: RunningTrial, name: str) -> bool:
        """Set aside what is damaged of the inputs of a stage and compute it again; whether all inputs are there."""
        keyed = trial.pipeline
        jobs = fused_jobs(_fused(trial, name))
        stages = [job.stage for job in jobs] or [keyed.pipeline.stage(name)]
        inputs = {upstream for stage in stages for upstream in stage.inputs.values() if upstream in trial.artifacts}
        for upstream in sorted(inputs):
            key = keyed.keys[upstream]
            with self._store.single_flight(upstream, key):
                self._store.set_aside(upstream, key, self.tell)
            self._found.pop((upstream, key), None)
            del trial.artifacts[upstream]
        self.compute([trial], {trial.number: self._absent(trial, sorted(inputs))})
        return not trial.error

    def _one_by_one(self, name: str, needed: Mapping[str, RunningTrial]) -> dict[str, _Failure]:
        errors: dict[str, _Failure] = {}
        for key, trial in needed.items():
            assert trial.prepared is not None
            planned = self._planned(trial, name)
            observer, log = _Quiet(self.tell), _QuietLog(lambda text: None)
            sweep = self.sweep
            try:
                compute_stage(trial.prepared, planned, trial.artifacts, observer, log, sweep.run_id, sweep.code)
            except Exception as error:  # the other trials must not fail with this one
                errors[key] = _failure(name, error)
        return errors

    def _map_or_reduce(self, name: str, needed: Mapping[str, RunningTrial]) -> dict[str, _Failure]:
        sweep = self.sweep
        trials = list(needed.values())
        prepared = trials[0].prepared
        assert prepared is not None
        jobs = [
            _fused(each, name)
            or bind_job(
                each.pipeline.pipeline.stage(name),
                key,
                self.dataset,
                self._store,
                each.artifacts,
                prepared.execution.mode,
            )
            for key, each in needed.items()
        ]
        stage = jobs[0].stage
        workers, resources = stage_resources(stage, prepared.execution, current_cluster())
        use_gpu = resources.gpus > 0
        errors: dict[str, _Failure] = {}
        try:
            tasks = len(jobs) * tasks_of(stage, workers, self._images(stage))
            at_a_time = workers if isinstance(stage, MapStage) else _cpus()
            wait_for_first_node(name, min(tasks, at_a_time), resources, self.tell)
            files = {file for each in (*jobs, *fused_jobs(jobs[0])) for file in each.stage.files.values()}
            check_nodes(name, self.dataset, sorted(files), self.tell)
            if isinstance(stage, MapStage):
                outcomes = run_map_jobs(jobs, workers, use_gpu, self.tell)
            else:
                outcomes = run_reduce_jobs(jobs, at_a_time, self.tell)
        except (NodesMissingError, NodeDataError) as error:
            return dict.fromkeys(needed, _Failure(describe(error), by_damage=False))
        for key, job, outcome in zip(needed, jobs, outcomes, strict=True):
            error = self._publish(job, outcome, workers, use_gpu, sweep)
            if error is not None:
                errors[key] = _failure(name, error)
            elif not outcome.facts.get("resumed_images") and not fused_jobs(job):
                self._costs.record(stage, self._images(stage), outcome.seconds)
        return errors

    def _publish(
        self, job: StageJob, outcome: JobOutcome, workers: int, gpu: bool, sweep: SweepContext
    ) -> Exception | None:
        if outcome.error is not None:
            return outcome.error
        try:
            publish_stage(job, outcome.seconds, workers, gpu, outcome.facts, sweep.run_id, sweep.code)
        except WsssError as error:
            return error
        return None

    def _planned(self, trial: RunningTrial, name: str) -> PlannedStage:
        stage = trial.pipeline.pipeline.stage(name)
        images = self._images(stage)
        return PlannedStage(stage, trial.pipeline.keys[name], None, True, images, None)

    def _images(self, stage: Stage) -> int:
        return len(self.dataset.lists[stage.image_list]) if stage.image_list else 0


def _failure(name: str, error: Exception) -> _Failure:
    text = describe(error)
    # Of stages that are computed on the way, the error names the one.
    text = text if text.startswith("stage ") else f"stage {name}: {text}"
    return _Failure(text, isinstance(error, DamagedArtifact))


def _cpus() -> int:
    """CPUs that tasks without a GPU can have at a time."""
    return current_cluster().without_idle_gpus().slots(Resources())


def _fused(trial: RunningTrial, name: str) -> StageJob | None:
    """The job of a stage that computes others on the way."""
    return trial.fused if trial.fused is not None and trial.fused.stage.name == name else None


def _score(metric: str, select: Select, artifacts: Artifacts, limits: Limits, criterion: CriterionOf | None) -> Score:
    return score_of(metric, select, *artifacts, limits, () if criterion is None else criterion())
