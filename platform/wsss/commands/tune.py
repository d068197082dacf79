"""`wsss tune --method NAME --space FILE --metric METRIC`: search settings across the stages of a pipeline.

An outer search varies the keys that force training; an inner search under each outer trial varies all others. So a
sweep costs only the work that differs. Killed at any point, the same command continues. It ends with best.yaml, which
`reproduce.py --recipe` takes.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from wsss.commands.arguments import add_recipe, locations, parse_count, parse_seeds, select, with_seed
from wsss.commands.methods import UsageError
from wsss.errors import nearest
from wsss.text_file import path_problem, shortened

if TYPE_CHECKING:
    from wsss.search.request import SweepRequest

SPACES_FOLDER = "search_spaces"
MAX_SEED = 2**31 - 1


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("--method", required=True, metavar="NAME", help="the method; `wsss ls` lists them")
    options.add_argument(
        "--space",
        metavar="FILE",
        help=f"the search space (default: {SPACES_FOLDER}/METHOD.yaml); its name is enough for one in that folder",
    )
    options.add_argument("--metric", required=True, metavar="NAME", help="e.g. pseudo_label/miou_train")
    add_recipe(options)
    search = options.add_argument_group("search")
    search.add_argument("--trials", type=parse_count, default=40, metavar="N", help="trials in all (default: 40)")
    search.add_argument(
        "--select",
        choices=("held_out", "oracle", "default_threshold", "label_free"),
        default="held_out",
        help="held_out: chosen on one half of the images, reported on the other; oracle: chosen by all masks; "
        "default_threshold: thresholds stay the recipe's; label_free: by a criterion without masks (default: held_out)",
    )
    search.add_argument(
        "--label-free",
        dest="criterion",
        choices=("boundary_contrast", "confidence_margin"),
        help="compute this criterion, which needs no masks, for every trial and show what it would choose",
    )
    search.add_argument("--sampler", default="tpe", help="tpe, random, cmaes, or nsga2 against the cost (default: tpe)")
    search.add_argument(
        "--search-seed",
        dest="seed",
        type=_sampler_seed,
        default=0,
        metavar="N",
        help="of the sampler; the seed of training is seed=N",
    )
    search.add_argument(
        "--inner",
        dest="inner_trials",
        type=parse_count,
        metavar="N",
        help="trials under each outer one (default: derived)",
    )
    search.add_argument("--batch", type=parse_count, metavar="N", help="trials evaluated together (default: derived)")
    search.add_argument(
        "--concurrency", type=parse_count, default=1, metavar="N", help="batches at a time (default: 1, repeatable)"
    )
    search.add_argument(
        "--stage-cost-limit",
        type=_seconds,
        metavar="SECONDS",
        help="a stage that costs more makes its keys outer ones, although it trains nothing",
    )
    search.add_argument(
        "--early-stop",
        action="store_true",
        help="asynchronous halving of outer trials: while they train, and at the evaluations before the searched one",
    )
    search.add_argument(
        "--no-race",
        dest="race",
        action="store_false",
        help="evaluate every trial on all images, also one that is clearly worse on a part of them",
    )
    search.add_argument("--against-cost", action="store_true", help="second objective: seconds that a trial costs")
    search.add_argument(
        "--no-training", action="store_true", help="keep the recipe's values of the keys that force training"
    )
    search.add_argument("--flat", action="store_true", help="one search over all keys, for comparison")
    search.add_argument(
        "--confirm-top", type=parse_count, default=3, metavar="K", help="trials to confirm (default: 3)"
    )
    search.add_argument(
        "--confirm-seeds",
        type=parse_seeds,
        default=(),
        metavar="0,1,2",
        help="run the best trials and the recipe under these",
    )
    search.add_argument(
        "--study",
        dest="study_url",
        metavar="URL",
        help="database of the Optuna study, an SQLAlchemy address; a password belongs into the file that PGPASSFILE "
        "names (default: $WSSS_STUDY, else sqlite beside the sweep)",
    )
    search.add_argument("--name", help="id of the sweep (default: derived from what is searched)")
    search.add_argument("--new", action="store_true", help="begin another sweep instead of continuing this one")
    options.add_argument("--dry-run", action="store_true", help="print the plan, refuse what can never run, and stop")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, run the sweep, show what it found."""
    from wsss.commands.engine import cluster_now
    from wsss.commands.sweep_screen import LineSweepObserver, print_outcome, print_sweep_plan
    from wsss.execution.cluster import disconnect
    from wsss.search.request import prepare_sweep
    from wsss.search.sweep import check_capacity, run_sweep

    prepared = prepare_sweep(build_request(arguments))
    print_sweep_plan(prepared)
    if arguments.dry_run:
        for line in check_capacity(prepared, cluster_now()):
            print(line)
        return 0
    observer = LineSweepObserver(prepared)
    try:
        record = run_sweep(prepared, observer)
    finally:
        disconnect()
    print_outcome(record, prepared.folder, observer.report, prepared.request.tracking_uri)
    return 0


def build_request(arguments: argparse.Namespace) -> SweepRequest:
    """The request that the command line describes."""
    from wsss.search.request import SweepRequest

    places = locations(arguments)
    selection = select(arguments.method, arguments.recipe, arguments.overrides)
    for seed in arguments.confirm_seeds:
        with_seed(selection.recipe, seed, "--confirm-seeds")
    # The options of the search are named as the fields of the request; what follows replaces the others.
    options = {field.name for field in fields(SweepRequest)} & vars(arguments).keys()
    values = {name: getattr(arguments, name) for name in options}
    values |= vars(selection) | vars(places)
    values["space_path"] = space_file(arguments.space or arguments.method)
    values["study_url"] = arguments.study_url or os.environ.get("WSSS_STUDY") or None
    if arguments.select == "label_free":
        values["criterion"] = arguments.criterion or "boundary_contrast"
    if not arguments.confirm_seeds:
        values["confirm_top"] = 0
    return SweepRequest(**values)


def space_file(name_or_path: str) -> Path:
    """A search space by path, or by its name in the folder of shipped spaces.

    Raises:
        UsageError: neither exists.
    """
    path = Path(name_or_path)
    if problem := path_problem(name_or_path):
        raise UsageError(problem, "--space", "give a .yaml file")
    if path.is_file():
        return path.resolve()
    found: Sequence[Path] = ()
    for folder in (Path(SPACES_FOLDER), Path(__file__).resolve().parents[3] / SPACES_FOLDER):
        candidate = folder / f"{path.stem}.yaml"
        if candidate.is_file() and len(path.parts) == 1:
            return candidate.resolve()
        found = found or sorted(folder.glob("*.yaml"))
    names = ", ".join(str(each) for each in found)
    near = nearest(path.stem, [each.stem for each in found])
    raise UsageError(
        f"there is no search space {shortened(name_or_path)!r}{near}",
        "--space",
        f"give a .yaml file; there are: {names or 'none'}",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no number of seconds")
    return value


def _sampler_seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no integer from 0 to {MAX_SEED}")
    return int(text)
