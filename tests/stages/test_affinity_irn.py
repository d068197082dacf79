"""Labels of the affinity network on small arrays."""

from dataclasses import replace

import numpy as np

from wsss.stages.affinity_irn import IrLabelConfig, ir_label


def _image() -> np.ndarray:
    left = np.arange(48) < 24
    grey = np.where(left, 40, 200).astype(np.uint8)[None].repeat(40, axis=0)
    return grey[..., None].repeat(3, axis=2)


def test_label_has_classes_background_and_unsure():
    high_res = np.zeros((2, 40, 48), dtype=np.float32)
    high_res[0, :, :20] = 0.9
    high_res[1, :, 24:36] = 0.2
    label = ir_label(_image(), high_res, np.array([3, 9]), replace(IrLabelConfig(), crf_iterations=1)).label
    assert label[20, 5] == 3 and label[20, 46] == 0 and label[20, 30] == 255
    assert set(np.unique(label)) <= {0, 3, 255}


def test_an_image_without_classes_is_background():
    nothing = np.zeros((0, 40, 48), dtype=np.float32)
    assert not ir_label(_image(), nothing, np.array([], dtype=np.int64), IrLabelConfig()).label.any()
