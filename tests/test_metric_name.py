"""Names of metrics: text from parts and parts from text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsss.metric_name import ENDINGS, SPLITS, MetricName

_WORDS = st.lists(st.sampled_from(["miou", "pixel", "accuracy", "crf", "image", "labels", "2", "aug"]), max_size=3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cam/miou_train", ("cam", "miou", "train", "", "")),
        ("cam/oracle_threshold_train", ("cam", "oracle_threshold", "train", "", "")),
        ("pseudo_label/miou_train_cross_fitted", ("pseudo_label", "miou", "train", "", "cross_fitted")),
        ("segmentation/miou_val_crf_image_labels_all_background", (
            "segmentation", "miou", "val", "crf_image_labels", "all_background")),
        ("segmentation/miou_val_crf_oracle", ("segmentation", "miou", "val", "crf", "oracle")),
        ("segmentation/miou_train_aug_crf", ("segmentation", "miou", "train_aug", "crf", "")),
        ("segmentation/miou_trainval", ("segmentation", "miou", "trainval", "", "")),
        ("segmentation/oracle_iterations_val_crf", ("segmentation", "oracle_iterations", "val", "crf", "")),
        ("segmentation_selection/miou_val_training_size_last", (
            "segmentation_selection", "miou", "val", "training_size_last", "")),
        ("segmentation_selection/mean_average_precision_val", (
            "segmentation_selection", "mean_average_precision", "val", "", "")),
        ("segmentation_selection/epoch", ("segmentation_selection", "epoch", "", "", "")),
        ("a/b/score_val", ("a/b", "score", "val", "", "")),
        ("evaluation", ("", "evaluation", "", "", "")),
    ],
)  # fmt: skip
def test_a_name_is_read_by_its_split_and_its_ending(text: str, parts: tuple[str, ...]) -> None:
    assert MetricName.parse(text) == MetricName(*parts)
    assert str(MetricName(*parts)) == text


@given(st.text(alphabet="av_/ltrinuge", max_size=20) | st.text(max_size=12))
def test_any_text_is_a_name_and_comes_back(text: str) -> None:
    assert str(MetricName.parse(text)) == text


@given(
    scored=_WORDS, measure=_WORDS.filter(bool), split=st.sampled_from(SPLITS), variant=_WORDS,
    ending=st.sampled_from(("", *ENDINGS)),
)  # fmt: skip
def test_parts_come_back_from_the_text_or_are_refused(
    scored: list[str], measure: list[str], split: str, variant: list[str], ending: str
) -> None:
    parts = ("_".join(scored), "_".join(measure), split, "_".join(variant), ending)
    if split == "train" and variant[:1] == ["aug"]:
        with pytest.raises(ValueError, match="train_aug"):
            MetricName(*parts)
    else:
        name = MetricName(*parts)
        assert MetricName.parse(str(name)) == name


@pytest.mark.parametrize(
    "parts", [
        ("cam", "miou", "my_list"), ("cam", "miou", "val", "crf_oracle"), ("cam", "miou", "", "crf"),
        ("cam", "miou_val", "train"), ("", "a/b"),
    ],
)  # fmt: skip
def test_a_value_whose_text_reads_as_another_is_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="it reads as"):
        MetricName(*parts)


def test_the_main_miou_is_told_from_what_stands_beside_it() -> None:
    name = MetricName.parse("segmentation/miou_val_crf")
    assert name.is_main_miou and name.is_fraction
    assert str(name.beside("low")) == "segmentation/miou_val_crf_low"
    assert not name.beside("low").is_main_miou and name.beside("low").is_fraction
    threshold = name.beside("oracle").of("oracle_threshold")
    assert str(threshold) == "segmentation/oracle_threshold_val_crf"
    assert not threshold.is_main_miou and not threshold.is_fraction
