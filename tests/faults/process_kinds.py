"""Processes that are killed or stopped at a chosen moment."""

from __future__ import annotations

import signal
import time

from tests.faults import processes
from tests.faults.kind import Kind
from tests.faults.scene import Command, Scene, Seen

STOPPED = "Stopped. Nothing that was finished is lost: the same command continues from there."
ALL_BEFORE_MEAN = ("toy_train", "toy_score")
_DEATHS = 4  # of one task, the first and three more
_SLEEP_SECONDS = 15


def stop(stage: str, number: signal.Signals, times: int = 1, group: bool = False, every: float = 0.5):
    """A signal to the driver, or several, while a stage stands still."""

    def act(scene: Scene) -> Seen:
        command = scene.held(stage)
        for count in range(times):
            if count:
                time.sleep(every)
            if command.process.poll() is None:
                command.send(number, group=group)
        return command.end()

    return act


def interrupt(stage: str, times: int = 1):
    """Ctrl-C in a terminal, which reaches every process of the group."""
    return stop(stage, signal.SIGINT, times, group=True)


def at_start(number: signal.Signals, seconds: float):
    """A signal to the driver so long after its start."""

    def act(scene: Scene) -> Seen:
        command = scene.start()
        time.sleep(seconds)
        command.send(number, group=True)
        return command.end()

    return act


def while_it_loads(scene: Scene) -> Seen:
    """Ctrl-C before anything has begun."""
    scene.plan("hold-import")
    command = scene.start()
    command.until(lambda: (scene.faults / "held-import").exists())
    command.send(signal.SIGINT, group=True)
    return command.end()


def while_ray_starts(scene: Scene) -> Seen:
    """SIGTERM when the first process of Ray is there."""
    command = scene.start()
    command.until(lambda: bool(processes.named(command.mark, "gcs_server")))
    command.send(TERM)
    return command.end()


def kill_worker(stage: str):
    """The worker that stands still in a stage is killed; another one goes on."""

    def act(scene: Scene) -> Seen:
        command = scene.held(stage)
        worker = scene.worker(stage)
        scene.release()
        command.fault_at = time.monotonic()
        assert processes.kill(worker)
        return command.end()

    return act


def kill_every_worker(stage: str, *more: str):
    """Every worker that takes up the same work is killed."""

    def act(scene: Scene) -> Seen:
        command = scene.held(stage, *more)
        killed: set[int] = set()
        while command.process.poll() is None and len(killed) < _DEATHS:
            worker = scene.worker(stage)
            if worker not in killed and processes.kill(worker):
                killed.add(worker)
                command.fault_at = time.monotonic()
            time.sleep(0.05)
        return command.end()

    return act


def kill_of_ray(stage: str, word: str):
    """A process of the Ray that the command started is killed."""

    def act(scene: Scene) -> Seen:
        command = scene.held(stage)
        command.kill(word)
        return command.end()

    return act


def kill_publishing(moment: str, stage: str):
    """The driver dies while it publishes."""

    def act(scene: Scene) -> Seen:
        scene.plan(f"kill-{moment}-{stage}")
        return scene.start().end()

    return act


def sleep(scene: Scene) -> Seen:
    """All processes stand still for a while and go on, as when a laptop is closed."""
    command = scene.held("toy_score")
    found = processes.marked(command.mark)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in found:
            processes.kill(process, number)
        time.sleep(_SLEEP_SECONDS if number is signal.SIGSTOP else 0)
    scene.release()
    command.fault_at = time.monotonic()
    return command.end()


def move_clock(scene: Scene) -> Seen:
    """The clock of driver and workers is an hour ahead in one stage and an hour behind in the next."""
    command: Command = scene.held("toy_score")
    scene.plan("hold-toy_mean")
    (scene.faults / "clock").write_text("3600")
    command.fault_at = time.monotonic()
    (scene.faults / "hold-toy_score").unlink()
    scene.wait_held(command, "toy_mean")
    (scene.faults / "clock").write_text("-3600")
    scene.release()
    seen = command.end()
    (scene.faults / "clock").unlink()
    return seen


def error_of_stage(name: str):
    """The method itself raises an error."""

    def act(scene: Scene) -> Seen:
        scene.plan(name)
        return scene.start("execution.max_failures=0").end()

    return act


def remove_picture(scene: Scene) -> Seen:
    """A picture goes away while a training reads it once an epoch."""
    command = scene.held("toy_train", "execution.max_failures=0")
    picture = sorted(scene.home.glob("data/shapes-*/JPEGImages/*.jpg"))[0]
    picture.rename(scene.folder / picture.name)
    scene.release()
    command.fault_at = time.monotonic()
    return command.end()


