"""A sweep's records as a search leaves them: 30 settings under outer ones, two failed, one stopped early."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsss.search.records import (
    Best,
    ConfirmedTrial,
    CurvePoint,
    SearchedKey,
    StageUse,
    SweepRecord,
    TrialRecord,
)

METRIC = "pseudo_label/miou_train"
SPACE = (
    SearchedKey(
        "cam.learning_rate", "float", 0.003, 0.3, log=True, default=0.05, stage="cam_train", level="outer",
        trains=("cam_train",),
    ),
    SearchedKey("random_walk.beta", "int", 4, 20, step=1, default=10, stage="random_walk", level="inner"),
    SearchedKey(
        "random_walk.method", "categorical", choices=("dense", "sparse"), default="sparse", stage="random_walk",
        level="inner",
    ),
    SearchedKey(
        "random_walk.exp_times", "int", 2, 8, step=1, default=6, stage="random_walk", level="inner",
        conditions={"random_walk.method": ["sparse"]},
    ),
    SearchedKey(
        "pseudo_label.threshold", "float", 0.1, 0.5, default=0.25, stage="pseudo_label_evaluation", level="curve"
    ),
)  # fmt: skip
STAGES = (("cam_train", "train", 340.0), ("cam", "map", 61.0), ("random_walk", "map", 42.0), (
    "pseudo_label_evaluation", "reduce", 1.5))  # fmt: skip


def quality(settings: dict[str, Any]) -> float:
    """A smooth optimum away from the recipe."""
    rate = math.log10(settings.get("cam.learning_rate", 0.05) / 0.02)
    beta = (settings.get("random_walk.beta", 10) - 13) / 8
    times = (settings.get("random_walk.exp_times", 6) - 5) / 6 if settings.get("random_walk.method") != "dense" else 0.4
    return 0.52 - 0.08 * rate**2 - 0.05 * beta**2 - 0.02 * times**2


def trial(number: int, outer: dict[str, Any], inner: dict[str, Any], fresh: bool) -> TrialRecord:
    """A finished trial; `fresh`: it is the first under its outer setting and trains."""
    settings = {**outer, **inner}
    noise = 0.006 * math.sin(7.0 * number)
    top = quality(settings) + noise
    curve = tuple(
        CurvePoint(0.05 * step, value, value + 0.01, value - 0.012)
        for step in range(2, 11)
        for value in [top - 0.9 * (0.05 * step - 0.3) ** 2]
    )
    stages = tuple(
        StageUse(name, kind, f"{number:032x}", fresh or name in ("random_walk", "pseudo_label_evaluation"), seconds)
        for name, kind, seconds in STAGES
    )
    return TrialRecord(
        number=number,
        outer=outer,
        inner=inner,
        outer_key=f"{outer}",
        batch=number // 4,
        status="finished",
        values={METRIC: top + 0.01},
        quoted=top - 0.012,
        metrics={METRIC: top - 0.9 * 0.0025},
        threshold=0.3,
        default_value=top - 0.9 * 0.0025,
        oracle=top,
        chosen=top + 0.01,
        held_out=top - 0.012,
        low=top - 0.035,
        high=top + 0.012,
        curve=curve,
        cost_seconds=sum(use.seconds for use in stages) + 3 * number,
        spent_seconds=sum(use.seconds for use in stages if use.executed),
        stages=stages,
    )


def example(folder: Path) -> SweepRecord:
    """Write the trials below `folder` and return the sweep."""
    trials: list[TrialRecord] = [trial(0, {}, {}, fresh=True)]
    for outer in range(6):
        rate = round(0.004 * 2.3**outer, 5)
        for inner in range(5):
            number = len(trials)
            settings: dict[str, Any] = {"random_walk.beta": 4 + (5 * number) % 17}
            settings["random_walk.method"] = "dense" if number % 4 == 0 else "sparse"
            if number % 4:
                settings["random_walk.exp_times"] = 2 + number % 7
            trials.append(trial(number, {"cam.learning_rate": rate}, settings, fresh=inner == 0))
    for number, reason in ((7, "CrfError: the image is empty <at 2007_000033>"), (19, "the worker died repeatedly")):
        trials[number] = replace(
            trials[number], status="failed", reason=reason, values={}, metrics={}, curve=(), held_out=None
        )
    trials[26] = replace(
        trials[26], status="pruned", reason="stopped at cam/miou_train = 31.20 %", values={}, metrics={}, curve=()
    )
    for each in trials:
        each.save(folder)
    found = [each for each in trials if each.status == "finished"]
    best = max(found, key=lambda each: each.values[METRIC])
    uses = [use for each in trials for use in each.stages]
    return SweepRecord(
        sweep_id="ssc-20260101-120000",
        method="ssc",
        recipe_name="mini",
        recipe={"random_walk": {"method": "sparse"}},
        dataset="voc2012",
        store_url="file:///store",
        space_name="ssc",
        space=SPACE,
        metric=METRIC,
        metric_stage="pseudo_label_evaluation",
        select="held_out",
        objectives={METRIC: "max"},
        sampler="tpe",
        seed=0,
        trials=31,
        inner_trials=5,
        batch=4,
        concurrency=1,
        seeds=(0,),
        status="finished",
        wall_seconds=4100.0,
        asked=len(uses),
        executed=sum(use.executed for use in uses),
        served=sum(not use.executed for use in uses),
        independent_seconds=sum(use.seconds for use in uses),
        executed_seconds=sum(use.seconds for use in uses if use.executed),
        best=Best(
            trial=best.number,
            settings=best.settings,
            value=best.values[METRIC],
            reported=0.508,
            default_value=trials[0].values[METRIC],
            default_reported=0.471,
            confirmed=True,
        ),
        confirmations=(
            ConfirmedTrial(best.number, (0, 1, 2), (0.506, 0.512, 0.506), 0.508, 0.0035, 0.4993, 0.5167),
            ConfirmedTrial(0, (0, 1, 2), (0.47, 0.475, 0.468), 0.471, 0.0036, 0.462, 0.48),
        ),
        notes=("2 trials failed.",),
    )
