"""The name of a metric as a value: what is scored, by which measure, on which split, and how."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

# Image lists of the data sets. A name is read by them: its split is the first word that is one of these.
SPLITS = ("train_aug", "trainval", "train", "val", "test")
# What stands beside the main value of a measure: its interval over images, its values at choices by masks, and
# that of a predictor that says background everywhere.
ENDINGS = ("low", "high", "oracle", "cross_fitted", "all_background")
# Measures between 0 and 1 that people read as percent.
FRACTIONS = ("miou", "iou", "pixel_accuracy", "mean_accuracy", "precision", "recall", "coverage")

_SPLIT = re.compile(rf"(?<=_)(?:{'|'.join(SPLITS)})(?=_|$)")
_ENDING = re.compile(rf"_({'|'.join(ENDINGS)})$")


@dataclass(frozen=True)
class MetricName:
    """`<scored>/<measure>_<split>[_<variant>][_<ending>]`, for example "segmentation/miou_val_crf_low".

    `str` gives the text, `parse` inverts it. A value whose text reads as another value cannot be made.

    Attributes:
        scored: what is scored: "cam", "pseudo_label", "segmentation".
        measure: "miou", "pixel_accuracy", "oracle_threshold", "epoch".
        split: one of SPLITS; empty for a metric that belongs to no split, which has no variant and no ending then.
        variant: of what is scored, for example "crf"; empty for none.
        ending: one of ENDINGS; empty for the main value.

    Raises:
        ValueError: the text of these parts reads as other parts.
    """

    scored: str
    measure: str
    split: str = ""
    variant: str = ""
    ending: str = ""

    def __post_init__(self) -> None:
        parts = (self.scored, self.measure, self.split, self.variant, self.ending)
        read = _parts(str(self))
        if read != parts:
            raise ValueError(f"{str(self)!r} does not name {parts}: it reads as {read}")

    def __str__(self) -> str:
        return _text(self.scored, self.measure, self.split, self.variant, self.ending)

    @classmethod
    def parse(cls, text: str) -> MetricName:
        """The value of a text. Any text is a name; `str` of the value is the text.

        The last slash ends `scored`. The first word of SPLITS behind an underscore is the split, the longest where
        two begin ("train_aug" before "train"); what stands before it is the measure. One of ENDINGS at the end of
        the rest is the ending, and what is between is the variant.
        """
        return cls(*_parts(text))

    @property
    def is_main_miou(self) -> bool:
        """Whether this is a mIoU itself, not its interval or what stands beside it."""
        return self.measure == "miou" and bool(self.split) and not self.ending

    @property
    def is_fraction(self) -> bool:
        """Whether people read the metric as percent."""
        return self.measure in FRACTIONS

    def beside(self, ending: str) -> MetricName:
        """The name with another ending, e.g. of the interval's lower end."""
        return replace(self, ending=ending)

    def of(self, measure: str) -> MetricName:
        """The name of another measure of the same thing, e.g. "oracle_threshold"; without an ending."""
        return replace(self, measure=measure, ending="")


def _parts(text: str) -> tuple[str, str, str, str, str]:
    scored, _, what = text.rpartition("/")
    found = _SPLIT.search(what)
    if found is not None:
        rest = what[found.end() :]
        ending = _ENDING.search(rest)
        variant = (rest[: ending.start()] if ending else rest).removeprefix("_")
        parts = (scored, what[: found.start() - 1], found[0], variant, ending[1] if ending else "")
        if _text(*parts) == text:
            return parts
    # No split, or stray slashes and underscores: all of it is the measure.
    return (scored, what, "", "", "") if scored else ("", text, "", "", "")


def _text(scored: str, *words: str) -> str:
    what = "_".join(word for word in words if word)
    return f"{scored}/{what}" if scored else what
