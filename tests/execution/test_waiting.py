"""What is said of nodes that are awaited or lost, and when a wait ends. Ray is played."""

from __future__ import annotations

from typing import Any

import pytest

from wsss.execution import liveness, waiting
from wsss.execution.liveness import RayEndedError
from wsss.execution.nodes import NodeType, Resources, growing_cluster, present_cluster
from wsss.execution.waiting import NodesMissingError, NodeWatch, wait_seconds


class Played:
    """A clock and nodes that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.nodes, self.said = 100.0, [self.node("a")], []
        monkeypatch.setattr(waiting.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(waiting.ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(waiting, "current_cluster", lambda: present_cluster([]))
        monkeypatch.setattr(waiting, "autoscaler_report", lambda: "the autoscaler starts 2 cpu")

    @staticmethod
    def node(name: str, cpus: int = 4, reason: int = 2) -> dict[str, Any]:
        resources = {"CPU": cpus}
        return {
            "NodeID": name,
            "NodeManagerAddress": f"10.0.0.{name}",
            "Alive": True,
            "Resources": resources,
            "DeathReason": reason,
        }

    def watch(self, workers: int = 2, cpus: int = 4) -> NodeWatch:
        return NodeWatch("map", workers, Resources(cpus=cpus), self.said.append)

    def end(self, place: int, reason: int) -> None:
        self.nodes[place] = {**self.nodes[place], "Alive": False, "Resources": {}, "DeathReason": reason}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


def test_a_wait_says_for_what_how_long_and_what_the_autoscaler_does(played: Played) -> None:
    watch = played.watch()
    for second in range(1, 70):
        played.now = 100.0 + second
        watch.look()
    assert played.said[0] == "map: waits for 2 x (4 CPU), 1 of them here: 3.0 s of at most 30 min 00 s; " + (
        "the autoscaler starts 2 cpu"
    )
    assert len(played.said) == 3, "at 3, 30 and 60 seconds"
    played.nodes.append(played.node("b"))
    played.now += 5
    watch.look()
    assert played.said[3:] == ["map: has its nodes after 1 min 13 s"] and watch.waited == pytest.approx(73)


def test_one_task_more_is_asked_for_only_where_it_has_to_wait_at_a_node(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = played.watch(cpus=1)
    assert [watch.spare(tasks) for tasks in (1, 3, 4, 9)] == [0, 0, 1, 1], "a node of four CPUs"
    small = NodeType(name="small", cpus=4, gpus=0, most=3)
    monkeypatch.setattr(waiting, "current_cluster", lambda: growing_cluster((small,), None, []))
    assert played.watch(cpus=1).spare(4) == 0, "it would make the cluster grow"


def test_nodes_that_are_there_and_busy_are_named_so(played: Played) -> None:
    watch = played.watch(workers=1)
    for second in (1, 5):
        played.now = 100.0 + second
        watch.look(waiting=lambda: True)
    assert played.said == ["map: waits for 1 x (4 CPU), 1 of them here: 4.0 s of at most 30 min 00 s; "
                           "nodes that hold them are busy"]  # fmt: skip


def test_a_wait_ends_with_the_reason_of_the_autoscaler(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSS_WAIT_MINUTES", "2")
    watch = played.watch()
    played.now += 2
    watch.look()
    played.now += 121
    with pytest.raises(NodesMissingError, match="did not come in 2 min 00 s: the autoscaler starts 2 cpu") as error:
        watch.look()
    assert "WSSS_WAIT_MINUTES" in error.value.remedy and error.value.where == "stage map"


def test_a_lost_node_is_one_line_and_an_idle_one_none(played: Played) -> None:
    played.nodes.append(played.node("b", cpus=8))
    watch = played.watch(workers=1)
    played.end(1, reason=2)
    played.now += 2
    watch.look(lost="its tasks start again")
    assert played.said == ["map: lost node 10.0.0.b (8 CPU); its tasks start again"]
    played.end(0, reason=4)
    played.now += 2
    watch.look(waiting=lambda: False)
    assert len(played.said) == 1


@pytest.mark.parametrize("text", ["soon", "0", "0.9", "-1", "nan", "inf"])
def test_a_wait_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSS_WAIT_MINUTES", text)
    with pytest.raises(NodesMissingError, match="no number of minutes of at least 1"):
        wait_seconds()


def test_the_wait_is_half_an_hour_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSSS_WAIT_MINUTES", raising=False)
    assert wait_seconds() == 1800
    monkeypatch.setenv("WSSS_WAIT_MINUTES", "1.5")
    assert wait_seconds() == 90


def test_a_ray_of_ones_own_that_has_lost_a_process_is_told_before_it_is_asked(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = played.watch()

    class Node:
        alive = True

        def remaining_processes_alive(self) -> bool:
            return self.alive

    node = Node()
    monkeypatch.setattr(liveness.worker, "_global_node", node)
    played.now += 2
    watch.look()
    node.alive = False
    monkeypatch.setattr(waiting.ray, "nodes", lambda: pytest.fail("Ray was asked"))
    played.now += 2
    with pytest.raises(RayEndedError, match="has lost one of its processes"):
        watch.look()
