"""Progress as people see it, without a run behind it."""

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from wsss.commands.progress import LineObserver, StageProgress, TreeObserver
from wsss.pipeline import ReduceStage, Reduction, StageContext
from wsss.plan import PlannedStage


@dataclass(frozen=True)
class NoConfig:
    pass


def nothing(context: StageContext) -> Reduction:
    return Reduction(metrics={})


def planned(name: str, needed: bool = True) -> PlannedStage:
    stage = ReduceStage(name=name, version=1, config=NoConfig(), compute=nothing)
    return PlannedStage(stage=stage, key="0" * 32, artifact=None, needed=needed, images=8, expected_seconds=None)


def test_time_left_counts_only_what_this_process_did() -> None:
    progress = StageProgress("cam")
    progress.begin(100, "images", now=10.0)
    assert progress.remaining(12.0) is None
    progress.advance(40, "")  # found finished from before
    assert progress.remaining(20.0) is None
    progress.advance(60, "")
    assert progress.remaining(20.0) == pytest.approx(20.0)
    progress.begin(100, "images", now=99.0)  # told again: the clock goes on
    assert progress.remaining(20.0) == pytest.approx(20.0)
    assert progress.position() == "60/100 images"


def test_lines_come_at_the_ends_and_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    observer = LineObserver((planned("cam_train"),), every=3600)
    observer.start("cam_train", 0, "steps")
    observer.start("cam_train", 240, "steps")
    for step in range(1, 240):
        observer.update("cam_train", step, f"loss {1 / step:.4f}")
    observer.finish("cam_train", 125.0, "loss 0.0042")
    lines = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["cam_train: started", "cam_train: done in 2 min 05 s, loss 0.0042"]
    eager = LineObserver((planned("cam_train"),), every=0)
    eager.start("cam_train", 240, "steps")
    eager.update("cam_train", 120, "loss 0.5000")
    assert "cam_train: 120/240 steps" in capsys.readouterr().out


def test_tree_shows_state_time_and_numbers() -> None:
    observer = TreeObserver("toy, recipe demo", (planned("cam"), planned("walk"), planned("mask", needed=False)))
    observer.start("cam", 8, "images")
    observer.finish("cam", 5.0, "cam/miou_train 41.00 %")
    observer.start("walk", 8, "images")
    observer.update("walk", 3, "loss 0.1")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(observer._draw())
    text = console.export_text()
    assert "toy, recipe demo" in text
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith(("├─", "└─"))}
    assert "done" in lines["cam"] and "5.0 s" in lines["cam"] and "cam/miou_train 41.00 %" in lines["cam"]
    assert "3/8 images" in lines["walk"] and "loss 0.1" in lines["walk"]
    assert "not needed" in lines["mask"] and lines["mask"].startswith("└─")
