"""The toy method under a name that the command line finds."""

from dataclasses import replace
from pathlib import Path

from tests.execution import toy_method

METHOD = replace(toy_method.METHOD, folder=Path(__file__).parent)
