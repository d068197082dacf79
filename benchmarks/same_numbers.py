"""Two homes held against each other: the losses of every training, the metrics of every run, the trials of every sweep.

    python benchmarks/same_numbers.py HOME_BEFORE HOME_AFTER [--renamed _held_out=_cross_fitted ...]

For a change of the code that should change no number: run the same commands before and after it, each with a WSSS_HOME
of its own. Runs and sweeps are paired by method, recipe and seed. Prints every number that differs, with both values,
and every number that only one side has; exits 1 when there is one. Reads JSON files alone, so that the two homes may
come from different versions of the code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Numbers = dict[str, float]
# Of a trial, what depends on the machine or on the time.
_MEASURED = ("seconds", "started", "ended", "run_ids", "stages", "cost", "provenance", "key", "tracking")


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW", help="parts of names that changed")
    arguments = parser.parse_args()
    renamed = [tuple(pair.split("=", 1)) for pair in arguments.renamed]
    before = {_renamed(name, renamed): value for name, value in _numbers(arguments.before)}
    after = {_renamed(name, renamed): value for name, value in _numbers(arguments.after)}
    if not before or not after:
        print("one of the homes holds no number")
        return 1
    differences = [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name] and not (before[name] != before[name] and after[name] != after[name])
    ]
    differences += [f"{name}: only before ({before[name]!r})" for name in sorted(before.keys() - after.keys())]
    differences += [f"{name}: only after ({after[name]!r})" for name in sorted(after.keys() - before.keys())]
    kinds: dict[str, int] = {}
    for name in before.keys() & after.keys():
        kinds[name.split(" ", 1)[0]] = kinds.get(name.split(" ", 1)[0], 0) + 1
    print(*differences, sep="\n")
    print(f"{len(differences)} differ; compared: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()))
    return 1 if differences else 0


def _numbers(home: Path) -> Iterator[tuple[str, float]]:
    """Name -> value of everything that a home knows; a name begins with its kind: loss, metric, trial."""
    for path in sorted(home.glob("runs/*/run.json")):
        record = json.loads(path.read_text())
        run = f"{record['method']}/{record['recipe_name']}/seed {record['seed']}"
        for name, value in record["metrics"].items():
            yield f"metric {run} {name}", value
        for stage in record["stages"]:
            history = Path(record["store_url"]) / stage["name"] / stage["key"] / "history.json"
            if stage["kind"] == "train" and history.is_file():
                yield from _leaves(json.loads(history.read_text()), f"loss {run} {stage['name']}")
    for path in sorted(home.glob("sweeps/*/sweep.json")):
        record = json.loads(path.read_text())
        sweep = f"{record['method']}/{record['recipe_name']}/{record['metric']}"
        for trial in sorted((path.parent / "trials").glob("*.json")):
            yield from _leaves(json.loads(trial.read_text()), f"trial {sweep} {trial.stem}")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not any(part in key for part in _MEASURED):
                yield from _leaves(each, f"{name} {key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{name} {index}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


def _renamed(name: str, pairs: Sequence[tuple[str, ...]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


if __name__ == "__main__":
    sys.exit(main())
