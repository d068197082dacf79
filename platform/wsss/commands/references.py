"""What refers to the artifacts of a store: the runs and sweeps of homes, and each artifact to those that it read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.errors import WsssError
from wsss.run_record import RUN_FILE, RunRecord
from wsss.search.records import SWEEP_FILE, SWEEPS_FOLDER, load_sweep, load_trials
from wsss.store import Store, StoreError

Name = tuple[str, str]


@dataclass(frozen=True)
class Held:
    """A published artifact as its manifest describes it; `manifest_read` is False where it cannot be read."""

    stage: str
    key: str
    size: int
    provenance: Mapping[str, Any]
    manifest_read: bool = True

    @property
    def inputs(self) -> list[Name]:
        """Stage and key of the artifacts that it was computed from."""
        named = (str(upstream).partition("/") for upstream in self.provenance.get("inputs", {}).values())
        return [(stage, key) for stage, _, key in named]


@dataclass(frozen=True)
class References:
    """Who needs what.

    Attributes:
        by_name: stage and key -> the runs and sweeps that name it.
        sweeps: ids of the sweeps; all that one of them has computed is needed when it continues.
        unreadable: records that cannot be read, so that nobody knows what they need.
    """

    by_name: Mapping[Name, tuple[str, ...]]
    sweeps: frozenset[str]
    unreadable: tuple[Path, ...] = ()

    def needed(self, held: Iterable[Held]) -> dict[Name, tuple[str, ...]]:
        """Stage and key of what must stay -> who needs it: those who name it, and artifacts that were computed from it.

        An imported artifact must stay: no run can compute it.
        """
        all_held = {(each.stage, each.key): each for each in held}
        found = {name: self.by_name.get(name, ()) for name in all_held if name in self.by_name}
        for name, each in all_held.items():
            maker = str(each.provenance.get("run_id", ""))
            if maker in self.sweeps and f"sweep {maker}" not in found.get(name, ()):
                found[name] = (*found.get(name, ()), f"sweep {maker}")
            if each.provenance.get("imported"):
                found[name] = (*found.get(name, ()), "imported")
            if not each.manifest_read:
                found[name] = (*found.get(name, ()), "its manifest cannot be read")
        open_names = list(found)
        while open_names:
            name = open_names.pop()
            for upstream in all_held[name].inputs if name in all_held else ():
                if upstream not in found:
                    found[upstream] = (f"{name[0]}/{name[1][:8]}",)
                    open_names.append(upstream)
        return found


def held_by(store: Store) -> list[Held]:
    """Every published artifact of a store, from its manifest."""
    found = []
    for ref in store.list():
        try:
            provenance, read = store.artifact(ref.stage, ref.key).provenance, True
        except StoreError:
            provenance, read = {}, False
        found.append(Held(ref.stage, ref.key, ref.size, provenance, read))
    return found


def references_of(homes: Iterable[Path]) -> References:
    """What the runs and sweeps below homes name."""
    by_name: dict[Name, dict[str, None]] = {}
    sweeps: set[str] = set()
    unreadable: list[Path] = []
    for home in homes:
        for path in sorted((home / "runs").glob(f"*/{RUN_FILE}")):
            try:
                record = RunRecord.load(path.parent)
            except WsssError:
                unreadable.append(path)
                continue
            for name in record.keys.items():
                by_name.setdefault(name, {})[f"run {record.run_id}"] = None
        for path in sorted((home / SWEEPS_FOLDER).glob(f"*/{SWEEP_FILE}")):
            try:
                record, trials = load_sweep(path.parent), load_trials(path.parent)
            except WsssError:
                unreadable.append(path)
                continue
            sweeps.add(record.sweep_id)
            for trial in trials:
                named = [(use.name.partition(",")[0], use.key) for use in trial.stages]
                for name in (*named, *trial.artifacts.items()):
                    by_name.setdefault(name, {})[f"sweep {record.sweep_id}"] = None
    return References({name: tuple(who) for name, who in by_name.items()}, frozenset(sweeps), tuple(unreadable))
