"""Published numbers, and our numbers held against them.

A method's `claims.yaml` lists what a paper, a README or released weights state, each with its protocol. A
verdict compares only what is comparable: the same data set, split and recipe, and nothing chosen by looking
at masks that the claim did not choose so too.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wsss.data.config import DATASETS
from wsss.errors import WsssError
from wsss.metric_name import MetricName
from wsss.yaml_text import YamlProblem, read_yaml

Source = Literal["paper", "readme", "released_weights", "unverified"]
Outcome = Literal["reproduced", "above", "below", "not comparable", "context"]


class ClaimError(WsssError):
    """A claims file can not be used."""


@dataclass(frozen=True)
class Claim:
    """One published number.

    Attributes:
        id: unique in the file.
        value: percent, 0 to 100.
        metric: our name of the number, for example "segmentation/miou_val_crf" (a fraction on our side); it
            holds the split.
        dataset, split: what it was measured on, by our names ("voc2012", "val").
        protocol: how it was measured, for people.
        source: where the number stands; "unverified" when it could not be checked.
        citation: paper, README or file, with the place in it.
        tolerance: percent points within which our number counts as reproduced.
        recipe: name of our recipe that follows the claim's protocol; context has none, whatever stands here.
        may_differ: dotted recipe keys whose value may be another one than the recipe's: what was published leaves
            them open, or had a value that the recipe shortens.
        needs: dotted recipe key -> the value that the published number had, where the recipe itself has another one
            because that value asks for something that not everybody holds, such as a folder of the authors.
        chosen_by_masks: the claim's own protocol lets masks choose (a best epoch, threshold or constant).
        released: the number is that of the model that the authors released, as measured from its file; a training
            of ours is not held against it, and a run from the released file is held against no other claim.
        context: another method's number, for orientation; no number of ours is ever held against it.
    """

    id: str
    value: float
    metric: str
    dataset: str
    split: str
    protocol: str
    source: Source
    citation: str
    tolerance: float
    recipe: str = "paper"
    may_differ: tuple[str, ...] = ()
    needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chosen_by_masks: bool = False
    released: bool = False
    context: bool = False


@dataclass(frozen=True)
class OurNumber:
    """A number of ours, as a fraction. values: one for each seed."""

    values: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.seeds):
            raise ValueError(f"{len(self.values)} values for {len(self.seeds)} seeds")

    @property
    def mean(self) -> float:
        """Mean over the seeds, fraction."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds, fraction; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class OurProtocol:
    """Under what conditions our numbers came about.

    Attributes:
        dataset: name of our data set.
        recipe: name of the recipe.
        changed_settings: dotted keys whose values differ from that recipe and enter stage keys.
        settings: dotted keys -> values, of the whole recipe.
        deviations: anything else that keeps the numbers from being comparable (a list cut short, a stage's
            result taken in from elsewhere), each in a few words.
        chosen_by_masks: metric name -> stages upstream of it that chose something by looking at masks.
        released: the numbers are of a released model, not of a training of ours.
    """

    dataset: str
    recipe: str
    changed_settings: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    chosen_by_masks: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    released: bool = False


@dataclass(frozen=True)
class Verdict:
    """Our number against one claim.

    Attributes:
        ours: None when the run has no such number, and beside context.
        difference: ours minus the claim, percent points; None unless the two are comparable.
        reason: why the outcome is what it is, in one sentence.
        obstacles: what stands in the way of a comparison, one by one.
    """

    claim: Claim
    ours: OurNumber | None
    difference: float | None
    outcome: Outcome
    reason: str
    obstacles: tuple[str, ...] = ()


