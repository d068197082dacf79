"""Recipes side by side: their numbers, and paired differences over the same images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wsss.evaluation.bootstrap import PairedComparison, paired_comparison_of_means
from wsss.evaluation.confusion import MeanOver, miou_from_counts
from wsss.formatting import byte_count, duration, interval, mean_and_spread, points
from wsss.reporting.tables import Table

NOTE = (
    "mIoU in percent at the recipe's own threshold; ± is the spread over seeds. Differences are to the first row on "
    "the same data set that has the number, over the same images, with 95 % intervals over images: what another "
    "training would give is not in them."
)
_GPU, _STORED = "GPU-hours", "stored"


@dataclass(frozen=True)
class Scored:
    """One number of a contender with what a paired comparison needs.

    Attributes:
        values: mIoU (fraction) of each seed.
        counts: of each seed the `class_counts` of every image, int64 (N, 3, C); empty where none are kept.
        images: names of the N images, in the order of the counts.
        mean_over: which classes the mean is over.
        rests_on_masks: something upstream was chosen by looking at masks.
        rescored: the mean is not the method's own, see `with_one_mean`.
    """

    values: tuple[float, ...]
    counts: tuple[np.ndarray, ...] = ()
    images: tuple[str, ...] = ()
    mean_over: MeanOver = "defined"
    rests_on_masks: bool = False
    rescored: bool = False

    def same_truth(self, other: Scored) -> bool:
        """Whether both were scored on the same masks: each image has as many pixels of each class in its truth."""
        return np.array_equal(self.counts[0][:, 1], other.counts[0][:, 1])

    def over_classes_of_masks(self) -> Scored:
        """The same counts scored by the mean over the classes that are in the masks."""
        values = (float(miou_from_counts(*each.sum(axis=0), mean_over="truth")) for each in self.counts)
        return replace(self, values=tuple(values), mean_over="truth", rescored=True)

    @property
    def mean(self) -> float:
        """mIoU (fraction), mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def shown(self) -> str:
        """The mean in percent, its spread over seeds, and a star where masks chose something."""
        spread = statistics.stdev(self.values) if len(self.values) > 1 else None
        return mean_and_spread(self.mean, spread) + (" *" if self.rests_on_masks else "")


@dataclass(frozen=True)
class Cost:
    """What a row took, mean over its seeds.

    Attributes:
        seconds: wall time of its stages, one after another.
        gpu_seconds: the same times the GPUs that each stage held; 0 where all ran on CPUs.
        size: bytes of its artifacts, of those that are still in the store.
    """

    seconds: float
    gpu_seconds: float = 0.0
    size: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One recipe in a comparison, run under one or more seeds.

    Attributes:
        title: method, recipe and changed keys, for people.
        dataset: only contenders of the same data set are held against each other.
        cost: of all its stages; None for what took none.
        numbers: metric name -> what was scored.
        is_reference: it is there to give the numbers of methods their meaning.
    """

    title: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    dataset: str
    cost: Cost | None
    numbers: Mapping[str, Scored] = field(default_factory=dict)
    is_reference: bool = False


def with_one_mean(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders with one mean over classes for each number of a data set.

    Published evaluations count a class that is nowhere as 0, or leave it out. On a small list that moves a number by
    several points, so where the means differ all counts are scored over the classes that are in the masks.
    """
    means: dict[tuple[str, str], set[MeanOver]] = {}
    for each in contenders:
        for name, number in each.numbers.items():
            if number.counts:
                means.setdefault((each.dataset, name), set()).add(number.mean_over)

    def common(dataset: str, name: str, number: Scored) -> Scored:
        return number.over_classes_of_masks() if number.counts and len(means[dataset, name]) > 1 else number

    return [
        replace(each, numbers={name: common(each.dataset, name, number) for name, number in each.numbers.items()})
        for each in contenders
    ]


def difference(contender: Contender, reference: Contender, metric: str) -> PairedComparison | str:
    """Contender minus reference in one number, or the reason why there is no such difference."""
    ours, theirs = contender.numbers.get(metric), reference.numbers.get(metric)
    if ours is None or theirs is None:
        return "not scored"
    if contender.dataset != reference.dataset:
        return "other data set"
    if not ours.counts or not theirs.counts:
        return "counts of its images are not kept"
    if ours.images != theirs.images:
        return "other images"
    if not ours.same_truth(theirs):
        return "other masks"
    if ours.mean_over != theirs.mean_over:
        return "other mean over classes"
    return paired_comparison_of_means(ours.counts, theirs.counts, mean_over=ours.mean_over)


def reference_of(contenders: Sequence[Contender], position: int, metric: str) -> Contender | None:
    """The first contender on the same data set that has the number; None for that one itself."""
    own = contenders[position]
    first = next((each for each in contenders if each.dataset == own.dataset and metric in each.numbers), own)
    return None if first is own else first


