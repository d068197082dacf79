"""What a plan says about its cost."""

from dataclasses import dataclass, replace

import pytest

from wsss.commands.screen import print_plan
from wsss.pipeline import ReduceStage, Reduction, StageContext
from wsss.plan import Plan, PlannedStage


@dataclass(frozen=True)
class NoConfig:
    pass


def nothing(context: StageContext) -> Reduction:
    return Reduction(metrics={})


def planned(name: str, seconds: float | None) -> PlannedStage:
    stage = ReduceStage(name=name, version=1, config=NoConfig(), compute=nothing)
    return PlannedStage(stage=stage, key="0" * 32, artifact=None, needed=True, images=8, expected_seconds=seconds)


def test_plan_adds_up_the_times_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    known = (planned("cam_train", 100.0), planned("cam", 30.5))
    fed = replace(planned("superpixels", 900.0), needed=False)
    print_plan(Plan((fed, *known)), "toy")
    assert "2 of 3 stages to compute; expected 2 min 10 s in all, from earlier runs" in capsys.readouterr().out
    print_plan(Plan((fed, *known, planned("random_walk", None))), "toy")
    text = capsys.readouterr().out
    assert "3 of 4 stages to compute; expected at least 2 min 10 s, the time of the 2 of them that ran" in text
    print_plan(Plan((planned("random_walk", None),)), "toy")
    assert "no expected time yet" in capsys.readouterr().out
