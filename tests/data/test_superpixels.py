import json

import numpy as np
import pytest

from wsss.data import transforms
from wsss.data.superpixels import ids_to_rgb, rgb_to_ids, slic_superpixels


def test_slic_finds_the_edge_and_is_deterministic():
    image = np.full((60, 80, 3), 40, np.uint8)
    image[:, 33:] = 210
    ids = slic_superpixels(image, segments=24)
    assert ids.dtype == np.int32
    assert ids.shape == (60, 80)
    np.testing.assert_array_equal(np.unique(ids), np.arange(ids.max() + 1))
    assert 12 <= ids.max() + 1 <= 48
    assert not set(np.unique(ids[:, :33])) & set(np.unique(ids[:, 33:]))
    np.testing.assert_array_equal(ids, slic_superpixels(image, segments=24))


def test_id_colours_round_trip():
    ids = np.array([[0, 255, 256], [65535, 65536, (1 << 24) - 1]], np.int32)
    np.testing.assert_array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)
    with pytest.raises(ValueError, match="2\\^24"):
        ids_to_rgb(np.array([[1 << 24]]))


def test_superpixel_decode_matches_the_reference(shared_parity):
    spec = json.loads((shared_parity / "superpixel_decode.json").read_text())
    arrays = np.load(shared_parity / "superpixel_decode.npz", allow_pickle=False)
    ids = rgb_to_ids(arrays["in_rgb"]) + 1
    np.testing.assert_array_equal(ids, arrays["ids"])
    scales = [name for name in spec["outputs"] if name.startswith("rescaled_")]
    assert scales
    for name in scales:
        rescaled = transforms.rescale(ids, float(name.removeprefix("rescaled_")), "nearest")
        np.testing.assert_array_equal(rescaled, arrays[name])
