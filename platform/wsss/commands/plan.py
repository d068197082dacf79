"""`wsss plan METHOD`: what a run would do, without doing it."""

from __future__ import annotations

import argparse

from wsss.commands.run import add_options as add_options


def run(arguments: argparse.Namespace) -> int:
    """Print the plan of every seed."""
    from wsss.commands.engine import build_requests, show_plan

    for request in build_requests(arguments):
        show_plan(request)
    return 0
