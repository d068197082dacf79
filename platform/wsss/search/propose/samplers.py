"""Proposes values for search keys with Optuna, in memory: fast, and rebuilt from the records after a crash."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from wsss.errors import WsssError, nearest
from wsss.search.records import SearchedKey
from wsss.search.space.file import contains, is_active, number_of_values, values_of

SAMPLERS = ("tpe", "random", "cmaes", "nsga2")
Direction = Literal["max", "min"]
DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}

optuna.logging.set_verbosity(optuna.logging.WARNING)


class SamplerError(WsssError):
    """The sampler does not exist, is not installed, or does not suit the objectives."""


def check_sampler(name: str, objectives: int) -> None:
    """Raise SamplerError when the sampler cannot be used."""
    if name not in SAMPLERS:
        raise SamplerError(
            f"there is no sampler {name!r}{nearest(name, SAMPLERS)}", "--sampler", f"one of {', '.join(SAMPLERS)}"
        )
    if name == "cmaes" and find_spec("cmaes") is None:
        raise SamplerError(
            "the sampler cmaes needs the package cmaes", "--sampler", "pip install cmaes, or use --sampler tpe"
        )
    if name == "cmaes" and objectives > 1:
        raise SamplerError("cmaes has one objective", "--sampler", "use tpe or nsga2 against the cost")
    if name == "nsga2" and objectives == 1:
        raise SamplerError("nsga2 is for several objectives", "--sampler", "add --against-cost, or use tpe")


def make_sampler(name: str, seed: int, budget: int) -> BaseSampler:
    """A seeded sampler; the random start is a quarter of the budget, 3 to 10."""
    start = min(10, max(3, budget // 4))
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(8, min(50, budget // 4)))
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=seed,
            n_startup_trials=start,
            independent_sampler=RandomSampler(seed=seed),
            warn_independent_sampling=False,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # The trees of a conditional space are sampled as groups; running trials count as bad, so that batches spread.
        return TPESampler(seed=seed, n_startup_trials=start, multivariate=True, group=True, constant_liar=True)


def distribution_of(key: SearchedKey, widen_to: Any = None) -> BaseDistribution:
    """Optuna's distribution of a key, wide enough for `widen_to`, a value outside the key's range."""
    if key.kind == "categorical":
        choices = [as_choice(choice) for choice in key.choices]
        if widen_to is not None and as_choice(widen_to) not in choices:
            choices.append(as_choice(widen_to))
        return CategoricalDistribution(choices)
    low, high, step = key.low, key.high, key.step
    if widen_to is not None and not contains(key, widen_to):
        low, high, step = min(low, widen_to), max(high, widen_to), 0.0
    log = key.log and low > 0
    if key.kind == "int":
        return IntDistribution(int(low), int(high), log=log, step=int(step) or 1)
    return FloatDistribution(low, high, log=log, step=step or None)


def as_choice(value: Any) -> str | int | float | bool | None:
    """Lists are no choices of Optuna's; their JSON is."""
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


@dataclass
class Sampled:
    """Values for the active keys; `trial` is Optuna's, None for values outside the ranges, which it cannot hold."""

    values: dict[str, Any]
    trial: optuna.Trial | None


