"""A study's database that goes away for a while: told from one that was never there, and waited for."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")

AWAY_SECONDS = 120.0
PAUSE_SECONDS = 2.0
# What a server says, or its driver of it, that stops or starts. One that was never there refuses the connection.
_RESTARTS = re.compile(
    r"closed the connection unexpectedly|terminating connection|server has gone away|lost connection"
    r"|database system is (starting up|shutting down|in recovery)",
    re.IGNORECASE,
)


def is_lost(error: BaseException | None) -> bool:
    """Whether an error of the study, or what caused it, is a connection that broke or could not be made."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        ):
            return True
        error = error.__cause__
    return False


def while_it_restarts(call: Callable[[], Outcome]) -> Outcome:
    """What `call` returns. It is made again, for two minutes at most, while the server starts again.

    Raises:
        Exception: what `call` raised: at once where no server has answered, or when the time is over.
    """
    answered, deadline = False, 0.0
    while True:
        try:
            return call()
        except Exception as error:
            if not is_lost(error):
                raise
            if not answered and _RESTARTS.search(_words(error)):
                answered, deadline = True, time.monotonic() + AWAY_SECONDS
                log.warning("the study's database starts again; it is asked for at most %.0f s", AWAY_SECONDS)
            if not answered or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def _words(error: BaseException | None) -> str:
    """Of an error and what caused it."""
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__
    return "\n".join(words)
