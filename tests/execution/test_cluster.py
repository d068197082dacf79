import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wsss.execution import cluster
from wsss.execution.cluster import _worker_environment


def test_variables_that_the_job_sets_are_not_named_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("WSSS_DEBUG", "1")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert {"AWS_DEFAULT_REGION", "WSSS_DEBUG"} <= set(_worker_environment())
    config = {"runtime_env": {"env_vars": {"AWS_DEFAULT_REGION": "eu-central-1"}}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert "AWS_DEFAULT_REGION" not in _worker_environment() and "WSSS_DEBUG" in _worker_environment()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "no json")
    assert "AWS_DEFAULT_REGION" in _worker_environment()


def test_a_ray_that_does_not_come_up_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(cluster.ClusterError, match="could not be started: The current node timed out"):
        cluster.connect()


@pytest.mark.parametrize(
    ("address", "slow_starts", "fails", "started"),
    [("", 2, False, 3), ("", 3, True, 3), ("127.0.0.1:1", 1, True, 1)],
)
@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("The current node timed out during startup.", "The current node timed out during startup."),
        ("Failed to bind to 127.0.0.1:5: already occupied.", "Failed to bind to 127.0.0.1:5: already occupied."),
        (
            "\nThe last 20 lines of /tmp/ray/s/logs/dashboard.log (it contains the error): \nINFO a\nINFO b",
            "its dashboard did not come up in time; its last words are in /tmp/ray/s/logs/dashboard.log",
        ),
    ],
)
def test_an_own_ray_that_is_slow_to_come_up_is_started_again(
    address: str, slow_starts: int, fails: bool, started: int, reason: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []
    ports: list[object] = []

    def init(**options: object) -> None:
        tries.append(options["address"])
        ports.append(options["dashboard_port"])
        if len(tries) <= slow_starts:
            raise Exception(reason)

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster, "check_address", lambda address: None)
    monkeypatch.setattr(cluster, "current_cluster", lambda: "the cluster")
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster, "_free_port", iter(range(1, 9)).__next__)
    if fails:
        with pytest.raises(cluster.ClusterError) as caught:
            cluster.connect()
        assert caught.value.what.endswith(f": {told}") and "\n" not in caught.value.what
    else:
        assert cluster.connect() == "the cluster"
    assert tries == [address or "local"] * started
    # The dashboard of a Ray that has just been given up may still listen.
    assert ports == ([None] if address else list(range(1, started + 1)))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a system that lists child processes")
def test_a_ray_that_is_given_up_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    other = subprocess.Popen(["sleep", "60"])

    def init(**_: object) -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        if len(started) < 3:
            raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "current_cluster", lambda: "the cluster")
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "init", init)
    try:
        cluster.connect()
        assert [process.wait(10) for process in started[:2]] == [-signal.SIGKILL] * 2
        assert started[2].poll() is None and other.poll() is None
    finally:
        for process in (other, *started):
            process.kill()
            process.wait(10)


def test_workers_ask_their_own_ray_for_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not another one that this machine runs, or ran, which Ray would find in the environment or in its folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")

    def nodes() -> list[str]:
        from ray.util.state import list_nodes

        return [node.node_id for node in list_nodes(timeout=20)]  # pyright: ignore[reportAttributeAccessIssue]

    cluster.connect(cpus=1)
    try:
        asked = cluster.ray.remote(nodes).remote()
        assert cluster.ray.get(asked, timeout=60) == [node["NodeID"] for node in cluster.ray.nodes()]
    finally:
        cluster.disconnect()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_begin_with_the_settings_of_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library reads them as a process begins; what a person has set stays."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in cluster.ALLOCATOR:
        monkeypatch.setenv(name, "0")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")

    def environment() -> list[str]:
        return Path("/proc/self/environ").read_text(encoding="utf-8").split("\0")

    cluster.connect(cpus=1)
    try:
        began_with = set(cluster.ray.get(cluster.ray.remote(environment).remote(), timeout=60))
    finally:
        cluster.disconnect()
    expected = {**cluster.ALLOCATOR, "MALLOC_ARENA_MAX": "2"}
    assert {f"{name}={value}" for name, value in expected.items()} <= began_with


def test_nothing_interrupts_the_end_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended: list[bool] = []

    def shutdown() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        ended.append(True)

    monkeypatch.setattr(cluster.worker, "_global_node", None)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "shutdown", shutdown)
    cluster.disconnect()
    assert ended
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_until_ray_has_started(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    def start(*_: object) -> None:
        signal.raise_signal(number)
        happened.append("started")

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_init", start)
    monkeypatch.setattr(cluster, "disconnect", lambda: happened.append("left"))
    try:
        with pytest.raises(KeyboardInterrupt):
            cluster.connect()
        assert happened == ["started", "left"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_second_interruption_does_not_wait() -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt), cluster._signals_wait():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_each_start_has_its_own_settings() -> None:
    first = cluster._options(None, 1, None)["_system_config"]
    first["object_spilling_config"] = "added by Ray"
    assert "object_spilling_config" not in cluster._options(None, 1, None)["_system_config"]
