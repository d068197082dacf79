"""A sweep before it runs: its request, everything that can be refused early, its plan and its identity."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wsss.data.dataset import Dataset, load_dataset
from wsss.errors import WsssError
from wsss.execution.prepare import PreparedRun, RunRequest, prepare_run
from wsss.method import Method
from wsss.pipeline import Stage, TrainStage
from wsss.plan import PlannedStage
from wsss.recipe import flat_dict, settings_of
from wsss.search.choose.criteria import CRITERIA, Criterion, criterion_problem
from wsss.search.choose.score import limits_of
from wsss.search.propose.nested import SearchPlan, default_inner_trials
from wsss.search.propose.samplers import check_sampler
from wsss.search.records import Rung, SearchedKey, Select, sweep_folder
from wsss.search.space.file import SearchSpace, load_space
from wsss.search.space.levels import derive_levels
from wsss.search.space.pipelines import KeyedPipeline, KeyedPipelines, metric_stage, metrics_of

COST = "cost_seconds"
PREVIEW_FRACTIONS = (0.25, 0.5)


class SweepError(WsssError):
    """A sweep is refused before anything is spent, or another process runs it."""


@dataclass(frozen=True)
class SweepRequest:
    """What to search, and where results go.

    Attributes:
        trials: in all. inner_trials, batch: None derives them, see `SearchPlan`.
        stage_cost_limit: seconds above which a stage counts as costly although it trains nothing.
        early_stop: stop outer trials that fall behind at the evaluations before the searched one.
        criterion: without masks, computed for every trial beside its score; the rule label_free chooses by it.
        race: drop trials that are clearly worse after a part of the images.
        against_cost: a second objective, the seconds that a trial costs.
        no_training: keep the recipe's values of the keys that force training.
        confirm_top, confirm_seeds: the best trials and the recipe itself run again under these seeds.
        study_url: database of the Optuna study; None: sqlite beside the sweep.
        name: id of the sweep; None derives it. new: do not continue the sweep of that id, begin another.
    """

    method: Method
    recipe: Any
    recipe_name: str
    home: Path
    store_url: str
    space_path: Path
    metric: str
    trials: int
    tracking_uri: str | None = None
    select: Select = "held_out"
    criterion: Criterion | None = None
    sampler: str = "tpe"
    seed: int = 0
    inner_trials: int | None = None
    batch: int | None = None
    concurrency: int = 1
    flat: bool = False
    early_stop: bool = False
    race: bool = True
    stage_cost_limit: float | None = None
    against_cost: bool = False
    no_training: bool = False
    confirm_top: int = 0
    confirm_seeds: tuple[int, ...] = ()
    study_url: str | None = None
    name: str | None = None
    new: bool = False


@dataclass(frozen=True)
class ExpectedStage:
    """How often a stage is expected to run: in this sweep, and in as many independent trials."""

    stage: Stage
    executions: int
    independent: int
    seconds: float | None


@dataclass(frozen=True)
class PreparedSweep:
    """A request that can be run; nothing has been computed yet.

    Attributes:
        keys: the search space with stages and levels.
        limits: range of the thresholds that the curve may choose from; None: no threshold is searched.
        run: the recipe itself, prepared until the metric's stage.
    """

    request: SweepRequest
    space: SearchSpace
    keys: tuple[SearchedKey, ...]
    base: KeyedPipeline
    run: PreparedRun
    plan: SearchPlan
    rungs: tuple[Rung, ...]
    limits: tuple[float, float] | None
    sweep_id: str
    identity: str

    @property
    def folder(self) -> Path:
        """Where its records go."""
        return sweep_folder(self.request.home.absolute(), self.sweep_id)

    @property
    def objectives(self) -> dict[str, Literal["max", "min"]]:
        """Names and directions."""
        found: dict[str, Literal["max", "min"]] = {self.request.metric: "max"}
        return {**found, COST: "min"} if self.request.against_cost else found

    @property
    def outer_trials(self) -> int:
        """Outer trials that the budget allows."""
        if not any(key.level == "outer" for key in self.keys):
            return 1
        return -(-self.plan.trials // self.plan.inner_trials)

    def expected(self) -> list[ExpectedStage]:
        """Executions of every stage of the metric, before the store serves anything but the recipe's own."""
        pipeline, trials = self.base.pipeline, self.plan.trials
        reach: dict[str, set[str]] = {}
        for key in self.keys:
            if key.level in ("outer", "inner") and key.stage in self.base.keys:
                for name in pipeline.downstream(key.stage):
                    reach.setdefault(name, set()).add(key.level)
        found = []
        for planned in self.run.plan.stages:
            levels = reach.get(planned.stage.name, set())
            count = trials if "inner" in levels else self.outer_trials if levels else 1
            executions = count - (1 if planned.cached else 0)
            seconds = planned.expected_seconds
            if seconds is None and planned.artifact is not None:
                seconds = float(planned.artifact.provenance.get("seconds", 0.0)) or None
            found.append(ExpectedStage(planned.stage, executions, trials, seconds))
        return found


