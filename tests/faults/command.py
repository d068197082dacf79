"""`reproduce.py` and `tune.py` with the methods of the tests, and with faults of their own process that are planned.

    python -m tests.faults.command reproduce.py|tune.py ARGUMENT...

The folder in the environment variable FAULTS holds a file for each planned fault:

    kill-WHEN-STAGE   SIGKILL while the manifest of a stage is written: half-written, before-rename, after-rename
    hold-publish-STAGE  stand still while that is written, as long as the file is there; held-publish-STAGE says so
    clock             seconds by which the clock is wrong
    hold-import       stand still while the program loads its modules, and say so with a file held-import
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from pathlib import Path

from tests.faults import clock

import wsss.files
import wsss_methods

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = ("half-written", "before-rename", "after-rename")
_finish = wsss.files.finish


def die_while_publishing(folder: Path) -> None:
    """Plan the kills of this process for the moments of a publication."""

    def finish(path: Path, target: Path, *, durable: bool = False) -> None:
        planned = stage = ""
        if target.name == "manifest.json":
            stage = target.parent.parent.name
            planned = next((moment for moment in MOMENTS if (folder / f"kill-{moment}-{stage}").exists()), "")
        if planned:
            (folder / f"kill-{planned}-{stage}").unlink()
        if planned == "half-written":
            os.truncate(path, path.stat().st_size // 2)
        if planned in ("half-written", "before-rename"):
            os.kill(os.getpid(), signal.SIGKILL)
        while stage and (folder / f"hold-publish-{stage}").exists():
            (folder / f"held-publish-{stage}").touch()
            time.sleep(0.05)
        _finish(path, target, durable=durable)
        if planned:
            os.kill(os.getpid(), signal.SIGKILL)

    wsss.files.finish = finish


class StandStill:
    """Finds no module; where it is planned, the search for matplotlib lasts until somebody ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """As Python's import asks each finder."""
        if name == "matplotlib" and (self._folder / "hold-import").exists():
            (self._folder / "held-import").touch()
            time.sleep(600)


def main() -> None:
    """Run the script as `python SCRIPT ARGUMENT...` would; it ends this process with its exit code."""
    script, *words = sys.argv[1:]
    wsss_methods.__path__.append(str(Path(__file__).parent / "methods"))
    if folder := os.environ.get("FAULTS"):
        die_while_publishing(Path(folder))
        clock.follow(Path(folder))
        sys.meta_path.insert(0, StandStill(Path(folder)))
    sys.argv = [script, *words]
    runpy.run_path(str(ROOT / script), run_name="__main__")


if __name__ == "__main__":
    main()
