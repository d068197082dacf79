"""Progress as people see it, without a run behind it."""

import io
from dataclasses import dataclass

import pytest
from rich.console import Console
from rich.progress import Task

from wsss.commands.progress import LineObserver, StageTasks, TreeObserver, position, rate, timing
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


def running(tasks: StageTasks, name: str, now: list[float]) -> Task:
    task = tasks.stage(name)
    task._get_time = tasks.get_time = lambda: now[0]
    return task


def test_time_left_counts_only_what_this_process_did() -> None:
    now = [10.0]
    tasks = StageTasks("", (planned("cam"),))
    task = running(tasks, "cam", now)
    assert tasks.begin("cam", 100, "images")
    now[0] = 12.0
    assert (position(task), rate(task), timing(task)) == ("0/100 images", "", "2.0 s")
    tasks.advance_to("cam", 40, "")  # found finished from before
    now[0] = 17.0
    assert (rate(task), timing(task)) == ("", "7.0 s")
    tasks.advance_to("cam", 50, "")
    assert (position(task), rate(task), timing(task)) == ("50/100 images", "2.0/s", "25.0 s left")
    assert not tasks.begin("cam", 100, "images")  # told again: the clock goes on
    assert timing(task) == "25.0 s left"
    now[0] = 17.0 + 4 * 60
    tasks.advance_to("cam", 51, "")
    assert rate(task) == "22.3 s each"


def test_a_long_stage_prints_fewer_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    observer = LineObserver((planned("cam_train"),))
    now = [1000.0]
    running(observer._tasks, "cam_train", now)
    monkeypatch.setattr("wsss.commands.progress.time.monotonic", lambda: now[0])
    observer.start("cam_train", 36_000, "steps")
    for step in range(1, 36_000, 5):  # ten hours, a step a second
        now[0] = 1000.0 + step
        observer.update("cam_train", step, "loss 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert 60 < len(lines) < 90
    assert "cam_train: 16/36000 steps, 1.0/s, 10 h 00 min left, loss 0.5" in lines[1]


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
    observer.update("walk", 4, "loss 0.1")
    console = Console(width=140, record=True, file=io.StringIO())
    for part in observer.tasks.get_renderables():
        console.print(part)
    text = console.export_text()
    assert "toy, recipe demo  1 of 2 stages, 0.0 s, cam/miou_train 41.00 %" in text
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith(("├─", "└─"))}
    assert "done" in lines["cam"] and "5.0 s" in lines["cam"] and "cam/miou_train 41.00 %" in lines["cam"]
    assert "4/8 images" in lines["walk"] and "loss 0.1" in lines["walk"]
    assert "not needed" in lines["mask"] and lines["mask"].startswith("└─")
