"""Options that several verbs share, and what they resolve to."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from wsss.commands.methods import UsageError, find_method, recipe_file
from wsss.errors import nearest
from wsss.method import Method
from wsss.recipe import RecipeError, change_recipe, load_recipe
from wsss.text_file import path_problem, shortened
from wsss.tracking.location import check_uri
from wsss.tracking.provenance import ray_job_config


@dataclass(frozen=True)
class Locations:
    """Where results, artifacts and tracked numbers live. `tracking_uri` None: the default inside home."""

    home: Path
    store_url: str
    tracking_uri: str | None


@dataclass(frozen=True)
class Selection:
    """A method with the recipe that the command line describes."""

    method: Method
    recipe_name: str
    recipe: Any


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest option or choice beside a wrong one, and shortens what is long."""

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"unrecognized arguments: (-[^\s=]*)", message)
        if wrong:
            message += nearest(wrong[1][:80], self._option_string_actions)
        choice = re.search(r"invalid choice: '([^']{0,80})' \(choose from (.*)\)$", message)
        if choice:
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        super().error(shortened(message, 1000))


def make_parser(
    program: str, description: str | None, add_options: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """The parser of a command: its own options, then `--home`, `--store` and `--tracking`."""
    # A description of one line is wrapped, a longer one keeps its lines.
    formatter = argparse.RawDescriptionHelpFormatter if "\n" in (description or "") else argparse.HelpFormatter
    parser = Parser(prog=program, description=description, formatter_class=formatter)
    add_options(parser)
    text = "runs, reports and caches (default: $WSSS_HOME, else ./.wsss, in a Ray job ~/.wsss)"
    parser.add_argument("--home", metavar="FOLDER", help=text)
    text = "artifacts: a folder or s3://bucket/prefix (default: $WSSS_STORE, else HOME/store)"
    parser.add_argument("--store", metavar="URL", help=text)
    text = "MLflow server or database (default: $MLFLOW_TRACKING_URI, else a database in HOME)"
    parser.add_argument("--tracking", metavar="URI", help=text)
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`--recipe` and the dotted overrides, which may stand anywhere."""
    text = "a shipped recipe or a .yaml file (default: %(default)s)"
    parser.add_argument("--recipe", metavar="NAME|FILE", default="demo", help=text)
    text = "recipe values, e.g. cam.learning_rate=0.05; `wsss ls METHOD all` lists the keys"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """`--seeds`, `--until` and `--from-checkpoint`."""
    parser.add_argument(
        "--seeds", metavar="0,1,2", type=parse_seeds, help="run the recipe once a seed (default: the recipe's)"
    )
    parser.add_argument("--until", metavar="STAGE", help="only this stage and what it needs")
    parser.add_argument(
        "--from-checkpoint",
        metavar="FILE",
        type=Path,
        help="score a released model: its official file stands for the training, only later stages run",
    )


def locations(arguments: argparse.Namespace) -> Locations:
    """Options first, then the environment, then the defaults. Paths come back absolute.

    Raises:
        UsageError: home or a local store is no folder, or cannot be one.
        TrackingError: the address of the tracking server is no address.
    """
    # The folder of a submitted job disappears with the job.
    default = "~/.wsss" if ray_job_config() else ".wsss"
    home = _folder(*_first(arguments.home, "--home", "WSSS_HOME", default))
    store, named = _first(arguments.store, "--store", "WSSS_STORE", str(home / "store"))
    if "://" not in store:
        store = str(_folder(store, named))
    tracking = arguments.tracking or os.environ.get("MLFLOW_TRACKING_URI") or None
    return Locations(home, store, check_uri(tracking) if tracking is not None else None)


def _first(option: str | None, name: str, variable: str, default: str) -> tuple[str, str]:
    """The value that counts, and where it was said."""
    if option:
        return option, name
    value = os.environ.get(variable)
    return (value, variable) if value else (default, name)


def _folder(text: str, named: str) -> Path:
    remedy = f"set {named} to a folder that exists or can be made"
    if problem := path_problem(text):
        raise UsageError(problem, named, remedy)
    try:
        path = Path(text).expanduser().resolve()
        nearest_there = next(place for place in (path, *path.parents) if place.exists())
        if not nearest_there.is_dir():
            raise UsageError(f"{nearest_there} is a file, not a folder", named, remedy)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{shortened(text)!r} cannot be a folder: {error}", named, remedy) from error
    return path


def select(method_name: str, recipe: str, overrides: Sequence[str]) -> Selection:
    """The method and its validated recipe.

    Raises:
        UsageError: no such method or recipe file.
        RecipeError: every wrong key and value of the file and the overrides.
    """
    method = find_method(method_name)
    name, path = recipe_file(method, recipe)
    return Selection(method, name, load_recipe(method.recipe_type, path, overrides))


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as distinct integers; an ArgumentTypeError otherwise. The recipe knows their range, see `with_seed`."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is not a list of integers such as 0,1,2") from None
    if len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"{shortened(text)!r}: seeds are distinct")
    return seeds


def with_seed(recipe: Any, seed: int, option: str) -> Any:
    """The recipe under another seed, which the option gave.

    Raises:
        RecipeError: as for `seed=` of the recipe.
    """
    try:
        return change_recipe(recipe, {"seed": seed})
    except RecipeError as error:
        raise RecipeError(error.problems, option) from error


def parse_count(text: str) -> int:
    """An integer from 1 to a million; an ArgumentTypeError otherwise."""
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no integer from 1 to 1000000")
    return int(text)


def run_folder(home: Path, run_id: str) -> Path:
    """Folder of a run, given by its id or by the start of exactly one id.

    Raises:
        UsageError: no run, or more than one, matches.
    """
    runs = home / "runs"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", run_id):
        raise UsageError(f"{shortened(run_id)!r} is no id of a run", str(runs), "`wsss ls runs` lists the runs")
    if (runs / run_id / "run.json").is_file():
        return runs / run_id
    matches = sorted(path.parent for path in runs.glob(f"{run_id}*/run.json"))
    if len(matches) == 1:
        return matches[0]
    problem = "there is no run" if not matches else f"{len(matches)} runs begin with"
    raise UsageError(f"{problem} {run_id!r}", str(runs), "`wsss ls runs` lists the runs (see also --home)")
