"""Against a real `mlflow server`, and against one that is away."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from tests.tracking.conftest import MlflowServer, free_port
from tests.tracking.reading import Tracked

from wsss.tracking import TrackedRun, Tracker, open_tracker, sync
from wsss.tracking.spool import read_cursor, read_events, tracking_folder


def _start(uri: str, home: Path, experiment: str) -> tuple[Tracker, TrackedRun, TrackedRun]:
    tracker = open_tracker(uri, home, experiment)
    parent = tracker.run("reproduce", key="r1", params={"seed": 0})
    return tracker, parent, tracker.run("cam", key="r1/cam", parent=parent, tags={"stage": "cam"})


def _wait_until_sent(home: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    folder = tracking_folder(home, "r1")
    while read_events(folder, read_cursor(folder).offset, None)[0]:
        assert time.monotonic() < deadline, "the events did not reach the server"
        time.sleep(0.1)


def test_a_run_arrives_while_it_is_running(server: MlflowServer, home: Path, tmp_path: Path) -> None:
    figure = tmp_path / "figure.txt"
    figure.write_text("picture")
    tracker, parent, stage = _start(server.url, home, "server/plain")
    stage.series({"loss": [(step, float(step)) for step in range(1100)]})
    stage.artifact(figure, "figures")
    _wait_until_sent(home)
    tracked = Tracked(server.url, "server/plain")
    assert tracked.run("cam").info.status == "RUNNING"
    assert len(tracked.curve("cam", "loss")) == 1100
    assert tracked.artifact("cam", "figures/figure.txt", tmp_path / "back") == "picture"
    assert tracked.run("cam").data.tags["mlflow.parentRunId"] == tracked.run("reproduce").info.run_id
    stage.finish()
    parent.finish()
    assert tracker.close(60).complete
    assert tracked.run("cam").info.status == "FINISHED"


def test_a_server_that_is_down_costs_nothing(server: MlflowServer, home: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("1,2")
    # A port in between: the run meets a dead address, the real server is the same address later.
    dead = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    tracker, parent, stage = _start(dead, home, "server/down")
    stage.series({"loss": [(step, 0.5) for step in range(20)]})
    stage.artifact(table)
    stage.finish()
    parent.finish()
    assert time.monotonic() - started < 2.0, "a dead server blocked the run"
    report = tracker.close(2)
    assert time.monotonic() - started < 12.0, "a dead server blocked the end of the run"
    assert not report.complete
    assert report.unsent == 7
    assert f"wsss track sync --home {home}" in report.message
    assert dead in report.message and str(tracking_folder(home, "r1")) in report.message
    for _ in range(2):
        assert sync(home, server.url).complete
    tracked = Tracked(server.url, "server/down")
    assert len(tracked.runs()) == 2
    assert tracked.curve("cam", "loss") == [(step, 0.5) for step in range(20)]
    assert tracked.run("cam").info.status == "FINISHED"
    assert tracked.artifact("cam", "t.csv", tmp_path / "back") == "1,2"


def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(server: MlflowServer, home: Path) -> None:
    tracker, parent, stage = _start(server.url, home, "server/killed")
    stage.series({"loss": [(step, 1.0) for step in range(300)]})
    _wait_until_sent(home)
    stage.series({"loss": [(step, 1.0) for step in range(300, 5000)]})
    tracked = Tracked(server.url, "server/killed")
    while len(tracked.curve("cam", "loss")) <= 300:
        time.sleep(0.05)
    server.kill()
    stage.series({"loss": [(step, 1.0) for step in range(5000, 5200)]})
    server.start()
    stage.finish()
    parent.metrics({"cam/miou_train": 55.0})
    parent.finish()
    report = tracker.close(60)
    assert report.complete, report.message
    assert len(tracked.runs()) == 2
    assert [step for step, _ in tracked.curve("cam", "loss")] == list(range(5200))
    assert tracked.run("reproduce").data.metrics == {"cam/miou_train": 55.0}


def test_a_server_that_never_answers_is_left_in_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        started = time.monotonic()
        tracker, parent, _ = _start(f"http://127.0.0.1:{silent.getsockname()[1]}", home, "server/silent")
        parent.metrics({"loss": 1.0}, step=0)
        report = tracker.close(3)
        assert time.monotonic() - started < 8.0
    assert report.unsent == 4
    assert "timeout" in report.reason or "in time" in report.reason


def test_a_lost_cursor_finds_its_runs_again(server: MlflowServer, home: Path) -> None:
    """A record that reached the server but not the cursor (the process died in between) finds its runs again."""
    tracker, parent, stage = _start(server.url, home, "server/cursor")
    stage.metrics({"loss": 1.0}, step=0)
    stage.finish()
    parent.finish()
    assert tracker.close(60).complete
    (tracking_folder(home, "r1") / "cursor.json").unlink()
    assert sync(home).complete
    tracked = Tracked(server.url, "server/cursor")
    assert sorted(run.info.run_name or "" for run in tracked.runs()) == ["cam", "reproduce"]
    assert tracked.curve("cam", "loss") == [(0, 1.0)]
