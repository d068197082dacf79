"""Sweeps that are killed, stopped, or begun twice."""

from __future__ import annotations

import signal
import time

from tests.faults.kind import Kind
from tests.faults.process_kinds import STOPPED
from tests.faults.scene import HERE, Command, Scene, Seen

from wsss.search.records import find_sweeps, load_sweep, load_trials, sweep_folder

WORDS = ("--method", "planted", "--recipe", str(HERE / "planted.yaml"), "--space", str(HERE / "space.yaml"))
WORDS += ("--metric", "planted/miou_train", "--trials", "9", "--batch", "3", "pause=0.02")


def in_the_middle(scene: Scene) -> Command:
    """A sweep of which some trials have ended."""
    command = scene.start()
    command.until(lambda: "4 of 9: trial" in command.out)
    return command


def stop(number: signal.Signals, group: bool = False):
    """A signal in the middle of the sweep."""

    def act(scene: Scene) -> Seen:
        command = in_the_middle(scene)
        command.send(number, group=group)
        return command.end()

    return act


def kill_worker(scene: Scene) -> Seen:
    """A worker of a stage of a trial dies."""
    scene.plan("kill-worker")
    return scene.start().end()


def one_sweep_twice(scene: Scene) -> Seen:
    """A second process begins the sweep that another one has under way."""
    first = in_the_middle(scene)
    first.send(signal.SIGSTOP)  # its trials are faster than the start of the other one
    second = scene.start().end()
    first.send(signal.SIGCONT)
    assert first.end().code == 0
    return second


def one_study_for_two(scene: Scene) -> Seen:
    """Two sweeps, one after the start of the other, write to one database of studies."""
    study = f"sqlite:///{scene.folder}/studies.db"
    other = scene.start("--study", study, "--name", "other", "--search-seed", "1")
    time.sleep(1.0)
    seen = scene.start("--study", study).end()
    assert other.end().code == 0
    import optuna

    names = optuna.get_all_study_names(study)
    counts = {name: len(optuna.load_study(study_name=name, storage=study).get_trials()) for name in names}
    assert sorted(counts.values()) == [9, 9] and "other" in counts, counts
    return seen


def full_home(scene: Scene) -> Seen:
    """The disk of the home is full from the middle on."""
    assert scene.disk is not None
    command = in_the_middle(scene)
    scene.disk.fill()
    command.fault_at = time.monotonic()
    return command.end()


def free_space(scene: Scene) -> None:
    """What the message asks for."""
    assert scene.disk is not None
    scene.disk.free()


def outcome(scene: Scene) -> dict[str, object]:
    """What a sweep found: the trials' settings and numbers to the last digit, and the best one."""
    (record,) = (each for each in find_sweeps(scene.home) if each.sweep_id != "other")
    folder = sweep_folder(scene.home, record.sweep_id)
    record = load_sweep(folder)
    assert record.status == "finished" and record.best is not None
    trials = {
        f"trial {trial.number}": (trial.settings, trial.status, trial.values, trial.curve, trial.metrics)
        for trial in load_trials(folder)
    }
    return {**trials, "best": (record.best.trial, record.best.settings, record.best.reported)}


def kept(scene: Scene) -> str:
    """What the next command can go on from, in words: how many trials depends on the moment."""
    (record,) = (each for each in find_sweeps(scene.home) if each.sweep_id != "other")
    trials = load_trials(sweep_folder(scene.home, record.sweep_id))
    ended = sum(trial.status == "finished" for trial in trials)
    return "all trials" if ended == 9 else "the trials that had ended" if ended else "nothing yet"


KINDS = (
    Kind("SIGKILL of the driver of a sweep", stop(signal.SIGKILL), 137, there=(), needs="sweep"),
    Kind("Ctrl-C (SIGINT) in a sweep", stop(signal.SIGINT, group=True), 130, STOPPED, there=(), needs="sweep"),
    Kind("SIGTERM in a sweep", stop(signal.SIGTERM), 130, STOPPED, there=(), needs="sweep"),
    Kind("SIGKILL of a worker in a sweep", kill_worker, there=(), needs="sweep"),
    Kind(
        "a second process begins the same sweep",
        one_sweep_twice,
        1,
        "another process runs this sweep",
        there=(),
        needs="sweep",
    ),
    Kind("two sweeps write to one database of studies", one_study_for_two, there=(), needs="sweep", within=240),
    Kind(
        "the home's disk is full in a sweep",
        full_home,
        1,
        "space",
        there=(),
        needs="sweep on a small home",
        remedy=free_space,
    ),
)
