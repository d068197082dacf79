"""Ray's pretended machines, each with a folder of its own for the code that a job brings."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any
from unittest import mock

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class SeparateNodeProvider(FakeMultiNodeProvider):
    """Nodes that do not share their runtime environments.

    Ray's own pretended nodes do: a node that starts deletes the code of the job that runs and unpacks it again
    (`overwrite=True` in ray/_private/runtime_env/working_dir.py). A module that is imported in that moment is missing,
    or half there.
    """

    _numbers = itertools.count(1)

    def _create_node_with_resources_and_labels(self, *given: Any, **named: Any) -> None:
        parameters = partial(
            ray._private.parameter.RayParams, runtime_env_dir_name=f"runtime_resources_{next(self._numbers)}"
        )
        with mock.patch.object(ray._private.parameter, "RayParams", parameters):
            super()._create_node_with_resources_and_labels(*given, **named)
