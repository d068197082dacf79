"""Reproduce a published method and hold the numbers against the published ones.

Stages whose result is in the store already are not computed again; after an interruption the same command
continues. Without real data the method runs on a generated data set, in minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wsss.commands import plan
from wsss.commands import run as run_verb
from wsss.commands.arguments import add_recipe, add_run, make_parser
from wsss.commands.failures import exit_code_of


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of `reproduce.py`."""
    options.add_argument("--method", required=True, metavar="NAME", help="the method; `wsss ls` lists them")
    add_recipe(options)
    add_run(options)
    options.add_argument("--dry-run", action="store_true", help="print the plan, refuse what can never run, and stop")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `reproduce.py`; returns the exit code."""
    arguments = make_parser("reproduce.py", __doc__, add_options).parse_intermixed_args(argv)
    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Run every seed, then show stages, verdict and report."""
    return plan.run(arguments) if arguments.dry_run else run_verb.run(arguments, with_verdict=True)
