"""Several processes that want the same."""

from __future__ import annotations

import signal
import time

from tests.faults.kind import Kind
from tests.faults.scene import Scene, Seen

WAITING = "another run computes it"


def together(count: int, *overrides: str):
    """So many processes begin the same command at once."""

    def act(scene: Scene) -> Seen:
        commands = [scene.start(*overrides) for _ in range(count)]
        seen = [command.end(900) for command in commands]
        for each in seen:
            assert each.code == 0 and not each.noise and not each.err, each.err
        published = {(stage, run_id) for stage, run_id in publishers(scene).items()}
        assert len(published) == 3
        return seen[0]

    return act


def publishers(scene: Scene) -> dict[str, str]:
    """Stage -> the run that computed it."""
    from wsss.store import open_store

    store = open_store(scene.store)
    return {ref.stage: str(store.artifact(ref.stage, ref.key).provenance["run_id"]) for ref in store.list()}


def one_stage_for_two(scene: Scene) -> Seen:
    """Two runs with different settings downstream want one training."""
    first = scene.held("toy_train", "score.power=2.0")
    second = scene.start()
    second.until(lambda: WAITING in second.out)
    scene.release()
    assert first.end().code == 0
    second.fault_at = time.monotonic()
    return second.end()


def holder_dies(scene: Scene) -> Seen:
    """The process that computes what another one waits for is killed; the other one takes over."""
    first = scene.held("toy_score")
    second = scene.start()
    second.until(lambda: WAITING in second.out)
    scene.release()
    first.send(signal.SIGKILL)
    first.end()
    second.fault_at = first.fault_at
    return second.end()


KINDS = (
    Kind("two processes begin the same run", together(2), there=(), within=900),
    Kind("eight processes begin the same run", together(8), there=("toy_train",), within=900),
    Kind("two runs want the same training", one_stage_for_two, there=(), on_screen=WAITING),
    Kind("the process that another one waits for is killed", holder_dies, on_screen=WAITING),
)
