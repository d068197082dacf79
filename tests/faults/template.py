"""The undisturbed run that all others are held against, and the home that they begin with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import sweep_kinds
from tests.faults.scene import TOY, Scene


@dataclass(frozen=True)
class Template:
    """One finished, undisturbed command.

    Attributes:
        outcome: its numbers.
        database: an empty database of MLflow; to make one takes seconds.
    """

    scene: Scene
    outcome: dict[str, Any]
    database: Path

    def copy_home(self, home: Path) -> None:
        """A home with the generated data set and an empty database."""
        home.mkdir(exist_ok=True)
        shutil.copytree(self.scene.home / "data", home / "data")
        shutil.copyfile(self.database, home / "mlflow.db")


def make_template(folder: Path, database: Path, script: str = "reproduce.py", words: tuple[str, ...] = TOY) -> Template:
    """Run a command that nobody disturbs."""
    scene = Scene(folder, str(folder / "store"), script=script, words=words)
    scene.home.mkdir(parents=True)
    shutil.copyfile(database, scene.home / "mlflow.db")
    seen = scene.start().end()
    assert seen.code == 0 and not seen.noise and not seen.err.strip(), seen.out[-3000:] + seen.err[-3000:]
    outcome = scene.numbers() if script == "reproduce.py" else sweep_kinds.outcome(scene)
    assert outcome
    return Template(scene, outcome, database)
