"""Which trial to evaluate next: an inner search under every outer trial.

An outer trial (values of the keys that force training) costs training; an inner one, under an outer trial that is there
already, costs little. So every outer trial is judged by the best inner trial under it, and the inner search learns over
all outer trials together: it is told by how much a trial beats the recipe's own inner values under the same outer ones,
which takes the part of the outer values out of the number. Each new outer trial begins with the recipe's inner values
and with those that did best under the earlier ones.

Pure ask and tell: nothing here knows how a trial is evaluated.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from wsss.search.propose.samplers import Direction, KeySampler, Sampled
from wsss.search.records import SearchedKey, TrialRecord
from wsss.search.space.file import number_of_values, values_of

_TRIES = 20
_DRAWS = 100
_INCUMBENTS = 2


@dataclass(frozen=True)
class SearchPlan:
    """How a search proceeds.

    Attributes:
        trials: in all; inner_trials: under each outer trial; batch: handed out together.
        directions: one an objective. More than one objective are searched over all keys together.
        flat: search all keys together although some are costlier than others: for comparison.
    """

    sampler: str
    seed: int
    trials: int
    inner_trials: int
    batch: int
    directions: tuple[Direction, ...] = ("max",)
    flat: bool = False

    def nests(self, keys: Sequence[SearchedKey]) -> bool:
        """Whether there is an inner search under each outer trial."""
        return {"outer", "inner"} <= {key.level for key in keys} and not self.flat and len(self.directions) == 1


@dataclass(frozen=True)
class ProposedTrial:
    """A trial to evaluate; see `TrialRecord` for the fields."""

    number: int
    outer: dict[str, Any]
    inner: dict[str, Any]
    outer_key: str
    batch: int

    @property
    def settings(self) -> dict[str, Any]:
        """Outer and inner values together."""
        return {**self.outer, **self.inner}


@dataclass
class _Outer:
    """An outer trial and what is known under it."""

    key: str
    settings: dict[str, Any]
    sampled: Sampled
    waiting: list[dict[str, Any]]
    seen: set[str] = field(default_factory=set)
    asked: int = 0
    pending: dict[int, Sampled] = field(default_factory=dict)
    results: dict[int, float] = field(default_factory=dict)
    untold: dict[int, Sampled] = field(default_factory=dict)
    reference: int | None = None
    closed: bool = False
    pruned: tuple[int, float] | None = None


def outer_key(settings: Mapping[str, Any]) -> str:
    """Short hash of outer values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def default_inner_trials(keys: Sequence[SearchedKey], trials: int) -> int:
    """Inner trials under each outer one: all of them if there are few, else four a key, 4 to 24."""
    outer = [key for key in keys if key.level == "outer"]
    inner = [key for key in keys if key.level == "inner"]
    if not inner:
        return 1
    if not outer:
        return trials
    wanted = min(24, max(4, 4 * len(inner)))
    count = number_of_values(inner)
    return min(wanted, count, trials) if count is not None else min(wanted, trials)


def told_values(trial: TrialRecord) -> tuple[float, ...] | None:
    """What a search learns of a trial that ended: its objectives, the estimate of one that lost a race, or nothing."""
    if trial.status == "finished":
        return tuple(trial.values.values())
    if trial.status == "pruned" and trial.race is not None and trial.race.estimate is not None:
        return (trial.race.estimate,)
    return None