def load_claims(path: Path, recipes: Sequence[str]) -> tuple[Claim, ...]:
    """Read a `claims.yaml`: a mapping with one key, `claims`, a list of claims.

    Args:
        recipes: names of the recipes that the method ships; a claim that is not context names one of them.

    Raises:
        ClaimError: with every problem of the file: unknown keys (and the nearest valid one), missing keys, wrong
            types, values out of range, unknown data sets, metrics and recipes, ids used twice.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise ClaimError("there is no claims file", path.name, "add claims.yaml to the method's folder") from error
    except YamlProblem as error:
        raise ClaimError(str(error), path.name, "correct the file") from error
    if not isinstance(content, Mapping) or set(content) != {"claims"} or not isinstance(content["claims"], list):
        raise ClaimError(
            "the file is not a mapping with the one key 'claims', a list", path.name, "write `claims:` and a list below"
        )
    problems: list[str] = []
    claims: list[Claim] = []
    for index, entry in enumerate(content["claims"]):
        found = _problems(entry, index, recipes)
        problems.extend(found)
        if not found:
            values: dict[str, Any] = {key: float(value) if key in _NUMBERS else value for key, value in entry.items()}
            claims.append(Claim(**{**values, "may_differ": tuple(entry.get("may_differ", ()))}))
    ids = [claim.id for claim in claims]
    problems.extend(f"id {name!r} is used {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1)
    if problems:
        raise ClaimError("; ".join(problems), path.name, "correct the named entries")
    return tuple(claims)


def verdict(claim: Claim, ours: OurNumber | None, protocol: OurProtocol) -> Verdict:
    """Hold our number against a claim. All obstacles to a comparison are named, not only the first."""
    if claim.context:
        return Verdict(claim, None, None, "context", "another method's number: nothing is held against it")
    changed = [key for key in protocol.changed_settings if key not in (*claim.may_differ, *claim.needs)]
    missed = [
        f"{key} is {protocol.settings.get(key)}, the claim needs {wanted}"
        for key, wanted in claim.needs.items()
        if protocol.settings.get(key) != wanted
    ]
    choosers = protocol.chosen_by_masks.get(claim.metric, ()) if not claim.chosen_by_masks else ()
    oracle = MetricName.parse(claim.metric).ending == "oracle" and not claim.chosen_by_masks
    ours_released, theirs_released = protocol.released, claim.released
    found = (
        (ours is None, f"this run has no {claim.metric}"),
        (ours is not None and not math.isfinite(ours.mean), "our number is not finite"),
        (protocol.dataset != claim.dataset, f"ours is on {protocol.dataset}, the claim on {claim.dataset}"),
        (protocol.recipe != claim.recipe, f"ours is recipe {protocol.recipe}, the claim needs {claim.recipe}"),
        (ours_released and not theirs_released, "ours is the released model, the claim is not about its file"),
        (
            theirs_released and not ours_released,
            "ours is trained here, the claim is of the released model (--from-checkpoint)",
        ),
        (changed, f"changed settings: {_some(changed)}"),
        *((True, text) for text in (*missed, *protocol.deviations)),
        (choosers, f"masks chose something in {_some(choosers)}"),
        (oracle, "an oracle number: masks chose the threshold"),
    )
    obstacles = [text for holds, text in found if holds]
    if obstacles or ours is None:
        return Verdict(claim, ours, None, "not comparable", "; ".join(obstacles), tuple(obstacles))
    difference = 100 * ours.mean - claim.value
    # A difference that is the tolerance itself must not fail by the last bit of 100 * fraction.
    within = abs(difference) <= claim.tolerance + 1e-9
    outcome: Outcome = "reproduced" if within else ("above" if difference > 0 else "below")
    reason = f"{abs(difference):.2f} points {'within' if within else 'beyond'} the tolerance of {claim.tolerance:g}"
    if claim.source == "unverified":
        reason += "; the claim itself could not be verified"
    return Verdict(claim, ours, difference, outcome, reason)


def verdicts(
    claims: Sequence[Claim], metrics_by_seed: Mapping[int, Mapping[str, float]], protocol: OurProtocol
) -> tuple[Verdict, ...]:
    """A verdict for each claim, from the metrics (fractions) of the runs of all seeds."""
    found = []
    for claim in claims:
        seeds = tuple(seed for seed, metrics in sorted(metrics_by_seed.items()) if claim.metric in metrics)
        ours = OurNumber(tuple(metrics_by_seed[seed][claim.metric] for seed in seeds), seeds) if seeds else None
        found.append(verdict(claim, ours, protocol))
    return tuple(found)


_NUMBERS = ("value", "tolerance")
_SWITCHES = ("chosen_by_masks", "released", "context")


def _problems(entry: Any, index: int, recipes: Sequence[str]) -> list[str]:
    where = f"claim {index + 1}"
    if not isinstance(entry, Mapping):
        return [f"{where} is not a mapping"]
    where += f" ({entry['id']})" if isinstance(entry.get("id"), str) else ""
    fields = {field.name: field for field in dataclasses.fields(Claim)}
    problems = []
    for key in entry:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            problems.append(f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    right: dict[str, Any] = {}
    for name, field in fields.items():
        if name in entry:
            wrong = _wrong_type(name, entry[name])
            problems.extend([f"{name} is {entry[name]!r}, not {wrong}"] if wrong else [])
            right.update({} if wrong else {name: entry[name]})
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{name} is missing")
    return [f"{where}: {problem}" for problem in (*problems, *_wrong_values(right, recipes))]


def _wrong_type(name: str, value: Any) -> str:
    """What a field must be and is not; empty if it is right."""
    if name in _NUMBERS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number and 0 <= value <= 100 else "a number in [0, 100] (percent)"
    if name in _SWITCHES:
        return "" if isinstance(value, bool) else "true or false"
    if name == "needs":
        keys = isinstance(value, Mapping) and all(isinstance(key, str) and "." in key for key in value)
        return "" if keys else "a mapping of dotted recipe keys to values"
    if name == "may_differ":
        keys = isinstance(value, list) and all(isinstance(key, str) and "." in key for key in value)
        return "" if keys else "a list of dotted recipe keys"
    return "" if isinstance(value, str) and value.strip() else "a text"


def _wrong_values(entry: Mapping[str, Any], recipes: Sequence[str]) -> list[str]:
    """What is wrong with fields that have the right types."""
    problems = []
    for name, known in (("source", get_args(Source)), ("dataset", DATASETS)):
        if entry.get(name, known[0]) not in known:
            problems.append(f"{name} is {entry[name]!r}, not one of {', '.join(known)}")
    metric = MetricName.parse(entry.get("metric", ""))
    if "metric" in entry and not (metric.scored and metric.is_fraction and metric.split):
        problems.append(f"metric {str(metric)!r} is no score of a split such as segmentation/miou_val")
    elif metric.split != entry.get("split", metric.split):
        problems.append(f"metric {str(metric)!r} does not name the split {entry['split']!r}")
    recipe, context = entry.get("recipe", Claim.recipe), entry.get("context", False)
    if context and not {"recipe", "may_differ", "needs"}.isdisjoint(entry):
        problems.append("context is compared with no recipe: leave out recipe, may_differ and needs")
    elif not context and recipe not in recipes:
        problems.append(f"recipe is {recipe!r}, not one of {', '.join(recipes)}; another method's number is context")
    if entry.get("source") == "released_weights" and not entry.get("released"):
        problems.append("source is released_weights, which needs released: true")
    return problems


def _some(names: Sequence[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
