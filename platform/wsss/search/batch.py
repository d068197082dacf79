"""Evaluates a batch of settings: every stage that several of them share is computed once, stage by stage.

Runs where the trial runs, on a worker that takes no CPU; the stages take the cluster's CPUs and GPUs.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsss.data.dataset import load_dataset
from wsss.data.view import DataView
from wsss.errors import WsssError
from wsss.evaluation.racing import RaceRules, race_rounds
from wsss.evaluation.score_stages import LabelScoreConfig
from wsss.execution.cluster import capacity
from wsss.execution.many import JobOutcome, call_many, describe, run_map_jobs, run_reduce_jobs
from wsss.execution.run import PreparedRun, RunRequest, checkpoints_place, compute_stage
from wsss.execution.scheduling import stage_resources
from wsss.execution.stage_job import StageJob, bind_job, publish_stage, training_name
from wsss.method import Method
from wsss.pipeline import MapStage, ReduceStage, Stage, TrainStage
from wsss.plan import CostHistory, Plan, PlannedStage
from wsss.recipe import change_recipe
from wsss.search.keyed import KeyedPipeline, KeyedPipelines, metric_stage
from wsss.search.label_free import Criterion, criterion_curve, criterion_input
from wsss.search.racing import Chain, Leader, Rule, run_race
from wsss.search.record import PreviewValue, Race, Rung, Select, StageUse
from wsss.search.score import Score, is_choosing, read_counts, score_of
from wsss.store import Artifact, open_store

Tell = Callable[[str], None]
CONFUSIONS = "confusions"


@dataclass(frozen=True)
class Evaluation:
    """What every trial of a sweep has in common; travels to the workers by pickle.

    Attributes:
        recipe: what settings change.
        metric: what is searched for; limits: range of the thresholds that may be chosen, see `score_of`.
        criterion: without masks, computed for every setting; None: none.
        race: how settings are raced, None: each is evaluated on all images; trials: settings of the sweep.
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
    criterion: Criterion | None = None
    race: RaceRules | None = None
    trials: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of one setting. `error` is empty unless it failed; else the rest is what was known by then.

    Attributes:
        race: where it took part in one; with an estimate, it was dropped there and has no score.
        raced_share: of all its images, those that it was judged on in the race.
    """

    number: int
    error: str = ""
    score: Score | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stages: tuple[StageUse, ...] = ()
    artifacts: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    previews: tuple[PreviewValue, ...] = ()
    race: Race | None = None
    raced_share: float = 1.0

    @property
    def dropped(self) -> bool:
        """Whether it lost a race."""
        return self.race is not None and self.race.estimate is not None

    @property
    def cost_seconds(self) -> float:
        """What all its stages cost, whoever executed them; what a race left out is extrapolated."""
        rest = self.race.seconds / self.raced_share if self.race is not None and self.dropped else 0.0
        return sum(stage.seconds for stage in self.stages) + rest

    @property
    def spent_seconds(self) -> float:
        """What the stages that it executed cost, and the race."""
        raced = 0.0 if self.race is None else self.race.seconds
        return sum(stage.seconds for stage in self.stages if stage.executed) + raced


@dataclass
class Setting:
    """One setting under way. `artifacts` by stage name; `executed` are the stages that were computed for it.

    Attributes:
        previews: metrics while its stages trained; looks: the stages that this took.
    """

    number: int
    error: str = ""
    keyed: KeyedPipeline | None = None
    prepared: PreparedRun | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)
    previews: list[PreviewValue] = field(default_factory=list)
    looks: list[StageUse] = field(default_factory=list)
    race: Race | None = None
    raced_share: float = 1.0

    @property
    def going_on(self) -> bool:
        """Whether it neither failed nor lost a race."""
        return not self.error and (self.race is None or self.race.estimate is None)

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
        alive = [setting for setting in settings if setting.going_on]
        self._compute(alive, {setting.number: self._missing(setting, metric) for setting in alive})

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
            self._tell(f"{rung.text}: {early.error}; trains on")
            return None
        setting.previews.append(PreviewValue(rung.metric, rung.stage, stage.preview.epoch, stage.epochs, value))
        self._tell(f"{rung.metric} {100 * value:.2f} % after {stage.preview.epoch} of {stage.epochs} epochs")
        return value

    def discard(self, settings: Sequence[Setting]) -> None:
        """Remove the checkpoints of trainings that were stopped."""
        for setting in settings:
            place = None if setting.prepared is None else checkpoints_place(setting.prepared)
            if place is None or "://" in place:
                continue
            for seen in setting.previews:
                stage = setting.pipeline.pipeline.stage(seen.stage)
                name = training_name(stage, setting.pipeline.keys[seen.stage])
                shutil.rmtree(Path(place) / name, ignore_errors=True)

    def race(self, settings: Sequence[Setting], best: Mapping[str, Any] | None) -> None:
        """Drop settings that are clearly worse than the best one, where the metric allows a look at fewer images.

        The recipe itself (number 0) is never dropped. best: number, metric, threshold and artifacts (stage -> key) of
        the best trial so far.
        """
        evaluation = self._evaluation
        rules = evaluation.race
        alive = [setting for setting in settings if setting.going_on and setting.number != 0]
        if rules is None or not alive:
            return
        images = self._images_to_look_at(alive[0])
        if not images or len(race_rounds(len(images), rules)) < 2:
            return
        missing = {setting.number: self._missing(setting, self.metric) for setting in alive}
        tails = self._tails(alive, missing)
        racing = [setting for setting in alive if tails[setting.number]]
        if best is None and racing:
            best = self._recipe_itself(settings)
        before = {each.number: missing[each.number] - tails[each.number] - {self._target(each)} for each in racing}
        self._compute(racing, before)
        racing = [setting for setting in racing if not setting.error]
        leader = self._leader(best)
        if len(racing) + (leader is not None) < 2:
            return
        chains = [self._chain(setting, tails[setting.number]) for setting in racing]
        have = capacity()
        execution = racing[0].pipeline.recipe.execution
        placed = [stage_resources(job.stage, execution, int(have.cpus), int(have.gpus)) for job in chains[0].maps]
        workers = min(workers for workers, _ in placed)
        gpu = any(resources.gpus > 0 for _, resources in placed)
        rule = Rule(self.metric, evaluation.select, evaluation.limits, images, evaluation.trials, rules)
        ends = run_race(chains, leader, rule, workers, gpu, self._tell)
        for setting, chain in zip(racing, chains, strict=True):
            if (end := ends.get(setting.number)) is not None:
                setting.race, setting.error = end.race, end.error
                setting.raced_share = end.race.images / len(chain.maps[0].view.names)

    def _images_to_look_at(self, setting: Setting) -> tuple[str, ...]:
        """Those that a choice may rest on, of the metric's scorer; none without one."""
        scorer = setting.pipeline.pipeline.stage(self._target(setting)).inputs.get(CONFUSIONS)
        image_list = None if scorer is None else setting.pipeline.pipeline.stage(scorer).image_list
        names = self._dataset.lists[image_list] if image_list else ()
        return tuple(name for name in names if self._evaluation.select != "held_out" or is_choosing(name))

    def _target(self, setting: Setting) -> str:
        return metric_stage(setting.pipeline.pipeline, self.metric)

    def _compute(self, settings: Sequence[Setting], missing: Mapping[int, set[str]]) -> None:
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

    def _tails(self, settings: Sequence[Setting], missing: Mapping[int, set[str]]) -> dict[int, set[str]]:
        """Missing map stages of each setting that lie before its numbers and that no other setting wants."""
        wanted = Counter(setting.pipeline.keys[name] for setting in settings for name in missing[setting.number])
        tails: dict[int, set[str]] = {}
        for setting in settings:
            keyed = setting.pipeline
            target = self._target(setting)
            tail: set[str] = set()
            waiting = [*keyed.pipeline.stage(target).inputs.values()] if target in missing[setting.number] else []
            while waiting:
                name = waiting.pop()
                stage = keyed.pipeline.stage(name)
                if name in missing[setting.number] and isinstance(stage, MapStage) and wanted[keyed.keys[name]] == 1:
                    tail.add(name)
                    waiting += stage.inputs.values()
            # What another missing stage reads must be there as a whole.
            for stage in reversed(keyed.pipeline.stages):
                if stage.name in missing[setting.number] - tail - {target}:
                    tail -= {each.name for each in keyed.upstream(stage.name)}
            scorer = keyed.pipeline.stage(target).inputs.get(CONFUSIONS)
            tails[setting.number] = tail if scorer in tail else set()
        return tails

    def _chain(self, setting: Setting, tail: set[str]) -> Chain:
        keyed = setting.pipeline
        target = keyed.pipeline.stage(self._target(setting))
        scorer = target.inputs[CONFUSIONS]
        before = keyed.upstream(scorer)
        maps = tuple(self._job(setting, stage) for stage in before if stage.name in tail)
        return Chain(setting.number, maps, self._job(setting, target))

    def _job(self, setting: Setting, stage: Stage) -> StageJob:
        """The stage with those of its inputs that are there."""
        inputs = {role: name for role, name in stage.inputs.items() if name in setting.artifacts}
        bound = bind_job(
            replace(stage, inputs=inputs),
            setting.pipeline.keys[stage.name],
            self._dataset,
            self._store,
            setting.artifacts,
        )
        return replace(bound, stage=stage)

    def _recipe_itself(self, settings: Sequence[Setting]) -> dict[str, Any] | None:
        """Evaluates setting 0, where it is among them, so that the others can be held against it."""
        recipe = [setting for setting in settings if setting.number == 0 and setting.going_on]
        self.advance(recipe, self.metric)
        for outcome in self.outcomes(recipe):
            if outcome.score is not None:
                return best_so_far(
                    outcome.number, outcome.metrics[self.metric], outcome.score.threshold, outcome.artifacts
                )
        return None

    def _leader(self, best: Mapping[str, Any] | None) -> Leader | None:
        """Counts of the best trial; None without one, or when its artifacts are gone."""
        if best is None:
            return None
        pipeline = self._pipelines.of(self._evaluation.recipe).pipeline
        target = metric_stage(pipeline, self.metric)
        scorer = pipeline.stage(target).inputs.get(CONFUSIONS, "")
        found = [
            self._find(name, best["artifacts"][name]) if name in best["artifacts"] else None
            for name in (target, scorer)
        ]
        if found[0] is None or found[1] is None:
            return None
        counts = read_counts(self.metric, best["metric"], found[0], found[1])
        if counts is None:
            return None
        return Leader(best["number"], counts.names, counts.at(best["threshold"]), counts.mean_over)

    def value(self, setting: Setting, metric: str) -> float | None:
        """A metric of a setting that has advanced to it; None when it failed."""
        if not setting.going_on:
            return None
        stage = metric_stage(setting.pipeline.pipeline, metric)
        return float(setting.artifacts[stage].json("metrics.json")[metric])

    def outcomes(self, settings: Sequence[Setting]) -> list[Outcome]:
        """Scores of settings that have advanced to the metric of the sweep."""
        alive = [setting for setting in settings if setting.going_on]
        evaluation = self._evaluation
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
        found = [self._outcome(setting, None) for setting in settings]
        return [
            replace(
                outcome,
                stages=tuple(use for use in outcome.stages if use.name in setting.artifacts or use in setting.looks),
            )
            for setting, outcome in zip(settings, found, strict=True)
        ]

    def _outcome(self, setting: Setting, score: Score | RuntimeError | None, metric: str = "") -> Outcome:
        if setting.keyed is None:
            return Outcome(setting.number, error=setting.error)
        error = setting.error or (str(score) if isinstance(score, RuntimeError) else "")
        uses = []
        metrics: dict[str, float] = {}
        artifacts: dict[str, str] = {}
        target = metric_stage(setting.keyed.pipeline, metric or self.metric)
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
            stages=(*setting.looks, *uses),
            artifacts=artifacts,
            seed=int(setting.keyed.recipe.seed),
            previews=tuple(setting.previews),
            race=setting.race,
            raced_share=setting.raced_share,
        )

    def _scored(self, setting: Setting) -> tuple[Artifact, Artifact | None]:
        """The artifact of the evaluation and of the stage with each image's confusion matrix."""
        keyed = setting.pipeline
        target = keyed.pipeline.stage(self._target(setting))
        scorer = target.inputs.get(CONFUSIONS)
        return setting.artifacts[target.name], self._find(scorer, keyed.keys[scorer]) if scorer else None

    def _unmasked(self, setting: Setting) -> Unmasked | None:
        """What the criterion without masks is computed from."""
        criterion = self._evaluation.criterion
        if criterion is None:
            return None
        keyed = setting.pipeline
        target = keyed.pipeline.stage(self._target(setting))
        scorer = keyed.pipeline.stage(target.inputs[CONFUSIONS])
        source = criterion_input(scorer)
        artifact = setting.artifacts.get(source) or self._find(source, keyed.keys[source])
        assert artifact is not None, source
        view = self._dataset.view({"images"}, scorer.image_list)
        default = None if isinstance(scorer.config, LabelScoreConfig) else target.config.default_threshold
        return Unmasked(criterion, scorer, artifact, view, default)

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


def best_so_far(number: int, metric: float, threshold: float | None, artifacts: Mapping[str, str]) -> dict[str, Any]:
    """What `BatchEvaluator.race` is told of the best trial: plain values, because Tune passes it on."""
    return {"number": number, "metric": metric, "threshold": threshold, "artifacts": dict(artifacts)}


@dataclass(frozen=True)
class Unmasked:
    """Arguments of `criterion_curve`, see there."""

    criterion: Criterion
    scorer: Stage
    artifact: Artifact
    view: DataView
    default: float | None


def _score(
    arguments: tuple[str, Select, Artifact, Artifact | None, tuple[float, float] | None, Unmasked | None],
) -> Score:
    *known, limits, unmasked = arguments
    points = ()
    if unmasked is not None:
        points = criterion_curve(
            unmasked.criterion, unmasked.scorer, unmasked.artifact, unmasked.view, limits, unmasked.default
        )
    return score_of(*known, limits, points)
