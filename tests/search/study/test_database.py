"""A study's database that is away for a while. The server of `tests/cluster/test_stack.py` really is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError
from tests.search.study.test_ledger import ledger, outcome, proposed, study

from wsss.search.records import load_sweep
from wsss.search.study import database
from wsss.search.study import ledger as ledger_module
from wsss.search.study.database import is_lost, while_it_restarts

CLOSED = "server closed the connection unexpectedly"
STARTING = "FATAL:  the database system is starting up"
REFUSED = 'connection to server at "127.0.0.1", port 5432 failed: Connection refused'
PASSWORD = 'FATAL:  password authentication failed for user "wsss"'


def lost(words: str) -> Exception:
    """As Optuna raises it."""
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OperationalError("SELECT 1", {}, RuntimeError(words))
    return error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (database, ledger_module):
        monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
        monkeypatch.setattr(module, "AWAY_SECONDS", 0.3)


def failing(failures: list[Exception], calls: list[int]) -> Callable[[], str]:
    def call() -> str:
        calls.append(0)
        if failures:
            raise failures.pop(0)
        return "opened"

    return call


@pytest.mark.parametrize("first", [CLOSED, STARTING])
def test_a_server_that_starts_again_is_waited_for(first: str, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    assert while_it_restarts(failing([lost(first), lost(REFUSED), lost(STARTING)], calls)) == "opened"
    assert len(calls) == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("error", [lost(REFUSED), lost(PASSWORD), ValueError(CLOSED)])
def test_one_that_has_never_answered_is_not(error: Exception) -> None:
    calls: list[int] = []
    with pytest.raises(type(error)):
        while_it_restarts(failing([error], calls))
    assert len(calls) == 1


def test_it_is_given_up_after_a_while() -> None:
    calls: list[int] = []
    with pytest.raises(StorageInternalError):
        while_it_restarts(failing([lost(CLOSED), *(lost(REFUSED) for _ in range(1000))], calls))
    assert 3 < len(calls) < 1000


def test_what_is_lost_is_told_from_what_is_wrong() -> None:
    assert is_lost(lost(REFUSED)) and is_lost(lost(PASSWORD)) and not is_lost(ValueError(CLOSED)) and not is_lost(None)


def test_a_trial_is_in_the_study_once_when_the_server_goes_away_around_its_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 0 is written before the connection breaks, trial 1 is not."""
    running = ledger(tmp_path)
    running._given_up = False  # as with a server
    running.begin([proposed(0), proposed(1)])
    add, moments = running._study.add_trial, iter(("after", "before", "well"))

    def flaky(trial: Any) -> None:
        moment = next(moments)
        if moment == "before":
            raise lost(REFUSED)
        add(trial)
        if moment == "after":
            raise lost(CLOSED)

    monkeypatch.setattr(running._study, "add_trial", flaky)
    running.finish(outcome(0, 0.4))
    running.finish(outcome(1, 0.6))
    running.update(status="finished")
    running.close()
    assert sorted(trial.user_attrs["trial"] for trial in study(tmp_path).get_trials()) == [0, 1]
    assert load_sweep(tmp_path).notes == ()


def test_a_server_that_stays_away_is_waited_for_once_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = ledger(tmp_path)
    running._given_up = False
    running.begin([proposed(number) for number in range(4)])

    def refuse(trial: Any) -> None:
        raise lost(REFUSED)

    monkeypatch.setattr(running._study, "add_trial", refuse)
    began = time.monotonic()
    for number in range(4):
        running.finish(outcome(number, 0.4))
    running.update(status="finished")
    running.close()
    assert 0.3 < time.monotonic() - began < 10
    (note,) = load_sweep(tmp_path).notes
    assert note.startswith("4 trials are not in the study yet")
    ledger(tmp_path).close()  # the next time all of them are added
    assert len(study(tmp_path).get_trials()) == 4


def test_who_stops_a_sweep_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "AWAY_SECONDS", 600.0)
    running = ledger(tmp_path)
    running._given_up = False
    running.begin([proposed(0)])

    def refuse(trial: Any) -> None:
        raise lost(REFUSED)

    monkeypatch.setattr(running._study, "add_trial", refuse)
    running.finish(outcome(0, 0.4))
    running.update(status="stopped")
    running.close()
    assert "1 trials are not in the study yet" in load_sweep(tmp_path).notes[0]
