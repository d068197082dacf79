"""What of a batch is computed in memory, and which of its settings race: prepares `wsss.search.evaluate.in_memory` and
`wsss.search.evaluate.race`, and applies their outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wsss.evaluation.racing import race_rounds
from wsss.execution.cluster import capacity
from wsss.execution.scheduling import stage_resources
from wsss.pipeline import MapStage, Stage
from wsss.search.choose.score import is_choosing, read_counts
from wsss.search.evaluate.batch import BatchEvaluator
from wsss.search.evaluate.in_memory import fuse, fused_jobs
from wsss.search.evaluate.race import Entrant, Leader, Rule, run_race
from wsss.search.evaluate.trial import CONFUSIONS, Setting, best_so_far
from wsss.search.space.pipelines import metric_stage


def fuse_batch(evaluator: BatchEvaluator, settings: Sequence[Setting]) -> None:
    """Leave what only one setting will ask for to its scorer, and compute what lies before it.

    The recipe itself (number 0) is computed as ever: its artifacts serve runs as well.
    """
    alive = [setting for setting in settings if setting.going_on and setting.number != 0]
    missing = {setting.number: evaluator.missing(setting, evaluator.metric) for setting in alive}
    tails = _tails(evaluator, alive, missing)
    fusing = [setting for setting in alive if tails[setting.number]]
    before = {
        each.number: missing[each.number] - tails[each.number] - {each.target(evaluator.metric)} for each in fusing
    }
    evaluator.compute(fusing, before)
    for setting in fusing:
        if not setting.error:
            tail = tails[setting.number]
            setting.fused = fuse(
                [evaluator.job(setting, stage) for stage in setting.pipeline.pipeline if stage.name in tail]
            )


def race_batch(evaluator: BatchEvaluator, settings: Sequence[Setting], best: Mapping[str, Any] | None) -> None:
    """Drop fused settings that are clearly worse than the best one, where the metric allows a look at fewer images.

    best: number, metric, threshold and artifacts (stage -> key) of the best trial so far.
    """
    evaluation = evaluator.evaluation
    rules = evaluation.race
    racing = {setting.number: setting for setting in settings if setting.going_on and fused_jobs(setting.fused)}
    if rules is None or not racing:
        return
    images = _images_to_look_at(evaluator, next(iter(racing.values())))
    if not images or len(race_rounds(len(images), rules)) < 2:
        return
    leader = _leader(evaluator, best or _recipe_itself(evaluator, settings))
    if len(racing) + (leader is not None) < 2:
        return
    entrants = [
        Entrant(setting.number, setting.fused, evaluator.job(setting, _evaluation_stage(evaluator, setting)))
        for setting in racing.values()
        if setting.fused is not None
    ]
    have = capacity()
    execution = next(iter(racing.values())).pipeline.recipe.execution
    placed = [stage_resources(each.scorer.stage, execution, int(have.cpus), int(have.gpus)) for each in entrants]
    workers = min(workers for workers, _ in placed)
    gpu = any(resources.gpus > 0 for _, resources in placed)
    rule = Rule(evaluator.metric, evaluation.select, evaluation.limits, images, evaluation.trials, rules)
    for number, end in run_race(entrants, leader, rule, workers, gpu, evaluator.tell).items():
        setting = racing[number]
        setting.race, setting.error = end.race, end.error
        setting.fused = fuse(fused_jobs(setting.fused), end.known)


def _images_to_look_at(evaluator: BatchEvaluator, setting: Setting) -> tuple[str, ...]:
    """Those that a choice may rest on, of the metric's scorer; none without one."""
    scorer = _evaluation_stage(evaluator, setting).inputs.get(CONFUSIONS)
    image_list = None if scorer is None else setting.pipeline.pipeline.stage(scorer).image_list
    names = evaluator.dataset.lists[image_list] if image_list else ()
    return tuple(name for name in names if evaluator.evaluation.select != "held_out" or is_choosing(name))


def _tails(
    evaluator: BatchEvaluator, settings: Sequence[Setting], missing: Mapping[int, set[str]]
) -> dict[int, set[str]]:
    """Missing map stages of each setting that lie before its numbers and that no other setting will want."""
    wanted = Counter(setting.pipeline.keys[name] for setting in settings for name in missing[setting.number])
    tails: dict[int, set[str]] = {}
    for setting in settings:
        keyed = setting.pipeline
        target = _evaluation_stage(evaluator, setting)
        own = {
            stage.name
            for stage in keyed.pipeline
            if stage.name in missing[setting.number]
            and isinstance(stage, MapStage)
            and wanted[keyed.keys[stage.name]] == 1
        }
        inputs = target.inputs.values() if target.name in missing[setting.number] else ()
        tail = {stage.name for stage in keyed.pipeline.upstream(*inputs, stop=lambda name, own=own: name not in own)}
        # What some of the searched keys do not change, settings of later batches may want as well.
        varied = [
            stage.name for stage in keyed.pipeline.upstream(target.name) if stage.name in evaluator.evaluation.varied
        ]
        for name in varied:
            tail &= keyed.pipeline.downstream(name)
        # What another missing stage reads must be there as a whole.
        for stage in reversed(keyed.pipeline.stages):
            if stage.name in missing[setting.number] - tail - {target.name}:
                tail -= {each.name for each in keyed.pipeline.upstream(stage.name)}
        scorer = target.inputs.get(CONFUSIONS)
        tails[setting.number] = tail if varied and scorer in tail else set()
    return tails


def _evaluation_stage(evaluator: BatchEvaluator, setting: Setting) -> Stage:
    return setting.pipeline.pipeline.stage(setting.target(evaluator.metric))


def _recipe_itself(evaluator: BatchEvaluator, settings: Sequence[Setting]) -> dict[str, Any] | None:
    """Evaluates setting 0, where it is among them, so that the others can be held against it."""
    recipe = [setting for setting in settings if setting.number == 0 and setting.going_on]
    evaluator.advance(recipe, evaluator.metric)
    for outcome in evaluator.outcomes(recipe):
        if outcome.score is not None:
            return best_so_far(
                outcome.number, outcome.metrics[evaluator.metric], outcome.score.threshold, outcome.artifacts
            )
    return None


def _leader(evaluator: BatchEvaluator, best: Mapping[str, Any] | None) -> Leader | None:
    """Counts of the best trial; None without one, or when its artifacts are gone."""
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
