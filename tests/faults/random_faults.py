"""Faults at random moments of a run, again and again, each run held against an undisturbed one.

    python -m tests.faults.random_faults --kills 100 --seed 0 [--cluster] [--home FOLDER] [--kinds kill,worker]

A run of the toy method begins, faults happen at moments drawn from the seed, four in the time of an undisturbed run on
average, the same command continues until it ends; then another run begins, until so many faults have happened. With
--cluster the runs join a Ray of a head and two nodes, which die, are taken away with notice and are replaced. Prints a
line for each fault and a table. Exits with 1 and the details when numbers differed, something hung, a traceback was
seen, or finished work was computed again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import processes
from tests.faults.places import Nodes, two_nodes
from tests.faults.scene import PYTHON_PATH, Command, Scene, slowness
from tests.faults.template import Template, make_template

from wsss.run_record import find_runs

HANG_SECONDS = 300.0
_LAST_SECONDS = 60.0  # of these: without a look at the nodes
# Faults of one run; then it is left alone, so that every run comes to its end.
MOST_IN_ONE_RUN = 8
_FAULTS_IN_A_RUN = 4.0
_PAUSE_SECONDS = 3.0
_REPLACE_SECONDS = 2.0  # after which a node that has ended is seen to
_STARTED_AGAIN = "Ray did not come up in time and is started again\n"


class Failure(Exception):
    """What a user should not have seen."""


def kill(command: Command, scene: Scene, draw: random.Random) -> str:
    """SIGKILL of the driver."""
    command.send(signal.SIGKILL)
    return ""


def interrupt(command: Command, scene: Scene, draw: random.Random) -> str:
    """Ctrl-C in a terminal: SIGINT to the whole group, sometimes twice."""
    command.send(signal.SIGINT, group=True)
    if draw.random() < 0.3:
        time.sleep(draw.uniform(0.05, 1.5))
        if command.process.poll() is None:
            command.send(signal.SIGINT, group=True)
            return "twice"
    return ""


def terminate(command: Command, scene: Scene, draw: random.Random) -> str:
    """SIGTERM of the driver."""
    command.send(signal.SIGTERM)
    return ""


def hang_up(command: Command, scene: Scene, draw: random.Random) -> str:
    """The terminal is closed."""
    command.send(signal.SIGHUP, group=True)
    return ""


def worker(command: Command, scene: Scene, draw: random.Random) -> str:
    """SIGKILL of a worker process of Ray that is at work, if there is one."""
    if scene.nodes is None:
        found = {
            process: words for process, words in processes.marked(command.mark).items() if words.startswith("ray::")
        }
    else:
        found = scene.nodes.workers()
    busy = {process: words for process, words in found.items() if "ray::IDLE" not in words} or found
    if not busy:
        return "none"
    process = draw.choice(sorted(busy))
    command.fault_at = time.monotonic()
    processes.kill(process)
    return busy[process].split()[0].removeprefix("ray::").split(".")[0]


def raylet(command: Command, scene: Scene, draw: random.Random) -> str:
    """SIGKILL of the raylet."""
    found = processes.named(command.mark, "/raylet")
    if not found:
        return "none"
    command.fault_at = time.monotonic()
    processes.kill(found[0])
    return ""


def node(command: Command, scene: Scene, draw: random.Random) -> str:
    """SIGKILL of a node's raylet; another node comes in its place."""
    assert scene.nodes is not None
    scene.nodes.fill()
    command.fault_at = time.monotonic()
    scene.nodes.kill(draw.choice(scene.nodes.raylets()))
    return ""


def notice(command: Command, scene: Scene, draw: random.Random) -> str:
    """A node is taken away some seconds after a notice; another one comes in its place."""
    assert scene.nodes is not None
    scene.nodes.fill()
    gone, seconds = draw.choice(scene.nodes.raylets()), draw.randint(1, 10)
    scene.nodes.take_away(gone, seconds)
    scene.nodes.add()
    time.sleep(seconds)
    command.fault_at = time.monotonic()
    scene.nodes.kill(gone)
    return f"{seconds} s"


def head(command: Command, scene: Scene, draw: random.Random) -> str:
    """The head dies. Before the next command a new cluster is there."""
    assert scene.nodes is not None
    command.fault_at = time.monotonic()
    scene.nodes.kill_head("gcs_server", "raylet")
    return ""


def clock(command: Command, scene: Scene, draw: random.Random) -> str:
    """The clock jumps by up to an hour."""
    seconds = draw.randint(-3600, 3600)
    (scene.faults / "clock").write_text(str(seconds))
    return f"{seconds} s"


