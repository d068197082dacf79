"""`wsss run METHOD`: run a method's stages; what is in the store already is not computed again."""

from __future__ import annotations

import argparse

from wsss.commands.arguments import add_locations, add_recipe, add_run, select


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    options = argparse.ArgumentParser(prog="wsss run", description=__doc__)
    options.add_argument("method", help="name of the method; `wsss ls` lists them")
    add_recipe(options)
    add_run(options)
    add_locations(options)
    return options


def run(arguments: argparse.Namespace) -> int:
    """Run every seed, write the report, print stages and results."""
    from wsss.commands.conclusion import conclude
    from wsss.commands.engine import build_requests, run_all

    selection = select(arguments.method, arguments.recipe, arguments.overrides)
    requests = build_requests(arguments, selection)
    conclude(run_all(requests), requests[0].home, requests[0].tracking_uri, with_verdict=False)
    return 0
