"""Evaluates a batch of settings: every stage that several of them share is computed once, stage by stage.

Runs where the trial runs, on a worker that takes no CPU; the stages take the cluster's CPUs and GPUs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsss.data.dataset import load_dataset
from wsss.data.view import DataView
from wsss.errors import WsssError
from wsss.execution.cluster import capacity
from wsss.execution.compute import compute_stage
from wsss.execution.map_stage import JobOutcome, run_map_jobs, run_reduce_jobs
from wsss.execution.prepare import PreparedRun, RunRequest
from wsss.execution.scheduling import stage_resources
from wsss.execution.stage_job import StageJob, bind_job, publish_stage, training_name
from wsss.execution.tasks import call_many, describe
from wsss.formatting import duration, percent
from wsss.pipeline import MapStage, Pipeline, ReduceStage, Stage, TrainStage
from wsss.plan import CostHistory, Plan, PlannedStage
from wsss.recipe import change_recipe
from wsss.search.choose.criteria import Criterion, ImageArrays, criterion_curve, criterion_input
from wsss.search.choose.score import Score, score_of
from wsss.search.evaluate.in_memory import Recomputed, fused_jobs
from wsss.search.evaluate.trial import CONFUSIONS, Evaluation, Outcome, Setting
from wsss.search.records import PreviewValue, Rung, Select, StageUse
from wsss.search.space.pipelines import KeyedPipelines, metric_stage
from wsss.stages.score import LabelScoreConfig
from wsss.store import Artifact, open_store

Tell = Callable[[str], None]


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
        evaluation: what all trials share.
        tell: shown to people: a stage begins, progresses, ends.
    """

    def __init__(self, evaluation: Evaluation, tell: Tell = lambda text: None) -> None:
        self.evaluation = evaluation
        self.tell = tell
        home = evaluation.home
        self.dataset = load_dataset(evaluation.recipe.dataset, home)
        self._pipelines = KeyedPipelines(evaluation.method, self.dataset)
        self._store = open_store(evaluation.store_url, home / "cache" / "store")
        self._costs = CostHistory(home / "costs.json")
        self._found: dict[tuple[str, str], Artifact] = {}

    @property
    def metric(self) -> str:
        """What is searched for."""
        return self.evaluation.metric

    def pipeline_of_the_recipe(self) -> Pipeline:
        """The pipeline before any setting changes it."""
        return self._pipelines.of(self.evaluation.recipe).pipeline

    def open(self, number: int, settings: Mapping[str, Any]) -> Setting:
        """Build the pipeline of a setting; one that cannot be built has failed."""
        evaluation = self.evaluation
        try:
            keyed = self._pipelines.of(change_recipe(evaluation.recipe, settings))
        except Exception as error:
            return Setting(number, error=describe(error))
        request = RunRequest(
            evaluation.method, keyed.recipe, evaluation.recipe_name, evaluation.home, evaluation.store_url
        )
        prepared = PreparedRun(request, self.dataset, keyed.pipeline, self._store, Plan(()))
        return Setting(number, keyed=keyed, prepared=prepared)

    def advance(self, settings: Sequence[Setting], metric: str) -> None:
        """Compute what a metric needs, for all settings together. Failures are noted in the settings."""
        alive = [setting for setting in settings if setting.going_on]
        self.compute(alive, {setting.number: self.missing(setting, metric) for setting in alive})

    def preview(self, setting: Setting, rung: Rung) -> float | None:
        """The rung's metric while the setting trains; None when it cannot be had, which stops nothing."""
        keyed = self._pipelines.preview(setting.pipeline, rung.stage, rung.fraction)
        if keyed is None or setting.prepared is None:
            return None
        early = Setting(setting.number, keyed=keyed, prepared=replace(setting.prepared, pipeline=keyed.pipeline))
        self.advance([early], rung.metric)
        stage = keyed.pipeline.stage(rung.stage)
        assert isinstance(stage, TrainStage) and stage.preview is not None
        for use in self._outcome(early, None, rung.metric).stages:
            if use.key != setting.pipeline.keys[use.name] and use.name in early.artifacts:
                setting.looks.append(replace(use, name=f"{use.name}, epoch {stage.preview.epoch}"))
            elif use.executed:
                setting.executed.add(use.name)
                setting.artifacts[use.name] = early.artifacts[use.name]
        value = self.value(early, rung.metric)
        if value is None:
            self.tell(f"{rung.text}: {early.error}; trains on")
            return None
        setting.previews.append(PreviewValue(rung.metric, rung.stage, stage.preview.epoch, stage.epochs, value))
        self.tell(f"{rung.metric} {percent(value)} % after {stage.preview.epoch} of {stage.epochs} epochs")
        return value

    def discard(self, settings: Sequence[Setting]) -> None:
        """Remove the checkpoints of trainings that were stopped."""
        for setting in settings:
            place = None if setting.prepared is None else setting.prepared.checkpoints
            if place is None or "://" in place:
                continue
            for seen in setting.previews:
                stage = setting.pipeline.pipeline.stage(seen.stage)
                name = training_name(stage, setting.pipeline.keys[seen.stage])
                shutil.rmtree(Path(place) / name, ignore_errors=True)

    def job(self, setting: Setting, stage: Stage) -> StageJob:
        """The stage with those of its inputs that are there."""
        inputs = {role: name for role, name in stage.inputs.items() if name in setting.artifacts}
        bound = bind_job(
            replace(stage, inputs=inputs),
            setting.pipeline.keys[stage.name],
            self.dataset,
            self._store,
            setting.artifacts,
            self.evaluation.recipe.execution.mode,
        )
        return replace(bound, stage=stage)

    def compute(self, settings: Sequence[Setting], missing: Mapping[int, set[str]]) -> None:
        """Compute the missing stages (setting number -> names), for all settings together."""
        order: dict[str, None] = {}
        for setting in settings:
            order.update({stage.name: None for stage in setting.pipeline.pipeline})
        for name in order:
            wanting: dict[str, list[Setting]] = {}
            for setting in settings:
                if not setting.error and name in missing[setting.number]:
                    wanting.setdefault(setting.pipeline.keys[name], []).append(setting)
            if wanting:
                self._settle(name, wanting)

    def value(self, setting: Setting, metric: str) -> float | None:
        """A metric of a setting that has advanced to it; None when it failed."""
        if not setting.going_on:
            return None
        stage = setting.target(metric)
        return float(setting.artifacts[stage].json("metrics.json")[metric])

    def outcomes(self, settings: Sequence[Setting]) -> list[Outcome]:
        """Scores of settings that have advanced to the metric of the sweep."""
        alive = [setting for setting in settings if setting.going_on]
        evaluation = self.evaluation
        arguments = [
            (evaluation.metric, evaluation.select, *self._scored(setting), evaluation.limits, self._unmasked(setting))
            for setting in alive
        ]
        scores = call_many(_score, arguments, int(capacity().cpus))
        by_number = dict(zip((setting.number for setting in alive), scores, strict=True))
        return [
            self._outcome(setting, by_number.get(setting.number))
            if setting.going_on or setting.error
            else self.so_far([setting])[0]
            for setting in settings
        ]

    def so_far(self, settings: Sequence[Setting]) -> list[Outcome]:
        """What settings that are stopped before their end have computed."""
        outcomes = []
        for setting in settings:
            outcome = self._outcome(setting, None)
            there = (
                set()
                if setting.keyed is None
                else {each.name for each in setting.keyed.pipeline.upstream(*setting.artifacts)}
            )
            uses = tuple(use for use in outcome.stages if use.name in there or use in setting.looks)
            outcomes.append(replace(outcome, stages=uses))
        return outcomes

    def _outcome(self, setting: Setting, score: Score | RuntimeError | None, metric: str = "") -> Outcome:
        if setting.keyed is None:
            return Outcome(setting.number, error=setting.error)
        error = setting.error or (str(score) if isinstance(score, RuntimeError) else "")
        uses = []
        metrics: dict[str, float] = {}
        artifacts: dict[str, str] = {}
        target = metric_stage(setting.keyed.pipeline, metric or self.metric)
        # With the evaluations before the searched one, where early stopping looked at them.
        for stage in setting.keyed.pipeline.upstream(target, *setting.executed):
            artifact = setting.artifacts.get(stage.name) or self.find(stage.name, setting.keyed.keys[stage.name])
            seconds = float(artifact.provenance.get("seconds", 0.0)) if artifact is not None else 0.0
            executed = stage.name in setting.executed
            uses.append(StageUse(stage.name, stage.kind, setting.keyed.keys[stage.name], executed, seconds))
            if artifact is not None and isinstance(stage, ReduceStage):
                metrics.update({name: float(value) for name, value in artifact.json("metrics.json").items()})
            if stage.name == target or stage.name in setting.keyed.pipeline.stage(target).inputs.values():
                artifacts[stage.name] = setting.keyed.keys[stage.name]
        return Outcome(
            setting.number,
            error=error,
            score=score if isinstance(score, Score) and not error else None,
            metrics=metrics,
            stages=(*setting.looks, *uses),
            artifacts=artifacts,
            seed=int(setting.keyed.recipe.seed),
            previews=tuple(setting.previews),
            race=setting.race,
            in_memory="" if setting.fused is None else setting.fused.stage.name,
            share=setting.share,
        )

    def _scored(self, setting: Setting) -> tuple[Artifact, Artifact | None]:
        """The artifact of the evaluation and of the stage with each image's confusion matrix."""
        keyed = setting.pipeline
        target = keyed.pipeline.stage(setting.target(self.metric))
        scorer = target.inputs.get(CONFUSIONS)
        return setting.artifacts[target.name], self.find(scorer, keyed.keys[scorer]) if scorer else None

    def _unmasked(self, setting: Setting) -> Unmasked | None:
        """What the criterion without masks is computed from."""
        criterion = self.evaluation.criterion
        if criterion is None:
            return None
        keyed = setting.pipeline
        target = keyed.pipeline.stage(setting.target(self.metric))
        scorer = self._scorer(setting)
        source = criterion_input(scorer)
        artifact = setting.artifacts.get(source) or self.find(source, keyed.keys[source])
        if artifact is None:
            jobs = fused_jobs(setting.fused)
            place = next(place for place, job in enumerate(jobs) if job.stage.name == source)
            artifact = Recomputed(jobs[: place + 1])
        view = self.dataset.view({"images"}, scorer.image_list)
        default = None if isinstance(scorer.config, LabelScoreConfig) else target.config.default_threshold
        return Unmasked(criterion, scorer, artifact, view, default)

    def _scorer(self, setting: Setting) -> Stage:
        """The stage with each image's confusion matrix, where the metric has one."""
        pipeline = setting.pipeline.pipeline
        return pipeline.stage(pipeline.stage(setting.target(self.metric)).inputs[CONFUSIONS])

    def missing(self, setting: Setting, metric: str) -> set[str]:
        """Stages to compute for a metric: what is not in the store and read by what must be computed and stored."""
        keyed = setting.pipeline
        wanted = [metric_stage(keyed.pipeline, metric)]
        if self.evaluation.criterion is not None and metric == self.metric and setting.fused is None:
            wanted.append(criterion_input(self._scorer(setting)))  # an earlier attempt may have had it in memory
        in_memory = {job.stage.name for job in fused_jobs(setting.fused)[:-1]}

        def there(name: str) -> bool:
            if name not in setting.artifacts and name not in in_memory:
                artifact = self.find(name, keyed.keys[name])
                if artifact is None:
                    return False
                setting.artifacts[name] = artifact
            return True

        return {stage.name for stage in keyed.pipeline.upstream(*wanted, stop=there)}

    def find(self, name: str, key: str) -> Artifact | None:
        """An artifact by stage and key; None when it is not in the store."""
        if (name, key) not in self._found:
            artifact = self._store.find(name, key)
            if artifact is None:
                return None
            self._found[name, key] = artifact
        return self._found[name, key]

    def _settle(self, name: str, wanting: Mapping[str, Sequence[Setting]]) -> None:
        """Compute the artifacts of one stage that nobody has computed meanwhile."""
        with ExitStack() as flights:
            # In one order everywhere: two batches that want the same artifacts can not wait for each other.
            for key in sorted(wanting):
                flights.enter_context(
                    self._store.single_flight(
                        name, key, lambda holder: self.tell(f"{name}: {holder} computes it; waiting")
                    )
                )
            needed = {key: settings[0] for key, settings in wanting.items() if self.find(name, key) is None}
            errors: dict[str, str] = {}
            if needed:
                stage = next(iter(needed.values())).pipeline.pipeline.stage(name)
                together = isinstance(stage, (MapStage, ReduceStage))
                compute = self._map_or_reduce if together else self._one_by_one
                for fused in (False, True):
                    part = {key: each for key, each in needed.items() if (_fused(each, name) is not None) == fused}
                    errors.update(compute(name, part) if part else {})
        for key, settings in wanting.items():
            artifact = self.find(name, key)
            for setting in settings:
                if artifact is None:
                    setting.error = errors.get(key) or f"stage {name} left no artifact"
                else:
                    setting.artifacts[name] = artifact
            if key in needed and artifact is not None:
                needed[key].executed.update({name, *(job.stage.name for job in fused_jobs(_fused(needed[key], name)))})

    def _one_by_one(self, name: str, needed: Mapping[str, Setting]) -> dict[str, str]:
        errors: dict[str, str] = {}
        for key, setting in needed.items():
            assert setting.prepared is not None
            planned = self._planned(setting, name)
            observer, log = _Quiet(self.tell), _QuietLog(lambda text: None)
            evaluation = self.evaluation
            try:
                compute_stage(
                    setting.prepared, planned, setting.artifacts, observer, log, evaluation.run_id, evaluation.code
                )
            except Exception as error:  # the other settings must not fail with this one
                errors[key] = f"stage {name}: {describe(error)}"
        return errors

    def _map_or_reduce(self, name: str, needed: Mapping[str, Setting]) -> dict[str, str]:
        evaluation, have = self.evaluation, capacity()
        settings = list(needed.values())
        prepared = settings[0].prepared
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
        cpus = int(have.cpus)
        workers, resources = stage_resources(stage, prepared.execution, cpus, int(have.gpus))
        use_gpu = resources.gpus > 0
        if isinstance(stage, MapStage):
            outcomes = run_map_jobs(jobs, workers, use_gpu)
        else:
            outcomes = run_reduce_jobs(jobs, cpus)
        errors: dict[str, str] = {}
        for key, job, outcome in zip(needed, jobs, outcomes, strict=True):
            error = self._publish(job, outcome, workers, use_gpu, evaluation)
            if error:  # of stages that are computed on the way, it names the one
                errors[key] = error if error.startswith("stage ") else f"stage {name}: {error}"
            elif not outcome.facts.get("resumed_images") and not fused_jobs(job):
                self._costs.record(stage, self._images(stage), outcome.seconds)
        return errors

    def _publish(self, job: StageJob, outcome: JobOutcome, workers: int, gpu: bool, evaluation: Evaluation) -> str:
        if outcome.error is not None:
            return describe(outcome.error)
        try:
            publish_stage(job, outcome.seconds, workers, gpu, outcome.facts, evaluation.run_id, evaluation.code)
        except WsssError as error:
            return describe(error)
        return ""

    def _planned(self, setting: Setting, name: str) -> PlannedStage:
        stage = setting.pipeline.pipeline.stage(name)
        images = self._images(stage)
        return PlannedStage(stage, setting.pipeline.keys[name], None, True, images, None)

    def _images(self, stage: Stage) -> int:
        return len(self.dataset.lists[stage.image_list]) if stage.image_list else 0


@dataclass(frozen=True)
class Unmasked:
    """Arguments of `criterion_curve`, see there."""

    criterion: Criterion
    scorer: Stage
    artifact: ImageArrays
    view: DataView
    default: float | None


def _fused(setting: Setting, name: str) -> StageJob | None:
    """The job of a stage that computes others on the way."""
    return setting.fused if setting.fused is not None and setting.fused.stage.name == name else None


def _score(
    arguments: tuple[str, Select, Artifact, Artifact | None, tuple[float, float] | None, Unmasked | None],
) -> Score:
    metric, select, evaluation, scorer, limits, unmasked = arguments
    points = ()
    if unmasked is not None:
        points = criterion_curve(
            unmasked.criterion, unmasked.scorer, unmasked.artifact, unmasked.view, limits, unmasked.default
        )
    return score_of(metric, select, evaluation, scorer, limits, points)
