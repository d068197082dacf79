"""A training whose object store went away for a while: it waits for the store and goes on from its checkpoint.

Ray Train writes checkpoints through a file system of its own, which gives a store up after six seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from wsss.errors import WsssError
from wsss.execution.waiting import Tell
from wsss.formatting import duration
from wsss.store import Store, StoreError

OUTAGES = 3  # that one training survives
_SECONDS = 120.0
_PAUSE_SECONDS = 2.0
# Of Arrow's file system, and of the store's own client.
_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT)"
    r"|cannot reach the object store|the object store answered (500|502|503|504|SlowDown|InternalError)"
)


def through_outages(train: Callable[[], dict[str, Any]], store: Store, stage: str, tell: Tell) -> dict[str, Any]:
    """The facts that `train` returns. Where it failed because the store was away, it is called again afterwards.

    Args:
        train: continues from the last checkpoint when it is called again. The time that the store was waited for is
            added to the `waited_seconds` of its facts.
        tell: gets a line when the store is waited for, and one when it is back.

    Raises:
        StoreError: the store did not come back within two minutes, or answers that it refuses.
        Exception: what `train` raised for another reason, or once more after `OUTAGES`.
    """
    waited = 0.0
    for left in reversed(range(OUTAGES + 1)):
        try:
            facts = train()
            return {**facts, "waited_seconds": waited + facts.get("waited_seconds", 0.0)} if waited else facts
        except (WsssError, RayError) as error:
            if not left or not _AWAY.search(str(error)):
                raise
            tell(f"{stage}: the object store was away; waits until it answers")
        seconds = _wait(store)
        waited += seconds
        tell(f"{stage}: the object store answers, after {duration(seconds)}")
    raise AssertionError


def _wait(store: Store) -> float:
    """Seconds until the store takes an object."""
    began = time.monotonic()
    while True:
        try:
            store.backend.check_writable()
            return time.monotonic() - began
        except StoreError as error:
            if not _AWAY.search(str(error)) or time.monotonic() - began > _SECONDS:
                raise
            time.sleep(_PAUSE_SECONDS)
