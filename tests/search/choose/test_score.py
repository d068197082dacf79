"""Values of trials: which images choose, which report, and what a curve gives under each rule."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsss.evaluation.bootstrap import bootstrap_interval_from_counts
from wsss.evaluation.confusion import miou
from wsss.evaluation.selection import half_of
from wsss.search.choose.score import ImageCounts, Score, read_counts, score_counts, score_of
from wsss.store import Artifact, open_store

THRESHOLDS = np.array([0.1, 0.2, 0.3])
NAMES = [f"image{number}" for number in range(12)]
CHOOSING = np.array([half_of(name) == 0 for name in NAMES])


def confusions() -> np.ndarray:
    """(N, T, 2, 2): the choosing half is best at 0.1, the reporting one at 0.3, all together at 0.2."""
    right = np.where(CHOOSING[:, None], [[90, 80, 10]], [[10, 80, 85]])
    result = np.zeros((len(NAMES), 3, 2, 2), dtype=np.int64)
    result[..., 0, 0] = result[..., 1, 1] = right
    result[..., 0, 1] = result[..., 1, 0] = 100 - right
    return result


def stored(folder: Path, default: int = 0, suffix: str = "", mean_over: str = "defined") -> tuple[Artifact, Artifact]:
    """An evaluation and its scorer, as the stages of `wsss.stages.score` leave them."""
    store = open_store(str(folder))
    per_image = confusions()
    scorer = store.writer("score", "k")
    scorer.add_shard(0, {name: {"confusion": per_image[i], "thresholds": THRESHOLDS} for i, name in enumerate(NAMES)})
    counts = np.stack([np.stack([np.diag(m), m.sum(1), m.sum(0)]) for m in per_image[:, default]])
    value = float(miou(per_image[:, default].sum(0)))
    evaluation = store.writer("evaluation", "k")
    evaluation.add_file("metrics.json", json.dumps({f"x/miou_val{suffix}": value}).encode())
    curve = [{"threshold": t, "default": i == default} for i, t in enumerate(THRESHOLDS.tolist())]
    means = [{"metric": f"x/miou_val{suffix}", "mean_over": mean_over}]
    tables = {f"curve{suffix}": curve, f"miou{suffix}": means}
    evaluation.add_file("tables.json", json.dumps(tables).encode())
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"image_counts{suffix}": counts, f"images{suffix}": np.array(NAMES)}
    np.savez(buffer, allow_pickle=False, **arrays, **{f"thresholds{suffix}": THRESHOLDS})
    evaluation.add_file("arrays.npz", buffer.getvalue())
    return evaluation.publish({}), scorer.publish({})


def value_at(images: np.ndarray, threshold: int) -> float:
    return float(miou(confusions()[images][:, threshold].sum(0)))


def test_held_out_chooses_on_one_half_and_reports_on_the_other(tmp_path: Path) -> None:
    score = score_of("x/miou_val", "held_out", *stored(tmp_path, default=2), (0.0, 1.0))
    assert score.threshold == pytest.approx(0.1)
    assert score.value == score.chosen == pytest.approx(value_at(CHOOSING, 0))
    assert score.held_out == score.quoted == pytest.approx(value_at(~CHOOSING, 0))
    assert score.quoted < score.value, "choosing on the images that are reported would look better"
    counts = confusions()[~CHOOSING][:, 0]
    per_image = np.stack([np.stack([np.diag(m), m.sum(1), m.sum(0)]) for m in counts])
    interval = bootstrap_interval_from_counts(per_image)
    assert (score.low, score.high) == (interval.low, interval.high)


def test_oracle_chooses_and_reports_on_all_images(tmp_path: Path) -> None:
    score = score_of("x/miou_val", "oracle", *stored(tmp_path), (0.0, 1.0))
    everything = np.ones(len(NAMES), dtype=bool)
    assert score.threshold == pytest.approx(0.2)
    assert score.value == score.oracle == score.quoted == pytest.approx(value_at(everything, 1))
    assert score.default_value == pytest.approx(value_at(everything, 0))
    assert [point.value for point in score.curve] == pytest.approx([value_at(everything, t) for t in range(3)])
    assert [point.chosen for point in score.curve] == pytest.approx([value_at(CHOOSING, t) for t in range(3)])
    assert [point.reported for point in score.curve] == pytest.approx([value_at(~CHOOSING, t) for t in range(3)])


def test_the_default_threshold_is_not_chosen(tmp_path: Path) -> None:
    score = score_of("x/miou_val", "default_threshold", *stored(tmp_path, default=2), (0.0, 1.0))
    assert score.threshold == pytest.approx(0.3)
    assert score.value == score.default_value
    assert score.held_out is None and score.oracle is not None and score.oracle > score.value


def test_thresholds_outside_the_searched_range_are_not_chosen(tmp_path: Path) -> None:
    artifacts = stored(tmp_path, default=2)
    assert score_of("x/miou_val", "held_out", *artifacts, (0.15, 0.3)).threshold == pytest.approx(0.2)
    assert score_of("x/miou_val", "oracle", *artifacts, None).threshold == pytest.approx(0.3), "not searched at all"


def test_variants_and_evaluations_without_a_curve(tmp_path: Path) -> None:
    evaluation, _ = stored(tmp_path, default=1, suffix="_crf")
    counts = read_counts("x/miou_val_crf", evaluation, None)
    assert counts is not None and counts.images.shape == (12, 1, 3, 2)
    score = score_of("x/miou_val_crf", "held_out", evaluation, None, None)
    assert score.threshold is None and score.curve == ()
    assert score.chosen == pytest.approx(value_at(CHOOSING, 1))
    assert score.held_out == pytest.approx(value_at(~CHOOSING, 1))


def test_an_evaluation_without_counts_has_its_metric_alone(tmp_path: Path) -> None:
    writer = open_store(str(tmp_path)).writer("evaluation", "plain")
    writer.add_file("metrics.json", b'{"toy/miou": 0.25}')
    assert score_of("toy/miou", "held_out", writer.publish({}), None, None) == Score(
        value=0.25, quoted=0.25, default_value=0.25
    )


@pytest.mark.parametrize("mean_over", ["defined", "truth"])
def test_the_evaluation_says_how_its_mean_is_formed(tmp_path: Path, mean_over: str) -> None:
    """Both ways give one number where every class occurs, and other numbers on half of the images."""
    evaluation, scorer = stored(tmp_path, mean_over=mean_over)
    counts = read_counts("x/miou_val", evaluation, scorer)
    assert counts is not None and counts.mean_over == mean_over
    assert read_counts("x/miou_train", evaluation, scorer) is None


def test_the_best_threshold_ignores_undefined_scores() -> None:
    images = np.zeros((4, 2, 3, 2), dtype=np.int64)
    images[:, 1] = [[5, 5], [10, 10], [10, 10]]
    counts = ImageCounts(images, np.array([0.1, 0.2]), tuple(NAMES[:4]), "defined", 1)
    assert score_counts(counts, "held_out", (0.0, 1.0), 0.3).threshold == pytest.approx(0.2)
