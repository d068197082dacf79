"""`wsss ls`: methods; `wsss ls METHOD [PART]`: its stages and recipe keys; `wsss ls runs`, `sweeps` or `store`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from wsss.commands.arguments import locations
from wsss.commands.ls_method import list_method
from wsss.commands.methods import UsageError, find_methods, recipe_names
from wsss.commands.screen import print_table
from wsss.formatting import byte_count, count, duration, percent
from wsss.metric_name import MetricName


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("what", nargs="?", help="a method, `runs`, `sweeps` or `store`; nothing lists the methods")
    options.add_argument(
        "part", nargs="?", help="of a method: a stage, a section of the recipe, a recipe key, or `all` of them"
    )
    options.add_argument(
        "--recipe", default="demo", metavar="NAME|FILE", help="recipe whose values and stages are shown"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the list that was asked for."""
    places = locations(arguments)
    if arguments.part is not None and arguments.what in ("runs", "sweeps", "store"):
        raise UsageError(f"`wsss ls {arguments.what}` has no parts", arguments.part, f"say `wsss ls {arguments.what}`")
    if arguments.what is None:
        list_methods()
    elif arguments.what == "runs":
        list_runs(places.home)
    elif arguments.what == "sweeps":
        list_sweeps(places.home)
    elif arguments.what == "store":
        list_store(places.store_url, places.home)
    else:
        list_method(arguments.what, arguments.part, arguments.recipe, places.home)
    return 0


def list_methods() -> None:
    """Every method with its title and recipes."""
    rows = [(method.name, method.title, ", ".join(recipe_names(method))) for method in find_methods().values()]
    print_table("methods", ["name", "title", "recipes"], rows)


def list_runs(home: Path) -> None:
    """Every run below home, oldest first."""
    from wsss.run_record import find_runs

    rows = []
    for record in find_runs(home):
        took = duration(record.ended - record.started) if record.ended else ""
        main = [name for name in record.metrics if MetricName.parse(name).is_main_miou]
        number = f"{main[-1]} {percent(record.metrics[main[-1]])} %" if main else ""
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.started))
        rows.append((record.run_id, record.status, began, took, record.executed, number))
    print_table(f"runs in {home}", ["run", "status", "began", "took", "executed", "last number"], rows, "took executed")


def list_sweeps(home: Path) -> None:
    """Every sweep below home, oldest first."""
    from wsss.search.records import find_sweeps, load_trials, sweep_folder

    rows = []
    for record in find_sweeps(home):
        ended = sum(trial.status != "running" for trial in load_trials(sweep_folder(home, record.sweep_id)))
        best = record.best
        number = f"{percent(best.default_reported)} to {percent(best.reported)} %" if best is not None else ""
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.started))
        trials = f"{ended} of {record.trials}"
        rows.append((record.sweep_id, record.status, began, trials, duration(record.wall_seconds), number))
    columns = ["sweep", "status", "began", "trials", "took", "recipe to best"]
    print_table(f"sweeps in {home}", columns, rows, "took")


def list_store(url: str, home: Path) -> None:
    """Every artifact with its size, and the sum."""
    from wsss.commands.artifacts import store_at

    refs = list(store_at(url, home).list(include_unfinished=True))
    rows = [(ref.stage, ref.key, byte_count(ref.size), "" if ref.published else "unfinished") for ref in refs]
    print_table(f"store {url}", ["stage", "key", "size", ""], rows, right="size")
    print(f"\n{count(len(refs), 'artifact')}, {byte_count(sum(ref.size for ref in refs))}")
