"""Chooses which trials of a batch run in memory and which are compared early.

Prepares `wsss.search.evaluate.in_memory` and `wsss.search.evaluate.race`, and applies what they find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wsss.evaluation.racing import race_rounds
from wsss.execution.growth import current_cluster
from wsss.execution.scheduling import stage_resources
from wsss.pipeline import MapStage
from wsss.search.choose.score import is_choosing, read_counts
from wsss.search.evaluate.batch import BatchEvaluator
from wsss.search.evaluate.in_memory import fuse, fused_jobs
from wsss.search.evaluate.race import Comparison, Leader, RacingTrial, run_race
from wsss.search.evaluate.trial import CONFUSIONS, RunningTrial, best_so_far
from wsss.search.space.pipelines import metric_stage


def fuse_batch(evaluator: BatchEvaluator, trials: Sequence[RunningTrial]) -> None:
    """Leave what only one trial will ask for to its scorer, and compute what lies before it.

    The recipe itself (number 0) is computed as ever: its artifacts serve runs as well.
    """
    alive = [trial for trial in trials if trial.going_on and trial.number != 0]
    missing = {trial.number: evaluator.missing(trial, evaluator.metric) for trial in alive}
    tails = _tails(evaluator, alive, missing)
    fusing = [trial for trial in alive if tails[trial.number]]
    before = {
        each.number: missing[each.number] - tails[each.number] - {each.target(evaluator.metric).name} for each in fusing
    }
    evaluator.compute(fusing, before)
    for trial in fusing:
        if not trial.error:
            tail = tails[trial.number]
            trial.fused = fuse([evaluator.job(trial, stage) for stage in trial.pipeline.pipeline if stage.name in tail])


def race_batch(evaluator: BatchEvaluator, trials: Sequence[RunningTrial], best: Mapping[str, Any] | None) -> None:
    """Drop fused trials that are clearly worse than the best one, where the metric allows a look at fewer images.

    best: number, threshold and artifacts (stage -> key) of the best trial so far.
    """
    sweep = evaluator.sweep
    rules = sweep.race
    raced = {trial.number: trial for trial in trials if trial.going_on and fused_jobs(trial.fused)}
    if rules is None or not raced:
        return
    images = _images_to_look_at(evaluator, next(iter(raced.values())))
    if not images or len(race_rounds(len(images), rules)) < 2:
        return
    leader = _leader(evaluator, best or _recipe_itself(evaluator, trials))
    if len(raced) + (leader is not None) < 2:
        return
    racing = [
        RacingTrial(trial.number, trial.fused, evaluator.job(trial, trial.target(evaluator.metric)))
        for trial in raced.values()
        if trial.fused is not None
    ]
    cluster = current_cluster()
    execution = next(iter(raced.values())).pipeline.recipe.execution
    placed = [stage_resources(each.scorer.stage, execution, cluster) for each in racing]
    workers = min(workers for workers, _ in placed)
    gpu = any(resources.gpus > 0 for _, resources in placed)
    rule = Comparison(evaluator.metric, sweep.select, sweep.limits, images, sweep.trials, rules)
    for number, end in run_race(racing, leader, rule, workers, gpu, evaluator.tell).items():
        trial = raced[number]
        trial.race, trial.error = end.race, end.error
        trial.fused = fuse(fused_jobs(trial.fused), end.known)


def _images_to_look_at(evaluator: BatchEvaluator, trial: RunningTrial) -> tuple[str, ...]:
    """Those that a choice may rest on, of the metric's scorer; none without one."""
    scorer = trial.target(evaluator.metric).inputs.get(CONFUSIONS)
    image_list = None if scorer is None else trial.pipeline.pipeline.stage(scorer).image_list
    names = evaluator.dataset.lists[image_list] if image_list else ()
    return tuple(name for name in names if evaluator.sweep.select != "held_out" or is_choosing(name))


def _tails(
    evaluator: BatchEvaluator, trials: Sequence[RunningTrial], missing: Mapping[int, set[str]]
) -> dict[int, set[str]]:
    """Missing map stages of each trial that lie before its numbers and that no other trial will want."""
    wanted = Counter(trial.pipeline.keys[name] for trial in trials for name in missing[trial.number])
    tails: dict[int, set[str]] = {}
    for trial in trials:
        keyed = trial.pipeline
        target = trial.target(evaluator.metric)
        own = {
            stage.name
            for stage in keyed.pipeline
            if stage.name in missing[trial.number]
            and isinstance(stage, MapStage)
            and wanted[keyed.keys[stage.name]] == 1
        }
        inputs = target.inputs.values() if target.name in missing[trial.number] else ()
        tail = {stage.name for stage in keyed.pipeline.upstream(*inputs, stop=lambda name, own=own: name not in own)}
        # What some of the searched keys do not change, trials of later batches may want as well.
        varied = [stage.name for stage in keyed.pipeline.upstream(target.name) if stage.name in evaluator.sweep.varied]
        for name in varied:
            tail &= keyed.pipeline.downstream(name)
        # What another missing stage reads must be there as a whole.
        for stage in reversed(keyed.pipeline.stages):
            if stage.name in missing[trial.number] - tail - {target.name}:
                tail -= {each.name for each in keyed.pipeline.upstream(stage.name)}
        scorer = target.inputs.get(CONFUSIONS)
        tails[trial.number] = tail if varied and scorer in tail else set()
    return tails


def _recipe_itself(evaluator: BatchEvaluator, trials: Sequence[RunningTrial]) -> dict[str, Any] | None:
    """Evaluates trial 0, where it is among them, so that the others can be held against it."""
    recipe = [trial for trial in trials if trial.number == 0 and trial.going_on]
    evaluator.advance(recipe, evaluator.metric)
    for outcome in evaluator.outcomes(recipe):
        if outcome.score is not None:
            return best_so_far(outcome.number, outcome.score.threshold, outcome.artifacts)
    return None


def _leader(evaluator: BatchEvaluator, best: Mapping[str, Any] | None) -> Leader | None:
    """ImageCounts of the best trial; None without one, or when its artifacts are gone."""
    if best is None:
        return None
    pipeline = evaluator.pipeline_of_the_recipe()
    target = metric_stage(pipeline, evaluator.metric)
    scorer = pipeline.stage(target).inputs.get(CONFUSIONS, "")
    found = [
        evaluator.find(name, best["artifacts"][name]) if name in best["artifacts"] else None
        for name in (target, scorer)
    ]
    if found[0] is None or found[1] is None:
        return None
    counts = read_counts(evaluator.metric, found[0], found[1])
    if counts is None:
        return None
    return Leader(best["number"], counts.names, counts.at(best["threshold"]), counts.mean_over)