class NestedSearch:
    """Ask for batches, tell outcomes.

    Args:
        keys: with their levels; "curve" and "unused" ones are not varied.
        recipe: recipe values by key.
        is_valid: whether values fit together (relations between recipe keys).
    """

    def __init__(
        self,
        keys: Sequence[SearchedKey],
        recipe: Mapping[str, Any],
        plan: SearchPlan,
        is_valid: Callable[[Mapping[str, Any]], bool] = lambda settings: True,
    ) -> None:
        self.plan = plan
        self._recipe = recipe
        self._is_valid = is_valid
        self._outer_keys = [key for key in keys if key.level == "outer"]
        self._inner_keys = [key for key in keys if key.level == "inner"]
        self._nested = plan.nests(keys)
        self._random = random.Random()  # seeded by `ask`
        outer_budget = -(-plan.trials // max(plan.inner_trials, 1))
        joint = self._outer_keys + self._inner_keys
        by_level = (self._outer_keys, self._inner_keys) if self._nested else ([], joint)
        self._outer_sampler = KeySampler(by_level[0], recipe, plan.sampler, plan.seed, outer_budget, plan.directions)
        self._sampler = KeySampler(by_level[1], recipe, plan.sampler, plan.seed + 1, plan.trials, plan.directions)
        self._outers: list[_Outer] = []
        self._home: dict[int, _Outer] = {}
        self._proposals: dict[int, ProposedTrial] = {}
        self._again: list[list[ProposedTrial]] = []
        self._batches = 0
        self._exhausted = False
        self.handed_out = 0

    @property
    def nested(self) -> bool:
        """Whether there is an inner search under each outer trial."""
        return self._nested

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask for and nothing is pending."""
        return not self._again and not any(outer.pending for outer in self._outers) and self._nothing_left()

    def ask(self) -> list[ProposedTrial] | None:
        """The next batch, all under one outer trial; None when nothing can be proposed before a pending batch is
        told, or at all (`finished`)."""
        if self._again:
            return self._again.pop(0)
        if self.handed_out >= self.plan.trials:
            return None
        place = (self.handed_out, sum(len(outer.pending) for outer in self._outers))
        self._random = random.Random(f"{self.plan.seed} {place}")
        for sampler in (self._outer_sampler, self._sampler):
            sampler.begin(place)
        if not self._nested:
            return self._ask_joint()
        free = [outer for outer in self._outers if not outer.closed and not outer.pending]
        for outer in free:
            batch = self._ask_inner(outer)
            if batch:
                return batch
            self._close(outer)
        outer = self._open()
        if outer is not None and (batch := self._ask_inner(outer)):
            return batch
        return None

    def tell(self, number: int, values: Sequence[float] | None, pruned_at: tuple[int, float] | None = None) -> None:
        """The outcome of a trial: its objectives, None when it failed, or where its outer trial was stopped."""
        outer = self._home.pop(number)
        sampled = outer.pending.pop(number)
        if not self._nested:
            if pruned_at is not None:
                self._sampler.prune(sampled, *pruned_at)
            else:
                self._sampler.tell(sampled, values)
            return
        if values is None:
            self._sampler.tell(sampled, None)
        else:
            outer.results[number] = values[0]
            outer.untold[number] = sampled
        if pruned_at is not None:
            outer.pruned, outer.closed = pruned_at, True
        if not outer.pending:
            self._tell_inner(outer)
            if outer.pruned is not None or outer.asked >= self.plan.inner_trials or not outer.results:
                self._close(outer)

    def restore(self, trials: Sequence[TrialRecord]) -> None:
        """Take up where records leave off. Running trials are handed out again, with their numbers."""
        open_batches: dict[int, list[ProposedTrial]] = {}
        for trial in sorted(trials, key=lambda trial: trial.number):
            proposed = ProposedTrial(trial.number, trial.outer, trial.inner, trial.outer_key, trial.batch)
            outer = self._outer_of(trial)
            values = trial.inner if self._nested else trial.settings
            self._hand_out(outer, proposed, self._sampler.take(values))
            self._batches = max(self._batches, trial.batch + 1)
            if trial.status == "running":
                open_batches.setdefault(trial.batch, []).append(proposed)
        for trial in trials:
            if trial.status != "running":
                self.tell(trial.number, told_values(trial), trial.stopped_at)
        self._again = [open_batches[number] for number in sorted(open_batches)]

    def _outer_of(self, trial: TrialRecord) -> _Outer:
        if not self._nested:
            return self._shared()
        found = next((outer for outer in self._outers if outer.key == trial.outer_key), None)
        if found is None:
            found = _Outer(trial.outer_key, trial.outer, self._outer_sampler.take(trial.outer), waiting=[])
            self._outers.append(found)
        return found

    def _shared(self) -> _Outer:
        """All keys are searched together: one place for what was seen."""
        if not self._outers:
            self._outers.append(_Outer("", {}, Sampled({}, None), waiting=[self._sampler.defaults({})]))
        return self._outers[0]

    def _nothing_left(self) -> bool:
        return self.handed_out >= self.plan.trials or self._exhausted

    # Nested: outer trials and the inner search under each.

    def _open(self) -> _Outer | None:
        for _ in range(_TRIES):
            if not self._outers:
                sampled = self._outer_sampler.take(self._outer_sampler.defaults({}))
            else:
                sampled = self._outer_sampler.ask({})
            key = outer_key(sampled.values)
            inner = self._sampler.defaults(sampled.values)
            incumbents = [values for values in self._sampler.best(_INCUMBENTS) if values != inner]
            repeated = any(outer.key == key for outer in self._outers)
            if repeated or not self._has_inner(sampled.values, [inner, *incumbents]):
                self._outer_sampler.tell(sampled, None)
                continue
            outer = _Outer(key, sampled.values, sampled, waiting=[inner, *incumbents])
            self._outers.append(outer)
            return outer
        self._exhausted = not any(outer.pending for outer in self._outers)
        return None

    def _has_inner(self, outer: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> bool:
        """Whether some inner trial fits the outer one, as far as a few tries tell."""
        if any(self._is_valid({**outer, **values}) for values in known):
            return True
        drawn = (self._sampler.draw(outer, self._random) for _ in range(_DRAWS))
        return any(self._is_valid({**outer, **values}) for values in drawn)

    def _ask_inner(self, outer: _Outer) -> list[ProposedTrial]:
        count = min(self.plan.batch, self.plan.inner_trials - outer.asked, self.plan.trials - self.handed_out)
        found: list[ProposedTrial] = []
        while len(found) < count:
            sampled = self._unseen(outer, outer.settings)
            if sampled is None:
                break
            found.append(self._propose(outer, outer.settings, sampled.values, outer.key, sampled))
        self._batches += 1
        return found

    def _tell_inner(self, outer: _Outer) -> None:
        """Tell the inner search how much each trial beats the reference, once that is known."""
        values = outer.results
        if not values:
            return
        reference = values.get(outer.reference) if outer.reference is not None else None
        if reference is None:
            ordered = sorted(values.values())
            reference = ordered[len(ordered) // 2]
        for number, sampled in outer.untold.items():
            self._sampler.tell(sampled, [values[number] - reference])
        outer.untold.clear()

    def _close(self, outer: _Outer) -> None:
        best = max if self.plan.directions[0] == "max" else min
        outer.closed = True
        if outer.pruned is not None:
            self._outer_sampler.prune(outer.sampled, *outer.pruned)
        else:
            self._outer_sampler.tell(outer.sampled, [best(outer.results.values())] if outer.results else None)

    # All keys together.

    def _ask_joint(self) -> list[ProposedTrial] | None:
        shared = self._shared()
        count = min(1 if self._outer_keys else self.plan.batch, self.plan.trials - self.handed_out)
        found: list[ProposedTrial] = []
        names = {key.key for key in self._outer_keys}
        while len(found) < count:
            sampled = self._unseen(shared, {})
            if sampled is None:
                break
            outer = {name: value for name, value in sampled.values.items() if name in names}
            inner = {name: value for name, value in sampled.values.items() if name not in names}
            found.append(self._propose(shared, outer, inner, outer_key(outer), sampled))
        self._batches += 1
        self._exhausted = not found and not shared.pending
        return found or None

    # Both.

    def _unseen(self, outer: _Outer, context: Mapping[str, Any]) -> Sampled | None:
        """A trial that this outer one has not seen and that fits the recipe; None when there is none left.

        After many fruitless proposals one that does not fit is handed out: its trial fails with the reason.
        """
        misfit: Sampled | None = None
        while outer.waiting:
            values = outer.waiting.pop(0)
            if _text(values) not in outer.seen and (not self.handed_out or self._is_valid({**context, **values})):
                return self._sampler.take(values)
        for _ in range(_TRIES):
            sampled = self._sampler.ask(context)
            if _text(sampled.values) not in outer.seen:
                if self._is_valid({**context, **sampled.values}):
                    return sampled
                misfit = sampled
            self._sampler.tell(sampled, None)
        rest = self._remaining(outer, context)
        if rest is not None:
            return self._sampler.take(self._random.choice(rest)) if rest else None
        for _ in range(_DRAWS):
            values = self._sampler.draw(context, self._random)
            if _text(values) not in outer.seen and self._is_valid({**context, **values}):
                return self._sampler.take(values)
        return None if misfit is None else self._sampler.take(misfit.values)

    def _remaining(self, outer: _Outer, context: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """All unseen trials, where they can be listed."""
        keys = self._sampler.keys
        count = number_of_values(keys)
        if count is None or count > 10_000 or any(key.conditions for key in keys):
            return None
        grid = product(*(values_of(key) for key in keys))
        settings = [dict(zip((key.key for key in keys), values, strict=True)) for values in grid]
        return [each for each in settings if _text(each) not in outer.seen and self._is_valid({**context, **each})]

    def _propose(
        self, home: _Outer, outer: Mapping[str, Any], inner: Mapping[str, Any], key: str, sampled: Sampled
    ) -> ProposedTrial:
        proposed = ProposedTrial(self.handed_out, dict(outer), dict(inner), key, self._batches)
        self._hand_out(home, proposed, sampled)
        return proposed

    def _hand_out(self, outer: _Outer, proposed: ProposedTrial, sampled: Sampled) -> None:
        if outer.asked == 0:
            outer.reference = proposed.number
        outer.seen.add(_text(sampled.values))
        outer.asked += 1
        outer.pending[proposed.number] = sampled
        self._home[proposed.number] = outer
        self.handed_out = max(self.handed_out, proposed.number + 1)


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
