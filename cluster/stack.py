#!/usr/bin/env python
"""A small cluster on this machine by one command and without Docker, for trying all that a real one has.

    python cluster/stack.py up             # until Ctrl-C, SIGTERM or `down`
    source ~/.wsss-stack/environment.sh    # in another shell; then python reproduce.py ..., python tune.py ...
    python cluster/stack.py outage mlflow --seconds 60    # kill a service, and start it again after a minute
    python cluster/stack.py down

It starts an S3 server (OpenStack Swift, see tests/store/object_store.py), PostgreSQL, an MLflow server with its numbers
in PostgreSQL and its artifacts on S3, a Ray head without CPUs and two Ray nodes with a home of their own each. S3,
PostgreSQL and Ray want keys, which lie in files that only their owner reads. Objects and databases stay in the folder
and are there again the next time. Nothing outlives the command, however it ends.

Needs Linux, the PostgreSQL server (Debian, Ubuntu: apt install postgresql) and `pip install -e '.[tracking-server]'`.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from stack_outages import START, Outages, request
from stack_processes import STOP_SECONDS, end_with_parent, inherit_orphans, kill_descendants
from stack_services import (
    Stack,
    StackError,
    postgres_programs,
    start_mlflow,
    start_object_store,
    start_postgres,
    start_ray,
    stop,
    write_private,
)


def serve(folder: Path, sqlite: bool, cpus: int, sockets: Path) -> None:
    """Start everything and stay until a signal arrives or a service ends."""
    stack = Stack(folder, sockets, cpus)
    environment = folder / "environment.sh"
    try:
        print(f"starting; logs are in {folder / 'logs'}", flush=True)
        start_object_store(stack)
        if not sqlite:
            start_postgres(stack)
        tracking = start_mlflow(stack)
        dashboard = start_ray(stack)
        homes = {"WSSS_HOME": str(folder / "home"), "RAY_API_SERVER_ADDRESS": dashboard}
        variables = {**stack.variables, **homes}
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        write_private(environment, "".join(lines))
        print(
            f"MLflow          {tracking}\n"
            f"Ray dashboard   {dashboard}\n"
            f"variables       source {shlex.quote(str(environment))}\n"
            f"                ({', '.join(variables)})\n"
            f"end             Ctrl-C here, or python cluster/stack.py down --folder {shlex.quote(str(folder))}\n"
            "ready",
            flush=True,
        )
        outages = Outages(stack)
        outages.begin()
        while True:
            time.sleep(1)
            stack.check()
            outages.step()
    finally:
        environment.unlink(missing_ok=True)
        stop(stack)


def default_folder() -> Path:
    """In the home of who runs this; of root where PostgreSQL's user may enter as well."""
    return Path("/var/lib/wsss-stack") if os.geteuid() == 0 else Path.home() / ".wsss-stack"


def up(folder: Path, sqlite: bool, cpus: int) -> int:
    """Run the stack in a child, and see to it that nothing is left when either of the two ends."""
    if not sqlite:
        if find_spec("psycopg2") is None:
            raise StackError("PostgreSQL's driver is not installed\n  do:    pip install -e '.[tracking-server]'")
        postgres_programs()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "logs").chmod(0o700)  # the object store tells its keys
    with _lock(folder) as lock:
        inherit_orphans()
        # Short: the path of a socket has at most 107 bytes.
        sockets = Path(tempfile.mkdtemp(prefix=f"wsss-{os.getpid()}-", dir="/tmp"))
        mine = os.getpid()
        child = os.fork()
        if child == 0:
            _serve_in_child(mine, lock, folder, sqlite, cpus, sockets)

        def end(number: int, frame: FrameType | None) -> None:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, end)
        _, status = os.waitpid(child, 0)
        kill_descendants()
        shutil.rmtree(sockets, ignore_errors=True)
        (folder / "environment.sh").unlink(missing_ok=True)
        return os.waitstatus_to_exitcode(status)


def _serve_in_child(parent: int, lock: IO[str], folder: Path, sqlite: bool, cpus: int, sockets: Path) -> NoReturn:
    """`serve`, ended by SIGTERM, which comes as well when the parent dies. Never returns."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the way out is not left half way
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGHUP):  # of the terminal, for the parent, which turns them into SIGTERM
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    end_with_parent(signal.SIGTERM)
    inherit_orphans()
    code = 1
    try:
        if os.getppid() == parent:
            serve(folder, sqlite, cpus, sockets)
    except KeyboardInterrupt:
        code = 0
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr, flush=True)
    except Exception:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        os._exit(code)


def down(folder: Path) -> int:
    """End the stack of a folder, and wait until it has ended."""
    deadline = time.monotonic() + 4 * STOP_SECONDS
    told = False
    while _runs(folder):
        if not told:
            with suppress(ProcessLookupError, ValueError):
                os.kill(int((folder / "lock").read_text()), signal.SIGTERM)
        told = True
        if time.monotonic() > deadline:
            raise StackError(f"the stack of {folder} does not end; its process is {(folder / 'lock').read_text()}")
        time.sleep(0.2)
    print("ended" if told else f"nothing runs in {folder}")
    return 0


def _runs(folder: Path) -> bool:
    """Whether a stack holds the folder."""
    if not (folder / "lock").is_file():
        return False
    with (folder / "lock").open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(folder: Path) -> IO[str]:
    """The folder's lock, held until all that inherit it have ended, with the process id of its holder."""
    lock = (folder / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StackError(
            f"a stack runs in {folder} already\n  do:    name another --folder, or end it: python cluster/stack.py down"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _cpus(text: str) -> int:
    return _count(text, "CPUs", 1, 1024)


def _seconds(text: str) -> int:
    return _count(text, "seconds", 0, 86400)


def _count(text: str, what: str, minimum: int, maximum: int) -> int:
    if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of {what} from {minimum} to {maximum}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="start everything, and stay until it is ended")
    outage_parser = commands.add_parser("outage", help="kill a service, and start it again after a while")
    down_parser = commands.add_parser("down", help="end what `up` started")
    for command in (up_parser, outage_parser, down_parser):
        command.add_argument(
            "--folder",
            type=Path,
            default=default_folder(),
            help="where objects, databases, homes, logs and keys are kept (default: %(default)s)",
        )
    up_parser.add_argument("--cpus", type=_cpus, default=1, help="of each Ray node (default: 1)")
    up_parser.add_argument(
        "--sqlite", action="store_true", help="without PostgreSQL: MLflow and sweeps keep SQLite files"
    )
    outage_parser.add_argument("service", choices=sorted(START), help="ray_head takes the nodes with it")
    outage_parser.add_argument("--seconds", type=_seconds, default=60, help="that it is away (default: 60)")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.expanduser().absolute()
    try:
        if options.command == "up":
            return up(folder, options.sqlite, options.cpus)
        if options.command == "down":
            return down(folder)
        request(folder, options.service, options.seconds, partial(_runs, folder))
        return 0
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