def all_background(contenders: Sequence[Contender]) -> list[Contender]:
    """A predictor that says background everywhere, one for each data set, in every number whose counts are kept."""
    rows: list[Contender] = []
    for dataset in dict.fromkeys(each.dataset for each in contenders):
        own = [each.numbers for each in contenders if each.dataset == dataset]
        metrics = dict.fromkeys(metric for numbers in own for metric in numbers)
        scored = {metric: [numbers[metric] for numbers in own if metric in numbers] for metric in metrics}
        numbers = {metric: _background(found[0]) for metric, found in scored.items() if found[0].counts}
        if numbers:
            rows.append(
                Contender(
                    title="all background",
                    runs=(),
                    seeds=(),
                    dataset=dataset,
                    cost=None,
                    numbers=numbers,
                    is_reference=True,
                )
            )
    return rows


def _background(scored: Scored) -> Scored:
    truth = scored.counts[0][:, 1]
    counts = np.zeros_like(scored.counts[0])
    counts[:, 0, 0], counts[:, 1], counts[:, 2, 0] = truth[:, 0], truth, truth.sum(axis=1)
    value = float(miou_from_counts(*counts.sum(axis=0), mean_over=scored.mean_over))
    return Scored((value,), (counts,), scored.images, scored.mean_over)


def common_metrics(contenders: Sequence[Contender]) -> list[str]:
    """Numbers that at least two contenders have, in the order of the stages; all, of a single contender."""
    found = [metric for contender in contenders for metric in contender.numbers]
    enough = min(2, len(contenders))
    return [metric for metric in dict.fromkeys(found) if found.count(metric) >= enough]


def number_table(contenders: Sequence[Contender], metrics: Sequence[str]) -> Table:
    """One row for each contender, one column for each number; a difference stands below its value."""
    costs = _cost_columns(contenders)
    rows = []
    for position, contender in enumerate(contenders):
        cells = [_cell(contender, reference_of(contenders, position, metric), metric) for metric in metrics]
        seeds = ", ".join(str(seed) for seed in contender.seeds)
        spent = ["-" if contender.cost is None else shown(contender.cost) for shown in costs.values()]
        rows.append((contender.title, seeds or "-", *cells, *spent))
    columns = ("recipe", "seeds", *metrics, *costs)
    stars = any(number.rests_on_masks for each in contenders for number in each.numbers.values())
    note = NOTE + (" *: something upstream was chosen by looking at masks." if stars else "")
    rescored = [name for name in metrics if any(_is_rescored(each, name) for each in contenders)]
    if rescored:
        note += f" {', '.join(rescored)}: mean over the classes in the masks, as methods average over different ones."
    note += " Time and GPU-hours: of the stages, one after another." if _GPU in costs else ""
    note += " Stored: artifacts that the store still holds." if _STORED in costs else ""
    return Table("Comparison", columns, tuple(rows), frozenset((*metrics, *costs)), note)


def _is_rescored(contender: Contender, metric: str) -> bool:
    return metric in contender.numbers and contender.numbers[metric].rescored


def _cost_columns(contenders: Sequence[Contender]) -> Mapping[str, Callable[[Cost], str]]:
    """Title -> text of a cost; without what none of the rows has."""
    spent = [each.cost for each in contenders if each.cost is not None]
    columns: dict[str, Callable[[Cost], str]] = {"time": lambda cost: duration(cost.seconds)}
    if any(cost.gpu_seconds for cost in spent):
        columns[_GPU] = lambda cost: f"{cost.gpu_seconds / 3600:.3g}"
    if any(cost.size for cost in spent):
        columns[_STORED] = lambda cost: byte_count(cost.size)
    return columns


def difference_table(contenders: Sequence[Contender], metrics: Sequence[str]) -> Table:
    """One row for each number and each contender that has it, but the first: difference, interval, what it says."""
    rows = []
    for metric in metrics:
        for position, contender in enumerate(contenders):
            reference = reference_of(contenders, position, metric)
            if reference is None or metric not in contender.numbers:
                continue
            found = difference(contender, reference, metric)
            start = (metric, contender.title, reference.title)
            if isinstance(found, str):
                rows.append((*start, "-", "-", "-", f"not comparable: {found}"))
            else:
                rows.append((*start, points(found.difference), *_bounds(found), in_words(found)))
    columns = ("number", "recipe", "against", "difference", "95 % interval", "p", "says")
    note = "Points of mIoU over the same images. Every interval stands for itself: many together miss more often."
    return Table("Differences", columns, tuple(rows), frozenset({"difference", "95 % interval", "p"}), note)


def in_words(found: PairedComparison) -> str:
    """ "better" or "worse" where the interval leaves zero out, else "not told apart"."""
    if found.low > 0:
        return "better"
    return "worse" if found.high < 0 else "not told apart"


def _bounds(found: PairedComparison) -> tuple[str, str]:
    return interval(found.low, found.high, signed=True), f"{found.p_value:.3f}"


def _cell(contender: Contender, reference: Contender | None, metric: str) -> str:
    number = contender.numbers.get(metric)
    if number is None:
        return "-"
    if reference is None:
        return number.shown
    found = difference(contender, reference, metric)
    if isinstance(found, str):
        return number.shown
    return f"{number.shown} ({points(found.difference)}: {interval(found.low, found.high, signed=True)})"
