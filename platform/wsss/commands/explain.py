"""`wsss explain RUN METRIC`: walk from a number to the stage, key, inputs, data, seed, commit and machine behind it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wsss.commands.arguments import locations, run_folder
from wsss.commands.methods import UsageError
from wsss.errors import nearest
from wsss.formatting import duration
from wsss.tracking.provenance import commit_in_words, machine_in_words

if TYPE_CHECKING:
    from wsss.run_record import RunRecord, StageResult
    from wsss.store import Artifact, Store


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("run", help="run id, or its beginning; `wsss ls runs` lists them")
    options.add_argument("metric", help="name of the number as the run's table prints it")


def run(arguments: argparse.Namespace) -> int:
    """Print the way back from the number."""
    from wsss.commands.artifacts import store_at
    from wsss.run_record import RunRecord

    home = locations(arguments).home
    record = RunRecord.load(run_folder(home, arguments.run))
    store = store_at(record.store_url, home)
    print("\n".join(explain(record, arguments.metric, store, home)))
    return 0


def explain(record: RunRecord, metric: str, store: Store, home: Path) -> list[str]:
    """The lines of an explanation.

    Raises:
        UsageError: the run has no such number.
    """
    stage = _stage_of(record, metric)
    code = record.provenance
    lines = [
        f"{metric} = {stage.metrics[metric]:.6g}",
        f"  run       {record.run_id} ({record.status})",
        f"  recipe    {record.method}/{record.recipe_name}, seed {record.seed}",
        f"  data      {record.dataset}, digest {record.data_digest}",
        f"  commit    {commit_in_words(code)}",
        f"  machine   {machine_in_words(code)}",
        f"  store     {record.store_url}",
    ]
    lines += [f"  protocol  {name}: {text}" for name, text in sorted(record.protocol.items())]
    seen: dict[str, Artifact | None] = {}
    way = _walk(store, stage.name, stage.key, depth=0, seen=seen)
    upstream = [artifact for artifact in seen.values() if artifact is not None]
    for title, fact in (("by masks ", "chooses_by_masks"), ("imported ", "imported")):
        names = [artifact.stage for artifact in upstream if artifact.provenance.get(fact)]
        lines.append(f"  {title} {', '.join(names) or 'nothing'}")
    return [*lines, "", "how it came to be, backwards:", *way]


def _stage_of(record: RunRecord, metric: str) -> StageResult:
    for stage in record.stages:
        if metric in stage.metrics:
            return stage
    names = sorted(record.metrics)
    raise UsageError(
        f"run {record.run_id} has no number {metric!r}{nearest(metric, names, cutoff=0.4)}",
        "METRIC",
        f"it has: {', '.join(names) or 'none yet'}",
    )


def _walk(store: Store, name: str, key: str, depth: int, seen: dict[str, Artifact | None]) -> list[str]:
    indent = "  " * depth
    title = f"{indent}- {name}/{key}"
    if key in seen:
        return [f"{title} (see above)"]
    artifact = seen[key] = store.find(name, key)
    if artifact is None:
        return [title, f"{indent}    no longer in the store"]
    lines = [title, *(f"{indent}    {line}" for line in _facts(artifact))]
    for role, upstream in sorted(artifact.provenance.get("inputs", {}).items()):
        lines.append(f"{indent}    reads {role}:")
        upstream_name, _, upstream_key = upstream.partition("/")
        lines += _walk(store, upstream_name, upstream_key, depth + 2, seen)
    return lines


def _facts(artifact: Artifact) -> list[str]:
    provenance = artifact.provenance
    code = provenance.get("code", {})
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(provenance.get("created", 0)))
    if provenance.get("imported"):
        note = f" ({provenance['note']})" if provenance.get("note") else ""
        return [
            f"IMPORTED {created} from {provenance['imported_from']}{note}",
            f"as {provenance['layout']}; sha256 {provenance['imported_digest']}",
        ]
    seed = provenance.get("seed")
    facts = [
        f"computed {created} by run {provenance.get('run_id', '?')} in {duration(provenance.get('seconds'))}, "
        f"{provenance.get('workers', '?')} x {provenance.get('device', '?')}"
        + (f", mode {provenance['mode']}" if "mode" in provenance else "")
        + (f", seed {seed}" if seed is not None else ""),
        f"commit {commit_in_words(code)} on {machine_in_words(code)}",
    ]
    if provenance.get("chooses_by_masks"):
        facts.append("chooses by looking at masks")
    return facts
