from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.pipeline import Pipeline, ReduceStage, Reduction, StageContext
from wsss.reporting.comparability import list_deviations


def compute(context: StageContext) -> Reduction:
    return Reduction(metrics={})


def dataset(name: str, **sizes: int) -> Dataset:
    lists = {key: tuple(f"{key}_{index}" for index in range(size)) for key, size in sizes.items()}
    return Dataset(
        name=name,
        root=Path(),
        classes=("background", "a"),
        lists=lists,
        image_labels={},
        label_source="masks",
        label_provenance="",
    )


def pipeline(*lists: str | None) -> Pipeline:
    stages = tuple(
        ReduceStage(name=f"stage{index}", version=1, config=None, image_list=name, compute=compute)
        for index, name in enumerate(lists)
    )
    return Pipeline(stages=stages)


def test_a_short_list_is_named():
    found = list_deviations(pipeline("train", "val", None, "val"), dataset("voc2012", train=1464, val=338))
    assert found == ("val has 338 images, the official list 1449",)


def test_only_lists_that_are_used_count():
    assert list_deviations(pipeline("train"), dataset("voc2012", train=1464, val=3)) == ()


def test_a_data_set_without_official_lists_has_no_deviation():
    assert list_deviations(pipeline("train"), dataset("shapes", train=24)) == ()
