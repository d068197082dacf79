"""A training whose object store is away for a while: it begins again when the store is back, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from wsss.execution import store_outage
from wsss.execution.store_outage import OUTAGES, through_outages
from wsss.execution.train_loop import TrainingError
from wsss.store import Store, StoreError
from wsss.store.local import LocalFiles

BUCKET = "When testing for existence of bucket 'wsss': AWS Error NETWORK_CONNECTION during HeadBucket operation"
AWAY = (
    TrainingError(f"training failed: {BUCKET}", "stage cam_train", "run it again"),
    TrainingError("training failed: AWS Error SLOW_DOWN during UploadPart operation", "stage cam_train", "again"),
    StoreError("cannot reach the object store at http://127.0.0.1:9 (EndpointConnectionError)", "s3://wsss/x", "again"),
    StoreError("the object store answered 503: Service Unavailable", "s3://wsss/x", "run again"),
    RayTaskError("__init__", f"ray::TrainController.__init__()\nOSError: {BUCKET}", OSError(BUCKET)),
)
OTHER = (
    TrainingError("training failed: a worker died", "stage cam_train", "run it again"),
    StoreError("the object store refused the credentials (403)", "s3://wsss/x", "set AWS_ACCESS_KEY_ID"),
    StoreError("the bucket 'wsss' does not exist", "s3://wsss/x", "create it"),
)


class Place(LocalFiles):
    """A folder that does not take anything the first times."""

    refusals = 0
    asked = 0
    words = "cannot reach the object store"

    def check_writable(self) -> None:
        type(self).asked += 1
        if type(self).asked <= type(self).refusals:
            raise StoreError(self.words, self.url, "run again")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Place]:
    monkeypatch.setattr(store_outage, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(Place, "asked", 0)
    return Place


def failing(failures: list[Any], calls: list[int]) -> Callable[[], dict[str, Any]]:
    def train() -> dict[str, Any]:
        calls.append(len(failures))
        if failures:
            raise failures.pop(0)
        return {"steps": 12, "waited_seconds": 5.0}

    return train


@pytest.mark.parametrize("failure", AWAY)
def test_it_waits_until_the_store_answers_and_trains_again(
    failure: Exception, place: type[Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "refusals", 3)
    calls: list[int] = []
    told: list[str] = []
    facts = through_outages(failing([failure], calls), Store(place(tmp_path)), "cam_train", told.append)
    assert facts["steps"] == 12 and 5.02 < facts["waited_seconds"] < 60
    assert len(calls) == 2 and place.asked == 4
    assert [line.partition(", after")[0] for line in told] == [
        "cam_train: the object store was away; waits until it answers",
        "cam_train: the object store answers",
    ]


def test_nothing_is_added_where_nothing_failed(place: type[Place], tmp_path: Path) -> None:
    facts = through_outages(failing([], []), Store(place(tmp_path)), "cam_train", pytest.fail)
    assert facts == {"steps": 12, "waited_seconds": 5.0}


@pytest.mark.parametrize("failure", OTHER)
def test_another_failure_ends_it_at_once(failure: Exception, place: type[Place], tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(type(failure)) as caught:
        through_outages(failing([failure], calls), Store(place(tmp_path)), "cam_train", pytest.fail)
    assert caught.value is failure and len(calls) == 1 and place.asked == 0


def test_a_store_that_stays_away_is_what_the_user_hears_of(
    place: type[Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "refusals", 10**6)
    monkeypatch.setattr(store_outage, "_SECONDS", 0.1)
    calls: list[int] = []
    with pytest.raises(StoreError, match="cannot reach the object store"):
        through_outages(failing([AWAY[0]], calls), Store(place(tmp_path)), "cam_train", lambda line: None)
    assert len(calls) == 1


def test_a_store_that_refuses_is_not_waited_for(
    place: type[Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "refusals", 10**6)
    monkeypatch.setattr(place, "words", "the object store refused the credentials (403)")
    with pytest.raises(StoreError, match="refused the credentials"):
        through_outages(failing([AWAY[0]], []), Store(place(tmp_path)), "cam_train", lambda line: None)
    assert place.asked == 1


def test_it_does_not_begin_again_for_ever(place: type[Place], tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(TrainingError, match="NETWORK_CONNECTION"):
        through_outages(failing([AWAY[0]] * 9, calls), Store(place(tmp_path)), "cam_train", lambda line: None)
    assert len(calls) == OUTAGES + 1
