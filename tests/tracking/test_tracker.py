"""From the calls of a run to what MLflow's own client reads back, over a database beside the results."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from tests.tracking.reading import Tracked

from wsss.tracking import TrackingError, default_uri, open_tracker, sync
from wsss.tracking.spool import read_events, tracking_folder
from wsss.tracking.view import VIEW_TAG, ExperimentView, page_of, view_of

EXPERIMENT = "voc2012/ssc"


@pytest.fixture
def tracked(home: Path) -> Tracked:
    return Tracked(default_uri(home), EXPERIMENT)


def test_everything_of_a_run_arrives(home: Path, tracked: Tracked, tmp_path: Path) -> None:
    table = tmp_path / "iou.csv"
    table.write_text("class,iou\n")
    tracker = open_tracker(None, home, EXPERIMENT, note="What the **experiment** is.")
    parent = tracker.run(
        "reproduce ssc",
        note="What the run is.",
        tags={"method": "ssc", "git_commit": "abc123-dirty", "selection": None},
        params={"cam": {"learning_rate": 0.1, "store": "https://u:p@host/b"}, "api_key": "hunter2"},
        key="r1",
        dataset=("voc2012", "/data/voc", "0123456789abcdef" * 4),
    )
    stage = tracker.run("cam", tags={"stage": "cam", "seed": 0}, parent=parent, key="r1/cam")
    stage.metrics({"loss": 2.0}, step=0)
    stage.series({"loss": [(1, 1.0), (2, math.nan)], "rate": [(0, 0.1)]})
    stage.artifact(table, "tables")
    stage.finish()
    parent.metrics({"cam/miou_train": 55.25, "cam/iou_train/tv(monitor)": 40.0})
    parent.finish()
    report = tracker.close(60)
    assert report.complete, report.message
    run, child = tracked.run("reproduce ssc"), tracked.run("cam")
    assert run.data.metrics == {"cam/miou_train": 55.25, "cam/iou_train/tv_monitor_": 40.0}
    assert run.data.params == {
        "cam.learning_rate": "0.1",
        "cam.store": "https://[redacted]@host/b",
        "api_key": "[redacted]",
    }
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.data.tags["mlflow.note.content"] == "What the run is." and "mlflow.note.content" not in child.data.tags
    experiment = tracked.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None and experiment.tags["mlflow.note.content"] == "What the **experiment** is."
    assert "selection" not in run.data.tags
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("voc2012", "0123456789ab")
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert child.data.tags["stage"] == "cam"
    assert (run.info.status, child.info.status) == ("FINISHED", "FINISHED")
    curve = tracked.curve("cam", "loss")
    assert curve[:2] == [(0, 2.0), (1, 1.0)]
    assert curve[2][0] == 2 and math.isnan(curve[2][1])
    assert tracked.artifact("cam", "tables/iou.csv", tmp_path / "back") == "class,iou\n"
    record = (home / "runs" / "r1" / "tracking" / "events.jsonl").read_text()
    assert "hunter2" not in record and "u:p@" not in record
    assert not list(Path.cwd().iterdir()), "tracking wrote into the working folder"


def test_the_page_of_an_experiment_shows_what_its_runs_ask_for(home: Path, tracked: Tracked) -> None:
    note = "All runs."
    for run, view in (
        ("r1", ExperimentView(("cam/miou_train", "segmentation/miou_val"))),
        ("r2", ExperimentView(("segmentation/miou_val", "walk/miou_train"), ("walk.beta",))),
        ("r3", None),
    ):
        tracker = open_tracker(None, home, EXPERIMENT, note, view)
        tracker.run(run, key=run).finish()
        assert tracker.close(60).complete
    experiment = tracked.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    shown = view_of(experiment.tags[VIEW_TAG])
    assert shown == ExperimentView(("cam/miou_train", "segmentation/miou_val", "walk/miou_train"), ("walk.beta",))
    charts = json.loads(experiment.tags[VIEW_TAG])["compareRunCharts"]
    assert [chart["type"] for chart in charts] == ["PARALLEL", "BAR", "BAR", "BAR"]
    assert page_of(experiment.experiment_id) in experiment.tags["mlflow.note.content"]
    tracked.client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "my own words")
    tracked.client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, "somebody's own")
    tracker = open_tracker(None, home, EXPERIMENT, note, ExperimentView(("cam/miou_train",)))
    tracker.run("r4", key="r4").finish()
    assert tracker.close(60).complete
    experiment = tracked.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None and experiment.tags["mlflow.note.content"] == "my own words"
    assert view_of(experiment.tags[VIEW_TAG]) == ExperimentView(("cam/miou_train",))


def test_a_server_that_lets_nobody_change_an_experiment_still_gets_the_numbers(
    home: Path, tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise MlflowException("no rights", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    tracker = open_tracker(None, home, EXPERIMENT, "All runs.", ExperimentView(("cam/miou_train",)))
    run = tracker.run("r1", key="r1")
    run.metrics({"cam/miou_train": 0.5})
    run.finish()
    assert tracker.close(60).complete
    assert tracked.run("r1").data.metrics == {"cam/miou_train": 0.5}


def test_the_view_of_many_numbers_fits_into_a_tag() -> None:
    many = ExperimentView(tuple(f"{'stage' * 8}{n}/miou_train" for n in range(99)), tuple(f"p{n}" for n in range(99)))
    assert len(ExperimentView().joined(many).text()) < 20_000


def test_a_missing_database_is_created_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "new home"
    started = time.monotonic()
    tracker = open_tracker(None, home, EXPERIMENT)
    run = tracker.run("reproduce", key="r1")
    run.metrics({"loss": 1.0}, step=0)
    assert time.monotonic() - started < 1.0
    run.finish()
    assert tracker.close(90).complete
    assert Tracked(default_uri(home), EXPERIMENT).curve("reproduce", "loss") == [(0, 1.0)]
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


def test_continuing_a_run_doubles_nothing(home: Path, tracked: Tracked, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for attempt, epochs in ((0, 3), (1, 5)):
        table.write_text(f"attempt {attempt}")
        tracker = open_tracker(None, home, EXPERIMENT)
        run = tracker.run("reproduce", key="r1", params={"epochs": 5, "workers": attempt})
        # The second attempt starts at an older checkpoint and passes steps 1 and 2 again, 2 with another value.
        for step in range(attempt, epochs):
            run.metrics({"loss": 1.0 / (step + 1) + (0.1 if (attempt, step) == (1, 2) else 0)}, step=step)
        run.metrics({"miou": 50.0 + attempt, "images": 10.0})
        run.artifact(table)
        run.finish("FAILED" if attempt == 0 else "FINISHED")
        assert tracker.close(60).complete
    assert len(tracked.runs()) == 1
    assert tracked.curve("reproduce", "loss") == [(step, 1.0 / (step + 1)) for step in range(5)]
    assert tracked.curve("reproduce", "images") == [(0, 10.0)]
    found = tracked.run("reproduce")
    assert found.info.status == "FINISHED"
    assert found.data.metrics["miou"] == 51.0, "the last summary counts"
    assert found.data.params == {"epochs": "5", "workers": "0"}
    assert found.data.tags["changed_param.workers"] == "1"
    assert tracked.artifact("reproduce", "t.csv", tmp_path / "back") == "attempt 1"
    events, _, _ = read_events(tracking_folder(home, "r1"), 0, None)
    assert [event["points"] for event in events if event["kind"] == "repeat"] == [[["loss", 1.0 / 3 + 0.1, 2]]]


def test_losing_the_cursor_doubles_nothing(home: Path, tracked: Tracked) -> None:
    tracker = open_tracker(None, home, EXPERIMENT)
    run = tracker.run("reproduce", key="r1")
    run.series({"loss": [(step, 1.0) for step in range(1200)]})
    run.finish()
    assert tracker.close(60).complete
    (tracking_folder(home, "r1") / "cursor.json").unlink()
    assert sync(home).complete
    assert len(tracked.runs()) == 1
    assert len(tracked.curve("reproduce", "loss")) == 1200


def test_a_run_deleted_in_mlflow_is_sent_whole_again(home: Path, tracked: Tracked) -> None:
    for step in range(2):
        tracker = open_tracker(None, home, EXPERIMENT)
        tracker.run("reproduce", key="r1").metrics({"loss": 1.0}, step=step)
        assert tracker.close(60).complete
        if step == 0:
            tracked.client.delete_run(tracked.run("reproduce").info.run_id)
    assert tracked.curve("reproduce", "loss") == [(0, 1.0), (1, 1.0)]


def test_sync_to_another_address_sends_the_whole_record(home: Path, tmp_path: Path, template_database: Path) -> None:
    artifact = tmp_path / "a.txt"
    artifact.write_text("kept")
    tracker = open_tracker(None, home, EXPERIMENT)
    run = tracker.run("reproduce", key="r1")
    run.metrics({"miou": 50.0})
    run.artifact(artifact)
    run.finish()
    assert tracker.close(60).complete
    artifact.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "m.db").write_bytes(template_database.read_bytes())
    other = f"sqlite:///{tmp_path}/other/m.db"
    assert sync(home, other).complete
    copy = Tracked(other, EXPERIMENT)
    assert copy.run("reproduce").data.metrics == {"miou": 50.0}
    assert copy.artifact("reproduce", "a.txt", tmp_path / "back") == "kept"


def test_a_trial_finds_its_parent_in_another_record(home: Path, tracked: Tracked) -> None:
    # The trial comes first, as it may when the sweep's own process is slow.
    trial_tracker = open_tracker(None, home, EXPERIMENT)
    trial = trial_tracker.run("trial 0", key="trial-0", parent="sweep-1")
    trial_tracker.run("cam", parent=trial).metrics({"loss": 1.0}, step=0)
    assert trial_tracker.close(60).complete
    sweep_tracker = open_tracker(None, home, EXPERIMENT)
    sweep_tracker.run("sweep over rates", key="sweep-1", tags={"method": "ssc"}).finish()
    assert sweep_tracker.close(60).complete
    sweep = tracked.run("sweep over rates")
    assert len(tracked.runs()) == 3
    assert tracked.run("trial 0").data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert tracked.run("cam").data.tags["mlflow.parentRunId"] == tracked.run("trial 0").info.run_id
    assert sweep.data.tags["method"] == "ssc"


def test_a_refused_entry_does_not_stop_the_others(
    home: Path, tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name this version of MLflow refuses, as a server with other rules would.
    monkeypatch.setattr("wsss.tracking.tracker.metric_name", lambda name: name)
    tracker = open_tracker(None, home, EXPERIMENT)
    run = tracker.run("reproduce", key="r1")
    run.metrics({"a": 1.0, "bad%name": 2.0, "b": 3.0, "c": 4.0})
    run.finish()
    report = tracker.close(60)
    assert (report.unsent, report.rejected) == (0, 1)
    assert "rejected.jsonl" in report.message
    assert "bad%name" in (tracking_folder(home, "r1") / "rejected.jsonl").read_text()
    assert tracked.run("reproduce").data.metrics == {"a": 1.0, "b": 3.0, "c": 4.0}


def test_a_killed_process_continues_where_it_was(home: Path, tracked: Tracked, repository: Path) -> None:
    _write_and_kill(repository, home, default_uri(home), 0, 40)
    with (home / "runs" / "r1" / "tracking" / "events.jsonl").open("ab") as torn:
        torn.write(b'{"kind":"metr')
    _write_and_kill(repository, home, default_uri(home), 30, 80)
    report = sync(home)
    assert report.complete, report.message
    assert len(tracked.runs()) == 2
    assert tracked.curve("cam", "loss") == [(step, 1.0 / (step + 1)) for step in range(80)]
    assert tracked.run("cam").info.status == "KILLED"
    tracker = open_tracker(None, home, EXPERIMENT)
    parent = tracker.run("reproduce", key="r1")
    tracker.run("cam", key="r1/cam", parent=parent).finish()
    parent.finish()
    assert tracker.close(60).complete
    assert tracked.run("cam").info.status == "FINISHED"


def test_what_cannot_be_tracked_says_so(home: Path, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="experiment name"):
        open_tracker(None, home, "  ")
    with pytest.raises(TrackingError, match="address"):
        open_tracker("file:/data/mlruns", home, EXPERIMENT)
    tracker = open_tracker(None, home, EXPERIMENT)
    run = tracker.run("reproduce", key="r1")
    with pytest.raises(TrackingError, match="no number"):
        run.metrics({"loss": "low"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TrackingError, match="not inside"):
        run.artifact(tmp_path / "x", "../up")
    with pytest.raises(TrackingError, match="another process"):
        open_tracker(None, home, EXPERIMENT).run("reproduce", key="r1")
    tracker.close(0)


def test_a_run_ends_with_the_status_that_it_is_given(home: Path, tracked: Tracked) -> None:
    tracker = open_tracker(None, home, EXPERIMENT)
    tracker.run("failing", key="r1").finish("FAILED")
    tracker.run("interrupted", key="r2").finish("KILLED")
    assert tracker.close(60).complete
    assert tracked.run("failing").info.status == "FAILED"
    assert tracked.run("interrupted").info.status == "KILLED"


def _write_and_kill(repository: Path, home: Path, uri: str, first: int, last: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, str(repository / "tests" / "tracking" / "writer.py"), str(home), uri, str(first), str(last)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(repository / "platform")},
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == b"written\n"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
