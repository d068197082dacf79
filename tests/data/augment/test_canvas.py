"""Images on the padded canvas of multi-scale inference."""

from __future__ import annotations

import numpy as np
import pytest

from wsss.data.augment.canvas import CanvasError, canvas_inputs

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 41, 3)).astype(np.uint8)


@pytest.mark.parametrize("canvas", [(64, 64), (48, 80)])
def test_every_scale_lies_in_the_middle_of_the_canvas(canvas: tuple[int, int]) -> None:
    inputs = canvas_inputs(IMAGE, (1.0, 0.5, 1.5), canvas)
    assert {each.image.shape for each in inputs} == {(3, *canvas)}
    places = [each.placement for each in inputs]
    assert [(p.height, p.width) for p in places[::2]] == [(30, 41), (15, 20), (45, 62)]  # halves to even
    assert [p.mirrored for p in places] == [False, True] * 3
    for plain, mirrored in zip(inputs[::2], inputs[1::2], strict=True):
        place = plain.placement
        assert (place.top, place.left) == ((canvas[0] - place.height) // 2, (canvas[1] - place.width) // 2)
        outside = plain.image.copy()
        rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
        outside[:, rows, columns] = 0
        assert not outside.any(), "the canvas is 0 after normalization"
        assert np.array_equal(mirrored.image[:, rows, columns], plain.image[:, rows, columns][:, :, ::-1])


@pytest.mark.parametrize("canvas", [(64, 64), (60, 81), (59, 100)])
def test_an_image_beyond_the_canvas_is_refused(canvas: tuple[int, int]) -> None:
    with pytest.raises(CanvasError, match=r"set inference.infer_canvas to 82 or more"):
        canvas_inputs(IMAGE, (2.0,), canvas)
