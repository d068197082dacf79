"""Tables in a README that come from a run: nobody types a number."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from wsss.commands.methods import UsageError
from wsss.formatting import duration, percent
from wsss.reporting.run_report import RunReport
from wsss.reporting.tables import miou_metrics


def add_block(options: argparse.ArgumentParser) -> None:
    """`--readme` and `--block`."""
    options.add_argument("--readme", type=Path, metavar="FILE", help="file whose block is replaced by the table")
    options.add_argument("--block", metavar="NAME", help="the block between <!-- table:NAME --> and <!-- /table -->")


def require_whole_block(arguments: argparse.Namespace) -> None:
    """Raise a UsageError where one of `--readme` and `--block` is given without the other."""
    if (arguments.readme is None) != (arguments.block is None):
        raise UsageError("--readme and --block belong together", "command line", "give both or none")


def write_block(arguments: argparse.Namespace, content: str) -> None:
    """Put the content where `--readme` and `--block` say, and tell; nothing where they are not given."""
    if arguments.readme is not None:
        replace_block(arguments.readme, arguments.block, content)
        print(f"block {arguments.block} of {arguments.readme} written")


def summary_markdown(report: RunReport) -> str:
    """Stages, times and numbers of a run as a Markdown table, with a line that says what was run where.

    A row ends at a stage that makes numbers and begins with what led to it since the number before.
    """
    scores = set(miou_metrics(report))
    lines = ["| stages and their times | mIoU |", "|---|---|"]
    row: list[str] = []
    stages = [stage for stage in report.stages if stage.status != "not_needed"]
    for stage in stages:
        notes = f" ({', '.join(stage.notes)})" if stage.notes else ""
        row.append(f"`{stage.name}` {duration(stage.seconds)}{notes}")
        numbers = ", ".join(f"`{name}` {percent(stage.metrics[name])}" for name in stage.metrics if name in scores)
        if numbers or stage is stages[-1]:
            lines.append(f"| {', '.join(row)} | {numbers} |")
            row = []
    facts = report.provenance
    seeds = ", ".join(str(seed) for seed in report.seeds)
    lines += [
        "",
        f"`{report.method}`, recipe `{report.recipe}`, data set {report.dataset}, seed {seeds}: "
        f"{duration(sum(stage.seconds for stage in stages))} of stages; commit {facts['commit'][:12]}; "
        f"{facts['machine'].partition(', ')[2] or facts['machine']}.",
    ]
    return "\n".join(lines)


def replace_block(path: Path, name: str, content: str) -> None:
    """Put the content between `<!-- table:NAME -->` and the next `<!-- /table -->`.

    Raises:
        UsageError: the file has no such block, or more than one.
    """
    text = path.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- table:{re.escape(name)} -->\n).*?(<!-- /table -->)", flags=re.DOTALL)
    changed, count = block.subn(lambda match: f"{match[1]}{content}\n{match[2]}", text)
    if count != 1:
        raise UsageError(
            f"{count} blocks are named {name!r}", str(path), f"write <!-- table:{name} --> and <!-- /table --> once"
        )
    path.write_text(changed, encoding="utf-8")
