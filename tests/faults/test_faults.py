"""Every kind of fault leaves one message, loses nothing, and the same command continues to the same numbers.

`WSSS_WRITE_TABLE=1 python -m pytest -m slow tests/faults/test_faults.py` writes the table of what is seen again.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.faults import company_kinds, disk_kinds, node_kinds, process_kinds, service_kinds, sweep_kinds
from tests.faults.kind import Kind
from tests.faults.places import NoMount, small_disk, two_nodes
from tests.faults.scene import PYTHON_PATH, Scene, Seen, copy_stages, slowness
from tests.faults.template import Template, make_template
from tests.store.bad_connection import BadConnection
from tests.store.conftest import BUCKET, use

from wsss.run_record import find_runs
from wsss.tracking import sync

KINDS: tuple[Kind, ...] = (
    *process_kinds.KINDS,
    *node_kinds.KINDS,
    *disk_kinds.KINDS,
    *service_kinds.KINDS,
    *company_kinds.KINDS,
    *sweep_kinds.KINDS,
)
TABLE = Path(__file__).with_name("faults.md")
HEAD = """# Faults in the middle, and what the user sees

Written by `test_faults.py`: each fault happens to a real command. Whatever it was, the same command then ends with
the numbers of an undisturbed run to the last digit, and computes nothing again that was finished. Exit codes are those
that a shell shows; within the seconds in brackets the command has ended, or gone on to its end, on a machine without
other work.

| fault | exit code | seen (within) | kept |
|---|---|---|---|
"""
MISSING = """
Not yet seen to end as it must, so without a row:

