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
    """Run every seed and print its stages."""
    from wsss.commands.engine import build_requests, print_stages, run_all

    selection = select(arguments.method, arguments.recipe, arguments.overrides)
    for result in run_all(build_requests(arguments, selection)):
        print()
        print_stages(result.record)
        print(f"\nrecord: {result.folder}")
        if result.untracked:
            print(result.untracked)
    return 0
