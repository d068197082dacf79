"""Services of the small cluster that are killed on request and start again, to see what a job makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stack_processes import kill_orphans
from stack_services import (
    HEAD,
    WORKERS,
    Stack,
    StackError,
    start_mlflow,
    start_object_store,
    start_postgres,
    start_ray,
    start_worker,
    worker_name,
)

WORKER_NAMES = tuple(worker_name(number) for number in range(1, WORKERS + 1))
# How a service starts again; it listens where it did before.
START: dict[str, Callable[[Stack], object]] = {
    "object_store": start_object_store,
    "postgres": start_postgres,
    "mlflow": start_mlflow,
    HEAD: start_ray,
    **{worker_name(number): partial(start_worker, number=number) for number in range(1, WORKERS + 1)},
}


def request(folder: Path, name: str, seconds: float, runs: Callable[[], bool]) -> None:
    """Have the stack of a folder kill a service, and wait until it is there again.

    Args:
        folder: of the stack.
        name: of the service, a key of `START`.
        seconds: for which it is away.
        runs: whether the stack runs.

    Raises:
        StackError: no stack runs there, it has no such service, or that one is away already.
    """
    environment = folder / "environment.sh"
    if not runs() or not environment.is_file():
        raise StackError(f"nothing is ready in {folder}\n  do:    start it first: python cluster/stack.py up")
    if name == "postgres" and "WSSS_STUDY" not in environment.read_text(encoding="utf-8"):
        raise StackError(f"the stack of {folder} has no PostgreSQL: it was started with --sqlite")
    for away in _requests(folder).iterdir():
        if name in _gone_with(away.name) or away.name in _gone_with(name):
            raise StackError(f"{away.name} is away already\n  do:    wait until it is there again")
    began = time.monotonic()
    wanted = _requests(folder) / name
    wanted.write_text(str(seconds), encoding="utf-8")
    while wanted.exists():
        if not runs():
            raise StackError(f"the stack of {folder} has ended; its own screen says why")
        time.sleep(0.2)
    print(f"{name} was killed, and is there again after {time.monotonic() - began:.0f} s")


def _requests(folder: Path) -> Path:
    return folder / "outages"


def _gone_with(name: str) -> tuple[str, ...]:
    """A service, and what can not go on without it: a new head is another cluster of Ray."""
    return (HEAD, *WORKER_NAMES) if name == HEAD else (name,)


@dataclass
class Outages:
    """Carries out what `request` asks for."""

    stack: Stack
    _back: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget what was asked of an earlier stack."""
        requests = _requests(self.stack.folder)
        requests.mkdir(exist_ok=True)
        for left in requests.iterdir():
            left.unlink()

    def step(self) -> None:
        """Kill what is asked for, and start again what has been away for long enough. StackError: it does not start."""
        for wanted in _requests(self.stack.folder).iterdir():
            seconds = wanted.read_text(encoding="utf-8")  # empty: it is just being written
            if seconds and wanted.name in START and wanted.name not in self._back:
                self._kill(wanted.name, float(seconds))
        for name in [name for name, moment in self._back.items() if moment <= time.monotonic()]:
            START[name](self.stack)
            del self._back[name]
            (_requests(self.stack.folder) / name).unlink()
            print(f"{name}: there again", flush=True)

    def _kill(self, name: str, seconds: float) -> None:
        for service in [service for service in self.stack.services if service.name in _gone_with(name)]:
            service.process.kill()
            service.process.wait()
            self.stack.services.remove(service)
        kill_orphans({service.process.pid for service in self.stack.services})
        self._back[name] = time.monotonic() + seconds
        print(f"{name}: killed, starts again in {seconds:.0f} s", flush=True)
