"""Learning-rate schedules as pure functions of the step: a factor on each parameter group's initial rate."""

from __future__ import annotations


def polynomial_decay(step: int, total_steps: int, power: float = 0.9, floor: float = 0.0) -> float:
    """Factor `max((1 - step / total_steps) ** power, floor)` for the optimizer step `step` (from 0).

    `floor` is a fraction of the initial rate: for an absolute minimum give `minimum_rate / initial_rate`. At
    `total_steps` and after it the factor is `floor`.

    Raises:
        ValueError: a negative step, or no steps at all.
    """
    if total_steps <= 0 or step < 0:
        raise ValueError(f"polynomial_decay needs step >= 0 and total_steps > 0, got {step=} and {total_steps=}")
    remaining = max(0.0, 1.0 - step / total_steps)
    return max(remaining**power, floor)
