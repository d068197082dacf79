"""The services of the small cluster: S3 server, PostgreSQL, MLflow, Ray head and nodes, each with a log of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stack_processes import STOP_SECONDS, end_with_parent, kill_descendants, kill_orphans

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
HEAD = "ray_head"
START_SECONDS = 600.0
INSTALL_SECONDS = 1200.0
START_ATTEMPTS = 4
SLOW_START = "timed out during startup"
USER = "wsss"
BUCKET = "wsss"
DATABASES = ("mlflow", "studies")
POSTGRES_PROGRAMS = ("initdb", "postgres")
_OBJECT_STORE_BYTES = 150_000_000  # of each Ray node, in memory
# A developer's own places and clusters are not this one's.
_FOREIGN = ("RAY_", "WSSS_", "MLFLOW_", "AWS_", "PG")


class StackError(Exception):
    """What is wrong and what to do."""


@dataclass
class Service:
    """A process that the stack started. `stop` is the signal that ends it in order."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop: signal.Signals


@dataclass
class Stack:
    """What runs, and where it keeps things.

    Attributes:
        folder: of objects, databases, homes, logs and keys.
        sockets: a short folder for Ray's sockets, removed at the end.
        cpus: of each Ray node.
        variables: what a node of this cluster has in its environment, without its WSSS_HOME.
    """

    folder: Path
    sockets: Path
    cpus: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    _ports: dict[str, int] = field(default_factory=dict)

    def port(self, name: str) -> int:
        """A port of the loopback interface, the same one when what listens there starts again."""
        if name not in self._ports:
            with socket.create_server(("127.0.0.1", 0)) as opened:
                self._ports[name] = opened.getsockname()[1]
        return self._ports[name]

    def start(
        self,
        name: str,
        command: list[str],
        stop: signal.Signals = signal.SIGTERM,
        user: str | None = None,
        **environment: str,
    ) -> Service:
        """Start a service with the variables of the stack, its output in a log of its own."""
        log = self.folder / "logs" / f"{name}.log"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={**kept, **self.variables, **environment},
                start_new_session=True,  # Ctrl-C is for the stack, which ends them in order
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                preexec_fn=lambda: _begin_service(stop),
            )
        service = Service(name, process, log, stop)
        self.services.append(service)
        return service

    def check(self) -> None:
        """Raises StackError when a service has ended, with the end of its log."""
        for service in self.services:
            if (status := service.process.poll()) is not None:
                tail = service.log.read_text(errors="replace").strip()[-1500:]
                raise StackError(f"{service.name} ended with status {status}:\n{tail}\n  the whole log: {service.log}")

    def wait(self, service: Service, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Until `ready`. Raises StackError when a service ended or the time is over."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{service.name} did not start within {seconds:.0f} s; see {service.log}")
            time.sleep(0.2)


def start_object_store(stack: Stack) -> None:
    """Swift with its S3 interface and a bucket."""
    ready = stack.folder / "objects" / "environment.sh"
    ready.unlink(missing_ok=True)
    launcher = [sys.executable, str(ROOT / "tests" / "store" / "object_store.py"), "start"]
    launcher += ["--port", str(stack.port("object_store")), "--folder", str(ready.parent), "--bucket", BUCKET]
    service = stack.start("object_store", launcher)
    stack.wait(service, ready.is_file, INSTALL_SECONDS)  # it installs itself at the first start
    for line in ready.read_text(encoding="utf-8").splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        stack.variables[name] = value
    stack.variables["WSSS_STORE"] = f"s3://{BUCKET}/store"


