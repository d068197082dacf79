"""Reproduce a published method and hold the numbers against the published ones.

Stages whose result is in the store already are not computed again; after an interruption the same command
continues. Without real data the method runs on a generated data set, in minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsss.commands import plan
from wsss.commands import run as run_verb
from wsss.commands.arguments import add_recipe, add_run, make_parser
from wsss.commands.failures import exit_code_of
from wsss.commands.methods import UsageError
from wsss.text_file import shortened

if TYPE_CHECKING:
    from wsss.execution.run import RunResult


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of `reproduce.py`."""
    text = "the method, or several that are run one after another and compared; `wsss ls` lists them"
    options.add_argument("--method", required=True, metavar="NAME[,NAME...]", type=parse_names, help=text)
    add_recipe(options)
    add_run(options)
    options.add_argument("--dry-run", action="store_true", help="print the plan, refuse what can never run, and stop")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `reproduce.py`; returns the exit code."""
    arguments = make_parser("reproduce.py", __doc__, add_options).parse_intermixed_args(argv)
    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Run every method and seed, then show stages, verdicts and reports, and several methods side by side."""
    names: tuple[str, ...] = arguments.method
    each = [argparse.Namespace(**{**vars(arguments), "method": name}) for name in names]
    if len(names) == 1:
        return plan.run(each[0]) if arguments.dry_run else run_verb.run(each[0], with_verdict=True)
    if arguments.from_checkpoint is not None:
        raise UsageError("a released model is of one method", "--from-checkpoint", "name that method alone")
    if arguments.dry_run:
        return max(plan.run(one) for one in each)
    return _run_several(each)


def _run_several(each: Sequence[argparse.Namespace]) -> int:
    from wsss.commands.compare import show_comparison
    from wsss.commands.conclusion import conclude
    from wsss.commands.engine import build_requests, run_all
    from wsss.execution.prepare import prepare_run

    several = [build_requests(one) for one in each]
    for requests in several:
        for request in requests:
            prepare_run(request)  # what the last method lacks is told before the first one has spent hours
    first, records = several[0][0], []

    def ended(results: Sequence[RunResult]) -> None:
        conclude(results, first.home, first.tracking_uri, with_verdict=True)
        records.extend(result.record for result in results)

    run_all(several, ended)
    print()
    show_comparison(records, first.home)
    print(f"again:   wsss compare {' '.join(record.run_id for record in records)}")
    return 0


def parse_names(text: str) -> tuple[str, ...]:
    """`one,two` as distinct names; an ArgumentTypeError otherwise. Whether a method has the name is asked later."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no list of distinct names such as one,two")
    return names