def prepare_sweep(request: SweepRequest) -> PreparedSweep:
    """Everything that can be refused before an hour is spent. Needs no Ray.

    Raises:
        WsssError: space, recipe, metric, data, store or options do not fit.
    """
    _check_options(request)
    space = load_space(request.space_path, request.recipe)
    if space.method != request.method.name:
        raise SweepError(
            f"the space is of method {space.method!r}, not {request.method.name!r}",
            str(request.space_path),
            "give the space of this method",
        )
    run_request = RunRequest(
        method=request.method,
        recipe=request.recipe,
        recipe_name=request.recipe_name,
        home=request.home,
        store_url=request.store_url,
        tracking_uri=request.tracking_uri,
    )
    pipeline = request.method.pipeline(request.recipe, _dataset(request))
    run = prepare_run(replace(run_request, until=metric_stage(pipeline, request.metric)))
    pipelines = KeyedPipelines(request.method, run.dataset)
    base = pipelines.of(request.recipe)
    seconds = {planned.stage.name: _seconds(planned) for planned in run.plan.stages}
    keys = derive_levels(
        space.keys, pipelines, base, request.metric, seconds, request.stage_cost_limit, str(request.space_path)
    )
    keys = tuple(_kept(key, request) for key in keys)
    _check_criterion(request, base)
    searched = [key for key in keys if key.level in ("outer", "inner")]
    if not searched:
        raise SweepError(
            f"no key of the space changes {request.metric}",
            str(request.space_path),
            "search another metric, or add keys of the stages before it",
        )
    outer = any(key.level == "outer" for key in keys)
    inner = request.inner_trials or default_inner_trials(keys, request.trials)
    flat = request.flat or request.against_cost
    # Trials of a batch share work, so that the cost of one is known only where it is alone.
    batch = 1 if request.against_cost else min(8, -(-inner // 2)) if outer else min(8, -(-request.trials // 4))
    plan = SearchPlan(
        sampler=request.sampler,
        seed=request.seed,
        trials=request.trials,
        inner_trials=request.trials if not outer else 1 if flat else min(inner, request.trials),
        batch=request.batch or batch,
        directions=("max", "min") if request.against_cost else ("max",),
        flat=flat,
    )
    limits = limits_of(keys)
    rungs = _rungs(base, request.metric, keys, seconds, request.stage_cost_limit) if request.early_stop else ()
    if request.early_stop and not rungs:
        raise SweepError(
            f"nothing before {request.metric} that an outer key changes can be looked at",
            "--early-stop",
            "leave it out, or search a metric further down the pipeline",
        )
    identity = _identity(request, keys, base)
    return PreparedSweep(
        request=request,
        space=space,
        keys=keys,
        base=base,
        run=run,
        plan=plan,
        rungs=rungs,
        limits=limits,
        sweep_id=_sweep_id(request, space, identity),
        identity=identity,
    )


def _check_criterion(request: SweepRequest, base: KeyedPipeline) -> None:
    if request.select == "label_free" and request.criterion is None:
        raise SweepError(
            "label_free chooses by a criterion, and none is named", "--label-free", f"one of {', '.join(CRITERIA)}"
        )
    if request.criterion is None:
        return
    scorer = base.pipeline.stage(metric_stage(base.pipeline, request.metric)).inputs.get("confusions")
    problem = criterion_problem(request.criterion, None if scorer is None else base.pipeline.stage(scorer))
    if problem:
        raise SweepError(
            f"{request.criterion} cannot be computed for {request.metric}: {problem}",
            "--label-free",
            "leave it out, or search another metric",
        )


def racing(request: SweepRequest) -> bool:
    """Whether trials are raced: not against the cost, which a dropped one has none of, and not without masks."""
    return request.race and not request.against_cost and request.select != "label_free"


def _check_options(request: SweepRequest) -> None:
    check_sampler(request.sampler, 2 if request.against_cost else 1)
    if request.trials < 1 or request.concurrency < 1:
        raise SweepError("trials and concurrency are at least 1", "--trials, --concurrency", "give a larger number")
    if request.early_stop and (request.against_cost or request.flat):
        raise SweepError(
            "stopping early compares outer trials by one objective",
            "--early-stop",
            "use it without --against-cost and --flat",
        )
    if request.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", request.name):
        raise SweepError(f"{request.name!r} is no name of a folder", "--name", "use letters, digits and . _ -")


def _dataset(request: SweepRequest) -> Dataset:
    return load_dataset(request.recipe.dataset, request.home.absolute())


def _seconds(planned: PlannedStage) -> float | None:
    if planned.expected_seconds is not None or planned.artifact is None:
        return planned.expected_seconds
    return float(planned.artifact.provenance.get("seconds", 0.0))


def _kept(key: SearchedKey, request: SweepRequest) -> SearchedKey:
    """The key, "unused" when the request leaves it at the recipe's value."""
    fixed_threshold = key.level == "curve" and request.select == "default_threshold"
    fixed_training = key.level == "outer" and request.no_training
    return replace(key, level="unused") if fixed_threshold or fixed_training else key


def _rungs(
    base: KeyedPipeline,
    metric: str,
    keys: Sequence[SearchedKey],
    seconds: Mapping[str, float | None],
    limit: float | None,
) -> tuple[Rung, ...]:
    """Where outer trials can be compared before the searched metric is there, in the order of the pipeline.

    Evaluations that rest on fewer costly stages than the searched one, and trainings after a quarter and a half of
    their epochs, seen through the first metric that rests on no other costly stage behind them.
    """
    made = metrics_of(base.pipeline)
    order = {stage.name: place for place, stage in enumerate(base.pipeline)}

    def costly(target: str) -> set[str]:
        return {
            stage.name
            for stage in base.pipeline.upstream(target)
            if isinstance(stage, TrainStage) or (limit is not None and (seconds.get(stage.name) or 0.0) > limit)
        }

    changed = {name for key in keys if key.level == "outer" for name in base.pipeline.downstream(key.stage)}
    target = costly(made[metric])
    metrics = sorted(made, key=lambda name: order[made[name]])
    found: dict[frozenset[str], Rung] = {}
    for name in metrics:
        before = costly(made[name])
        if before and before < target and made[name] in changed:
            found.setdefault(frozenset(before), Rung(name))
    rungs = list(found.values())
    for stage in base.pipeline.upstream(made[metric]):
        if not isinstance(stage, TrainStage) or stage.name not in changed or stage.epochs < 2:
            continue
        through = [
            name for name in metrics if costly(made[name]) == costly(stage.name) and stage.name in costly(made[name])
        ]
        if through:
            rungs += [Rung(through[0], stage.name, fraction) for fraction in PREVIEW_FRACTIONS]
    return tuple(sorted(rungs, key=lambda rung: (order[made[rung.metric]], rung.fraction)))


def _identity(request: SweepRequest, keys: Sequence[SearchedKey], base: KeyedPipeline) -> str:
    known = settings_of(type(request.recipe))
    content = {
        "recipe": {
            key: value for key, value in flat_dict(request.recipe).items() if known[key].in_key or key == "seed"
        },
        "stages": base.keys,
        "space": [asdict(replace(key, stage="", level="inner", trains=())) for key in keys],
        "options": [
            request.method.name,
            request.metric,
            request.select,
            request.sampler,
            request.seed,
            request.flat,
            request.early_stop,
            racing(request),
            request.criterion,
            request.against_cost,
            request.no_training,
            request.inner_trials,
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _sweep_id(request: SweepRequest, space: SearchSpace, identity: str) -> str:
    metric = request.metric.replace("/", ".")
    stem = request.name or f"{request.method.name}-{request.recipe_name}-{space.name}-{metric}-{identity[:8]}"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    home = request.home.absolute()
    if not request.new:
        return _latest(home, stem)
    count, sweep_id = 1, stem
    while sweep_folder(home, sweep_id).exists():
        count += 1
        sweep_id = f"{stem}-{count}"
    return sweep_id


def _latest(home: Path, stem: str) -> str:
    """The sweep that `--new` began last, so that the command without it continues that one."""
    count, sweep_id = 2, stem
    while sweep_folder(home, f"{stem}-{count}").exists():
        sweep_id = f"{stem}-{count}"
        count += 1
    return sweep_id
