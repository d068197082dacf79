"""`wsss plan METHOD`: what a run would do, without doing it."""

from __future__ import annotations

import argparse

from wsss.commands.arguments import add_locations, add_recipe, add_run, select


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    options = argparse.ArgumentParser(prog="wsss plan", description=__doc__)
    options.add_argument("method", help="name of the method; `wsss ls` lists them")
    add_recipe(options)
    add_run(options)
    add_locations(options)
    return options


def run(arguments: argparse.Namespace) -> int:
    """Print the plan of every seed."""
    from wsss.commands.engine import build_requests, show_plan

    selection = select(arguments.method, arguments.recipe, arguments.overrides)
    for request in build_requests(arguments, selection):
        show_plan(request)
    return 0
