"""Reproduce a published method and hold the numbers against the published ones.

Stages whose result is in the store already are not computed again; after an interruption the same command
continues. Without real data the method runs on a generated data set, in minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wsss.commands.arguments import add_locations, add_recipe, add_run, select
from wsss.commands.failures import exit_code_of


def parser() -> argparse.ArgumentParser:
    """Options of `reproduce.py`."""
    options = argparse.ArgumentParser(
        prog="reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--method", required=True, metavar="NAME", help="the method; `wsss ls` lists them")
    add_recipe(options)
    add_run(options)
    options.add_argument("--dry-run", action="store_true", help="print the plan, refuse what can never run, and stop")
    add_locations(options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `reproduce.py`; returns the exit code."""
    arguments = parser().parse_intermixed_args(None if argv is None else list(argv))
    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Run every seed, then show stages, verdict and report."""
    from wsss.commands.conclusion import conclude
    from wsss.commands.engine import build_requests, run_all, show_plan

    selection = select(arguments.method, arguments.recipe, arguments.overrides)
    requests = build_requests(arguments, selection)
    if arguments.dry_run:
        for request in requests:
            show_plan(request)
        return 0
    conclude(run_all(requests), requests[0].home, requests[0].tracking_uri, with_verdict=True)
    return 0
