"""Errors of the data layer, and the problems that a check collects before it says anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wsss.errors import WsssError
from wsss.formatting import count

SHOWN_PROBLEMS = 20


class DataError(WsssError):
    """A file of a data set is missing, damaged or not what it should be."""


class LabelFirewallError(WsssError):
    """Something that must not see masks, or labels, asked for them."""


@dataclass(frozen=True)
class Problem:
    """One finding of a check.

    Attributes:
        what: what was found, and what was expected.
        where: file (and line), list or image concerned.
        remedy: what the user can do now.
        severity: an "error" stops a run; a "warning" is worth a look.
    """

    what: str
    where: str
    remedy: str
    severity: Literal["error", "warning"] = "error"

    @classmethod
    def of(cls, error: WsssError) -> Problem:
        """The same as an error that was raised."""
        return cls(error.what, error.where, error.remedy)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}" if self.where else f"{self.what}; {self.remedy}"


def raise_problems(problems: Sequence[Problem], where: str) -> None:
    """Raise one DataError for all problems of severity "error" (warnings are left to `wsss data check`)."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    if len(errors) == 1:
        raise DataError(errors[0].what, errors[0].where, errors[0].remedy)
    lines = [f"the data set has {count(len(errors), 'problem')}:"]
    lines += [f"  - {problem}" for problem in errors[:SHOWN_PROBLEMS]]
    if len(errors) > SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(errors) - SHOWN_PROBLEMS} more")
    raise DataError("\n".join(lines), where, "correct the files named above; `wsss data check` lists everything")
