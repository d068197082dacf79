"""The script of random faults: a few that must cost nothing, and what it makes of one that costs something."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.faults import random_faults
from tests.faults.places import Nodes
from tests.faults.random_faults import ALONE, Campaign, Failure
from tests.faults.scene import ROOT, Command, Scene, Seen, clean_environment
from tests.faults.template import Template

KIND = [("kill", "toy_score: started", "")]


@pytest.mark.slow
@pytest.mark.parametrize("place", [(), ("--cluster",)], ids=["alone", "on a cluster"])
def test_a_few_random_faults_cost_nothing(place: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.random_faults", "--kills", "6", "--seed", "1", *place]
    done = subprocess.run(
        [*command, "--home", str(tmp_path)], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 faults in " in done.stdout and "nothing finished was computed again" in done.stdout
    assert not list(tmp_path.iterdir())


class Ended:
    """Stands for a command that has ended."""

    def __init__(self, code: int, out: str = "", err: str = "") -> None:
        self.seen = Seen(code, out, err, 1.0)

    def end(self, seconds: float) -> Seen:
        return self.seen


class Hung:
    """Stands for a command that does not end."""

    def end(self, seconds: float) -> Seen:
        raise AssertionError("hung for 300 s")


def judge(command: object, tmp_path: Path, finished: dict[str, tuple[object, ...]], codes: set[int]) -> bool:
    template = cast(Template, None)
    campaign = Campaign(template, tmp_path, 1, random.Random(0), ALONE, 1.0, done=1)
    scene = Scene(tmp_path, str(tmp_path / "store"))
    return campaign._judge(scene, cast(Command, command), KIND, codes, finished)


@pytest.mark.parametrize("head_lives", [True, False])
def test_nodes_are_replaced_while_a_command_runs(
    head_lives: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the main thread: Ray refuses a node that another one starts, and the head's end takes no node."""
    threads: list[threading.Thread] = []
    nodes = SimpleNamespace(head_lives=head_lives, fill=lambda: threads.append(threading.current_thread()))
    monkeypatch.setattr(random_faults, "_REPLACE_SECONDS", 0.05)
    campaign = Campaign(cast(Template, None), tmp_path, 1, random.Random(0), ALONE, 1.0, cast(Nodes, nodes))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        command = cast(Command, SimpleNamespace(process=process))
        assert not campaign._ends_within(command, 0.3)
        process.communicate(b"\n")
        assert campaign._ends_within(command, 60)
    assert set(threads) == ({threading.main_thread()} if head_lives else set())


def test_a_fault_that_costs_nothing_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(Ended(0), tmp_path, {}, {0, 137})
    assert not judge(Ended(137), tmp_path, {}, {0, 137})
    assert not judge(Ended(1, err="\nerror: full\n  where: here\n  do:    free some"), tmp_path, {}, {0, 1})
    assert "exit 137 after 1.0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "lost", "said"),
    [
        (lambda: Hung(), {}, "hung"),
        (lambda: Ended(137, err="Traceback (most recent call last)\n"), {}, "a traceback"),
        (lambda: Ended(1, err="error: a\n  do: b\n"), {}, "another exit code"),
        (lambda: Ended(0, err="WARNING of an inner part"), {}, "words of an inner part"),
        (lambda: Ended(137), {"toy_score/k/manifest.json": (1, 2)}, "written again or lost"),
    ],
)
def test_a_fault_that_costs_something_is_a_failure(
    command: Callable[[], Any], lost: dict[str, tuple[object, ...]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(Failure, match=said):
        judge(command(), tmp_path, lost, {0, 137})


def test_other_numbers_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template(Scene(tmp_path, ""), {"toy_mean/k": {"metrics.json": "a"}}, tmp_path)
    campaign = Campaign(template, tmp_path, 1, random.Random(0), ALONE, 1.0)
    scene = Scene(tmp_path, str(tmp_path / "store"))
    monkeypatch.setattr(Scene, "numbers", lambda self: {"toy_mean/k": {"metrics.json": "a"}})
    campaign._compare(scene)
    monkeypatch.setattr(Scene, "numbers", lambda self: {"toy_mean/k": {"metrics.json": "b"}})
    with pytest.raises(Failure, match="other numbers"):
        campaign._compare(scene)
