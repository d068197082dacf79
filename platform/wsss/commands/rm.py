"""`wsss rm STAGE/KEY`: remove an artifact, published or not; the next run that needs it computes it again."""

from __future__ import annotations

import argparse

from wsss.commands.arguments import locations
from wsss.commands.methods import UsageError
from wsss.formatting import byte_count


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("artifact", metavar="STAGE/KEY", help="as `wsss ls store` prints it; a key may be cut short")


def run(arguments: argparse.Namespace) -> int:
    """Remove the one artifact that is meant."""
    from wsss.commands.artifacts import store_at

    places = locations(arguments)
    store = store_at(places.store_url, places.home)
    stage, _, start = arguments.artifact.partition("/")
    refs = [ref for ref in store.list(include_unfinished=True) if ref.stage == stage and ref.key.startswith(start)]
    if not start or len(refs) != 1:
        raise UsageError(
            f"{len(refs)} artifacts match {arguments.artifact!r}",
            store.url,
            "give STAGE/KEY of exactly one; `wsss ls store` lists them",
        )
    store.delete(refs[0].stage, refs[0].key)
    print(f"removed {refs[0].stage}/{refs[0].key} ({byte_count(refs[0].size)})")
    return 0
