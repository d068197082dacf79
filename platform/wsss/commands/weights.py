"""`wsss weights ls`: the weight files that recipes may name, where they are, and whether their content is right.
`wsss weights fetch NAME ...`: download and verify them; interrupted, it continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsss.commands.arguments import locations
from wsss.commands.data import Ticker
from wsss.commands.methods import UsageError
from wsss.commands.screen import print_table
from wsss.data.file_facts import sha256_of_file
from wsss.formatting import byte_count
from wsss.weights import WEIGHTS, WeightFile, fetch_weight, weights_folder


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("action", choices=("ls", "fetch"))
    options.add_argument("names", nargs="*", metavar="NAME", help="fetch: rows of `wsss weights ls`")
    options.add_argument("--url", help="fetch: another place of the same file, for one NAME")


def run(arguments: argparse.Namespace) -> int:
    """List or fetch."""
    folder = weights_folder(locations(arguments).home)
    if arguments.action == "ls":
        list_weights(folder)
        return 0
    unknown = [name for name in arguments.names if name not in WEIGHTS]
    if unknown or not arguments.names:
        problem = f"there is no weight file {unknown[0]!r}" if unknown else "no weight file is named"
        raise UsageError(problem, "wsss weights fetch", f"one of: {', '.join(WEIGHTS)}")
    if arguments.url and len(arguments.names) > 1:
        raise UsageError("one address cannot hold several files", "--url", "fetch one NAME at a time")
    for name in arguments.names:
        path = fetch_weight(WEIGHTS[name], folder, Ticker("bytes"), arguments.url)
        print(f"{name}: {path}")
    return 0


def list_weights(folder: Path) -> None:
    """Print the table, one line a file."""
    rows = [
        (row.name, row.file, byte_count(row.megabytes * 1e6) if row.megabytes else "", _state(row, folder), row.source)
        for row in WEIGHTS.values()
    ]
    print_table(f"Weight files in {folder}", ["name", "file", "size", "here", "source"], rows, right="size")


def _state(row: WeightFile, folder: Path) -> str:
    path = folder / row.file
    if not path.is_file():
        return "no; auto downloads it" if row.url else "no; put it there"
    if not row.sha256:
        return "yes"
    return "yes, verified" if sha256_of_file(path) == row.sha256 else "ANOTHER CONTENT"
