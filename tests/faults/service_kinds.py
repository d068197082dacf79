"""An object store behind a bad connection, and an MLflow server that goes away."""

from __future__ import annotations

import signal
import time

from tests.faults.kind import Kind
from tests.faults.scene import Scene, Seen

_SHORT_SECONDS = 3.0
_RESTART_SECONDS = 60.0
# A store that has answered is asked for two minutes before it is given up.
_GIVEN_UP_SECONDS = 240.0


def connection(stage: str, mode: str, seconds: float | None, cuts: int = 0):
    """The connection is bad from the middle of a stage on, for some seconds or until the command ends."""

    def act(scene: Scene) -> Seen:
        assert scene.connection is not None
        command = scene.held(stage)
        scene.connection.set(mode, cuts)
        scene.release()
        command.fault_at = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            scene.connection.set("good")
        seen = command.end()
        scene.connection.set("good")
        assert scene.connection.faults or mode == "refused", "the fault reached nobody"
        return seen

    return act


def slow_from_the_start(scene: Scene) -> Seen:
    """Every answer is late."""
    assert scene.connection is not None
    scene.connection.set("slow")
    seen = scene.start().end()
    scene.connection.set("good")
    assert scene.connection.faults > 20
    return seen


def cut_from_the_start(scene: Scene) -> Seen:
    """Every second answer or so ends in its middle, until a dozen have."""
    assert scene.connection is not None
    scene.connection.set("cut", cuts=12)
    seen = scene.start().end()
    assert scene.connection.faults
    return seen


def kill_lease_holder(scene: Scene) -> Seen:
    """The driver dies with a lease in the object store."""
    command = scene.held("toy_score")
    command.send(signal.SIGKILL)
    return command.end()


def away_for_ever(scene: Scene) -> Seen:
    """Nobody answers at the address of the tracking server."""
    assert scene.server is not None
    scene.server.kill()
    return scene.start().end()


def server_comes_back(scene: Scene) -> Seen:
    """The server is killed in one stage and starts again in the next."""
    assert scene.server is not None
    command = scene.held("toy_score")
    scene.server.kill()
    scene.plan("hold-toy_mean")
    (scene.faults / "hold-toy_score").unlink()
    scene.wait_held(command, "toy_mean")
    scene.server.start()
    scene.release()
    command.fault_at = time.monotonic()
    return command.end()


def server_stays_away(scene: Scene) -> Seen:
    """The server is killed in a map stage and does not start again before the end."""
    assert scene.server is not None
    command = scene.held("toy_score")
    scene.server.kill()
    scene.release()
    command.fault_at = time.monotonic()
    return command.end()


def start_server(scene: Scene) -> None:
    """The server starts again."""
    assert scene.server is not None
    if scene.server.process is None:
        scene.server.start()


S3 = "object store"
UNSENT = "have not reached"
KINDS = (
    Kind("S3 answers slowly", slow_from_the_start, needs=S3, within=240),
    Kind("S3 answers 503 for 3 s", connection("toy_score", "unavailable", _SHORT_SECONDS), needs=S3),
    Kind(
        "S3 answers 503 until the command ends",
        connection("toy_score", "unavailable", None),
        1,
        "503",
        within=_GIVEN_UP_SECONDS,
        needs=S3,
    ),
    Kind(
        "S3 answers 503 for 3 s in a training",
        connection("toy_train", "unavailable", _SHORT_SECONDS),
        there=(),
        needs=S3,
    ),
    Kind(
        "S3 answers 503 in a training until the command ends",
        connection("toy_train", "unavailable", None),
        1,
        "the object store answered",
        within=2 * _GIVEN_UP_SECONDS,
        there=(),
        needs=S3,
    ),
    Kind(
        "S3 refuses connections for a minute in a training",
        connection("toy_train", "refused", _RESTART_SECONDS),
        within=_GIVEN_UP_SECONDS,
        there=(),
        needs=S3,
        on_screen="the object store answers, after",
    ),
    # The lease that the kind before could not give back goes stale in a minute.
    Kind("S3 cuts a dozen answers", cut_from_the_start, needs=S3, within=240),
    Kind("S3 refuses connections for 3 s", connection("toy_score", "refused", _SHORT_SECONDS), needs=S3),
    Kind(
        "S3 refuses connections until the command ends",
        connection("toy_score", "refused", None),
        1,
        "cannot reach the object store",
        within=_GIVEN_UP_SECONDS,
        needs=S3,
    ),
    Kind("SIGKILL of the driver that holds a lease in S3", kill_lease_holder, 137, needs=S3),
    Kind(
        "MLflow is away from the start to the end", away_for_ever, needs="server", on_screen=UNSENT, remedy=start_server
    ),
    Kind("MLflow goes away in a map stage and comes back", server_comes_back, needs="server"),
    Kind(
        "MLflow goes away in a map stage and stays away",
        server_stays_away,
        needs="server",
        on_screen=UNSENT,
        remedy=start_server,
    ),
)
