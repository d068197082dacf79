"""Options that several verbs share, and what they resolve to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.commands.methods import UsageError, find_method, recipe_file
from wsss.method import Method
from wsss.recipe import load_recipe
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


def make_parser(
    program: str, description: str | None, add_options: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """The parser of a command: its own options, then `--home`, `--store` and `--tracking`."""
    # A description of one line is wrapped, a longer one keeps its lines.
    formatter = argparse.RawDescriptionHelpFormatter if "\n" in (description or "") else argparse.HelpFormatter
    parser = argparse.ArgumentParser(prog=program, description=description, formatter_class=formatter)
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
    text = "recipe values, e.g. cam.learning_rate=0.05; `wsss ls METHOD` lists the keys"
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
    """Options first, then the environment, then the defaults. Paths come back absolute."""
    # The folder of a submitted job disappears with the job.
    default = "~/.wsss" if ray_job_config() else ".wsss"
    home = Path(arguments.home or os.environ.get("WSSS_HOME") or default).expanduser().resolve()
    store = arguments.store or os.environ.get("WSSS_STORE") or str(home / "store")
    if "://" not in store:
        store = str(Path(store).expanduser().resolve())
    tracking = arguments.tracking or os.environ.get("MLFLOW_TRACKING_URI") or None
    return Locations(home, store, tracking)


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
    """`0,1,2` as distinct non-negative integers; an ArgumentTypeError otherwise."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 0,1,2") from None
    if any(seed < 0 for seed in seeds) or len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are distinct and not negative")
    return seeds


def run_folder(home: Path, run_id: str) -> Path:
    """Folder of a run, given by its id or by the start of exactly one id.

    Raises:
        UsageError: no run, or more than one, matches.
    """
    runs = home / "runs"
    if (runs / run_id / "run.json").is_file():
        return runs / run_id
    matches = sorted(path.parent for path in runs.glob(f"{run_id}*/run.json"))
    if len(matches) == 1:
        return matches[0]
    problem = "there is no run" if not matches else f"{len(matches)} runs begin with"
    raise UsageError(f"{problem} {run_id!r}", str(runs), "`wsss ls runs` lists the runs (see also --home)")
