"""`wsss run METHOD`: run a method's stages; what is in the store already is not computed again."""

from __future__ import annotations

import argparse

from wsss.commands.arguments import add_recipe, add_run


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb, and of `wsss plan`."""
    options.add_argument("method", help="name of the method; `wsss ls` lists them")
    add_recipe(options)
    add_run(options)


def run(arguments: argparse.Namespace, with_verdict: bool = False) -> int:
    """Run every seed, write the report, print stages, results and, if wanted, the verdict."""
    from wsss.commands.conclusion import conclude
    from wsss.commands.engine import build_requests, run_all

    requests = build_requests(arguments)
    first = requests[0]
    run_all([requests], lambda results: conclude(results, first.home, first.tracking_uri, with_verdict))
    return 0
