"""A home, a store and one command in them that is disturbed, and what is compared with an undisturbed run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import processes
from tests.faults.places import Nodes, SmallDisk
from tests.store.bad_connection import BadConnection
from tests.tracking.conftest import MlflowServer

from wsss.run_record import RunRecord, find_runs
from wsss.store import open_store
from wsss.tracking.spool import read_cursor

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# Workers inherit it from the Ray that the command starts and find the methods of the tests through it.
PYTHON_PATH = os.pathsep.join(str(ROOT / folder) for folder in ("platform", "methods", ""))
TOY = ("--method", "toy", "--recipe", str(HERE / "toy.yaml"))
STAGES = ("toy_train", "toy_score", "toy_mean")
# On a machine without other work; with it, in proportion to its load.
LONGEST_SECONDS = 420
# A worker process notices the end of its raylet, and a raylet that of its driver, within seconds. Ray's agents first
# report the end of their raylet to a GCS that has ended too, for the minute after which their client gives up.
_LEFT_SECONDS = 100
_NOISE = re.compile(r"Traceback \(most recent call last\)|StackTrace|\*\*\* SIG|Fatal Python error|core dumped")

# stage/key -> file -> sha256: losses, metrics, arrays and weights, byte by byte.
Numbers = dict[str, dict[str, str]]


def slowness() -> float:
    """How many times as long as usual everything takes beside the other work on this machine, 1 at least."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Seen:
    """What a user saw of one command.

    Attributes:
        code: exit code as a shell shows it; 128 and the number of the signal that killed it.
        seconds: from the fault to the end.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def noise(self) -> str:
        """What no user should see: a traceback, or the last words of a process that crashed."""
        found = _NOISE.search(self.out + self.err)
        return (self.out + self.err)[max(0, found.start() - 300) : found.end() + 2000] if found else ""


class Command:
    """A command under way, in a process group of its own, as a shell would start it."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._files = [folder / f"{self.mark}.{name}" for name in ("out", "err")]
        self.fault_at = time.monotonic()
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.command", *words],
                cwd=ROOT,
                env={**environment, processes.MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._files[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._files[1].read_text(errors="replace")

    def until(self, reached: Callable[[], bool], seconds: float = LONGEST_SECONDS) -> None:
        """Wait for a moment. AssertionError when the command ends before it."""
        deadline = time.monotonic() + seconds * slowness()
        while not reached():
            code = self.process.poll()
            assert code is None, f"ended with {code} before the moment: {self.out[-1500:]}\n{self.err[-3000:]}"
            assert time.monotonic() < deadline, f"not reached in {seconds} s: {self.out[-1500:]}\n{self.err[-3000:]}"
            time.sleep(0.02)

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """A signal to the driver; to its whole group, as Ctrl-C in a terminal sends it."""
        self.fault_at = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self, word: str) -> int:
        """SIGKILL one of its processes by a word of the command line; returns its id."""
        found = processes.named(self.mark, word)
        assert found, f"no process {word!r} among {sorted(processes.marked(self.mark).values())}"
        self.fault_at = time.monotonic()
        processes.kill(found[0])
        return found[0]

    def end(self, seconds: float = LONGEST_SECONDS) -> Seen:
        """Wait for the end of the command and of all its processes. AssertionError when one stays."""
        try:
            code = self.process.wait(seconds * slowness())
        except subprocess.TimeoutExpired:
            self.process.kill()
            processes.all_ended(self.mark, 5)
            raise AssertionError(f"hung for {seconds} s: {self.out[-3000:]}\n{self.err[-3000:]}") from None
        took = time.monotonic() - self.fault_at
        left = processes.all_ended(self.mark, _LEFT_SECONDS * slowness())
        assert not left, f"processes stayed behind for {_LEFT_SECONDS} s: {left}"
        return Seen(code if code >= 0 else 128 - code, self.out, self.err, took)


@dataclass
class Scene:
    """Where a fault happens.

    Attributes:
        folder: a new folder; home, store, faults and output lie below it.
        store: folder or s3://bucket/prefix.
        variables: environment of every command.
        words: arguments of every command.
        disk, connection, server, nodes: what fails, where the kind of fault needs it.
    """

    folder: Path
    store: str
    variables: dict[str, str] = field(default_factory=dict)
    script: str = "reproduce.py"
    words: tuple[str, ...] = TOY
    disk: SmallDisk | None = None
    connection: BadConnection | None = None
    server: MlflowServer | None = None
    nodes: Nodes | None = None
    started: list[Command] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """Runs, data and MLflow's database."""
        return self.folder / "home"

    @property
    def faults(self) -> Path:
        """The planned faults."""
        return self.folder / "faults"

    def start(self, *more: str, **variables: str) -> Command:
        """Begin the command, or continue it."""
        self.faults.mkdir(parents=True, exist_ok=True)
        words = [self.script, *self.words, f"faults={self.faults}", *more]
        words += ["--home", str(self.home), "--store", self.store]
        environment = {**clean_environment(), "FAULTS": str(self.faults), **self.variables, **variables}
        self.started.append(Command(words, environment, self.faults))
        return self.started[-1]

    def give_up(self) -> None:
        """End what a test that failed has left running."""
        for command in self.started:
            processes.all_ended(command.mark, 0)

    def plan(self, *faults: str) -> None:
        """Let faults happen: a file of that name in the folder of faults."""
        self.faults.mkdir(parents=True, exist_ok=True)
        for fault in faults:
            (self.faults / fault).touch()

    def held(self, stage: str, *more: str, **variables: str) -> Command:
        """Begin the command and wait until it stands still in a stage; the other shards of a map stage are finished."""
        (self.faults / f"held-{stage}").unlink(missing_ok=True)
        self.plan(f"hold-{stage}")
        command = self.start(*more, **variables)
        self.wait_held(command, stage)
        return command

    def wait_held(self, command: Command, stage: str) -> None:
        """Wait until a command stands still in a stage."""
        command.until(lambda: (self.faults / f"held-{stage}").exists())
        if stage == "toy_score":
            command.until(lambda: sum(each.name.endswith(".zip.json") for each in map(Path, self.finished())) >= 2)

    def worker(self, stage: str) -> int:
        """Id of the worker process that stands still in a stage."""
        return int((self.faults / f"held-{stage}").read_text())

    def release(self) -> None:
        """Let whatever stands still go on, also in later commands."""
        for hold in self.faults.glob("hold-*"):
            hold.unlink()

    def finished(self) -> dict[str, tuple[Any, ...]]:
        """File of the store -> what changes when it is written again, for all that is finished: has a note, is one."""
        if "://" in self.store:
            from wsss.store.s3 import S3Files

            backend = open_store(self.store, self.folder / "looked").backend
            assert isinstance(backend, S3Files)
            entries = {path: (entry.size, entry.modified) for path, entry in backend.entries().items()}
        else:
            root = Path(self.store)
            files = [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
            entries = {str(path.relative_to(root)): _identity(path) for path in files}
        notes = {path for path in entries if "/finished/" in path}
        noted = {path.replace("/finished/", "/").removesuffix(".json") for path in notes}
        return {
            path: identity
            for path, identity in entries.items()
            if not path.startswith((".", "checkpoints/"))
            and (path in notes or path in noted or path.endswith("/manifest.json"))
        }

    def numbers(self) -> Numbers:
        """Everything that is published, by `stage/key`."""
        store = open_store(self.store, self.folder / "looked")
        return {
            f"{ref.stage}/{ref.key}": {
                file: entry["sha256"] for file, entry in store.artifact(ref.stage, ref.key).files.items()
            }
            for ref in store.list()
        }

    def published(self) -> tuple[str, ...]:
        """Stages that are in the store."""
        manifests = _manifests(self.finished())
        return tuple(stage for stage in STAGES if any(path.startswith(f"{stage}/") for path in manifests))

    def kept(self) -> str:
        """What the next command can go on from, in words."""
        finished, published = self.finished(), self.published()
        parts = [f"{', '.join(published)} in the store"] if published else []
        if "toy_train" not in published and list(self.home.glob("checkpoints/toy_train-*/checkpoint_*")):
            parts.append("checkpoints of toy_train")
        shards = sum(path.startswith("toy_score/") and path.endswith(".zip.json") for path in finished)
        if "toy_score" not in published and shards:
            parts.append(f"{shards} of 3 shards of toy_score")
        return ", ".join(parts) or "nothing yet"

    def record(self) -> RunRecord:
        """The newest run."""
        return max(find_runs(self.home), key=lambda record: (record.started, record.run_id))

    def undelivered(self) -> list[str]:
        """Runs whose tracking events MLflow has not received, or refused."""
        found = []
        for events in sorted(self.home.glob("runs/*/tracking/events.jsonl")):
            cursor = read_cursor(events.parent)
            if cursor.offset < events.stat().st_size or cursor.rejected:
                found.append(f"{events.parent.parent.name}: {cursor.offset} of {events.stat().st_size} bytes")
        return found


def _hear_interrupts() -> None:
    """A command of a script's background ignores SIGINT, and one under nohup SIGHUP: that of a terminal does not."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _manifests(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.endswith("/manifest.json")]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def clean_environment() -> dict[str, str]:
    """This environment without what would point to a developer's own places."""
    dropped = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "WSSS_HOME", "WSSS_STORE", "MLFLOW_TRACKING_URI", "WSSS_DEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {"OMP_NUM_THREADS": "1", **kept, "PYTHONPATH": PYTHON_PATH}


def copy_stages(source: str, target: str, stages: Sequence[str]) -> None:
    """Copy published stages from a store folder to another store."""
    backend = open_store(target, Path(source) / ".looked").backend
    for stage in stages:
        for file in sorted((Path(source) / stage).rglob("*")):
            if file.is_file():
                backend.write(str(file.relative_to(source)), file)