def bring_picture_back(scene: Scene) -> None:
    """What the message asks for."""
    (picture,) = scene.folder.glob("*.jpg")
    (images,) = scene.home.glob("data/shapes-*/JPEGImages")
    picture.rename(images / picture.name)


KILLED, TERM, HUP = signal.SIGKILL, signal.SIGTERM, signal.SIGHUP
KINDS = (
    Kind("SIGKILL of the driver in a training", stop("toy_train", KILLED), 137, there=()),
    Kind("SIGKILL of the driver in a map stage", stop("toy_score", KILLED), 137),
    Kind("SIGKILL of the driver in a reduce stage", stop("toy_mean", KILLED), 137, there=ALL_BEFORE_MEAN),
    *(
        Kind(f"SIGKILL of the driver that publishes a map stage: manifest {when}", kill_publishing(moment, stage), 137)
        for moment, stage, when in (
            ("half-written", "toy_score", "half written"),
            ("before-rename", "toy_score", "not yet renamed"),
            ("after-rename", "toy_score", "just renamed"),
        )
    ),
    Kind(
        "SIGKILL of the driver that publishes a training: manifest not yet renamed",
        kill_publishing("before-rename", "toy_train"),
        137,
        there=(),
    ),
    Kind("SIGKILL of the worker of a training", kill_worker("toy_train"), there=(), on_screen="goes on from step 9"),
    Kind("SIGKILL of the worker of a map stage", kill_worker("toy_score")),
    Kind("SIGKILL of the worker of a reduce stage", kill_worker("toy_mean"), there=ALL_BEFORE_MEAN),
    Kind(
        "SIGKILL of every worker of one shard",
        kill_every_worker("toy_score"),
        1,
        "a worker died 4 times in a row",
    ),
    Kind(
        "SIGKILL of the worker of a training that may lose none",
        kill_every_worker("toy_train", "execution.max_failures=0"),
        1,
        "training failed",
        there=(),
    ),
    Kind("SIGKILL of the driver's own raylet in a training", kill_of_ray("toy_train", "/raylet"), 1, "Ray", there=()),
    Kind("SIGKILL of the driver's own raylet in a map stage", kill_of_ray("toy_score", "/raylet"), 1, "Ray"),
    Kind("SIGKILL of the driver's own gcs_server in a map stage", kill_of_ray("toy_score", "gcs_server"), 1, "Ray"),
    Kind("Ctrl-C (SIGINT) in a training", interrupt("toy_train"), 130, STOPPED, there=()),
    Kind("Ctrl-C (SIGINT) in a map stage", interrupt("toy_score"), 130, STOPPED),
    Kind(
        "Ctrl-C (SIGINT) in a map stage after a training of the same run",
        interrupt("toy_score"),
        130,
        STOPPED,
        there=(),
    ),
    Kind("Ctrl-C (SIGINT) in a reduce stage", interrupt("toy_mean"), 130, STOPPED, there=ALL_BEFORE_MEAN),
    Kind("Ctrl-C twice in a training", interrupt("toy_train", 2), 130, STOPPED, there=()),
    Kind("Ctrl-C five times in a map stage", interrupt("toy_score", 5), 130, STOPPED),
    Kind("SIGTERM in a training", stop("toy_train", TERM), 130, STOPPED, there=()),
    Kind("SIGTERM in a map stage", stop("toy_score", TERM), 130, STOPPED),
    Kind("SIGTERM in a reduce stage", stop("toy_mean", TERM), 130, STOPPED, there=ALL_BEFORE_MEAN),
    Kind("SIGTERM and at once Ctrl-C in a map stage", stop("toy_score", TERM, 2), 130, STOPPED),
    Kind("the terminal is closed (SIGHUP) in a map stage", stop("toy_score", HUP, group=True), 129),
    Kind("Ctrl-C while the program loads its modules", while_it_loads, 130, STOPPED),
    Kind("SIGTERM while Ray starts", while_ray_starts, 130, STOPPED, there=()),
    Kind("Ctrl-C four seconds after the start", at_start(signal.SIGINT, 4.0), 130, STOPPED),
    Kind("all processes sleep for 15 s in a map stage and wake", sleep),
    Kind("the clock is an hour ahead, then an hour behind", move_clock),
    Kind("the method's map stage raises an error", error_of_stage("map-error"), 1, "the planned map error"),
    Kind("the method's training raises an error", error_of_stage("train-error"), 1, "the planned error", there=()),
    Kind("the method's map stage has a bug", error_of_stage("map-bug"), 1, "ZeroDivisionError"),
    Kind("the method's training has a bug", error_of_stage("train-bug"), 1, "ZeroDivisionError", there=()),
    Kind(
        "a picture is removed while a training reads it",
        remove_picture,
        1,
        "JPEGImages",
        there=(),
        remedy=bring_picture_back,
    ),
)
