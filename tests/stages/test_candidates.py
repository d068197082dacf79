"""Candidate epochs in a training's artifact, and the choice among them with and without masks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from wsss.evaluation.confusion import miou
from wsss.pipeline import MapStage, Pipeline, ReduceStage, Reduction, StageContext, TrainStage
from wsss.stages.candidates import (
    CandidateConfig,
    SelectionConfig,
    candidate_epochs,
    choose_by_loss,
    choose_by_masks,
    count_candidates,
    epoch_to_use,
    read_weights,
    selection_stages,
    weight_inputs,
    weights_file,
)
from wsss.store import Store, open_store

NAMES = tuple(f"image{index}" for index in range(5))
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 2, 2]], dtype=np.uint8)


@dataclass(frozen=True)
class Records:
    """An artifact in memory."""

    records: Mapping[str, Mapping[str, np.ndarray]]
    stage: str = "first_selection"
    numbers: Mapping[str, float] = field(default_factory=dict)

    def images(self) -> list[str]:
        return list(self.records)

    def arrays(self, name: str) -> Mapping[str, np.ndarray]:
        return self.records[name]

    def json(self, file: str) -> Mapping[str, float]:
        assert file == "metrics.json"
        return self.numbers


def context(stage: str, config: Any = None, **inputs: Any) -> StageContext:
    data = SimpleNamespace(names=NAMES, num_classes=3, classes=("background", "a", "b"), ignore_index=255)
    return StageContext(stage=stage, config=config, data=cast(Any, data), inputs=inputs, files={})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def chosen_by_masks(labels: Sequence[np.ndarray], epochs: Sequence[int], stage: str = "first_selection") -> Reduction:
    score = count_candidates(context("first_candidates"), epochs, lambda name: (TRUTH, labels))
    candidates = Records({name: score(name) for name in NAMES})
    return choose_by_masks(context(stage, SelectionConfig(), candidates=candidates))


def test_the_highest_miou_is_chosen_the_earliest_among_equals() -> None:
    wrong = np.zeros_like(TRUTH)
    result = chosen_by_masks([wrong, TRUTH, TRUTH, wrong], epochs=(2, 4, 6, 8))
    assert result.metrics["first_selection/epoch"] == 4
    assert [row["selected"] for row in result.tables["candidates"]] == [False, True, False, False]
    assert [row["epoch"] for row in result.tables["candidates"]] == [2, 4, 6, 8]
    for row, confusion in zip(result.tables["candidates"], result.arrays["confusion"], strict=True):
        assert row["miou"] == pytest.approx(miou(confusion, "truth"), abs=1e-5)
    assert result.metrics["first_selection/miou_val_training_size"] > 0.99
    assert result.metrics["first_selection/miou_val_training_size_last"] == pytest.approx(0.5 / 3, abs=1e-5)


def test_a_choice_is_named_after_its_own_stage() -> None:
    result = chosen_by_masks([TRUTH], epochs=(3,), stage="second_selection")
    assert set(name.partition("/")[0] for name in result.metrics) == {"second_selection"}
    selection = Records({}, stage="second_selection", numbers=result.metrics)
    assert epoch_to_use(context("second_scores", selection=selection)) == 3
    assert epoch_to_use(context("second_scores")) == 0


def chosen_by_loss(first: np.ndarray, second: np.ndarray, weight: float, batch_size: int, until: int) -> Reduction:
    epochs = np.arange(1, first.shape[1] + 1)
    records = {
        name: {"first": first[index], "second": second[index], "shown": second[index], "epochs": epochs}
        for index, name in enumerate(NAMES)
    }
    return choose_by_loss(
        context("first_selection", candidates=Records(records)),
        {"first": 1.0, "second": weight, "shown": 0.0},
        batch_size,
        competes=lambda epoch: epoch <= until,
        columns=lambda arrays: {"images": [float(len(arrays))] * len(epochs)},
    )


def test_the_lowest_loss_is_chosen_the_latest_among_equals() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, len(NAMES), 4))
    first[:, 2], second[:, 2] = first[:, 0], second[:, 0]  # epochs 1 and 3 are equal
    first[:, 1] += 1
    result = chosen_by_loss(first, second, weight=0.5, batch_size=2, until=3)
    loss = first + 0.5 * second
    batches = [loss[:2].mean(axis=0), loss[2:4].mean(axis=0), loss[4:].mean(axis=0)]
    rows = result.tables["candidates"]
    np.testing.assert_allclose([row["score"] for row in rows], 1 - np.mean(batches, axis=0), rtol=1e-12)
    assert result.metrics["first_selection/epoch"] == 3
    assert result.metrics["first_selection/score_val"] == rows[2]["score"]
    assert [row["competes"] for row in rows] == [True, True, True, False]
    assert [row["images"] for row in rows] == [5.0] * 4
    assert rows[0]["shown"] == rows[0]["second"] != 0, "a part of weight 0 is shown and not counted"


def test_the_last_candidate_is_taken_where_none_may_compete() -> None:
    losses = np.tile(np.array([0.1, 0.2, 0.9]), (len(NAMES), 1))
    assert chosen_by_loss(losses, losses, weight=1.0, batch_size=5, until=0).metrics["first_selection/epoch"] == 3


def test_weights_of_epochs_and_the_last_ones(store: Store) -> None:
    writer = store.writer("first_train", "0" * 32)
    for epoch in (12, 3, 0):
        buffer = io.BytesIO()
        torch.save({"epoch": torch.tensor(epoch)}, buffer)
        writer.add_file(weights_file("network", epoch), buffer.getvalue())
    artifact = writer.publish({})
    assert candidate_epochs(artifact) == [3, 12]
    assert [int(read_weights(artifact, "network", epoch)["epoch"]) for epoch in (3, 12, 0)] == [3, 12, 0]


@pytest.mark.parametrize(("rule", "by_masks"), [("best_val", True), ("lowest_val_loss", False)])
def test_two_rounds_choose_their_own_epochs(rule: Any, by_masks: bool) -> None:
    def build(stage: StageContext) -> Any:
        raise NotImplementedError

    stages = []
    for prefix in ("first", "second"):
        train = TrainStage(name=f"{prefix}_train", version=1, config=SelectionConfig(), build=build, seed=0)
        choice = selection_stages(
            prefix,
            rule,
            candidates=CandidateConfig(SelectionConfig()),
            build=build,
            selection=SelectionConfig(),
            compute=choose_by_masks,
        )
        stages += [train, *choice]
        candidates, selection = choice
        assert isinstance(candidates, MapStage) and isinstance(selection, ReduceStage)
        assert selection.chooses_by_masks == ("masks" in candidates.reads) == by_masks
        assert set(weight_inputs(prefix, chosen=True).values()) == {train.name, selection.name}
    assert [stage.name for stage in Pipeline(tuple(stages))][3:] == [
        "second_train",
        "second_candidates",
        "second_selection",
    ]
