"""The one shape of error that people see: what happened, where, and what to do about it."""

from __future__ import annotations


class WsssError(Exception):
    """An expected failure with a remedy.

    Args:
        what: what is wrong, in one sentence.
        where: the file, key, stage or address that is concerned.
        remedy: what the user can do now.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  do:    {self.remedy}")
        return "\n".join(lines)
