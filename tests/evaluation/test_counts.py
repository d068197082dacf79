import numpy as np
import pytest

from wsss.evaluation.confusion import EvaluationError
from wsss.evaluation.counts import Counts


def random_confusion(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Mostly zeros, as of pictures with a few classes; counts up to the largest that int32 holds."""
    values = rng.integers(0, 2**31 - 1, shape)
    return np.where(rng.random(shape) < rng.choice([0.0, 0.01, 0.5, 1.0]), values, 0)


@pytest.mark.parametrize("shape", [(2, 2), (21, 21), (81, 81), (46, 81, 81), (3, 4, 5, 5)])
def test_dense_and_sparse_are_the_same(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        dense = random_confusion(rng, *shape)
        counts = Counts.of(dense)
        stored = counts.arrays("x")
        assert stored["x_cells"].dtype == np.uint32 and stored["x_counts"].dtype == np.int32
        read = Counts.read(stored, "x")
        for one in (counts, read, Counts.read({"x": dense}, "x")):
            assert one.dense().dtype == np.int64
            np.testing.assert_array_equal(one.dense(), dense)
        if dense.ndim > 2:
            index = int(rng.integers(shape[0]))
            np.testing.assert_array_equal(read.at(index).dense(), dense[index])


def test_sums_are_the_same():
    rng = np.random.default_rng(1)
    parts = [random_confusion(rng, 4, 21, 21) for _ in range(30)]
    total = np.zeros((4, 21, 21), np.int64)
    for part in parts:
        Counts.of(part.astype(np.int32)).add_to(total)
    np.testing.assert_array_equal(total, np.sum(parts, axis=0))


def test_what_does_not_fit_is_refused():
    counts = Counts.of(np.eye(3, dtype=np.int32))
    with pytest.raises(EvaluationError, match=r"\(3, 3\) do not fit \(4, 4\)"):
        counts.add_to(np.zeros((4, 4), np.int64))
    with pytest.raises(EvaluationError, match=r"no counts 'confusion_crf'[\s\S]*it has: x_cells, x_counts, x_shape"):
        Counts.read(counts.arrays("x"), "confusion_crf")
    with pytest.raises(EvaluationError, match=r"\(\.\.\., C, C\)"):
        Counts.of(np.zeros((3, 4), np.int32))
