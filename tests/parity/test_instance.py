"""Instance clusters of a displacement field, which no stage computes."""

import numpy as np
from tests.parity.instance import centroid_clusters, refined_centroids, split_by_clusters, suppress_fragments


def test_two_attractors_give_two_clusters():
    y, x = np.mgrid[0:10, 0:21].astype(np.float32)
    target = np.where(x < 10, 5.0, 15.0)
    field = np.stack([5.0 - y, target - x]) * 0.8
    centroids = refined_centroids(field)
    clusters = centroid_clusters(centroids, field, threshold=2.0)
    assert clusters.shape == (2, 10, 21) and np.array_equal(clusters.sum(axis=0), np.ones((10, 21)))
    assert np.array_equal(clusters[0], (x < 10).astype(np.uint8))
    maps, keys = split_by_clusters(np.ones((1, 10, 21), dtype=np.float32), np.array([7]), clusters)
    assert np.array_equal(maps, clusters) and keys.tolist() == [7, 7]


def test_small_fragments_lose_their_score():
    label = np.zeros((20, 20), dtype=np.uint8)
    label[:10] = 3
    label[15, 15] = 3
    score = suppress_fragments(label, np.ones((20, 20), dtype=np.float32), min_share=0.01)
    assert score[15, 15] == 0 and score[:10].min() == 1 and score[12].min() == 1
