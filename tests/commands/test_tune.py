"""`wsss tune`: its plan, what it refuses, and (slow) a whole sweep of the example method from a bare checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.commands.conftest import SMALL, Checkout

from wsss.commands.main import main
from wsss.commands.sweep_screen import LineSweepObserver
from wsss.plan import CostHistory
from wsss.search.records import SweepRecord, TrialRecord, find_sweeps, load_trials, sweep_folder

SPACE = """
method: {method}
keys:
  cam.width: {{float: [0.05, 1]}}
  pseudo_label.sem_seg_bg_thres: {{float: [0.1, 0.5], step: 0.01}}
"""


@pytest.fixture
def space(tmp_path: Path, example: str) -> Path:
    path = tmp_path / "widths.yaml"
    path.write_text(SPACE.format(method=example))
    return path


def test_the_plan_shows_stages_levels_and_price(
    space: Path, example: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WSSS_HOME", str(tmp_path / "home"))
    words = ["--method", example, "--space", str(space), "--metric", "cam/miou_train", "--trials", "7", *SMALL]
    assert main(["tune", *words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    width = next(line.split() for line in lines if line.startswith("cam.width"))
    threshold = next(line.split() for line in lines if line.startswith("pseudo_label.sem_seg_bg_thres"))
    assert width[1:4] == ["0.05", "to", "1"] and "inner" in width and width[-1] == "cam"
    assert "curve" in threshold and threshold[-1] == "cam_evaluation"
    assert next(line.split() for line in lines if line.startswith("cam_score"))[2:4] == ["7", "7"]
    assert "22 stage executions expected" in "\n".join(lines)
    assert not (tmp_path / "home" / "sweeps").exists(), "nothing is begun"


def test_the_plan_adds_up_the_times_it_knows(
    space: Path, example: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WSSS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(CostHistory, "seconds", lambda self, stage, images: {"cam": 10.0}.get(stage.name))
    words = ["--method", example, "--space", str(space), "--metric", "cam/miou_train", "--trials", "7", *SMALL]
    assert main(["tune", *words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "At most 1 min 10 s expected without 3 stages that never ran on this machine, less where" in text


def test_a_continued_sweep_knows_its_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trial(number: int, value: float) -> TrialRecord:
        return TrialRecord(number, {}, {}, "", 0, status="finished", values={"cam/miou_train": value})

    trial(0, 0.5).save(tmp_path)
    request = SimpleNamespace(metric="cam/miou_train", select="held_out")
    prepared: Any = SimpleNamespace(request=request, plan=SimpleNamespace(trials=3), folder=tmp_path)
    observer, record = LineSweepObserver(prepared), cast(SweepRecord, None)
    observer.trial(trial(1, 0.4), record)
    observer.trial(trial(2, 0.6), record)
    assert capsys.readouterr().out.splitlines() == [
        "2 of 3: trial 1 40.00 % (best 50.00 %), 0 of 0 stages computed, 0.0 s",
        "3 of 3: trial 2 60.00 % (best 60.00 %) *, 0 of 0 stages computed, 0.0 s",
    ]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--space", "nowhere"], 2, "there is no search space 'nowhere'"),
        (["--space", "scc"], 2, "there is no search space 'scc'; did you mean 'ssc'?"),
        (["--metric", "cam/miou_trian"], 1, "did you mean 'cam/miou_train'?"),
        (["--confirm-seeds", "1,99999999999"], 2, "seed = 99999999999: must be integer in [0, 2147483647]"),
        (["--metric", "cam/miou_val"], 1, "metrics of this pipeline: cam/miou_train"),
        (["--sampler", "grid"], 1, "one of tpe, random"),
        (["--sampler", "cmeas"], 1, "did you mean 'cmaes'?"),
        (["cam.widht=1"], 2, "did you mean 'cam.width'?"),
    ],
)
def test_what_can_not_work_is_refused(
    space: Path, example: str, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    known = ["--method", example, "--space", str(space), "--metric", "cam/miou_train", *SMALL]
    assert main(["tune", *known, *words, "--dry-run"]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "0"], "'0' is no integer from 1 to 1000000"),
        (["--trials", "ten"], "'ten' is no integer"),
        (["--trials", "9" * 5000], "(5000 characters)' is no integer"),
        (["--batch", "1.5"], "'1.5' is no integer"),
        (["--tirals", "5"], "did you mean '--trials'?"),
        (["--select", "hold_out"], "did you mean 'held_out'?"),
        (["--search-seed", "4294967296"], "is no integer from 0 to 2147483647"),
        (["--stage-cost-limit", "nan"], "'nan' is no number of seconds"),
        (["--confirm-seeds", "1,1"], "seeds are distinct"),
    ],
)
def test_wrong_options_are_told(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tune", "--method", "any", "--metric", "any", *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_from_a_bare_checkout_ends_with_a_recipe_that_reproduces(
    checkout: Checkout, space: Path, example: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["WSSS_HOME"] = str(checkout.home)
    words = ["--method", example, "--space", str(space), "--metric", "cam/miou_train", "--trials", "8", *SMALL]

    def tune() -> str:
        done = subprocess.run(
            [sys.executable, "tune.py", *words],
            cwd=checkout.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = tune()
    (record,) = find_sweeps(checkout.home)
    folder = sweep_folder(checkout.home, record.sweep_id)
    assert "8 of 8: trial 7" in output and "24 asked for" in output and str(folder / "best.yaml") in output
    assert (folder / "report" / "index.html").is_file()
    assert len(load_trials(folder)) == 8 and record.best is not None
    again = tune()
    assert "8 of 8: trial 7" not in again and "24 asked for" in again, "nothing is left to do"
    done = checkout.reproduce("--method", example, "--recipe", str(folder / "best.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
