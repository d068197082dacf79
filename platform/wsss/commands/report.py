"""`wsss report RUN [RUN ...]`: write the report of finished runs again, from their records and the store; of a sweep
while it runs, or after it, with `wsss report SWEEP`.

Several runs are the seeds of one recipe. With --readme the run's table replaces a marked block of that file.
"""

from __future__ import annotations

import argparse

from wsss.commands.arguments import locations, run_folder
from wsss.commands.readme_block import add_block, require_whole_block, summary_markdown, write_block


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("runs", nargs="+", metavar="RUN", help="run id, or its beginning; `wsss ls runs` lists them")
    add_block(options)


def run(arguments: argparse.Namespace) -> int:
    """Write the report, or the block of a README."""
    from wsss.commands.conclusion import print_report
    from wsss.commands.gather import gather_report
    from wsss.reporting.report import write_report
    from wsss.run_record import RunRecord
    from wsss.search.records import load_sweep, sweep_folder

    require_whole_block(arguments)
    home = locations(arguments).home
    sweep = sweep_folder(home, arguments.runs[0])
    if len(arguments.runs) == 1 and sweep.is_dir():
        from wsss.commands.sweep_screen import report_sweep

        print(f"report: {report_sweep(load_sweep(sweep), sweep, locations(arguments).tracking_uri)}")
        return 0
    folders = [run_folder(home, name) for name in arguments.runs]
    report = gather_report([RunRecord.load(folder) for folder in folders], home)
    files = write_report(folders[-1], report, home)
    print_report(report, with_verdict=True)
    print(f"\nreport: {files.html}")
    write_block(arguments, summary_markdown(report))
    return 0
