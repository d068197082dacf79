"""`wsss track sync`: send to MLflow what could not be sent when it was measured; sending again changes nothing."""

from __future__ import annotations

import argparse

from wsss.commands.arguments import locations


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("action", choices=("sync",))
    options.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to try (default: 60)")


def run(arguments: argparse.Namespace) -> int:
    """Send, and say what remains."""
    from wsss.tracking import sync

    report = sync(locations(arguments).home, arguments.tracking, arguments.wait)
    if report.complete:
        print(f"everything has arrived at {report.address}")
        return 0
    print(report.message)
    return 1
