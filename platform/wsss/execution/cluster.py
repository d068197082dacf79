"""Starts or joins Ray."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray._private import utils, worker

from wsss.errors import WsssError
from wsss.execution.growth import current_cluster
from wsss.execution.last_words import leave_last_words, take_back
from wsss.execution.liveness import CONTINUES, forget_joined, ray_ended, raylet_here, remember_joined
from wsss.execution.nodes import NODE_TYPES_VARIABLE, Cluster
from wsss.execution.reachable import check_address, session_folder
from wsss.execution.waiting import WAIT_VARIABLE, wait_seconds
from wsss.tracking.provenance import ray_job_config
from wsss.tracking.redact import redact_text

log = logging.getLogger(__name__)
# Left to itself the C library gives freed memory back to the system and asks for it again in every step of a training
# (`benchmarks/worker_memory.py`). So a process keeps up to 4 GiB, and all of its threads take from one heap.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_ARENA_MAX": "1",
}
_DRIVER_ENVIRONMENT = {
    # Train polls its workers; its own 2 s would add two seconds to every checkpoint.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    # What is computed again after a lost node is no error on the screen; `NodeWatch` tells the node.
    "RAY_enable_output_error_log_if_still_retry": "0",
    # Threads that wait by spinning starve each other where cores are shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    **ALLOCATOR,
}
# Nodes of a Ray of our own are not taken away with notice: the process that would watch for it costs every training the
# time in which it loads Ray Train.
_OWN_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# A Ray of our own keeps processes without work for so long, not a second: the stages around a short training then find
# them warm, and do not load PyTorch once more.
_OWN_RAY = {"idle_worker_killing_time_threshold_ms": 120_000}
_OWN_ATTEMPTS = 3
# Of a node or a dashboard that takes too long, and of a port that another program took meanwhile.
_SLOW_START = ("timed out during startup", "dashboard.log", "dashboard.err", "already occupied")
# How often Train tries to start the workers of a training before it gives up.
START_ATTEMPTS = 4
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
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


def connect(cpus: int | None = None) -> Cluster:
    """Join the cluster of RAY_ADDRESS (set inside a submitted job; "auto" finds one here), or start an own Ray.

    The code of the platform and of the methods travels with the connection, so workers need no installation.
    Token authentication is left as RAY_AUTH_MODE says; a Ray started here listens on this machine alone and
    runs without it unless asked.

    Raises:
        AddressError, SessionFolderError, ClusterError: the address does not answer, or Ray does not start.
        NodeTypesError: WSSS_NODE_TYPES can not be read.
        NodesMissingError: WSSS_WAIT_MINUTES is no number of at least 1.
    """
    patience = wait_seconds()
    if not ray.is_initialized():
        for name, value in _DRIVER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Where lost nodes are replaced, Train tries four times and waits so long each time (see `TrainPlan`).
        os.environ.setdefault(_START_TIMEOUT, f"{patience / START_ATTEMPTS:g}")
        address = os.environ.get("RAY_ADDRESS")
        folder = None
        if address:
            check_address(address)
        else:
            folder = session_folder()
        if not address:
            for name, value in _OWN_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        if not os.environ.get("WSSS_DEBUG"):
            logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)  # what it prints, the error says
        try:
            with _signals_wait():
                _init(1 if address else _OWN_ATTEMPTS, lambda: _options(address, cpus, folder))
        except KeyboardInterrupt:
            disconnect()
            raise
        except Exception as error:  # Ray raises a bare Exception when its node does not come up in 30 s
            raise ClusterError(
                f"Ray could not be {'joined' if address else 'started'}: {_reason(error)}",
                address or "this machine",
                "check RAY_ADDRESS and RAY_AUTH_MODE; `unset RAY_ADDRESS` uses this machine alone"
                if address
                else "run the same command again when the machine is less busy; `WSSS_DEBUG=1` shows more",
            ) from error
        if not os.environ.get("WSSS_DEBUG"):
            # Ray prints a lost node as twenty lines of its log; `NodeWatch` says it in one.
            worker.print_to_stdstream = _to_log
        if address:
            remember_joined()
        if raylet := raylet_here():
            gone = WsssError(
                "the Ray under this command has ended (killed, or out of memory)", "this machine", CONTINUES
            )
            leave_last_words(raylet, f"\nerror: {gone}\n")
    return current_cluster()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C, and SIGTERM, which `ray job stop` sends, interrupt once Ray has started; the second does at once.

    A process with half a Ray crashes at its end. Ray's own handlers, which it would set here, end it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        if waiting:
            raise KeyboardInterrupt
        waiting.append(number)

    interrupts = signal.getsignal(signal.SIGINT)
    if interrupts is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, later)
    signal.signal(signal.SIGTERM, later)
    set_by_ray, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_by_ray
        signal.signal(signal.SIGINT, interrupts)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # over that of Ray's C++ part
    if waiting:
        raise KeyboardInterrupt


def _options(address: str | None, cpus: int | None, folder: str | None) -> dict[str, Any]:
    """Arguments of `ray.init`, each time with another port: a dashboard that is just ending holds the one before."""
    dashboard_port = None if address else _free_port()
    return {
        # Without "local" Ray would join whatever else runs on this machine, another run's for example.
        "address": address or "local",
        "num_cpus": None if address else cpus,
        "_temp_dir": folder,
        "include_dashboard": None if address else True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": dashboard_port,
        "logging_level": logging.WARNING,
        "log_to_driver": bool(os.environ.get("WSSS_DEBUG")),
        "_system_config": None if address else dict(_OWN_RAY),  # Ray adds to it, and warns of that at the next start
        "runtime_env": {"py_modules": _code_folders(), "env_vars": _worker_environment(dashboard_port)},
    }


def _init(attempts: int, options: Callable[[], dict[str, Any]]) -> None:
    """`ray.init`, once more while its node does not come up.

    The node gives its own helpers 15 s to load, which is short beside other work on the machine.
    """
    for left in reversed(range(attempts)):
        before = _children()
        try:
            ray.init(**options())
            return
        except Exception as error:
            # Ray forgets what it has started of a node that does not come up; its port would stay taken.
            for process in _children() - before:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not left or not any(words in str(error) for words in _SLOW_START):
                raise
            log.warning("Ray did not come up in time and is started again")
            ray.shutdown()


def _children() -> set[int]:
    """Ids of the child processes of this one; none where the system does not list them."""
    found: set[int] = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found.update(map(int, children.read_text().split()))
    return found


def _reason(error: Exception) -> str:
    """What Ray says in one line: of a dashboard it prints the end of the log."""
    text = str(error).strip()
    log_file = re.search(r"\S+/dashboard\.(log|err)", text)
    if log_file is not None:
        return f"its dashboard did not come up in time; its last words are in {log_file[0]}"
    return text.splitlines()[0] if text else type(error).__name__


def _to_log(message: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    log.info("%s: %s", message.get("pid"), " ".join(message.get("lines", ())))


def disconnect() -> None:
    """Leave the cluster, and end a Ray that `connect` started. Ctrl-C and SIGTERM wait until that is done."""
    with _undisturbed():
        take_back()
        node = worker._global_node
        if node is not None and ray_ended():
            # Ray's own way to the end asks the raylet, and without one ends this process before its last words.
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        elif ray.is_initialized():
            ray.shutdown()
        forget_joined()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Of a Ray that is half shut down, what is left ends the process at once and with another exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _code_folders() -> list[str]:
    specs = [find_spec(package) for package in ("wsss", "wsss_methods")]
    return [str(Path(spec.origin).parent) for spec in specs if spec is not None and spec.origin is not None]


def _worker_environment(dashboard_port: int | None = None) -> dict[str, str]:
    names = [*_WORKER_VARIABLES, "WSSS_DEBUG", WAIT_VARIABLE, NODE_TYPES_VARIABLE, _START_TIMEOUT, *_DRIVER_ENVIRONMENT]
    by_job = _variables_of_job()
    found = {name: os.environ[name] for name in names if name in os.environ and name not in by_job}
    # An address may hold a password, and Ray logs what it is given.
    found = {name: value for name, value in found.items() if redact_text(value) == value}
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
