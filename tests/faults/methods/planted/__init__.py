"""The method of a planted optimum under a name that the command line finds."""

from dataclasses import replace
from pathlib import Path

from tests.search import planted_method

METHOD = replace(planted_method.METHOD, folder=Path(__file__).parent)
