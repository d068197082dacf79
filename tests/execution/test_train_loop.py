"""The training loop: the same curve for any number of workers and micro-batches, and after a resume."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.execution import toy_training
from tests.gloo import run_on_gloo

from wsss.execution.train_loop import (
    LoopEvents,
    LoopSettings,
    TrainingError,
    epoch_order,
    run_training,
    split_batch,
)
from wsss.train_task import TrainTask


def train(task: dict[str, Any] | None = None, **settings: Any) -> tuple[dict[str, list[float]], list[float]]:
    made = toy_training.task(**task or {})
    return run_training(made, 3, LoopSettings(**settings), toy_training.events(), None), toy_training.numbers(made)


def train_with_workers(world_size: int, micro_batch: int = 0, task: dict[str, Any] | None = None) -> Any:
    return run_on_gloo(toy_training.worker, world_size, micro_batch, task or {})[0]


def assert_same_run(one: Any, other: Any) -> None:
    assert one[0].keys() == other[0].keys()
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], other[0][name], rtol=2e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-4, atol=1e-6)


def test_losses_fall_and_are_recorded_from_the_epoch_they_start() -> None:
    history, _ = train()
    assert len(history["loss"]) == 12
    assert np.isnan(history["loss/late"][:4]).all() and np.isfinite(history["loss/late"][4:]).all()
    assert np.mean(history["loss/masked"][-4:]) < 0.7 * np.mean(history["loss/masked"][:4])
    assert history["learning_rate/sgd"][0] == pytest.approx(0.1)
    assert history["learning_rate/sgd"][-1] == pytest.approx(0.1 * (1 / 12) ** 0.9)


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_micro_batches_do_not_change_the_curve(micro_batch: int) -> None:
    assert_same_run(train(), train(micro_batch=micro_batch))


@pytest.mark.parametrize(("world_size", "micro_batch"), [(2, 0), (3, 2)])
def test_the_number_of_workers_does_not_change_the_curve(world_size: int, micro_batch: int) -> None:
    assert_same_run(train(), train_with_workers(world_size, micro_batch))


CLIPPED: dict[str, Any] = {"clip_norm": 0.05}


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 5), (2, 0)])
def test_gradients_are_clipped_by_the_norm_of_the_whole_batch(world_size: int, micro_batch: int) -> None:
    expected = train(CLIPPED)
    assert not np.allclose(expected[1], train()[1], rtol=1e-2)
    others = train_with_workers(world_size, micro_batch, CLIPPED) if world_size > 1 else train(CLIPPED, micro_batch=5)
    assert_same_run(expected, others)


def test_the_clipped_gradient_of_all_optimizers_together_has_the_given_norm() -> None:
    norms: list[float] = []
    task = toy_training.task(epochs=2, **CLIPPED)
    parameters = list(task.module.parameters())
    inner = task.optimizers[0].optimizer.step
    task.optimizers[0].optimizer.step = lambda *a: (  # pyright: ignore[reportAttributeAccessIssue]
        norms.append(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item()),
        inner(*a),
    )[1]
    run_training(task, 3, LoopSettings(), toy_training.events(), None)
    assert norms == pytest.approx([0.05] * len(norms), rel=1e-4) and len(norms) == 8


def test_samples_may_be_drawn_in_the_order_of_the_list() -> None:
    drawn: list[int] = []
    task = toy_training.task(samples=25, epochs=2, shuffle=False)
    inner = task.samples.sample
    task.samples.sample = lambda index, rng: (  # pyright: ignore[reportAttributeAccessIssue]
        drawn.append(index),
        inner(index, rng),
    )[1]
    run_training(task, 3, LoopSettings(), toy_training.events(), None)
    assert drawn == [*range(24)] * 2, "the last sample fills no batch"


# 25 samples in batches of 12: the last batch is one sample, so the second worker has no share of it.
CUT = {"samples": 25, "steps": 8, "keep_last": True}


def test_the_last_batch_counts_once_however_many_workers_there_are() -> None:
    task = {**CUT, "norm": True}
    assert_same_run(train(task), train_with_workers(2, task=task))


def test_steps_end_a_training_inside_an_epoch() -> None:
    history, _ = train({"steps": 10})
    whole, _ = train({"epochs": 3})
    assert len(history["loss"]) == 10
    assert history["loss"][0] == whole["loss"][0]
    assert history["learning_rate/sgd"][-1] == pytest.approx(0.1 * (1 / 10) ** 0.9), "schedules know the steps"
    assert_same_run(train({"steps": 12}), train({"epochs": 3}))


def test_the_last_batch_is_dropped_or_kept() -> None:
    drawn: list[int] = []

    def counted(**settings: Any) -> TrainTask:
        drawn.clear()
        made = toy_training.task(samples=25, epochs=2, **settings)
        made.denominators = lambda batch, inner=made.denominators: (drawn.append(len(batch["x"])), inner(batch))[1]
        run_training(made, 3, LoopSettings(), toy_training.events(), None)
        return made

    assert counted().total_steps() == 4 and drawn == [12, 12] * 2
    assert counted(keep_last=True).total_steps() == 6 and drawn == [12, 12, 1] * 2
    assert counted(keep_last=True, group_size=2).total_steps() == 4 and drawn == [12, 12] * 2, "whole groups only"
    assert toy_training.task(samples=5, keep_last=True).total_steps() == 3


def test_a_training_has_epochs_or_steps() -> None:
    with pytest.raises(ValueError, match="epochs or steps"):
        toy_training.task(epochs=2, steps=3)
    with pytest.raises(ValueError, match="epochs or steps"):
        toy_training.task(epochs=0)


def test_candidates_of_a_training_with_steps() -> None:
    kept: list[int] = []
    task = toy_training.task(**CUT, candidate_every=2)
    assert (task.steps_per_epoch(), task.total_epochs()) == (3, 3)
    run_training(task, 3, LoopSettings(), toy_training.events(candidates=kept), None)
    assert kept == [2, 3], "the weights at the last step belong to the epoch that it cuts"


@pytest.mark.parametrize("task_settings", [{}, CUT])
def test_a_resumed_run_equals_an_undisturbed_one(task_settings: dict[str, Any]) -> None:
    states: list[Any] = []
    whole = toy_training.task(**task_settings)
    events = toy_training.events()
    keep = type(events)(
        save=lambda s, step: states.append(copy.deepcopy(s)), step=events.step, candidate=events.candidate
    )
    expected = run_training(whole, 3, LoopSettings(checkpoint_steps=3), keep, None)
    assert [state["step"] for state in states] == ([3, 6] if task_settings else [3, 4, 6, 8, 9])
    for state in states:
        task = toy_training.task(**task_settings)
        history = run_training(task, 3, LoopSettings(), events, state)
        for name in expected:
            np.testing.assert_array_equal(history[name], expected[name])
        for one, other in zip(task.module.parameters(), whole.module.parameters(), strict=True):
            assert torch.equal(one, other)


def test_statistics_are_recorded_and_no_part_of_the_total() -> None:
    history, _ = train()
    assert "loss/large" not in history and len(history["statistic/large"]) == 12
    assert all(0 <= value <= 1 for value in history["statistic/large"]) and np.ptp(history["statistic/large"]) > 0
    late = np.nan_to_num(history["loss/late"])
    np.testing.assert_allclose(history["loss"], np.array(history["loss/masked"]) + 0.1 * late, rtol=1e-6)


def test_candidates_of_the_first_epochs_may_be_left_out() -> None:
    kept: list[int] = []
    task = toy_training.task(epochs=5, candidate_every=2, candidates_after=2)
    run_training(task, 3, LoopSettings(), toy_training.events(candidates=kept), None)
    assert kept == [4, 5]


def test_candidates() -> None:
    epochs: list[int] = []
    run_training(
        toy_training.task(epochs=5, candidate_every=2), 3, LoopSettings(), toy_training.events(candidates=epochs), None
    )
    assert epochs == [2, 4, 5]


@pytest.mark.parametrize("task_settings", [{}, CUT])
def test_a_training_that_stops_early_goes_on_as_if_it_had_not(task_settings: dict[str, Any]) -> None:
    whole = toy_training.task(**task_settings)
    expected = run_training(whole, 3, LoopSettings(), toy_training.events(), None)
    saved: list[dict[str, Any]] = []
    keep = LoopEvents(
        save=lambda state, step: saved.append(copy.deepcopy(state or {})),
        step=lambda *told: None,
        candidate=lambda *told: None,
    )
    early = toy_training.task(**task_settings)
    history = run_training(early, 3, LoopSettings(), keep, None, until_epoch=1)
    steps = early.steps_per_epoch()
    assert {len(values) for values in history.values()} == {steps} and saved[-1]["step"] == steps
    assert history["loss"] == expected["loss"][:steps], "schedules are those of the whole training"
    rest = toy_training.task(**task_settings)
    assert run_training(rest, 3, LoopSettings(), toy_training.events(), saved[-1])["loss"] == expected["loss"]
    for ours, theirs in zip(rest.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_notice_of_a_nodes_end_is_one_more_checkpoint() -> None:
    usual = toy_training.noticed(0, 1, after=0)
    steps = toy_training.task().steps_per_epoch()
    assert steps > 1 and usual[0] == steps
    assert toy_training.noticed(0, 1, after=1) == [1, *usual]
    assert toy_training.noticed(0, 1, after=steps) == usual, "what is saved anyway is saved once"


def test_all_workers_save_when_one_of_them_has_the_notice() -> None:
    usual = toy_training.noticed(0, 1, after=0)
    assert run_on_gloo(toy_training.noticed, 2, 1) == [[1, *usual]] * 2


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_weights_of_a_training_that_stops_early_are_a_candidate(from_checkpoint: bool) -> None:
    saved: list[dict[str, Any]] = []
    kept: list[int] = []
    events = LoopEvents(
        save=lambda state, step: saved.append(copy.deepcopy(state or {})),
        step=lambda *told: None,
        candidate=lambda epoch, weights: kept.append(epoch),
    )
    run_training(toy_training.task(candidate_every=2), 3, LoopSettings(), events, None, until_epoch=1)
    assert kept == [1]
    if from_checkpoint:  # killed after its last checkpoint
        kept.clear()
        run_training(toy_training.task(candidate_every=2), 3, LoopSettings(), events, saved[-1], until_epoch=1)
        assert kept == [1]


def test_a_loss_that_is_not_finite_stops_the_stage() -> None:
    task = toy_training.task()
    task.optimizers[0].optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(TrainingError, match="not finite at step"):
        run_training(task, 3, LoopSettings(), toy_training.events(), None)


def test_too_few_samples() -> None:
    with pytest.raises(TrainingError, match="do not fill one batch"):
        run_training(toy_training.task(samples=5), 3, LoopSettings(), toy_training.events(), None)


def test_the_order_of_an_epoch_is_fixed_by_seed_and_epoch() -> None:
    assert np.array_equal(epoch_order(1, 2, 50), epoch_order(1, 2, 50))
    assert not np.array_equal(epoch_order(1, 2, 50), epoch_order(1, 3, 50))
    assert not np.array_equal(epoch_order(1, 2, 50), epoch_order(2, 2, 50))
    assert sorted(epoch_order(1, 2, 50)) == list(range(50))


@pytest.mark.parametrize("batch", [2, 6, 16])
@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batch", [0, 1, 3])
def test_a_split_keeps_every_sample_and_every_group(
    batch: int, group_size: int, world_size: int, micro_batch: int
) -> None:
    indices = list(range(100, 100 + batch))
    if batch // group_size < world_size:
        with pytest.raises(TrainingError, match="cannot feed"):
            split_batch(indices, group_size, world_size, micro_batch)
        return
    shares = split_batch(indices, group_size, world_size, micro_batch)
    assert [index for share in shares for micro in share for index in micro] == indices
    assert len({len(share) for share in shares}) == 1, "collective operations must match"
    for share in shares:
        for micro in share:
            assert micro and len(micro) % group_size == 0
            assert all(micro[i] + 1 == micro[i + 1] for i in range(0, len(micro), group_size) if group_size == 2)
