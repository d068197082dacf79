"""Which settings of a batch race, and with which stages: prepares `wsss.search.racing` and applies its outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wsss.evaluation.racing import race_rounds
from wsss.execution.cluster import capacity
from wsss.execution.scheduling import stage_resources
from wsss.pipeline import MapStage
from wsss.search.batch import BatchEvaluator
from wsss.search.keyed import metric_stage
from wsss.search.racing import Chain, Leader, Rule, run_race
from wsss.search.score import is_choosing, read_counts
from wsss.search.setting import CONFUSIONS, Setting, best_so_far


def race_batch(evaluator: BatchEvaluator, settings: Sequence[Setting], best: Mapping[str, Any] | None) -> None:
    """Drop settings that are clearly worse than the best one, where the metric allows a look at fewer images.

    The recipe itself (number 0) is never dropped. best: number, metric, threshold and artifacts (stage -> key) of
    the best trial so far.
    """
    evaluation = evaluator.evaluation
    rules = evaluation.race
    alive = [setting for setting in settings if setting.going_on and setting.number != 0]
    if rules is None or not alive:
        return
    images = _images_to_look_at(evaluator, alive[0])
    if not images or len(race_rounds(len(images), rules)) < 2:
        return
    missing = {setting.number: evaluator.missing(setting, evaluator.metric) for setting in alive}
    tails = _tails(alive, missing, evaluator.metric)
    racing = [setting for setting in alive if tails[setting.number]]
    if best is None and racing:
        best = _recipe_itself(evaluator, settings)
    before = {
        each.number: missing[each.number] - tails[each.number] - {each.target(evaluator.metric)} for each in racing
    }
    evaluator.compute(racing, before)
    racing = [setting for setting in racing if not setting.error]
    leader = _leader(evaluator, best)
    if len(racing) + (leader is not None) < 2:
        return
    chains = [_chain(evaluator, setting, tails[setting.number]) for setting in racing]
    have = capacity()
    execution = racing[0].pipeline.recipe.execution
    placed = [stage_resources(job.stage, execution, int(have.cpus), int(have.gpus)) for job in chains[0].maps]
    workers = min(workers for workers, _ in placed)
    gpu = any(resources.gpus > 0 for _, resources in placed)
    rule = Rule(evaluator.metric, evaluation.select, evaluation.limits, images, evaluation.trials, rules)
    ends = run_race(chains, leader, rule, workers, gpu, evaluator.tell)
    for setting, chain in zip(racing, chains, strict=True):
        if (end := ends.get(setting.number)) is not None:
            setting.race, setting.error = end.race, end.error
            setting.raced_share = end.race.images / len(chain.maps[0].view.names)


def _images_to_look_at(evaluator: BatchEvaluator, setting: Setting) -> tuple[str, ...]:
    """Those that a choice may rest on, of the metric's scorer; none without one."""
    scorer = setting.pipeline.pipeline.stage(setting.target(evaluator.metric)).inputs.get(CONFUSIONS)
    image_list = None if scorer is None else setting.pipeline.pipeline.stage(scorer).image_list
    names = evaluator.dataset.lists[image_list] if image_list else ()
    return tuple(name for name in names if evaluator.evaluation.select != "held_out" or is_choosing(name))


def _tails(settings: Sequence[Setting], missing: Mapping[int, set[str]], metric: str) -> dict[int, set[str]]:
    """Missing map stages of each setting that lie before its numbers and that no other setting wants."""
    wanted = Counter(setting.pipeline.keys[name] for setting in settings for name in missing[setting.number])
    tails: dict[int, set[str]] = {}
    for setting in settings:
        keyed = setting.pipeline
        target = setting.target(metric)
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


def _chain(evaluator: BatchEvaluator, setting: Setting, tail: set[str]) -> Chain:
    keyed = setting.pipeline
    target = keyed.pipeline.stage(setting.target(evaluator.metric))
    scorer = target.inputs[CONFUSIONS]
    before = keyed.upstream(scorer)
    maps = tuple(evaluator.job(setting, stage) for stage in before if stage.name in tail)
    return Chain(setting.number, maps, evaluator.job(setting, target))


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
    counts = read_counts(evaluator.metric, best["metric"], found[0], found[1])
    if counts is None:
        return None
    return Leader(best["number"], counts.names, counts.at(best["threshold"]), counts.mean_over)
