"""Whether a joined Ray lives: its head by a connection, its raylet by its process."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from wsss.execution import liveness
from wsss.execution.liveness import HEAD_SECONDS, RayEndedError, head_answers


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket in the place of the head, which this process has joined."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        joined = liveness._Joined(listener.getsockname(), 0)
        monkeypatch.setattr(liveness, "_joined", {"the head": joined})
        node = SimpleNamespace(remaining_processes_alive=lambda: True)
        monkeypatch.setattr(liveness.worker, "_global_node", node)
        yield listener


def test_a_head_that_stays_away_is_told_after_a_while(head: socket.socket) -> None:
    assert head_answers("cam_train")
    head.close()
    assert not head_answers("cam_train"), "Ray must not be asked now"
    liveness._joined["the head"].answered -= HEAD_SECONDS
    with pytest.raises(RayEndedError, match="the head has not answered for 45 s") as told:
        head_answers("cam_train")
    assert "start the cluster again" in told.value.remedy and "cam_train" in told.value.where


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_raylet_that_has_ended_is_told_at_once(head: socket.socket) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as raylet:
        liveness._joined["the head"].raylet = raylet.pid
        assert head_answers("cam_train")
        raylet.kill()
    with pytest.raises(RayEndedError, match="has ended"):
        head_answers("cam_train")
