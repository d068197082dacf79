"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from wsss.schedules import polynomial_decay


def test_polynomial_decay_falls_from_one_to_its_floor() -> None:
    factors = [polynomial_decay(step, 10, power=0.9, floor=0.2) for step in range(12)]
    assert factors[0] == 1
    assert factors[5] == pytest.approx(0.5**0.9)
    assert factors == sorted(factors, reverse=True)
    assert factors[9] == factors[10] == factors[11] == 0.2
    assert polynomial_decay(10, 10) == 0
    assert polynomial_decay(3, 10, power=1.0) == pytest.approx(0.7)


def test_impossible_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="total_steps"):
        polynomial_decay(0, 0)
    with pytest.raises(ValueError, match="step"):
        polynomial_decay(-1, 5)
