"""Padded inputs of WS-FCN."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_methods.wsfcn.transforms import (
    CanvasError,
    canvas_inputs,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 41, 3)).astype(np.uint8)


def test_every_scale_lies_in_the_middle_of_the_canvas() -> None:
    inputs = canvas_inputs(IMAGE, (1.0, 0.5, 1.5), 64)
    places = [each.placement for each in inputs]
    assert [(p.height, p.width) for p in places[::2]] == [(30, 41), (15, 20), (45, 62)]  # halves to even
    assert [p.mirrored for p in places] == [False, True] * 3
    for plain, mirrored in zip(inputs[::2], inputs[1::2], strict=True):
        place = plain.placement
        assert (place.top, place.left) == ((64 - place.height) // 2, (64 - place.width) // 2)
        outside = plain.image.copy()
        rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
        outside[:, rows, columns] = 0
        assert not outside.any(), "the canvas is 0 after normalization"
        assert np.array_equal(mirrored.image[:, rows, columns], plain.image[:, rows, columns][:, :, ::-1])


def test_an_image_beyond_the_canvas_is_refused() -> None:
    with pytest.raises(CanvasError, match=r"set inference.infer_canvas to 82 or more"):
        canvas_inputs(IMAGE, (2.0,), 64)