def pause(command: Command, scene: Scene, draw: random.Random) -> str:
    """All processes stand still for some seconds."""
    found = processes.marked(command.mark)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in found:
            processes.kill(process, number)
        time.sleep(_PAUSE_SECONDS if number is signal.SIGSTOP else 0)
    return ""


@dataclass(frozen=True)
class RandomFault:
    """A fault that can happen at any moment.

    Attributes:
        codes: exit codes of a command that it ends. All may also end well or, where `may_fail`, with one message.
        goes_on: whether the command is expected to go on.
    """

    act: Callable[[Command, Scene, random.Random], str]
    weight: int
    codes: tuple[int, ...] = ()
    goes_on: bool = False
    may_fail: bool = False


# Wherever Ray runs.
_FAULTS = {
    "kill": RandomFault(kill, 4, (137,)),
    "interrupt": RandomFault(interrupt, 3, (130,)),
    # Before the program has taken the signal over it ends the process, as it ends any.
    "terminate": RandomFault(terminate, 2, (130, 143)),
    "hang-up": RandomFault(hang_up, 1, (129,)),
    "worker": RandomFault(worker, 4, goes_on=True, may_fail=True),
    "clock": RandomFault(clock, 1, goes_on=True),
    "pause": RandomFault(pause, 1, goes_on=True),
}
ALONE = {**_FAULTS, "raylet": RandomFault(raylet, 1, may_fail=True)}
ON_A_CLUSTER = {
    **_FAULTS,
    "node": RandomFault(node, 5, goes_on=True, may_fail=True),
    "notice": RandomFault(notice, 3, goes_on=True, may_fail=True),
    "head": RandomFault(head, 1, may_fail=True),
}


@dataclass
class Campaign:
    """Faults until there are enough."""

    template: Template
    folder: Path
    kills: int
    draw: random.Random
    faults: Mapping[str, RandomFault]
    seconds: float
    nodes: Nodes | None = None
    done: int = 0
    runs: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    moments: Counter[tuple[str, str]] = field(default_factory=Counter)

    def run(self) -> None:
        """Run after run. Failure: what was found, with the output of the command."""
        while self.done < self.kills:
            self.runs += 1
            scene = Scene(self.folder / f"run-{self.runs}", str(self.folder / f"run-{self.runs}" / "store"))
            scene.folder.mkdir()
            scene.nodes = self.nodes
            self.template.copy_home(scene.home)
            self._one(scene)
            shutil.rmtree(scene.folder)

    def _one(self, scene: Scene) -> None:
        finished: dict[str, tuple[object, ...]] = {}
        faults, ended = 0, False
        while not ended:
            if self.nodes is not None:
                if not self.nodes.head_lives:
                    self.nodes.restart()
                self.nodes.fill()
                scene.variables["RAY_ADDRESS"] = self.nodes.address
            command = scene.start()
            may_fail, codes = False, {0}
            what: list[tuple[str, str, str]] = []
            while faults < MOST_IN_ONE_RUN and self.done < self.kills:
                if self._ends_within(command, self.draw.expovariate(_FAULTS_IN_A_RUN / self.seconds)):
                    break
                kind = self.draw.choices(list(self.faults), [fault.weight for fault in self.faults.values()])[0]
                fault, moment = self.faults[kind], moment_of(command)
                detail = fault.act(command, scene, self.draw)
                faults, self.done = faults + 1, self.done + 1
                may_fail |= fault.may_fail
                codes |= set(fault.codes)
                what.append((kind, moment, detail))
                if not fault.goes_on and detail != "none":
                    break
            self._ends_within(command, (HANG_SECONDS - _LAST_SECONDS) * slowness())
            ended = self._judge(scene, command, what, codes | ({1} if may_fail else set()), finished)
            finished |= scene.finished()
        self._compare(scene)

    def _judge(
        self,
        scene: Scene,
        command: Command,
        what: list[tuple[str, str, str]],
        codes: set[int],
        finished: dict[str, tuple[object, ...]],
    ) -> bool:
        """Wait for the end of a command and look at it; whether the run is finished."""
        try:
            seen = command.end(_LAST_SECONDS)
        except AssertionError as error:
            raise Failure(f"{what}: {error}") from error
        ending = "ended well" if seen.code == 0 else f"exit {seen.code} after {seen.seconds:.1f} s"
        for number, (kind, moment, detail) in enumerate(what):
            last = number == len(what) - 1
            self.outcomes[kind, ending.split(" after")[0] if last else "went on"] += 1
            self.moments[kind, moment.split(":")[0]] += 1
            count = self.done - len(what) + number + 1
            text = f"{kind}{f' ({detail})' if detail else ''}"
            if last and seen.code == 1:
                ending += "".join(f", {line}" for line in seen.err.splitlines() if line.startswith("error: "))
            print(f"{count:4}  run {self.runs:3}  {text:32}  {moment:48}  {ending if last else 'goes on'}", flush=True)
        text = f"{what}, exit {seen.code}\n{seen.out[-3000:]}\n{seen.err[-6000:]}"
        if seen.noise:
            raise Failure(f"a traceback: {text}")
        if seen.code not in codes:
            raise Failure(f"another exit code than {sorted(codes)}: {text}")
        if seen.code == 1 and (seen.err.count("error: ") != 1 or "  do: " not in seen.err):
            raise Failure(f"not one message with a remedy: {text}")
        if seen.code == 0 and seen.err.replace(_STARTED_AGAIN, "").strip():
            raise Failure(f"words of an inner part: {text}")
        after = scene.finished()
        again = sorted(path for path, identity in finished.items() if after.get(path) != identity)
        if again:
            raise Failure(f"written again or lost: {again}; {text}")
        return seen.code == 0

    def _ends_within(self, command: Command, seconds: float) -> bool:
        """Whether the command ends before so many seconds are over.

        Nodes that end meanwhile are replaced, as a cluster does: some also die of a dead agent.
        """
        last = time.monotonic() + seconds
        while (left := last - time.monotonic()) > 0:
            try:
                command.process.wait(min(left, _REPLACE_SECONDS))
                return True
            except subprocess.TimeoutExpired:
                if self.nodes is not None and self.nodes.head_lives:
                    self.nodes.fill()
        return command.process.poll() is not None

    def _compare(self, scene: Scene) -> None:
        numbers, expected = scene.numbers(), self.template.outcome
        if numbers != expected:
            different = sorted(name for name in numbers | expected if numbers.get(name) != expected.get(name))
            raise Failure(f"other numbers in {different}")
        executed = Counter(
            stage.name for run in find_runs(scene.home) for stage in run.stages if stage.status == "executed"
        )
        if max(executed.values(), default=0) > 1:
            raise Failure(f"computed twice: {executed}")


