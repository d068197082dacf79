"""Evaluates a batch of settings: every stage that several of them share is computed once, stage by stage.

Runs where the trial runs, on a worker that takes no CPU; the stages take the cluster's CPUs and GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsss.data.dataset import load_dataset
from wsss.errors import WsssError
from wsss.execution.cluster import capacity
from wsss.execution.many import JobOutcome, call_many, describe, run_map_jobs, run_reduce_jobs
from wsss.execution.run import PreparedRun, RunRequest, compute_stage
from wsss.execution.scheduling import stage_resources
from wsss.execution.stage_job import StageJob, bind_job, publish_stage
from wsss.method import Method
from wsss.pipeline import MapStage, ReduceStage, Stage
from wsss.plan import CostHistory, Plan, PlannedStage
from wsss.recipe import change_recipe
from wsss.search.keyed import KeyedPipeline, KeyedPipelines, metric_stage
from wsss.search.record import Select, StageUse
from wsss.search.score import Score, score_of
from wsss.store import Artifact, open_store

Tell = Callable[[str], None]
CONFUSIONS = "confusions"


@dataclass(frozen=True)
class Evaluation:
    """What every trial of a sweep has in common; travels to the workers by pickle.

    Attributes:
        recipe: what settings change.
        metric: what is searched for; limits: range of the thresholds that may be chosen, see `score_of`.
        run_id: who computes, for the manifests of artifacts; code: provenance, likewise.
    """

    method: Method
    recipe: Any
    recipe_name: str
    home: Path
    store_url: str
    metric: str
    select: Select
    limits: tuple[float, float] | None
    run_id: str
    code: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one setting. `error` is empty unless it failed; else the rest is what was known by then."""

    number: int
    error: str = ""
    score: Score | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stages: tuple[StageUse, ...] = ()
    artifacts: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    @property
    def cost_seconds(self) -> float:
        """What all its stages cost, whoever executed them."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def spent_seconds(self) -> float:
        """What the stages that it executed cost."""
        return sum(stage.seconds for stage in self.stages if stage.executed)


@dataclass
class Setting:
    """One setting under way. `artifacts` by stage name; `executed` are the stages that were computed for it."""

    number: int
    error: str = ""
    keyed: KeyedPipeline | None = None
    prepared: PreparedRun | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)

    @property
    def pipeline(self) -> KeyedPipeline:
        """The pipeline of a setting that did not fail to build one."""
        assert self.keyed is not None
        return self.keyed


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
        self._tell(f"{stage}: done in {seconds:.0f} s {summary}".rstrip())

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
        self._evaluation = evaluation
        self._tell = tell
        home = evaluation.home
        self._dataset = load_dataset(evaluation.recipe.dataset, home)
        self._pipelines = KeyedPipelines(evaluation.method, self._dataset)
        self._store = open_store(evaluation.store_url, home / "cache" / "store")
        self._costs = CostHistory(home / "costs.json")
        self._found: dict[tuple[str, str], Artifact] = {}

    @property
    def metric(self) -> str:
        """What is searched for."""
        return self._evaluation.metric

    def open(self, number: int, settings: Mapping[str, Any]) -> Setting:
        """Build the pipeline of a setting; one that cannot be built has failed."""
        evaluation = self._evaluation
        try:
            keyed = self._pipelines.of(change_recipe(evaluation.recipe, settings))
        except Exception as error:
            return Setting(number, error=describe(error))
        request = RunRequest(
            evaluation.method, keyed.recipe, evaluation.recipe_name, evaluation.home, evaluation.store_url
        )
        prepared = PreparedRun(request, self._dataset, keyed.pipeline, self._store, Plan(()))
        return Setting(number, keyed=keyed, prepared=prepared)

    def advance(self, settings: Sequence[Setting], metric: str) -> None:
        """Compute what a metric needs, for all settings together. Failures are noted in the settings."""
        missing: dict[int, set[str]] = {}
        order: dict[str, None] = {}
        for setting in settings:
            if not setting.error:
                missing[setting.number] = self._missing(setting, metric)
                order.update({stage.name: None for stage in setting.pipeline.pipeline})
        for name in order:
            wanting: dict[str, list[Setting]] = {}
            for setting in settings:
                if not setting.error and name in missing.get(setting.number, ()):
                    wanting.setdefault(setting.pipeline.keys[name], []).append(setting)
            if wanting:
                self._settle(name, wanting)

    def value(self, setting: Setting, metric: str) -> float | None:
        """A metric of a setting that has advanced to it; None when it failed."""
        if setting.error:
            return None
        stage = metric_stage(setting.pipeline.pipeline, metric)
        return float(setting.artifacts[stage].json("metrics.json")[metric])

    def outcomes(self, settings: Sequence[Setting]) -> list[Outcome]:
        """Scores of settings that have advanced to the metric of the sweep."""
        alive = [setting for setting in settings if not setting.error]
        evaluation = self._evaluation
        arguments = [
            (evaluation.metric, evaluation.select, *self._scored(setting), evaluation.limits) for setting in alive
        ]
        scores = call_many(_score, arguments, int(capacity().cpus))
        by_number = dict(zip((setting.number for setting in alive), scores, strict=True))
        return [self._outcome(setting, by_number.get(setting.number)) for setting in settings]

    def so_far(self, settings: Sequence[Setting]) -> list[Outcome]:
        """What settings that are stopped before their end have computed."""
        found = [self._outcome(setting, None) for setting in settings]
        return [
            replace(outcome, stages=tuple(use for use in outcome.stages if use.name in setting.artifacts))
            for setting, outcome in zip(settings, found, strict=True)
        ]

    def _outcome(self, setting: Setting, score: Score | RuntimeError | None) -> Outcome:
        if setting.keyed is None:
            return Outcome(setting.number, error=setting.error)
        error = setting.error or (str(score) if isinstance(score, RuntimeError) else "")
        uses = []
        metrics: dict[str, float] = {}
        artifacts: dict[str, str] = {}
        target = metric_stage(setting.keyed.pipeline, self._evaluation.metric)
        # With the evaluations before the searched one, where early stopping looked at them.
        for stage in setting.keyed.upstream(target, *setting.executed):
            artifact = setting.artifacts.get(stage.name) or self._find(stage.name, setting.keyed.keys[stage.name])
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
            stages=tuple(uses),
            artifacts=artifacts,
            seed=int(setting.keyed.recipe.seed),
        )

    def _scored(self, setting: Setting) -> tuple[Artifact, Artifact | None]:
        """The artifact of the evaluation and of the stage with each image's confusion matrix."""
        keyed = setting.pipeline
        target = keyed.pipeline.stage(metric_stage(keyed.pipeline, self._evaluation.metric))
        scorer = target.inputs.get(CONFUSIONS)
        return setting.artifacts[target.name], self._find(scorer, keyed.keys[scorer]) if scorer else None

    def _missing(self, setting: Setting, metric: str) -> set[str]:
        """Stages to compute for a metric: what is not in the store and read by what must be computed."""
        keyed = setting.pipeline
        missing: set[str] = set()
        waiting = [metric_stage(keyed.pipeline, metric)]
        while waiting:
            name = waiting.pop()
            if name in setting.artifacts or name in missing:
                continue
            artifact = self._find(name, keyed.keys[name])
            if artifact is not None:
                setting.artifacts[name] = artifact
                continue
            missing.add(name)
            waiting += keyed.pipeline.stage(name).inputs.values()
        return missing

    def _find(self, name: str, key: str) -> Artifact | None:
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
                        name, key, lambda holder: self._tell(f"{name}: {holder} computes it; waiting")
                    )
                )
            needed = {key: settings[0] for key, settings in wanting.items() if self._find(name, key) is None}
            errors: dict[str, str] = {}
            if needed:
                stage = next(iter(needed.values())).pipeline.pipeline.stage(name)
                together = isinstance(stage, (MapStage, ReduceStage))
                compute = self._map_or_reduce if together else self._one_by_one
                errors = compute(name, needed)
        for key, settings in wanting.items():
            artifact = self._find(name, key)
            for setting in settings:
                if artifact is None:
                    setting.error = errors.get(key) or f"stage {name} left no artifact"
                else:
                    setting.artifacts[name] = artifact
            if key in needed and artifact is not None:
                needed[key].executed.add(name)

    def _one_by_one(self, name: str, needed: Mapping[str, Setting]) -> dict[str, str]:
        errors: dict[str, str] = {}
        for key, setting in needed.items():
            assert setting.prepared is not None
            planned = self._planned(setting, name)
            observer, log = _Quiet(self._tell), _QuietLog(lambda text: None)
            evaluation = self._evaluation
            try:
                compute_stage(
                    setting.prepared, planned, setting.artifacts, observer, log, evaluation.run_id, evaluation.code
                )
            except Exception as error:  # the other settings must not fail with this one
                errors[key] = f"stage {name}: {describe(error)}"
        return errors

    def _map_or_reduce(self, name: str, needed: Mapping[str, Setting]) -> dict[str, str]:
        evaluation, have = self._evaluation, capacity()
        settings = list(needed.values())
        prepared = settings[0].prepared
        assert prepared is not None
        stage = settings[0].pipeline.pipeline.stage(name)
        cpus = int(have.cpus)
        workers, resources = stage_resources(stage, prepared.execution, cpus, int(have.gpus))
        use_gpu = resources.gpus > 0
        jobs = [
            bind_job(each.pipeline.pipeline.stage(name), key, self._dataset, self._store, each.artifacts)
            for key, each in needed.items()
        ]
        if isinstance(stage, MapStage):
            outcomes = run_map_jobs(jobs, workers, use_gpu)
        else:
            outcomes = run_reduce_jobs(jobs, cpus)
        errors: dict[str, str] = {}
        for key, job, outcome in zip(needed, jobs, outcomes, strict=True):
            error = outcome.error or self._publish(job, outcome, workers, use_gpu, evaluation)
            if error:
                errors[key] = f"stage {name}: {error}"
            elif not outcome.facts.get("resumed_images"):
                self._costs.record(stage, self._images(stage), outcome.seconds)
        return errors

    def _publish(self, job: StageJob, outcome: JobOutcome, workers: int, gpu: bool, evaluation: Evaluation) -> str:
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
        return len(self._dataset.lists[stage.image_list]) if stage.image_list else 0


def _score(arguments: tuple[str, Select, Artifact, Artifact | None, tuple[float, float] | None]) -> Score:
    return score_of(*arguments)
