"""How another machine comes by the data set that this one has in a folder.

A job travels to its workers with the paths of the machine that made it. Where a node has a home of its own
(`WSSS_HOME` in its environment), what lies below the home of the other is looked for there: a packed data set is
fetched, a generated one generated. A folder that the user gave is the same path everywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsss.data.shapes import ShapesConfig, generate_shapes

HOME_VARIABLE = "WSSS_HOME"


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from. Once it has been pickled it speaks for the machine that it has come to.

    Attributes:
        root: folder of the data set on the machine that made this.
        home: of that machine.
        address: of a packed data set, with the digest of its index; empty otherwise.
        shapes: of a generated data set; None otherwise.
    """

    root: Path
    home: Path
    address: str = ""
    digest: str = ""
    shapes: ShapesConfig | None = None
    travelled: bool = field(default=False, compare=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**state, "travelled": True}.items():
            object.__setattr__(self, name, value)

    def here(self, path: Path) -> Path:
        """What this machine has in place of a path of the other; makes sure that the data set is there.

        Raises:
            DataError, StoreError: it cannot be fetched to this machine.
        """
        if not self.travelled:
            return path
        if path.is_relative_to(self.root):
            return self.root_here() / path.relative_to(self.root)
        return self.home_here() / path.relative_to(self.home) if path.is_relative_to(self.home) else path

    def home_here(self) -> Path:
        """The home of this machine."""
        own = os.environ.get(HOME_VARIABLE) if self.travelled else None
        return Path(own).expanduser().absolute() if own else self.home

    def root_here(self) -> Path:
        """Folder of the data set on this machine, which is fetched or generated first where it can be.

        Raises: as `here`.
        """
        return _root_in(self.home_here(), self) if self.travelled else self.root


@lru_cache(maxsize=64)
def _root_in(home: Path, origin: Origin) -> Path:
    if origin.address:
        from wsss.data.fetched import fetch_packed  # with boto3, which folders need not pay for

        return fetch_packed(origin.address, home, origin.digest).root
    return origin.root if origin.shapes is None else generate_shapes(origin.shapes, home)
