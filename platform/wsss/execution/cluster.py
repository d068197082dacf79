"""Starts or joins Ray, and counts the resources of the cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import ray

from wsss.errors import WsssError
from wsss.tracking.provenance import ray_job_config

# Train polls its workers; its own 2 s would add two seconds to every checkpoint.
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    # Threads that wait by spinning starve each other where cores are shared.
    "OMP_WAIT_POLICY": "PASSIVE",
}
# Credentials are not among them: Ray logs runtime environments. Workers of a local Ray inherit them; those of a
# cluster have them from their image, instance role or job.
_WORKER_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)


class ClusterError(WsssError):
    """Ray cannot be started or joined, or its workers died."""


@dataclass(frozen=True)
class Capacity:
    """What the cluster holds in total and in its largest node."""

    cpus: float
    gpus: float
    nodes: int
    largest_node_cpus: float
    autoscaling: bool


def connect(cpus: int | None = None) -> Capacity:
    """Join the cluster of RAY_ADDRESS (set inside a submitted job; "auto" finds one here), or start an own Ray.

    The code of the platform and of the methods travels with the connection, so workers need no installation.
    Token authentication is left as RAY_AUTH_MODE says; a Ray started here listens on this machine alone and
    runs without it unless asked.

    Raises:
        ClusterError: the address does not answer.
    """
    if not ray.is_initialized():
        for name, value in _DRIVER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        dashboard_port = None if address else _free_port()
        try:
            ray.init(
                # Without "local" Ray would join whatever else runs on this machine, another run's for example.
                address=address or "local",
                num_cpus=None if address else cpus,
                include_dashboard=None if address else True,
                dashboard_host="127.0.0.1",
                dashboard_port=dashboard_port,
                logging_level=logging.WARNING,
                log_to_driver=bool(os.environ.get("WSSS_DEBUG")),
                runtime_env={"py_modules": _code_folders(), "env_vars": _worker_environment(dashboard_port)},
            )
        except Exception as error:  # Ray raises a bare Exception when its node does not come up in 30 s
            raise ClusterError(
                f"Ray could not be {'joined' if address else 'started'}: {error}",
                address or "this machine",
                "check RAY_ADDRESS and RAY_AUTH_MODE"
                if address
                else "run the same command again when the machine is less busy; `WSSS_DEBUG=1` shows more",
            ) from error
        if threading.current_thread() is threading.main_thread():
            # Ray would end the process at once on SIGTERM, which `ray job stop` sends; like Ctrl-C it ends in order.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
    return capacity()


def capacity() -> Capacity:
    """Resources of the connected cluster as it stands; an autoscaling one may grow beyond it."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    return Capacity(
        cpus=float(total.get("CPU", 0.0)),
        gpus=float(total.get("GPU", 0.0)),
        nodes=len(nodes),
        largest_node_cpus=max((float(node["Resources"].get("CPU", 0.0)) for node in nodes), default=0.0),
        autoscaling=os.environ.get("WSSS_AUTOSCALING", "") == "1",
    )


def disconnect() -> None:
    """Leave the cluster, and end a Ray that `connect` started."""
    if ray.is_initialized():
        ray.shutdown()


def _code_folders() -> list[str]:
    specs = [find_spec(package) for package in ("wsss", "wsss_methods")]
    return [str(Path(spec.origin).parent) for spec in specs if spec is not None and spec.origin is not None]


def _worker_environment(dashboard_port: int | None = None) -> dict[str, str]:
    names = [*_WORKER_VARIABLES, "WSSS_DEBUG", *_DRIVER_ENVIRONMENT]
    by_job = _variables_of_job()
    found = {name: os.environ[name] for name in names if name in os.environ and name not in by_job}
    if dashboard_port is not None:
        # Train asks the dashboard whether its controller lives. Left to itself it looks for a Ray that `ray start`
        # has begun on this machine, and when that one has ended, every training waits 12 s at its end.
        found["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard_port}"
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _variables_of_job() -> frozenset[str]:
    """Variables that a submitted job already sets for its workers; Ray refuses to set one twice."""
    return frozenset((ray_job_config().get("runtime_env") or {}).get("env_vars") or ())
