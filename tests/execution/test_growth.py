"""Where node types are read from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wsss.execution import growth
from wsss.execution.growth import autoscaler_configuration

CONFIG = """
head_node_type: head
max_workers: 4
available_node_types:
  head: {resources: {CPU: 0}, max_workers: 0}
  cpu: {resources: {CPU: 2}, max_workers: 3}
"""


def test_the_file_that_the_autoscaler_of_this_ray_reads(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CONFIG)
    options = ["--gcs-address=10.9.8.7:1", f"--autoscaling-config={file}"]
    program = "print('ready', flush=True); input()"
    monitor = subprocess.Popen([sys.executable, "-c", program, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        # /proc shows no command line for a moment after a process has been started.
        assert monitor.stdout is not None and monitor.stdout.readline() == b"ready\n"
        config = autoscaler_configuration("10.9.8.7:1")
        assert config is not None and set(config["available_node_types"]) == {"head", "cpu"}
        assert autoscaler_configuration("10.9.8.7:2") is None, "another Ray's"
    finally:
        monitor.kill()
        monitor.wait()


def test_declared_types_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSS_NODE_TYPES", "{cpu: {CPU: 2, max: 3}}")
    monkeypatch.setattr(growth.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    (node_type,) = growth.current_cluster().node_types
    assert (node_type.name, node_type.here, node_type.most) == ("cpu", 1, 3)