class KeySampler:
    """One in-memory study over some keys.

    Args:
        keys: conditions before what depends on them.
        recipe: recipe values by key: what a condition on a key outside `keys` is held against.
        budget: about how many values will be asked for.
    """

    def __init__(
        self,
        keys: Sequence[SearchedKey],
        recipe: Mapping[str, Any],
        sampler: str,
        seed: int,
        budget: int,
        directions: Sequence[Direction],
    ) -> None:
        self.keys = tuple(keys)
        self._recipe = recipe
        self._made_of = (sampler, seed, budget)
        words = [DIRECTIONS[direction] for direction in directions]
        self._study = optuna.create_study(directions=words, sampler=make_sampler(sampler, seed, budget))

    def defaults(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's values of the keys that are active beside `context`."""
        chosen: dict[str, Any] = {}
        for key in self.keys:
            if is_active(key, {**self._recipe, **context, **chosen}):
                chosen[key.key] = key.default
        return chosen

    def begin(self, place: Sequence[int]) -> None:
        """Let what follows depend on the seed, on what was told, and on the place in the search alone.

        A search that continues after a kill then proposes what an undisturbed one does. Samplers with a state of their
        own (cmaes, nsga2) keep it.
        """
        name, seed, budget = self._made_of
        if name in ("tpe", "random"):
            drawn = int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])
            self._study.sampler = make_sampler(name, drawn, budget)

    def ask(self, context: Mapping[str, Any]) -> Sampled:
        """Values proposed beside `context` (values of keys of another level)."""
        trial = self._study.ask()
        chosen: dict[str, Any] = {}
        for key in self.keys:
            if is_active(key, {**self._recipe, **context, **chosen}):
                chosen[key.key] = _suggest(trial, key)
        return Sampled(chosen, trial)

    def draw(self, context: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
        """Values drawn evenly from the ranges, past the sampler."""
        chosen: dict[str, Any] = {}
        for key in self.keys:
            if is_active(key, {**self._recipe, **context, **chosen}):
                chosen[key.key] = _drawn(key, rng)
        return chosen

    def take(self, values: Mapping[str, Any]) -> Sampled:
        """Given values, as if they had been proposed."""
        if not all(contains(key, values[key.key]) for key in self.keys if key.key in values):
            return Sampled(dict(values), None)
        active = [key for key in self.keys if key.key in values]
        self._study.enqueue_trial({key.key: as_choice(values[key.key]) for key in active})
        trial = self._study.ask()
        for key in active:
            _suggest(trial, key)
        return Sampled(dict(values), trial)

    def tell(self, sampled: Sampled, values: Sequence[float] | None) -> None:
        """The outcome of sampled values; None: it has none (failed, invalid, a repetition)."""
        if sampled.trial is not None:
            if values is None:
                self._study.tell(sampled.trial, state=TrialState.FAIL)
            else:
                self._study.tell(sampled.trial, list(values))

    def prune(self, sampled: Sampled, step: int, value: float) -> None:
        """The trial was stopped early, with this value at this step."""
        if sampled.trial is not None:
            sampled.trial.report(value, step)
            self._study.tell(sampled.trial, state=TrialState.PRUNED)

    def best(self, number: int) -> list[dict[str, Any]]:
        """Up to so many of the best values told, distinct, best first (one objective)."""
        done = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        sign = -1 if self._study.directions[0] == StudyDirection.MAXIMIZE else 1
        found: list[dict[str, Any]] = []
        for trial in sorted(done, key=lambda trial: sign * (trial.values or [0.0])[0]):
            values = self._decoded(trial)
            if values not in found:
                found.append(values)
        return found[:number]

    def _decoded(self, trial: FrozenTrial) -> dict[str, Any]:
        return {key.key: _decode(key, trial.params[key.key]) for key in self.keys if key.key in trial.params}


def study_trial(
    keys: Sequence[SearchedKey],
    settings: Mapping[str, Any],
    state: TrialState,
    values: Sequence[float] | None,
    attributes: Mapping[str, Any],
    span: tuple[float, float],
) -> FrozenTrial:
    """One trial that ended, for a study that people look at; `span` is its start and end (epoch seconds)."""
    from datetime import datetime

    active = [key for key in keys if key.key in settings]
    trial = create_trial(
        state=state,
        values=list(values) if values is not None else None,
        params={key.key: as_choice(settings[key.key]) for key in active},
        # Choices must be the same in every trial of a study, so the recipe's value always belongs to them.
        distributions={
            key.key: distribution_of(key, key.default if key.kind == "categorical" else settings[key.key])
            for key in active
        },
        user_attrs=dict(attributes),
    )
    trial.datetime_start, trial.datetime_complete = (datetime.fromtimestamp(second) for second in span)
    return trial


def _suggest(trial: optuna.Trial, key: SearchedKey) -> Any:
    if key.kind == "categorical":
        return _decode(key, trial.suggest_categorical(key.key, [as_choice(choice) for choice in key.choices]))
    if key.kind == "int":
        return trial.suggest_int(key.key, int(key.low), int(key.high), log=key.log, step=int(key.step) or 1)
    value = trial.suggest_float(key.key, key.low, key.high, log=key.log, step=key.step or None)
    return round(value, 12) if key.step else value  # 0.1 + 2 * 0.1 is no multiple of 0.1 in binary


def _drawn(key: SearchedKey, rng: random.Random) -> Any:
    if number_of_values([key]) is not None:
        return rng.choice(values_of(key))
    if key.log:
        value = math.exp(rng.uniform(math.log(key.low), math.log(key.high)))
    else:
        value = rng.uniform(key.low, key.high)
    value = min(max(value, key.low), key.high)
    return round(value) if key.kind == "int" else value


def _decode(key: SearchedKey, value: Any) -> Any:
    if key.kind != "categorical":
        return value
    return next(
        choice for choice in key.choices if as_choice(choice) == value and type(as_choice(choice)) is type(value)
    )