def start_postgres(stack: Stack) -> None:
    """A server with a database for MLflow and one for the studies of sweeps. It asks for a password, in a file."""
    import psycopg2

    programs, user = postgres_programs(), postgres_user()
    data, passwords = stack.folder / "postgres", stack.folder / "pgpass"
    if not (data / "PG_VERSION").is_file():
        shutil.rmtree(data, ignore_errors=True)  # an earlier start that was killed
        data.mkdir(mode=0o700)
        password = secrets.token_hex(20)
        write_private(passwords, f"127.0.0.1:*:*:{USER}:{password}\n")
        if user:
            shutil.chown(data, user, pwd.getpwnam(user).pw_gid)
        with tempfile.NamedTemporaryFile("w", dir="/tmp") as given:  # a file of mode 0600
            given.write(password)
            given.flush()
            if user:
                shutil.chown(given.name, user)
            made = subprocess.run(
                [
                    *(programs["initdb"], "--pgdata", str(data), "--username", USER, "--auth", "scram-sha-256"),
                    *("--pwfile", given.name, "--encoding", "UTF8", "--no-locale"),
                ],
                capture_output=True,
                text=True,
                cwd="/",
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        if made.returncode:
            shutil.rmtree(data, ignore_errors=True)
            remedy = f"name a --folder that {user or 'you'} may enter and write to"
            raise StackError(
                f"PostgreSQL could not make its databases: {made.stderr.strip()[-800:]}\n  do:    {remedy}"
            )
    port = stack.port("postgres")
    stack.variables["PGPASSFILE"] = str(passwords)
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    command = [programs["postgres"], "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # SIGTERM would wait for all clients to leave.
    service = stack.start("postgres", command, stop=signal.SIGINT, user=user)
    place = {"host": "127.0.0.1", "port": port, "user": USER, "passfile": str(passwords)}

    def answers() -> bool:
        try:
            psycopg2.connect(dbname="postgres", connect_timeout=5, **place).close()
        except psycopg2.OperationalError:
            return False
        return True

    stack.wait(service, answers)
    connection = psycopg2.connect(dbname="postgres", **place)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        there = {name for (name,) in cursor.fetchall()}
        for name in DATABASES:
            if name not in there:
                cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    stack.variables["WSSS_STUDY"] = database_address(port, "studies")


def start_mlflow(stack: Stack) -> str:
    """Numbers go to PostgreSQL, or without it to SQLite; artifacts through the server to S3. Returns its address."""
    study = stack.variables.get("WSSS_STUDY")
    database = f"{study.rpartition('/')[0]}/mlflow" if study else f"sqlite:///{stack.folder / 'mlflow.db'}"
    port = stack.port("mlflow")
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", f"s3://{BUCKET}/mlflow"]
    service = stack.start(
        "mlflow", command, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true"
    )

    def healthy() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.status == 200
        return False

    stack.wait(service, healthy)
    stack.variables["MLFLOW_TRACKING_URI"] = address
    return address


def start_ray(stack: Stack) -> str:
    """A head without CPUs, and nodes with `stack.cpus` CPUs each. Returns the address of the dashboard."""
    token = stack.folder / "ray_token"
    if not token.is_file():
        write_private(token, secrets.token_hex(32))
    stack.variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    dashboard = stack.port("ray_dashboard")
    head = ["--head", f"--port={stack.port(HEAD)}", "--num-cpus=0", "--dashboard-host=127.0.0.1"]
    sockets = _start_node(stack, HEAD, [*head, f"--dashboard-port={dashboard}"], stack.folder / "home")
    stack.variables["RAY_ADDRESS"] = (sockets / "ray_current_cluster").read_text(encoding="utf-8").strip()
    for number in range(1, WORKERS + 1):
        start_worker(stack, number)
    return f"http://127.0.0.1:{dashboard}"


def start_worker(stack: Stack, number: int) -> None:
    """A node of Ray that works, with a home of its own."""
    join = [f"--address={stack.variables['RAY_ADDRESS']}", f"--num-cpus={stack.cpus}"]
    _start_node(stack, worker_name(number), join, stack.folder / f"worker_{number}")


def worker_name(number: int) -> str:
    """The name of a Ray node, from 1."""
    return f"ray_worker_{number}"


def _start_node(stack: Stack, name: str, options: list[str], home: Path) -> Path:
    """A process of Ray. On a busy machine it may not come up in Ray's own time: then once more.

    Returns the folder of its sockets, another one at each start.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--num-gpus=0"]
    command += ["--dashboard-agent-listen-port=0", f"--object-store-memory={_OBJECT_STORE_BYTES}", *options]
    for attempt in range(START_ATTEMPTS):
        sockets = Path(tempfile.mkdtemp(prefix="", dir=stack.sockets))
        service = stack.start(name, [*command, f"--temp-dir={sockets}"], WSSS_HOME=str(home))
        try:
            stack.wait(service, lambda log=service.log: "Ray runtime started" in log.read_text(errors="replace"))
            return sockets
        except StackError:
            slow = service.process.poll() is not None and SLOW_START in service.log.read_text(errors="replace")
            if not slow or attempt + 1 == START_ATTEMPTS:
                raise
            stack.services.remove(service)
            kill_orphans({each.process.pid for each in stack.services})
    raise AssertionError


def stop(stack: Stack) -> None:
    """Ask the services to end, the last one first, and kill whatever is left after a while."""
    for service in reversed(stack.services):
        service.process.send_signal(service.stop)
    deadline = time.monotonic() + STOP_SECONDS
    for service in stack.services:
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(timeout=max(0.1, deadline - time.monotonic()))
    kill_descendants()
    shutil.rmtree(stack.sockets, ignore_errors=True)


def postgres_programs() -> dict[str, str]:
    """Program -> its path. StackError where PostgreSQL's server is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    found = {name: shutil.which(name, path=path) for name in POSTGRES_PROGRAMS}
    programs = {name: str(Path(program).resolve()) for name, program in found.items() if program}
    if missing := [name for name in POSTGRES_PROGRAMS if name not in programs]:
        raise StackError(
            f"PostgreSQL's {' and '.join(missing)} were not found\n"
            "  do:    install its server (Debian, Ubuntu: apt install postgresql), or go on without: --sqlite"
        )
    return programs


def postgres_user() -> str | None:
    """PostgreSQL refuses to run as root: then the user that its package made, or nobody."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise StackError(
        "PostgreSQL does not run as root, and there is no user postgres\n  do:    run this as another user"
    )


def database_address(port: int, name: str) -> str:
    """SQLAlchemy's address of a database, without the password, which PGPASSFILE leads to."""
    return f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/{name}"


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)


def _begin_service(stop: signal.Signals) -> None:
    for each in (signal.SIGINT, signal.SIGHUP):  # what the stack ignores, its services would ignore as well
        signal.signal(each, signal.SIG_DFL)
    end_with_parent(stop)