"""
WRITES = os.environ.get("WSSS_WRITE_TABLE") == "1"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, template_database: Path) -> Template:
    return make_template(tmp_path_factory.mktemp("template"), template_database)


@pytest.fixture(scope="session")
def sweep_template(tmp_path_factory: pytest.TempPathFactory, template_database: Path) -> Template:
    return make_template(tmp_path_factory.mktemp("sweep"), template_database, "tune.py", sweep_kinds.WORDS)


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, str]]:
    """Rows of the table by fault; written at the end where that is asked for. Kinds not tried keep theirs."""
    found = read_table()[0]
    yield found
    if WRITES:
        write_table(found)


def read_table() -> tuple[dict[str, str], list[str]]:
    """Rows by fault, and the kinds that the table names as missing."""
    text = TABLE.read_text() if TABLE.is_file() else HEAD
    table, _, missing = text.removeprefix(HEAD).partition(MISSING)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines(keepends=True)}
    return rows, [line.removeprefix("- ") for line in missing.splitlines()]


def write_table(rows: dict[str, str]) -> None:
    """Every kind stands in it: with its row, or below as one that has none."""
    table = "".join(rows[kind.fault] for kind in KINDS if kind.fault in rows)
    missing = "".join(f"- {kind.fault}\n" for kind in KINDS if kind.fault not in rows)
    TABLE.write_text(HEAD + table + (MISSING + missing if missing else ""))


@pytest.fixture(scope="module")
def scenes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenes]:
    """Scenes that kinds share. At the end the same command continues in each, until it has ended well."""
    with ExitStack() as stack:
        found = Scenes(request, tmp_path_factory, stack)
        yield found
        for scene in found.unfinished():
            continue_to_the_end(scene, request)


class Scenes:
    """One fault after the other happens to one run, as long as no command has ended well: that saves whole runs."""

    def __init__(self, request: pytest.FixtureRequest, folders: pytest.TempPathFactory, stack: ExitStack) -> None:
        self._request, self._folders, self._stack = request, folders, stack
        self._open: dict[tuple[object, ...], Scene] = {}

    def take(self, kind: Kind) -> Scene:
        """The scene of a run that has not ended yet, or a new one."""
        place = (kind.there, kind.needs)
        scene = self._open.get(place)
        if scene is not None and (scene.script == "tune.py" or scene.published() != kind.there):
            # The kind before has brought its run, or any sweep, further than this one begins.
            self.drop(kind)
            continue_to_the_end(scene, self._request)
        if place not in self._open:
            self._open[place] = self._new(kind)
        return self._open[place]

    def drop(self, kind: Kind) -> None:
        """The run has ended."""
        self._open.pop((kind.there, kind.needs), None)

    def unfinished(self) -> list[Scene]:
        """Scenes whose run has not ended."""
        return list(self._open.values())

    def _new(self, kind: Kind) -> Scene:
        """The place of a kind of fault, with what stands around it."""
        request, stack = self._request, self._stack
        folder = self._folders.mktemp("scene")
        scene = Scene(folder, str(folder / "store"))
        sweep = kind.needs.startswith("sweep")
        if sweep:
            scene.script, scene.words = "tune.py", sweep_kinds.WORDS
        chosen: Template = request.getfixturevalue("sweep_template" if sweep else "template")
        try:
            if kind.needs in ("home disk", "sweep on a small home"):
                scene.disk = stack.enter_context(small_disk(scene.home))
            elif kind.needs == "store disk":
                scene.disk = stack.enter_context(small_disk(Path(scene.store)))
            elif kind.needs == "database disk":
                scene.disk = stack.enter_context(small_disk(folder / "database"))
                scene.variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/database/mlflow.db"
        except NoMount as refused:
            pytest.skip(f"no disk can be mounted here: {refused}")
        chosen.copy_home(scene.home)
        if kind.needs == "database disk":
            shutil.copy(scene.home / "mlflow.db", folder / "database")
        if kind.needs == "object store":
            environment: dict[str, str] = request.getfixturevalue("moto_environment")
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            use(environment, patch)
            scene.connection = BadConnection(environment["AWS_ENDPOINT_URL"])
            stack.callback(scene.connection.close)
            scene.variables |= {**environment, "AWS_ENDPOINT_URL": scene.connection.url}
            scene.store = f"s3://{BUCKET}/{folder.name}-{time.time_ns()}"
        copy_stages(chosen.scene.store, scene.store, kind.there)
        if kind.needs == "server":
            scene.server = server = request.getfixturevalue("session_server")
            if server.process is None:
                server.start()
            scene.variables["MLFLOW_TRACKING_URI"] = server.url
        if kind.needs in ("nodes", "sweep on nodes"):
            scene.nodes = stack.enter_context(two_nodes({"PYTHONPATH": PYTHON_PATH}))
            scene.variables["RAY_ADDRESS"] = scene.nodes.address
        return scene


def continue_to_the_end(scene: Scene, request: pytest.FixtureRequest) -> None:
    """The same command continues where the faults left it."""
    kept, finished = scene.kept(), scene.finished()
    done = scene.start().end()
    assert done.code == 0 and not done.noise and not done.err.strip(), done.out[-3000:] + done.err[-6000:]
    after = scene.finished()
    assert {path: after.get(path) for path in finished} == finished, "what was finished is written again"
    if scene.script == "reproduce.py":
        facts = {stage.name: stage.facts for stage in scene.record().stages}
        # The last checkpoint counts when it was complete at the moment of the fault.
        assert "checkpoints" not in kept or facts["toy_train"]["resumed_steps"] in (6, 9), kept
        shards = re.search(r"([0-9]+) of 3 shards", kept)
        assert shards is None or facts["toy_score"]["resumed_images"] == 8 * int(shards[1]), kept
    check_ended_well(scene, request)


def check_ended_well(scene: Scene, request: pytest.FixtureRequest) -> None:
    """The numbers of an undisturbed run, nothing computed twice, and MLflow has all of it."""
    if scene.script == "tune.py":
        assert sweep_kinds.outcome(scene) == request.getfixturevalue("sweep_template").outcome
    else:
        expected = request.getfixturevalue("template").outcome
        assert {name: files for name, files in scene.numbers().items() if name in expected} == expected
        assert scene.record().status == "finished"
        stages = [stage for record in find_runs(scene.home) for stage in record.stages if stage.status == "executed"]
        executed = Counter((stage.name, stage.key) for stage in stages)
        assert set(executed.values()) <= {1}, executed
    if scene.undelivered():
        assert sync(scene.home).complete  # what the message says; also for runs that nobody continued
    assert scene.undelivered() == []


def row(kind: Kind, seen: Seen, kept: str, scene: Scene) -> str:
    lines = [line.strip() for line in told(seen.err)]
    if not lines and kind.on_screen:
        lines = [next(line for line in seen.out.splitlines() if kind.on_screen in line)]
        lines[0] = re.sub(r"^[0-9:]{8} ", "", lines[0])
    text = " / ".join(re.sub(r"^(where|do|why): +", r"\1: ", line) for line in lines) or "nothing"
    for path, word in ((scene.folder / "home", "HOME"), (Path(scene.store), "STORE"), (scene.folder, "FOLDER")):
        text = text.replace(str(path), word)
    text = text.replace(scene.store, "STORE")
    for pattern, word in (
        (r"[0-9]{8}-[0-9]{6}-toy-toy-s0(-[0-9]+)?", "RUN"),
        (r"planted-[a-z0-9-]+-[0-9a-f]{6,}", "SWEEP"),
        (r"process [0-9]+ on \S+", "process PID on HOST"),
        (r"127\.0\.0\.1:[0-9]+", "HOST:PORT"),
        (r"\.probe-[0-9a-f]+", ".probe"),
        (r"[0-9a-f]{16,64}", "KEY"),
        (r"[0-9]+ tracking events", "N tracking events"),
        (r"[0-9.]+ (kB|MB) are free", r"N \1 are free"),
        (r"[0-9]+ of [0-9]+ bytes", "N of N bytes"),
        (r"answers, after [0-9]+ s", "answers, after N s"),
        (re.escape(socket.gethostname()), "HOST"),
    ):
        text = re.sub(pattern, word, text)
    return f"| {kind.fault} | {seen.code} | {text.replace('|', chr(92) + '|')} ({kind.within:.0f} s) | {kept} |\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=[kind.fault for kind in KINDS])
def test_it_is_told_and_costs_nothing(
    kind: Kind, scenes: Scenes, rows: dict[str, str], request: pytest.FixtureRequest
) -> None:
    scene = scenes.take(kind)
    try:
        rows[kind.fault] = see(kind, scene, scenes, request)
    except BaseException:
        scenes.drop(kind)  # nobody knows how far its run is
        scene.give_up()
        raise
    if not WRITES:
        assert rows[kind.fault] in TABLE.read_text(), (
            f"write the table again, and read what changed: {rows[kind.fault]}"
        )


def see(kind: Kind, scene: Scene, scenes: Scenes, request: pytest.FixtureRequest) -> str:
    """Let the fault happen, and check what a user sees and what it costs. Returns the row of the table."""
    finished = scene.finished()
    seen = kind.act(scene)
    text = f"exit code {seen.code} after {seen.seconds:.1f} s\n{seen.out[-3000:]}\n{seen.err[-6000:]}"
    assert seen.code == kind.code, text
    assert not seen.noise, text
    assert seen.seconds < kind.within * slowness(), text
    if kind.message:
        assert kind.message in seen.err, text
        assert_one_message(seen.err, kind.code, text)
    else:
        assert not told(seen.err), text
    assert kind.on_screen in seen.out, text
    scene.release()
    kind.remedy(scene)
    after = scene.finished()
    assert kind.lost or {path: after.get(path) for path in finished} == finished, "what was finished is gone"
    found = row(kind, seen, sweep_kinds.kept(scene) if scene.script == "tune.py" else scene.kept(), scene)
    if seen.code == 0 or kind.lost:
        scenes.drop(kind)
        (check_ended_well if seen.code == 0 else continue_to_the_end)(scene, request)
    return found


def told(err: str) -> list[str]:
    """Lines on standard error, without the warnings that MLflow is behind or S3 is waited for: the run goes on."""
    warnings = re.compile(r"tracking of \S+ cannot reach |the object store at \S+ does not answer; it is asked again")
    return [line for line in err.splitlines() if line.strip() and not warnings.match(line)]


def assert_one_message(err: str, code: int, text: str) -> None:
    """What, where and what to do, once, and nothing else."""
    lines = told(err)
    if code == 130:
        assert len(lines) == 1, text
        return
    assert lines[0].startswith("error: ") and err.count("error: ") == 1, text
    assert sum(line.startswith("  where: ") for line in lines) == 1, text
    assert sum(line.startswith("  do: ") for line in lines) == 1, text
    assert len(lines) <= 8 and len(err) < 2000, text


def test_the_table_names_every_kind_once() -> None:
    """With what was seen, or as one that is still to be seen."""
    named = [kind.fault for kind in KINDS]
    rows, missing = read_table()
    assert len(set(named)) == len(named) and len(rows) >= 30
    assert list(rows) == [name for name in named if name in rows]
    assert missing == [name for name in named if name not in rows]
