"""A head node whose autoscaler starts pretended machines: raylets on this one. Everything ends by its process id.

Ray's own `AutoscalingCluster` reads a file that the wheel lacks, and ends every Ray of the machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray._private.services
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

START_SECONDS = 180
_STORE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class AutoscalingHead:
    """A running head without CPUs: `address` of its Ray, `dashboard` for submitting jobs."""

    address: str
    dashboard: str


@contextmanager
def autoscaling_head(
    folder: Path, worker_types: Mapping[str, Mapping[str, Any]], environment: Mapping[str, str], idle_minutes: float
) -> Iterator[AutoscalingHead]:
    """Start a head; at the end it and all nodes that it started are ended.

    Args:
        folder: short: sockets lie below it.
        worker_types: name -> CPU, GPU and max, the largest number of nodes.
        environment: of the head, which its nodes inherit; with it `tests` can be imported.
    """
    address = f"{ray._private.services.get_node_ip_address()}:{_free_port()}"
    port, dashboard = address.rpartition(":")[2], _free_port()
    description = folder / "cluster.yaml"
    description.write_text(yaml.safe_dump(_configuration(address, worker_types, idle_minutes)), encoding="utf-8")
    temporary = folder / "r"
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
    command += [f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += ["--dashboard-agent-listen-port=0", f"--object-store-memory={_STORE_BYTES}", f"--temp-dir={temporary}"]
    command += [f"--autoscaling-config={description}", "--disable-usage-stats"]
    started_with = {
        **environment,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=started_with, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_up(f"http://127.0.0.1:{dashboard}", head, log)
            yield AutoscalingHead(address, f"http://127.0.0.1:{dashboard}")
        finally:
            for _ in range(3):  # the autoscaler may be starting a node just now
                for process in [head.pid, *_processes_below(folder)]:
                    _kill(process)
                time.sleep(0.5)
            head.wait(timeout=30)


def _configuration(address: str, worker_types: Mapping[str, Mapping[str, Any]], idle_minutes: float) -> dict[str, Any]:
    types: dict[str, Any] = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    for name, each in worker_types.items():
        resources = {"CPU": each["CPU"], "object_store_memory": _STORE_BYTES}
        resources |= {"GPU": each["GPU"]} if each.get("GPU") else {}
        types[name] = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": each["max"]}
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
    return {
        "cluster_name": "fake",
        "max_workers": sum(each["max"] for each in worker_types.values()),
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "tests.cluster.fake_provider.SeparateNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in lists},
    }


def _wait_until_up(dashboard: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert head.poll() is None, f"the head node ended:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no dashboard after {START_SECONDS} s:\n{log.read_text()}")


def _processes_below(folder: Path) -> list[int]:
    """Processes whose command line names the folder, which no other Ray's does."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes()
        except OSError:
            continue
        if f"{folder}/".encode() in words and int(command.parent.name) != os.getpid():
            found.append(int(command.parent.name))
    return found


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