def moment_of(command: Command) -> str:
    """The last line on the screen, without its time."""
    lines = [line for line in command.out.splitlines() if line.strip()]
    if not lines:
        return "start:"
    words = lines[-1].split(" ", 1)
    return (words[1] if words[0][:1].isdigit() and len(words) > 1 else lines[-1])[:48]


def main() -> int:
    """Exit code 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="faults in all (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and kinds (default: 0)")
    parser.add_argument("--home", type=Path, help="folder for all runs (default: a temporary one)")
    parser.add_argument("--cluster", action="store_true", help="on a Ray of a head and two nodes")
    parser.add_argument("--kinds", help="which faults (default: all that there are)")
    arguments = parser.parse_args()
    known = ON_A_CLUSTER if arguments.cluster else ALONE
    kinds = tuple(arguments.kinds.split(",")) if arguments.kinds else tuple(known)
    if unknown := set(kinds) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=arguments.home))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    template = make_template(folder / "undisturbed", empty_database(folder / "empty"))
    seconds = time.monotonic() - began
    print(f"undisturbed: {seconds:.1f} s; {arguments.kills} faults, seed {arguments.seed}, in {folder}", flush=True)
    faults = {kind: known[kind] for kind in kinds}
    failure = ""
    with two_nodes({"PYTHONPATH": PYTHON_PATH}) if arguments.cluster else nullcontext() as nodes:
        campaign = Campaign(template, folder, arguments.kills, random.Random(arguments.seed), faults, seconds, nodes)
        try:
            campaign.run()
        except Failure as error:
            failure = str(error)
    print(f"\n{campaign.done} faults in {campaign.runs} runs, {time.monotonic() - began:.0f} s")
    for title, counts in (("became of it", campaign.outcomes), ("moment", campaign.moments)):
        print(f"\n{'fault':12}{title}")
        for (kind, word), count in sorted(counts.items()):
            print(f"{kind:12}{count:4} x {word}")
    if failure:
        print(f"\nFOUND (left in {folder}, run {campaign.runs}):\n{failure}")
        return 1
    shutil.rmtree(folder)
    print("\nEvery run ended with the numbers of the undisturbed one; nothing finished was computed again.")
    return 0


def empty_database(home: Path) -> Path:
    """An empty, migrated database of MLflow, which takes seconds to make."""
    from wsss.tracking.delivery import Destination
    from wsss.tracking.location import default_uri

    home.mkdir(parents=True)
    Destination(default_uri(home), home)
    return home / "mlflow.db"


if __name__ == "__main__":
    sys.exit(main())
